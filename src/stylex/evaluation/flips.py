"""Flips: on which images did the edit change the classifier's class?

Pure functions on class indices. What is compared with is the caller's choice and is to be named beside the
figure: the class of the reconstruction, as in the study's code, or of the original image, as in its text.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stylex.errors import DataError
from stylex.evaluation.intervals import wilson

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FlipRate:
    """Share of images that the edit flipped.

    Attributes:
        target: the class that the images were sent to; None where any other class counts.
        rate: flipped / n.
        low, high: Wilson's interval of the rate.
        flipped, n: images that flipped, and all images.
        confidence: of the interval.
    """

    target: int | None
    rate: float
    low: float
    high: float
    flipped: int
    n: int
    confidence: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class FlipCurve:
    """Flip rate against the number of coordinates that were changed, over the same images throughout.

    Attributes:
        target: the class that the images were sent to; None where any other class counts.
        k: numbers of coordinates changed at once, increasing.
        rate, low, high: for each k, the flip rate and Wilson's interval.
        flipped: for each k, how many images flipped.
        n: how many images there are.
        confidence: of each interval.
    """

    target: int | None
    k: tuple[int, ...]
    rate: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    flipped: tuple[int, ...]
    n: int
    confidence: float

    def at(self, k: int) -> FlipRate:
        """The point of the curve at k.

        Raises:
            DataError: a k that was not measured.
        """
        if k not in self.k:
            raise DataError(
                f"the curve has no point at k = {k}: it was measured at {', '.join(map(str, self.k))}"
            )
        i = self.k.index(k)
        return FlipRate(
            self.target, self.rate[i], self.low[i], self.high[i], self.flipped[i], self.n, self.confidence
        )

    def fewest(self, rate: float) -> int | None:
        """The smallest measured k whose flip rate is at least `rate`; None where there is none."""
        return next((k for k, reached in zip(self.k, self.rate, strict=True) if reached >= rate), None)

    def to_json(self) -> dict[str, Any]:
        """Plain values, tuples as lists."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }


@dataclass(frozen=True)
class ConfirmedShare:
    """Share of flips that an independently trained classifier sees as well.

    Attributes:
        share: confirmed / judged; None where there is nothing to judge.
        low, high: Wilson's interval; 0 and 1 where there is nothing to judge.
        confirmed: flips after which the judge gives the new class too.
        judged: flips of images that the judge had in the old class before, so that it could change its mind.
        flips: all flips; those not judged are the ones on which the two disagreed from the start.
        confidence: of the interval.
    """

    share: float | None
    low: float
    high: float
    confirmed: int
    judged: int
    flips: int
    confidence: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def flipped(before: npt.ArrayLike, after: npt.ArrayLike, target: int | None = None) -> BoolArray:
    """Which images flipped, bool of the shape of `after`.

    Args:
        before: [N], class of each image without the edit.
        after: [..., N], class after the edit.
        target: flipped means `after` is this class; without it, that `after` differs from `before`.

    Raises:
        DataError: shapes that do not fit, classes that are no integers, or an image that is in the target
            class already (it cannot flip there, and would pass for a success).
    """
    old, new = _classes("before", before), _classes("after", after)
    if old.ndim != 1 or new.ndim < 1 or new.shape[-1] != len(old):
        raise DataError(
            f"classes before {old.shape} and after {new.shape}: give [N] and [..., N] of the same images"
        )
    if target is None:
        return np.asarray(new != old)
    there = np.flatnonzero(old == target)
    if there.size:
        raise DataError(
            f"image {int(there[0])} is in class {target} before the edit: leave out images of the target"
        )
    return np.asarray(new == target)


def flip_rate(
    before: npt.ArrayLike, after: npt.ArrayLike, target: int | None = None, confidence: float = 0.95
) -> FlipRate:
    """Share of images [N] that flipped, with Wilson's interval; see `flipped` for what counts.

    Raises:
        DataError: as `flipped`, or no images.
    """
    return flip_curve(before, np.asarray(after)[None], [1], target, confidence).at(1)


