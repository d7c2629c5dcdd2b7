"""Evaluation as a stage of a run: reads its model, styles and attributes, writes evaluation.json."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from stylex import classifiers
from stylex.classifiers import Classifier
from stylex.data import Dataset, ImageSet
from stylex.errors import ClassifierError, ConfigError, DataError, RunError
from stylex.evaluation.controls import (
    RANDOM_WEIGHTS,
    Rankings,
    other_selection,
    picked,
    random_weight_ranking,
)
from stylex.evaluation.coverage import by_class
from stylex.evaluation.extractors import Extractor, load_extractor
from stylex.evaluation.factors import FactorDetector, agreement
from stylex.evaluation.measure import COUNTS, Evaluation, TestImages, evaluate, identify, prepare
from stylex.evaluation.quality import measure_quality
from stylex.evaluation.reliance import FACES, background_of, redraw, some_faces
from stylex.evaluation.study_protocol import StudyResult, StudySettings, study_protocol
from stylex.evaluation.truth import Truth, measure_truth
from stylex.explainer import Explainer
from stylex.hardware import place
from stylex.model import Model
from stylex.perceptual import Distance, load_perceptual
from stylex.run import Run, read_json, read_tensors, write_json

log = logging.getLogger("stylex")

NEEDED = ("attributes", "images", "measured", "agreement", "l1", "methods", "single")
"""What an evaluation.json must have to be read; one that another version wrote may have less."""


PARTS = ("factors", "quality", "truth")
"""What an evaluation holds only where it was asked for."""

OTHER_SELECTION = "AttFind's other selection"
"""Name of these controls where they are left out."""

CONTROLS = frozenset({"AttFind subset", "AttFind independent", "AttFind removal", RANDOM_WEIGHTS})
"""Methods that `control` adds."""


@dataclass(frozen=True)
class QualityMeasures:
    """What image quality is measured with; see `load_measures`."""

    reals: Tensor
    extractor: Extractor
    perceptual: tuple[str, Distance]


@dataclass(frozen=True)
class Faces:
    """Rendered test faces that are drawn again with one factor changed, the colour behind, their source."""

    images: ImageSet
    background: str
    source: str | None = None


def load_faces(data: Dataset, source: str, count: int = FACES) -> Faces:
    """Test faces of a source of avatars, evenly spaced.

    Raises:
        DataError: there are no test images.
    """
    if not len(data.test):
        raise DataError(f"{source}: no test faces to draw again; add images")
    return Faces(some_faces(data.test, count), background_of(source), source)


def load_measures(
    explainer: Explainer,
    reals: Tensor,
    *,
    perceptual: str = "efficientnet-lite0",
    extractor: str = "auto",
) -> QualityMeasures:
    """Load the networks by name, onto the model's device.

    Args:
        reals: test images [N, 3, R, R] in [-1, 1].
        perceptual: see `perceptual.load_perceptual`; not "none".
        extractor: see `extractors.load_extractor`.

    Raises:
        ConfigError: an unknown name; weights or a package that cannot be had; images too small.
    """
    model = explainer.model
    distance = load_perceptual(perceptual, model.classifier, explainer.run.config.resolution)
    if distance is None:
        raise ConfigError("a perceptual distance by no network is none; choose efficientnet-lite0")
    features = load_extractor(extractor)
    distance.to(model.hardware.device)
    features.to(model.hardware.device)
    return QualityMeasures(reals, features, (perceptual, distance))


def load_detector(explainer: Explainer, file: str | Path) -> FactorDetector:
    """The factor detector in a file, on the model's hardware, fit for the run.

    Raises:
        CheckpointError: not a detector. DataError: it reads images of another size than the run's.
        RunError: the model has no encoder, so that there are no reconstructions to read.
    """
    model, size = explainer.model, explainer.run.config.resolution
    if model.encoder is None:
        raise RunError(
            f"recipe '{model.recipe.name}' has no encoder, so no image is reconstructed: leave out --factors"
        )
    detector = FactorDetector.load(file, model.hardware)
    if detector.size != size:
        raise DataError(f"{file}: reads images of {detector.size} pixels, the run has {size}")
    return detector


def evaluate_run(
    explainer: Explainer,
    test: TestImages,
    *,
    judge: str | Path | None = None,
    detector: FactorDetector | None = None,
    quality: QualityMeasures | None = None,
    source: str | None = None,
    faces: Faces | None = None,
    control: bool = False,
    counts: Sequence[int] = COUNTS,
    on_progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Measure flip curves, controls and reconstruction on test images and keep them in the run.

    What an earlier evaluation of the same attributes on the same images measured and this one was not asked
    for (factors, quality, truth, the rankings of `control` and why others are left out) stays in
    evaluation.json, and is said; of other attributes or images it goes.

    Args:
        test: what `prepare` made of the test images.
        judge: an independently trained classifier; by default the run's judge.safetensors where there is one.
        detector: of `load_detector`: measure which factors survive reconstruction.
        quality: of `load_measures`: measure image quality too.
        source: where the test images came from, by default the run's own source.
        control: measure AttFind's published selections too, but for what the run's own ranking is, and the
            attributes of a random-weight classifier (a search of its own); what cannot be had is left out,
            and the reason kept.
        counts: numbers of coordinates at which flip curves are measured.
        faces: of `load_faces`: compare with the classifier's true reliance too; needs a detector.

    Raises:
        ClassifierError: the judge has other classes, or is the classifier explained.
        ConfigError: faces without a detector.
        DataError: the faces are not those that their table describes.
    """
    run, model = explainer.run, explainer.model
    if faces is not None and detector is None:
        raise ConfigError("ground truth needs a factor detector: --factors FILE ('stylex factors train')")
    judging = load_judge(run, model, judge)
    others, left_out = _controls(explainer, on_progress) if control else ({}, {})
    found = evaluate(
        model,
        explainer.discovery.space,
        explainer.findings,
        explainer.discovery.styles,
        explainer.discovery.logits,
        test,
        judge=judging,
        seed=run.config.seed,
        counts=counts,
        others=others,
        on_progress=on_progress,
    )
    found = replace(found, left_out=left_out)
    if model.encoder is not None:
        covered = by_class(test, model.class_names, model.classifier.activation)
        about = replace(found.measured, source=source or run.data_source)
        found = replace(found, coverage=covered, measured=about)
    if detector is not None:
        found = replace(found, factors=agreement(detector, test.images, test.reconstructions))
    if quality is not None:
        figures = measure_quality(
            model,
            quality.reals,
            test,
            extractor=quality.extractor,
            perceptual=quality.perceptual,
            judge=judging,
            seed=run.config.seed,
            on_progress=on_progress,
        )
        found = replace(found, quality=figures)
    if faces is not None and detector is not None:
        found = replace(found, truth=_truth(explainer, faces, detector, on_progress))
    content = {
        "attributes": explainer.fingerprint,
        "judge": None if judging is None else judging.fingerprint,
        **found.to_json(),
    }
    write_json(_file(run), _with_kept(explainer, content, source, control))
    return found


