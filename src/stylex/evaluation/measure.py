"""Evaluation of a run on its test images: flip curves with controls, reconstruction, distances moved."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stylex.attfind import Findings
from stylex.attfind.attributes import Ranking, in_class
from stylex.attfind.effects import Activation
from stylex.baselines import random_coordinates, rank_wu
from stylex.classifiers import Classifier
from stylex.data import ImageSet
from stylex.errors import DataError
from stylex.evaluation.flips import ConfirmedShare, FlipCurve, confirmed_share, flip_curve
from stylex.evaluation.intervals import Interval, wilson
from stylex.model import Model
from stylex.stylespace import DirectedCoordinate, StyleSpace

if TYPE_CHECKING:
    from stylex.evaluation.coverage import Coverage
    from stylex.evaluation.factors import FactorAgreement
    from stylex.evaluation.quality import Quality
    from stylex.evaluation.truth import Truth

log = logging.getLogger("stylex")

COUNTS = tuple(range(1, 21))
"""Numbers of coordinates at which flip curves are measured."""

FEW_COUNTS = (1, 2, 3, 5, 7, 10, 15, 20)
"""The same where time is short, in less than half of it."""

DISTINCT = "AttFind distinct"
"""The method that leaves out attributes which do the same as one before them."""

SAMPLED = 1000
"""Latents sampled to test on, for a model without an encoder."""

OTHER = -1
"""Class index of an image on which the label in question is off (sigmoid classifiers)."""

Logits = npt.NDArray[np.float32]
Classes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MethodResult:
    """One method towards one target: its flip curve and the two companions without which it is not quoted.

    `against_original` is the curve over the images whose original is outside the target too (None where there
    is none, or images are sampled). `confirmed` gives, for each k of the curve, the share of flips that the
    independent classifier sees as well (None without one); `distance` the mean absolute change of a pixel,
    images in [-1, 1].
    """

    method: str
    target: str
    curve: FlipCurve
    against_original: FlipCurve | None
    confirmed: tuple[ConfirmedShare, ...] | None
    distance: tuple[float, ...]
    changes: tuple[DirectedCoordinate, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "target": self.target,
            "curve": self.curve.to_json(),
            "against_original": None if self.against_original is None else self.against_original.to_json(),
            "confirmed": None if self.confirmed is None else [share.to_json() for share in self.confirmed],
            "distance": list(self.distance),
            "changes": [list(change) for change in self.changes],
        }


@dataclass(frozen=True)
class MeasuredImages:
    """Which images figures are about.

    `names` as in their source, in order; `sha256` over their pixels, None for images that the model sampled
    itself; `source` is where they came from, None where nobody said.
    """

    names: tuple[str, ...]
    sha256: str | None
    source: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"source": self.source, "sha256": self.sha256, "names": list(self.names)}


@dataclass(frozen=True)
class Evaluation:
    """Figures of a run on its test images.

    `agreement` is the share of images whose class survives reconstruction, `l1` the mean absolute difference
    of a pixel between image and reconstruction (both None without an encoder: the images are sampled, and no
    image is reconstructed), `single` the flip rate of each attribute alone, by target.
    Targets outside of which there is no test image are missing in `methods` and `single`. `factors`,
    `quality` and `truth` are None where they were not asked for. `measured` says which the images were,
    `coverage` of which of them, class by class, reconstruction lets the model speak; it is empty without an
    encoder. `left_out` says of a control that was asked for why there is none.
    """

    images: int
    measured: MeasuredImages
    coordinates: int
    agreement: Interval | None
    l1: float | None
    methods: tuple[MethodResult, ...]
    single: dict[str, tuple[Interval, ...]]
    factors: FactorAgreement | None = None
    quality: Quality | None = None
    truth: Truth | None = None
    coverage: tuple[Coverage, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "measured": self.measured.to_json(),
            "coordinates": self.coordinates,
            "agreement": None if self.agreement is None else self.agreement.to_json(),
            "l1": self.l1,
            "methods": [method.to_json() for method in self.methods],
            "single": {target: [rate.to_json() for rate in rates] for target, rates in self.single.items()},
            "factors": None if self.factors is None else self.factors.to_json(),
            "quality": None if self.quality is None else self.quality.to_json(),
            "truth": None if self.truth is None else self.truth.to_json(),
            "coverage": [entry.to_json() for entry in self.coverage],
            "left_out": dict(self.left_out),
        }


@dataclass(frozen=True, eq=False)
class TestImages:
    """Test images as the model sees them: styles [N, T], logits of images and of reconstructions [N, K].

    Sampled images are their own reconstructions.
    """

    __test__ = False

    images: Tensor
    styles: Tensor
    logits_original: Logits
    logits: Logits
    reconstructions: Tensor
    names: tuple[str, ...]


def prepare(model: Model, test: ImageSet | None, seed: int, count: int = SAMPLED) -> TestImages:
    """Encode test images; without an encoder, sample `count` latents with a seed that discovery does not use.

    Raises:
        DataError: there are no test images.
    """
    if model.encoder is None:
        styles = model.styles(model.sample(count, seed + 1_000_003))
        images = model.synthesise(styles)
        logits = model.classify(images).cpu().numpy()
        names = tuple(f"sample {number}" for number in range(count))
        return TestImages(images, styles, logits, logits, images, names)
    if test is None or not len(test):
        raise DataError(
            "there are no test images to evaluate on that the run has not seen; "
            "add images, or give others with --data"
        )
    images = test.batch(np.arange(len(test)))
    latents, original = model.encode(images)
    styles = model.styles(latents)
    reconstructions = model.synthesise(styles)
    logits = model.classify(reconstructions).cpu().numpy()
    return TestImages(images, styles, original.cpu().numpy(), logits, reconstructions, test.names)


def evaluate(
    model: Model,
    space: StyleSpace,
    findings: Findings,
    discovery_styles: Tensor,
    discovery_logits: Tensor,
    test: TestImages,
    *,
    judge: Classifier | None = None,
    seed: int = 0,
    counts: Sequence[int] = COUNTS,
    others: Mapping[str, Mapping[str, Sequence[DirectedCoordinate]]] | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Flip curves of AttFind, Wu et al. and random coordinates towards every class, with their companions.

    Where attributes repeat others, AttFind's ranking without those is a method of its own.

    The top k coordinates go to the ends of the ranges seen in discovery, at once; a flip is a change of the
    class of the reconstruction to the target (also given: over the images that the classifier puts into
    another class than the target before reconstruction). Labels of a sigmoid classifier are taken one by one.
    Wu et al. are left out where fewer than two discovery images show the class clearly.

    Args:
        discovery_styles, discovery_logits: [N, T] and [N, K] of the images that attributes were found on.
        judge: an independently trained classifier of the same classes.
        others: name of a method → class → a ranking of its own, measured beside these; empty ones are left
            out.
    """
    say = on_progress or (lambda stage: None)
    judged = None if judge is None else judge_logits(judge, model, test.reconstructions)
    searchable = space.searchable(discovery_styles).cpu().numpy()
    probabilities = model.classifier.probabilities(discovery_logits).cpu().numpy()
    results: list[MethodResult] = []
    single: dict[str, tuple[Interval, ...]] = {}
    some = any(findings.attributes.values())
    unsought = [name for name, found in findings.attributes.items() if some and not found]
    for target, name in enumerate(model.class_names):
        bench = _Bench(model, space, test, target, judge, judged, counts)
        if not len(bench.rows) or name in unsought:
            continue
        ranked = Ranking(findings.attributes[name])
        rankings = {"AttFind": [entry.change for entry in ranked]}
        if len(ranked.distinct) < len(ranked):
            rankings[DISTINCT] = [entry.change for entry in ranked.distinct]
        try:
            rankings["Wu et al."] = rank_wu(searchable, probabilities, target, count=max(counts))
        except DataError as error:  # no image shows the class clearly enough: nothing to compare with
            log.warning("Wu et al. towards '%s' are left out: %s", name, error)
        for method, by_class in (others or {}).items():
            if by_class.get(name):
                rankings[method] = list(by_class[name])
        for method, changes in rankings.items():
            say(f"{method} towards {name}")
            results.append(bench.ranking(method, changes))
        say(f"random coordinates towards {name}")
        results.append(bench.random(seed))
        say(f"each attribute towards {name}")
        single[name] = tuple(bench.alone(change) for change in rankings["AttFind"])
    agreement = l1 = None
    if model.encoder is not None:
        kept = same_class(test.logits_original, test.logits, model.classifier.activation)
        agreement = wilson(int(kept.sum()), len(kept))
        l1 = float((test.images.to(test.reconstructions.device) - test.reconstructions).abs().mean())
    return Evaluation(
        len(test.names), identify(model, test), space.size, agreement, l1, tuple(results), single
    )


