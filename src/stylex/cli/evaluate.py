"""`stylex evaluate`: flip rates on images that neither training nor discovery saw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from stylex.cli.output import (
    AsJson,
    Device,
    OtherImages,
    PrecisionName,
    RunPath,
    Threads,
    choose_hardware,
    note,
    note_coverage,
    progress,
    result,
)
from stylex.errors import ConfigError
from stylex.evaluation.measure import Evaluation, MethodResult
from stylex.evaluation.quality import Quality
from stylex.evaluation.study_protocol import StudyResult
from stylex.evaluation.truth import TargetTruth, Truth, unreliable
from stylex.run import Run

SHOWN = (1, 3, 5, 10, 20)
"""Numbers of coordinates of which the text tells; --json and evaluation.json have all."""

LEGEND = [
    "flips by the first k coordinates at once, % (95 % interval): of the class of the",
    "reconstruction, of the original; confirmed by the independent classifier;",
    "moved: mean change of a pixel (from -1 to 1). Every k is in evaluation.json.",
]

UNJUDGED = [
    "reconstruction, of the original (no independent classifier confirms: --judge FILE);",
    LEGEND[-1],
]


def evaluate(
    path: RunPath,
    judge: Annotated[
        str | None, typer.Option(help="Independently trained classifier that confirms flips.")
    ] = None,
    factors: Annotated[
        Path | None,
        typer.Option(help="Factor detector ('stylex factors train'): which factors survive reconstruction."),
    ] = None,
    quality: Annotated[
        bool, typer.Option("--quality", help="L1, perceptual distance, FID, KID, precision and recall.")
    ] = False,
    perceptual: Annotated[
        str, typer.Option(help="Network of the perceptual distance, with --quality.")
    ] = "efficientnet-lite0",
    extractor: Annotated[
        str, typer.Option(help="Features for FID: inception-v3, efficientnet-lite0, or what can be had.")
    ] = "auto",
    truth: Annotated[
        bool,
        typer.Option(
            "--truth",
            help="Rendered faces only, needs --factors: do attributes change what the classifier relies on?",
        ),
    ] = False,
    control: Annotated[
        bool,
        typer.Option(
            "--control", help="Also AttFind's published selections and a classifier with random weights."
        ),
    ] = False,
    faces: Annotated[int, typer.Option(min=1, help="Test faces drawn again, with --truth.")] = 300,
    protocol: Annotated[
        Literal["default", "study"], typer.Option(help="study: flip rates as the replication study's code.")
    ] = "default",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Number of protocol study, such as repeats=3.")
    ] = None,
    data: OtherImages = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure how often the attributes flip the classifier, with controls, on the test images."""
    from stylex.evaluation.measure import prepare
    from stylex.evaluation.stage import evaluate_run, load_detector, load_faces, load_measures
    from stylex.explainer import load_images, open_explainer

    run = Run.open(path)
    if protocol == "study":
        if factors is not None or quality or truth or control:
            raise ConfigError("protocol study measures flip rates only; leave out the other measurements")
        _study(run, path, set_ or [], judge, data, (device, precision, threads), as_json)
        return
    if set_:
        raise ConfigError("--set is for --protocol study; the default protocol has nothing to set")
    if truth and factors is None:
        raise ConfigError("--truth needs --factors FILE; 'stylex factors train' writes it")
    explainer = open_explainer(run, choose_hardware(device, precision, threads))
    detector = None if factors is None else load_detector(explainer, factors)
    test = None
    if quality or explainer.model.encoder is not None:
        images_of_run = load_images(run, data)
        test = images_of_run.test
    measures = None
    if quality and test is not None:
        reals = test.batch(slice(None))
        measures = load_measures(explainer, reals, perceptual=perceptual, extractor=extractor)
    drawn = load_faces(images_of_run, data or run.data_source, faces) if truth else None
    with run.locked():
        images = prepare(explainer.model, test, run.config.seed)
        found = evaluate_run(
            explainer,
            images,
            judge=judge,
            detector=detector,
            quality=measures,
            source=data,
            faces=drawn,
            control=control,
            on_progress=lambda stage: note(f"measuring {stage}"),
        )
    note_coverage(found.coverage)
    result(as_json, {"run": str(path), **found.to_json()}, describe(found))