def _controls(
    explainer: Explainer, on_progress: Callable[[str], None] | None
) -> tuple[dict[str, Rankings], dict[str, str]]:
    """Rankings of the controls, and of those that this run or classifier cannot have, why."""
    others: dict[str, Rankings] = dict(picked(explainer.findings))
    left_out: dict[str, str] = {}
    try:
        name, rankings = other_selection(explainer)
        others[name] = rankings
    except (RunError, DataError) as error:  # packed, or searched by screening: no effects to select from
        left_out[OTHER_SELECTION] = str(error)
    if on_progress is not None:
        on_progress(f"effects on a {RANDOM_WEIGHTS}")
    try:
        others[RANDOM_WEIGHTS] = random_weight_ranking(explainer, seed=explainer.run.config.seed)
    except (RunError, DataError, ClassifierError) as error:  # weights that cannot be drawn, or all one class
        left_out[RANDOM_WEIGHTS] = str(error)
    for name, reason in left_out.items():
        log.warning("%s is left out: %s", name, reason)
    return others, left_out


def _with_kept(
    explainer: Explainer, content: dict[str, Any], source: str | None, control: bool
) -> dict[str, Any]:
    """An evaluation, with the parts of the run's earlier one that still hold in place of those not measured.

    Why a control is left out stays and goes with the controls; with `control` it was asked for anew.
    Test images that the model samples say nothing of the real ones that image quality was measured against:
    quality is kept there only where both are the run's own.
    """
    file = _file(explainer.run)
    try:
        old = read_json(file) if file.exists() else None
    except RunError:
        old = None  # damaged, and about to be replaced
    if not isinstance(old, dict):
        return content
    parts = [part for part in PARTS if content[part] is None and old.get(part) is not None]
    new = {method["method"] for method in content["methods"]}
    methods = [each for each in old.get("methods", []) if each["method"] in CONTROLS - new]
    rankings = sorted({each["method"] for each in methods})
    reasons = content["left_out"] if control else old.get("left_out", {})
    lost = parts + rankings
    if not lost and not reasons:
        return content
    if _images_of(old) != _images_of(content) or old.get("attributes") != content["attributes"]:
        if lost:
            log.warning("%s: %s of other attributes or images dropped", file, ", ".join(lost))
        return content
    confirming = "judge" in old and old["judge"] == content["judge"]
    kept = [part for part in parts if part != "quality" or confirming or not _asks_judge(old[part])]
    if explainer.model.encoder is None and source is not None and "quality" in kept:
        kept.remove("quality")
    found = {**content, **{part: old[part] for part in kept}}
    if confirming:
        found["methods"] = content["methods"] + methods
        own = f"AttFind {explainer.findings.settings.method}"
        there = {name if name == RANDOM_WEIGHTS else OTHER_SELECTION for name in rankings if name != own}
        found["left_out"] = {name: why for name, why in reasons.items() if name not in there}
        kept += rankings
    dropped = [part for part in lost if part not in kept]
    if dropped:
        log.warning("%s: %s of another judge or other images dropped", file, ", ".join(dropped))
    if kept:
        log.warning("%s: keeps %s as measured before", file, ", ".join(kept))
    return found