def flip_curve(
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    k: Sequence[int],
    target: int | None = None,
    confidence: float = 0.95,
) -> FlipCurve:
    """Flip rate against the number of coordinates changed.

    Args:
        before: [N], class of each image without the edit.
        after: [len(k), N], class when the top k[i] coordinates are changed at once.
        k: increasing.
        target: see `flipped`.

    Raises:
        DataError: as `flipped`, no images, or a k that does not fit.
    """
    numbers = tuple(int(number) for number in k)
    if not numbers or numbers[0] < 0 or any(a >= b for a, b in itertools.pairwise(numbers)):
        raise DataError(f"k is {list(numbers)}: give increasing numbers of coordinates, 0 or more")
    new = _classes("after", after)
    if new.ndim != 2 or len(new) != len(numbers):
        raise DataError(
            f"classes after the edit of shape {new.shape}: give [{len(numbers)}, N], a row for each k"
        )
    marks = flipped(before, new, target)
    n = marks.shape[1]
    if n == 0:
        towards = "any class" if target is None else f"class {target}"
        raise DataError(f"no images to flip towards {towards}: give at least one image of another class")
    shares = [wilson(int(row.sum()), n, confidence) for row in marks]
    return FlipCurve(
        target=None if target is None else int(target),
        k=numbers,
        rate=tuple(share.estimate for share in shares),
        low=tuple(share.low for share in shares),
        high=tuple(share.high for share in shares),
        flipped=tuple(int(row.sum()) for row in marks),
        n=n,
        confidence=confidence,
    )


def flip_curves(
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    k: Sequence[int],
    targets: npt.ArrayLike,
    confidence: float = 0.95,
) -> dict[int, FlipCurve]:
    """One curve for each target, so that both directions stay apart.

    Args:
        before, after, k: as for `flip_curve`.
        targets: [N], the class that each image was sent to.

    Returns:
        target -> its curve, over the images that were sent there, targets in ascending order.
    """
    old, new, sent = _classes("before", before), _classes("after", after), _classes("targets", targets)
    if sent.shape != old.shape or new.ndim != 2 or new.shape[1:] != old.shape:
        raise DataError(
            f"before {old.shape}, after {new.shape}, targets {sent.shape}: give [N], [len(k), N] and [N]"
        )
    if not old.size:
        raise DataError("no images to flip: give at least one image")
    return {
        int(target): flip_curve(old[sent == target], new[:, sent == target], k, int(target), confidence)
        for target in np.unique(sent)
    }


def flip_rates(
    before: npt.ArrayLike, after: npt.ArrayLike, targets: npt.ArrayLike, confidence: float = 0.95
) -> dict[int, FlipRate]:
    """One flip rate for each target; `before`, `after` and `targets` are [N]."""
    curves = flip_curves(before, np.asarray(after)[None], [1], targets, confidence)
    return {target: curve.at(1) for target, curve in curves.items()}


def confirmed_share(
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    judge_before: npt.ArrayLike,
    judge_after: npt.ArrayLike,
    target: int | None = None,
    confidence: float = 0.95,
) -> ConfirmedShare:
    """Share of the explained classifier's flips that an independent classifier, the judge, confirms.

    A flip is judged where the judge had the image in the same class before the edit, and is confirmed where
    it gives the same new class after it. A flip on which the two disagreed from the start says nothing about
    the edit; such flips are counted (flips - judged) and not judged.

    Args:
        before, after: [N], classes by the explained classifier.
        judge_before, judge_after: [N], classes by the judge of the same images.
        target: see `flipped`.
    """
    old, new = _classes("before", before), _classes("after", after)
    judge_old, judge_new = _classes("judge_before", judge_before), _classes("judge_after", judge_after)
    if not old.shape == new.shape == judge_old.shape == judge_new.shape or old.ndim != 1:
        raise DataError(
            f"before {old.shape}, after {new.shape}, judge {judge_old.shape}, {judge_new.shape}: [N] each"
        )
    flips = flipped(old, new, target)
    judged = flips & (judge_old == old)
    confirmed = int((judged & (judge_new == new)).sum())
    number = int(judged.sum())
    if number == 0:
        return ConfirmedShare(None, 0.0, 1.0, 0, 0, int(flips.sum()), confidence)
    share = wilson(confirmed, number, confidence)
    return ConfirmedShare(
        share.estimate, share.low, share.high, confirmed, number, int(flips.sum()), confidence
    )


def _classes(name: str, values: npt.ArrayLike) -> IntArray:
    labels = np.asarray(values)
    if not np.issubdtype(labels.dtype, np.integer) and labels.size:
        raise DataError(f"{name} holds {labels.dtype}: give class indices, integers")
    return labels.astype(np.int64)
