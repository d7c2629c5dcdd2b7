"""Evaluation of a run on its test images: flip curves with controls, reconstruction, distances moved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stylex.attfind import Findings
from stylex.attfind.attributes import in_class
from stylex.baselines import random_coordinates, rank_wu
from stylex.classifiers import Classifier
from stylex.data import ImageSet
from stylex.errors import DataError, StylexError
from stylex.evaluation.flips import FlipCurve, confirmed_share, flip_curve
from stylex.evaluation.intervals import Interval, wilson
from stylex.model import Model
from stylex.stylespace import DirectedCoordinate, StyleSpace

COUNTS = (1, 2, 3, 5, 7, 10, 15, 20)
"""Numbers of coordinates at which flip curves are measured."""

RANDOM_DRAWS = 5
"""Independent draws of random coordinates, a fifth of the images each."""


@dataclass(frozen=True)
class MethodResult:
    """One method towards one target: its flip curve and the two companions without which it is not quoted.

    `confirmed` gives, for each k of the curve, the share of flips that the independent classifier sees as well
    (None without one); `distance` the mean absolute change of a pixel, images in [-1, 1].
    """

    method: str
    target: str
    curve: FlipCurve
    against_original: FlipCurve
    confirmed: tuple[dict[str, Any], ...] | None
    distance: tuple[float, ...]
    changes: tuple[DirectedCoordinate, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "target": self.target,
            "curve": self.curve.to_json(),
            "against_original": self.against_original.to_json(),
            "confirmed": None if self.confirmed is None else list(self.confirmed),
            "distance": list(self.distance),
            "changes": [list(change) for change in self.changes],
        }


@dataclass(frozen=True)
class Evaluation:
    """Figures of a run on its test images; `single` gives the flip rate of each attribute alone."""

    images: int
    coordinates: int
    agreement: Interval
    l1: float
    methods: tuple[MethodResult, ...]
    single: dict[str, tuple[dict[str, Any], ...]]

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "coordinates": self.coordinates,
            "agreement": self.agreement.to_json(),
            "l1": self.l1,
            "methods": [method.to_json() for method in self.methods],
            "single": {target: list(rows) for target, rows in self.single.items()},
        }


@dataclass(frozen=True)
class TestImages:
    """Test images as the model sees them: styles [N, T], logits of images and of reconstructions [N, K]."""

    __test__ = False

    images: Tensor
    styles: Tensor
    logits_original: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]
    reconstructions: Tensor
    names: tuple[str, ...]


def prepare(model: Model, test: ImageSet | None, seed: int, count: int = 1000) -> TestImages:
    """Encode test images; for a model without an encoder, sample latents with a seed that discovery does not use."""
    if model.encoder is None:
        latents = model.sample(count, seed + 1_000_003)
        styles = model.styles(latents)
        images = model.synthesise(styles)
        original = model.classify(images)
        names = tuple(f"sample {number}" for number in range(count))
    else:
        if test is None or not len(test):
            raise DataError("there are no test images to evaluate on")
        images = test.batch(np.arange(len(test)))
        latents, original = model.encode(images)
        styles, names = model.styles(latents), test.names
    reconstructions = model.synthesise(styles)
    logits = model.classify(reconstructions)
    return TestImages(images, styles, original.cpu().numpy(), logits.cpu().numpy(), reconstructions, names)


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
    on_progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Flip curves of AttFind, Wu et al. and random coordinates towards every class, with their companions.

    The top k coordinates go to the ends of the ranges seen in discovery, at once; a flip is a change of the class of
    the reconstruction to the target (also given: against the class of the original image, on those images that the
    classifier puts into another class than the target).

    Args:
        judge: an independently trained classifier of the same classes.
    """
    activation = model.classifier.activation
    classes_before = _classes(test.logits)
    classes_original = _classes(test.logits_original)
    agreed = int((classes_before == classes_original).sum())
    judge_before = None if judge is None else _classes(_logits_of(judge, test.reconstructions, model))
    results: list[MethodResult] = []
    single: dict[str, tuple[dict[str, Any], ...]] = {}
    searchable = space.searchable(discovery_styles).cpu().numpy()
    probabilities = model.classifier.probabilities(discovery_logits).cpu().numpy()
    for target, name in enumerate(model.class_names):
        rows = np.flatnonzero(~in_class(test.logits, target, activation))
        if not len(rows):
            continue
        found = findings.attributes[name]
        rankings: dict[str, list[DirectedCoordinate]] = {"AttFind": [entry.change for entry in found]}
        try:
            rankings["Wu et al."] = rank_wu(searchable, probabilities, target, count=max(counts))
        except StylexError:
            pass  # no image exhibits the class strongly enough: there is nothing to compare with
        for method, changes in rankings.items():
            if on_progress is not None:
                on_progress(f"{method} towards {name}")
            results.append(
                _measure(
                    model,
                    space,
                    method,
                    target,
                    changes,
                    test,
                    rows,
                    counts,
                    classes_original,
                    judge,
                    judge_before,
                )
            )
        if on_progress is not None:
            on_progress(f"random coordinates towards {name}")
        results.append(
            _measure_random(
                model, space, target, test, rows, counts, seed, classes_original, judge, judge_before
            )
        )
        single[name] = tuple(
            wilson(
                int(
                    in_class(
                        _edited_logits(model, space, test, rows, [entry.change]), target, activation
                    ).sum()
                ),
                len(rows),
            ).to_json()
            for entry in found
        )
    l1 = float((test.images.to(test.reconstructions.device) - test.reconstructions).abs().mean())
    return Evaluation(
        len(test.names), space.size, wilson(agreed, len(classes_before)), l1, tuple(results), single
    )