def _images_of(content: dict[str, Any]) -> tuple[Any, Any] | None:
    """Names and pixels of what an evaluation was measured on."""
    measured = content.get("measured")
    return (measured.get("names"), measured.get("sha256")) if isinstance(measured, dict) else None


def _asks_judge(quality: Any) -> bool:
    fidelity = quality.get("fidelity") if isinstance(quality, dict) else None
    return bool(fidelity and fidelity.get("judge_agreement") is not None)


def _truth(
    explainer: Explainer,
    faces: Faces,
    detector: FactorDetector,
    on_progress: Callable[[str], None] | None,
) -> Truth:
    say = on_progress or (lambda stage: None)
    model, seed = explainer.model, explainer.run.config.seed
    say(f"the classifier on {len(faces.images)} faces drawn again")
    redrawn = redraw(
        model.classifier,
        faces.images,
        detector.factors,
        background=faces.background,
        source=faces.source,
    )
    test = prepare(model, faces.images, seed)
    space, findings = explainer.discovery.space, explainer.findings
    return measure_truth(model, space, findings, test, redrawn, detector, seed=seed, on_progress=say)


def evaluate_study(
    run: Run,
    model: Model,
    training: ImageSet | None,
    settings: StudySettings,
    *,
    judge: str | Path | None = None,
    source: str | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> StudyResult:
    """Flip rates by the study's protocol, kept in the run as study.json; errors as `study_protocol`.

    The file also says of which weights they are (`model`: the checksum in model.safetensors), and who judged.

    Args:
        source: where the training images came from, by default the run's own source.
    """
    judging = load_judge(run, model, judge)
    found = study_protocol(
        model, training, settings, judge=judging, seed=run.config.seed, on_progress=on_progress
    )
    if model.encoder is not None:
        found = replace(found, measured=replace(found.measured, source=source or run.data_source))
    about = {
        "model": read_tensors(run.model_file)[1]["sha256"],
        "judge": None if judging is None else judging.fingerprint,
    }
    write_json(run.path / "study.json", about | found.to_json())
    return found


def is_evaluated(explainer: Explainer, test: TestImages | None = None) -> bool:
    """Whether the run holds an evaluation of its present attributes and, if given, on these test images.

    A damaged evaluation.json counts as none, and a warning says so: it can be made again.
    """
    file = _file(explainer.run)
    if not file.exists():
        return False
    try:
        content = read_json(file)
    except RunError as error:
        log.warning("%s; what it held is to be measured again", error)
        return False
    if not isinstance(content, dict) or not set(NEEDED) <= set(content):
        return False
    if test is not None:
        now, then = identify(explainer.model, test), content["measured"]
        if not isinstance(then, dict) or (then.get("names"), then.get("sha256")) != (
            list(now.names),
            now.sha256,
        ):
            return False
    return bool(content["attributes"] == explainer.fingerprint)


def load_evaluation(explainer: Explainer) -> dict[str, Any]:
    """evaluation.json as plain values.

    Raises:
        RunError: the run has not been evaluated since its attributes were found.
    """
    run = explainer.run
    if not is_evaluated(explainer):
        raise RunError(
            f"{run.path}: these attributes are not evaluated yet; 'stylex evaluate {run.path}' does it"
        )
    content: dict[str, Any] = read_json(_file(run))
    return content


def _file(run: Run) -> Path:
    return run.path / "evaluation.json"


def load_judge(run: Run, model: Model, given: str | Path | None = None) -> Classifier | None:
    """An independently trained classifier: the one given, else the run's judge.safetensors, else None.

    Raises:
        ClassifierError: it has other classes, or is the classifier explained.
    """
    source = given or (run.judge_file if run.judge_file.exists() else None)
    if source is None:
        return None
    judge = classifiers.load(source)
    if judge.class_names != model.class_names:
        raise ClassifierError(
            f"{source}: its classes are {', '.join(judge.class_names)}, "
            f"those explained are {', '.join(model.class_names)}"
        )
    if judge.fingerprint == model.classifier.fingerprint:
        raise ClassifierError(f"{source}: is the very classifier that is explained; it cannot judge itself")
    place(judge.freeze(), model.hardware)
    return judge