def _study(
    run: Run,
    path: Path,
    assignments: list[str],
    judge: str | None,
    data: str | None,
    wanted: tuple[str, str, int | None],
    as_json: bool,
) -> None:
    from stylex.config import override, validate
    from stylex.evaluation.stage import evaluate_study
    from stylex.evaluation.study_protocol import StudySettings
    from stylex.explainer import load_images
    from stylex.model import load_model

    settings = validate(StudySettings, override({}, assignments), "settings of protocol study")
    model = load_model(run, choose_hardware(*wanted))
    training = load_images(run, data).training if model.encoder is not None else None
    with run.locked(), progress() as display:
        task = display.add_task("protocol study", total=None)
        found = evaluate_study(
            run,
            model,
            training,
            settings,
            judge=judge,
            source=data,
            on_progress=lambda stage, done, total: display.update(
                task, description=f"protocol study, {stage}", completed=done, total=total
            ),
        )
    result(as_json, {"run": str(path), **found.to_json()}, describe_study(found))


def describe_study(found: StudyResult) -> str:
    """Table 2's line of one model."""
    numbers = found.settings
    lines = [
        f"protocol study: {numbers.count} coordinates of {found.coordinates} at once, {numbers.repeats} × "
        f"{numbers.latents} latents ({found.distinct} different), recipe {found.recipe}"
    ]
    for figure in found.figures:
        whole = figure.interval
        line = (
            f"{figure.method}: {figure.mean:.3f} ± {figure.std:.3f} of the generated images flip "
            f"(distinct images: {whole.estimate:.3f}, {whole.low:.3f} to {whole.high:.3f})"
        )
        if figure.original is not None:
            line += f", against the original {figure.original[0]:.3f} ± {figure.original[1]:.3f}"
        if figure.confirmed is not None and figure.confirmed.share is not None:
            line += f", confirmed by the independent classifier {figure.confirmed.share:.2f}"
        lines.append(line)
    return "\n".join(lines)


def describe(found: Evaluation) -> str:
    """The figures as a table."""
    agreement = found.agreement
    if agreement is None or found.l1 is None:
        lines = [
            f"{found.images} sampled images, no reconstructions of images; {found.coordinates} coordinates"
        ]
    else:
        lines = [
            f"class kept by {agreement.estimate:.1%} of {found.images} reconstructions ({agreement.low:.1%} "
            f"to {agreement.high:.1%}), L1 {found.l1:.3f}, {found.coordinates} coordinates",
        ]
    if found.methods:
        judged = any(method.confirmed is not None for method in found.methods)
        lines += LEGEND if judged else LEGEND[:1] + UNJUDGED
    for target in dict.fromkeys(method.target for method in found.methods):
        towards = [method for method in found.methods if method.target == target]
        lines += describe_flips(towards, sampled=agreement is None)
    if found.factors is not None:
        shares = ", ".join(f"{name} {share.estimate:.3f}" for name, share in found.factors.agreement.items())
        lines.append(f"factors that survive reconstruction: {shares}")
    if found.truth is not None:
        lines += describe_truth(found.truth)
    if found.quality is not None:
        lines += _describe_quality(found.quality)
    return "\n".join(lines)