def identify(model: Model, test: TestImages) -> MeasuredImages:
    """Names of test images and, unless the model sampled them, the hash of their pixels as uint8."""
    if model.encoder is None:
        return MeasuredImages(test.names, None)
    digest = hashlib.sha256()
    for image in test.images:
        pixels = ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        digest.update(pixels.permute(1, 2, 0).cpu().contiguous().numpy().tobytes())
    return MeasuredImages(test.names, digest.hexdigest())


def same_class(before: Logits, after: Logits, activation: Activation) -> npt.NDArray[np.bool_]:
    """On which images two sets of logits [N, K] say the same: one argmax, or every label alike: bool [N]."""
    if activation == "sigmoid":
        return np.asarray(((before > 0) == (after > 0)).all(axis=1))
    return np.asarray(before.argmax(axis=1) == after.argmax(axis=1))


class _Edited(NamedTuple):
    """Of n edited images, each [n]: class, class by the judge, mean absolute change of a pixel."""

    classes: Classes
    judged: Classes | None
    distance: npt.NDArray[np.float64]


class _Bench:
    """Edits the test images outside one target class and measures what became of them."""

    def __init__(
        self,
        model: Model,
        space: StyleSpace,
        test: TestImages,
        target: int,
        judge: Classifier | None,
        judged: Logits | None,
        counts: Sequence[int],
    ) -> None:
        activation = model.classifier.activation
        self._model, self._space, self._test, self._target = model, space, test, target
        self._judge, self._counts = judge, counts
        self._edited: dict[tuple[DirectedCoordinate, ...], _Edited] = {}
        self.rows = np.flatnonzero(~in_class(test.logits, target, activation))
        self._before = _classes(test.logits[self.rows], target, activation)
        self._original = _classes(test.logits_original[self.rows], target, activation)
        self._judged_before: Classes | None = None
        if judge is not None and judged is not None:
            self._judged_before = _classes(judged[self.rows], target, judge.activation)

    def ranking(self, method: str, changes: Sequence[DirectedCoordinate]) -> MethodResult:
        """The first k of a ranking at once, for every k that it is long enough for."""
        counts = [k for k in self._counts if k <= len(changes)] or [len(changes)]
        return self._result(method, counts, [self._together(changes[:k]) for k in counts], changes)

    def random(self, seed: int) -> MethodResult:
        """Random coordinates, for every image a draw of its own.

        So images flip or do not independently of each other, as the interval of the rate takes for granted;
        images that shared a draw would all hang on the luck of that draw.
        """
        counts = [k for k in self._counts if k <= self._space.size]
        seeds = np.random.SeedSequence(seed).generate_state(len(self._test.names))[self.rows]
        draws = [random_coordinates(self._space.size, max(counts), int(own)) for own in seeds]
        edited = [self._edit([draw[:k] for draw in draws], each=True) for k in counts]
        return self._result("random", counts, edited, ())

    def alone(self, change: DirectedCoordinate) -> Interval:
        """Share of the images that one change alone sends to the target."""
        known = self._edited.get((change,))
        found = self._edit([change], ask_judge=False) if known is None else known
        flipped = found.classes == self._target
        return wilson(int(flipped.sum()), len(flipped))

    def _together(self, changes: Sequence[DirectedCoordinate]) -> _Edited:
        """Changes of all images at once, each set of them once: rankings often begin alike."""
        key = tuple(changes)
        if key not in self._edited:
            self._edited[key] = self._edit(key)
        return self._edited[key]

    def _edit(self, changes: Sequence[Any], *, each: bool = False, ask_judge: bool = True) -> _Edited:
        """Batch by batch, so that no more images are held than one.

        `changes` are (direction, coordinate) pairs for all images or, with `each`, a list of them an image.
        """
        model, test = self._model, self._test
        found = []
        for first in range(0, len(self.rows), model.batch_size):
            batch = slice(first, first + model.batch_size)
            part = torch.from_numpy(self.rows[batch])
            styles = test.styles[part]
            if each:
                moved = [
                    self._space.shift(styles[row : row + 1], own) for row, own in enumerate(changes[batch])
                ]
                images = model.synthesise(torch.cat(moved))
            else:
                images = model.synthesise(self._space.shift(styles, changes))
            classes = _classes(
                model.classify(images).cpu().numpy(), self._target, model.classifier.activation
            )
            judged = None
            if self._judge is not None and ask_judge:
                logits = judge_logits(self._judge, model, images)
                judged = _classes(logits, self._target, self._judge.activation)
            distance = (images - test.reconstructions[part]).abs().mean(dim=(1, 2, 3))
            found.append(_Edited(classes, judged, distance.double().cpu().numpy()))
        return _joined(found)

    def _result(
        self,
        method: str,
        counts: Sequence[int],
        edited: Sequence[_Edited],
        changes: Sequence[DirectedCoordinate],
    ) -> MethodResult:
        after = np.stack([part.classes for part in edited])
        apart = self._original != self._target
        against_original = None
        if self._model.encoder is not None and apart.any():
            against_original = flip_curve(self._original[apart], after[:, apart], counts, self._target)
        confirmed = None
        if self._judged_before is not None:
            confirmed = tuple(
                confirmed_share(self._before, part.classes, self._judged_before, part.judged, self._target)
                for part in edited
                if part.judged is not None
            )
        return MethodResult(
            method,
            self._model.class_names[self._target],
            flip_curve(self._before, after, counts, self._target),
            against_original,
            confirmed,
            tuple(float(part.distance.mean()) for part in edited),
            tuple(changes),
        )


def _joined(parts: Sequence[_Edited]) -> _Edited:
    judged = [part.judged for part in parts if part.judged is not None]
    return _Edited(
        np.concatenate([part.classes for part in parts]),
        np.concatenate(judged) if judged else None,
        np.concatenate([part.distance for part in parts]),
    )


def judge_logits(judge: Classifier, model: Model, images: Tensor) -> Logits:
    """Logits [N, K] of an independent classifier on images, in the model's batches."""
    with torch.inference_mode():
        found = [
            judge(images[first : first + model.batch_size].to(model.hardware.device))
            for first in range(0, len(images), model.batch_size)
        ]
    logits: Logits = torch.cat(found).cpu().numpy()
    return logits


def _classes(logits: Logits, target: int, activation: Activation) -> Classes:
    """Class of each image [N] as flips compare them: the argmax; for a label, the target or OTHER."""
    if activation == "sigmoid":
        return np.where(in_class(logits, target, activation), target, OTHER).astype(np.int64)
    return np.asarray(logits.argmax(axis=1), np.int64)