def _measure(
    model: Model,
    space: StyleSpace,
    method: str,
    target: int,
    changes: Sequence[DirectedCoordinate],
    test: TestImages,
    rows: npt.NDArray[np.intp],
    counts: Sequence[int],
    classes_original: npt.NDArray[np.int64],
    judge: Classifier | None,
    judge_before: npt.NDArray[np.int64] | None,
) -> MethodResult:
    measured = [k for k in counts if k <= len(changes)] or [len(changes)]
    after, judged, distance = [], [], []
    for k in measured:
        images = _edited(model, space, test, rows, changes[:k])
        after.append(_classes(model.classify(images).cpu().numpy()))
        distance.append(float((images - test.reconstructions[rows]).abs().mean()))
        if judge is not None:
            judged.append(_classes(_logits_of(judge, images, model)))
    return _result(
        model,
        method,
        target,
        measured,
        np.stack(after),
        judged,
        distance,
        test,
        rows,
        classes_original,
        judge_before,
        changes,
    )


def _measure_random(
    model: Model,
    space: StyleSpace,
    target: int,
    test: TestImages,
    rows: npt.NDArray[np.intp],
    counts: Sequence[int],
    seed: int,
    classes_original: npt.NDArray[np.int64],
    judge: Classifier | None,
    judge_before: npt.NDArray[np.int64] | None,
) -> MethodResult:
    """Random coordinates: the images fall into `RANDOM_DRAWS` parts, each with a draw of its own."""
    measured = [k for k in counts if k <= space.size]
    after = np.empty((len(measured), len(rows)), np.int64)
    judged = np.empty_like(after)
    distance = np.zeros(len(measured))
    parts = [part for part in np.array_split(np.arange(len(rows)), RANDOM_DRAWS) if len(part)]
    for draw, part in enumerate(parts):
        changes = random_coordinates(space.size, max(measured), seed + draw)
        for i, k in enumerate(measured):
            images = _edited(model, space, test, rows[part], changes[:k])
            after[i, part] = _classes(model.classify(images).cpu().numpy())
            distance[i] += (
                float((images - test.reconstructions[rows[part]]).abs().mean()) * len(part) / len(rows)
            )
            if judge is not None:
                judged[i, part] = _classes(_logits_of(judge, images, model))
    return _result(
        model,
        "random",
        target,
        measured,
        after,
        list(judged) if judge is not None else [],
        distance.tolist(),
        test,
        rows,
        classes_original,
        judge_before,
        (),
    )


def _result(
    model: Model,
    method: str,
    target: int,
    counts: Sequence[int],
    after: npt.NDArray[np.int64],
    judged: Sequence[npt.NDArray[np.int64]],
    distance: Sequence[float],
    test: TestImages,
    rows: npt.NDArray[np.intp],
    classes_original: npt.NDArray[np.int64],
    judge_before: npt.NDArray[np.int64] | None,
    changes: Sequence[DirectedCoordinate],
) -> MethodResult:
    before = _classes(test.logits)[rows]
    # A sigmoid model's top label may already be the target although another label is explained; argmax classes of
    # softmax models never are, because `rows` leaves them out.
    fits = before != target
    original = classes_original[rows]
    apart = original != target
    confirmed = None
    if judged and judge_before is not None:
        confirmed = tuple(
            confirmed_share(before[fits], row[fits], judge_before[rows][fits], judge[fits], target).to_json()
            for row, judge in zip(after, judged, strict=True)
        )
    return MethodResult(
        method,
        model.class_names[target],
        flip_curve(before[fits], after[:, fits], counts, target),
        flip_curve(original[apart], after[:, apart], counts, target),
        confirmed,
        tuple(distance),
        tuple(changes),
    )


def _edited(
    model: Model,
    space: StyleSpace,
    test: TestImages,
    rows: npt.NDArray[np.intp],
    changes: Sequence[DirectedCoordinate],
) -> Tensor:
    return model.synthesise(space.shift(test.styles[torch.from_numpy(rows)], changes))


def _edited_logits(
    model: Model,
    space: StyleSpace,
    test: TestImages,
    rows: npt.NDArray[np.intp],
    changes: Sequence[DirectedCoordinate],
) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = model.classify(_edited(model, space, test, rows, changes)).cpu().numpy()
    return found


def _logits_of(judge: Classifier, images: Tensor, model: Model) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        found = [judge(part.to(model.hardware.device)) for part in images.split(model.batch_size)]
    logits: npt.NDArray[np.float32] = torch.cat(found).cpu().numpy()
    return logits


def _classes(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    return np.asarray(logits.argmax(axis=1), np.int64)