def describe_flips(methods: Sequence[MethodResult], *, sampled: bool = False) -> list[str]:
    """All methods towards one target as an aligned table, at SHOWN and at each one's last k.

    Images that the model sampled have no original that could be of another class.
    """
    judged = any(method.confirmed is not None for method in methods)
    head = ["method", "k", "flips %", "of original %", *(["confirmed %"] if judged else []), "moved"]
    rows = [head]
    for method in methods:
        curve, original, confirmed = method.curve, method.against_original, method.confirmed
        places = [place for place, k in enumerate(curve.k) if k in SHOWN or k == curve.k[-1]]
        for place in places:
            row = [method.method if place == places[0] else "", str(curve.k[place])]
            row.append(_percent(curve.rate[place], curve.low[place], curve.high[place]))
            row.append(
                "–"
                if original is None
                else _percent(original.rate[place], original.low[place], original.high[place])
            )
            if judged:
                share = None if confirmed is None else confirmed[place]
                row.append("–" if share is None else _percent(share.share, share.low, share.high))
            rows.append([*row, f"{method.distance[place]:.4f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first = methods[0]
    apart = 0 if first.against_original is None else first.against_original.n
    originals = "sampled" if sampled else f"{apart} of them outside by their original too"
    return [
        f"→ '{first.target}': {first.curve.n} images, {originals}",
        *(
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ),
    ]


def _percent(share: float | None, low: float, high: float) -> str:
    return "–" if share is None else f"{share:.0%} ({low:.0%}–{high:.0%})".replace("%", "")


def describe_truth(truth: Truth) -> list[str]:
    """True reliance and the explanation beside it."""
    lines = []
    for target, rows in truth.reliance.items():
        shown = ", ".join(
            f"{row.factor} ({row.value}) {row.effect.estimate:.2f}{' *' if row.relied else ''}"
            for row in rows
        )
        lines.append(f"true effects → '{target}', log-odds (* relied on): {shown}")
        if target in truth.targets:
            lines += _describe_target(target, truth.targets[target])
    weak = unreliable(truth.detector)
    if weak:
        lines.append(
            f"the detector reads {', '.join(weak)} in less than 98 %: train it longer or on more images"
        )
    return lines


def _describe_target(target: str, found: TargetTruth) -> list[str]:
    recall = ", ".join(
        f"{k}: {figure.interval.estimate:.2f} (chance {figure.chance:.2f})"
        for k, figure in found.recall.items()
    )
    r = found.correlation
    off = ", ".join(
        f"{k}: {'–' if share is None else format(share.interval.estimate, '.1%')}"
        for k, share in found.off_factor.items()
    )
    lines = [
        f"explanation → '{target}' ({found.images} images), recall by attributes: {recall or 'no cause'}",
        f"    effects correlate with the true ones: r = {r.interval.estimate:.2f} ({r.interval.low:.2f} to "
        f"{r.interval.high:.2f}; chance up to {r.limit:.2f}); off-factor flips: {off or 'none'}",
    ]
    if found.purity is not None:
        share = found.purity
        distinct = ", ".join(
            f"{k}: {figure.interval.estimate:.2f}" for k, figure in found.purity_distinct.items()
        )
        lines.append(
            f"    purity {share.interval.estimate:.2f} "
            f"({share.interval.low:.2f} to {share.interval.high:.2f}; chance {share.chance:.2f}), "
            f"of the first distinct ones {distinct or '–'}; attributes change "
            + ", ".join(entry.factor or "nothing" for entry in found.attributes)
        )
    return lines


def _describe_quality(quality: Quality) -> list[str]:
    lines = []
    fidelity = quality.fidelity
    if fidelity is not None:
        judged = fidelity.judge_agreement
        lines.append(
            f"reconstructions: L1 {fidelity.l1.estimate:.4f}, perceptual distance "
            f"({fidelity.perceptual_network}) {fidelity.perceptual.estimate:.4f}"
            + ("" if judged is None else f", class kept by the independent classifier {judged.estimate:.1%}")
        )
    for kind, found in quality.realism.items():
        lines.append(
            f"{kind}: FID {found.fid:.2f}, KID {found.kid.mean:.5f} ± {found.kid.std:.5f}, precision "
            f"{found.precision:.3f}, recall {found.recall:.3f} ({found.generated} against {found.reals} test "
            f"images; {found.extractor})"
        )
    return lines
