"""Selection: from measured effects to a ranked list of (direction, coordinate).

Pure functions on arrays. `effects` is float [N, 2, S, K] for the images to explain: the change of the
classifier's output for class k when coordinate s of image n goes to the low (direction 0) or high (1) end of
its range. It may be an array, a memory map, or anything with a `shape` and slices along its first axis (a
reader of shards, say): it is read image block by image block, and what is held besides one block grows with
N + S only. `images`, a mask [N], restricts a call to some of the images without copying them out.

Sources: the authors' notebook (google/explaining-in-style) for *subset*, *independent*, the unstable images
and the merging of two classes; the replication study (Bosch et al. 2022, section 3.3) for *removal*. One
departure: the published code goes on when every image is explained, by then on the mean of nothing; here it
stops, and it also stops when no coordinate is left that pushes any remaining image towards the target.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from stylex.errors import ConfigError, DataError

DirectedCoordinate = tuple[int, int]
"""(direction, coordinate): direction 0 is the low end of the coordinate's range, 1 the high end."""

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

_BLOCK_ENTRIES = 1 << 23


class EffectsArray(Protocol):
    """What selection needs of effects: the shape, and blocks of images as `effects[start:stop]`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, key: Any, /) -> Any: ...


def select_subset(
    effects: EffectsArray,
    target: int,
    count: int,
    max_image_effect: float = 1.0,
    *,
    images: npt.ArrayLike | None = None,
    accept: Callable[[int], bool] | None = None,
) -> list[DirectedCoordinate]:
    """Few coordinates that together cover the images: each pick is made for the images not yet explained.

    Greedy: takes the (direction, coordinate) with the largest mean positive effect over the images whose
    account is still under `max_image_effect`, adds its effect to the account of every image, and repeats.
    Effects count where they are positive only. (Notebook, "subset"; called there with 5 × 0.2 = 1.0, in the
    study with 2.5.)

    Args:
        effects: [N, 2, S, K], finite; only images to explain, that is of other classes than the target.
        target: class index that the images should move towards.
        count: the most coordinates to return.
        max_image_effect: an image whose picks add up to this much counts as explained; positive.
        images: mask [N] of the images to use; all by default.
        accept: asked once about a coordinate, when it is about to be taken (the discriminator filter, say);
            a refused coordinate is out in both directions.

    Returns:
        At most `count` pairs in the order of their choice; fewer when every image is explained, or when
        nothing moves the remaining ones. A coordinate can occur twice, once in each direction.

    Raises:
        DataError: effects of another shape, or with NaN or infinity (the image is named).
        ConfigError: target, count or limit out of range.
    """
    measured = _Measured(effects, images)
    limit = _positive("max_image_effect", max_image_effect)
    account = np.zeros(measured.images.size)

    def explained(gains: FloatArray) -> BoolArray:
        nonlocal account
        account += gains
        return account >= limit

    return _greedy(measured, target, count, explained, accept)


def select_removal(
    effects: EffectsArray,
    target: int,
    count: int,
    threshold: float = 1.0,
    *,
    images: npt.ArrayLike | None = None,
    accept: Callable[[int], bool] | None = None,
) -> list[DirectedCoordinate]:
    """Selection as the study's text has it: images on which the pick has a large effect leave the set.

    As `select_subset`, but with no account that builds up: after each pick an image leaves when this one
    pick's effect on it exceeds `threshold`. Ends when no image or no coordinate is left. (Study, section 3.3;
    its code runs the notebook's *subset* in its place. The text gives no number for "large".)

    Arguments, result and errors as for `select_subset`.
    """
    measured = _Measured(effects, images)
    limit = _not_negative("threshold", threshold)
    return _greedy(measured, target, count, lambda gains: gains > limit, accept)


def select_independent(
    effects: EffectsArray,
    target: int,
    count: int,
    threshold: float = 0.2,
    min_share: float = 0.03,
    *,
    images: npt.ArrayLike | None = None,
    accept: Callable[[int], bool] | None = None,
) -> list[DirectedCoordinate]:
    """The coordinates that each, by itself, move the most images.

    Ordered by the number of images whose effect exceeds `threshold`; those under `min_share` of the images
    are dropped, and so is what moves no image at all. Equal numbers (free in the notebook) are ordered by the
    sum of positive effects, then by direction and coordinate. (Notebook, "independent".)

    Args:
        effects, target, count, images, accept: as for `select_subset`.
        threshold: effect above which an image counts as moved; not negative.
        min_share: smallest share of the images, 0 to 1.

    Returns, raises: as for `select_subset`.
    """
    measured = _Measured(effects, images)
    limit = _not_negative("threshold", threshold)
    share = _not_negative("min_share", min_share)
    wanted = _count(count)
    counts, sums = measured.counts_and_sums(_target(target, measured.classes), limit)
    kept = (counts > 0) & (counts / max(1, measured.images.sum()) >= share)
    order = np.lexsort((-sums, -counts))
    verdicts = _Verdicts(accept)
    chosen: list[DirectedCoordinate] = []
    for flat in order[kept[order]]:
        if len(chosen) == wanted:
            break
        pick = measured.pair(int(flat))
        if verdicts.accepts(pick[1]):
            chosen.append(pick)
    return chosen


def unstable_images(effects: EffectsArray, threshold: float = 2.0, max_share: float = 0.033) -> BoolArray:
    """Which images are moved by almost anything, so that their effects say little: bool [N].

    An image is unstable when more than `max_share` of its 2·S·K effects exceed `threshold` in size. The
    notebook has this as a number, 750 of its 23,040 entries; a share carries over to other networks. The
    notebook sets their effects to zero; leaving them out (`images=~unstable`) selects the same with *subset*,
    while *independent* then takes its share of the stable images only.
    """
    measured = _Measured(effects, None)
    limit = _not_negative("threshold", threshold)
    share = _not_negative("max_share", max_share)
    unstable = np.zeros(measured.images.size, dtype=np.bool_)
    for start, stop, block in measured.blocks():
        entries = block.reshape(len(block), -1)
        unstable[start:stop] = (np.abs(entries) > limit).sum(axis=1) / entries.shape[1] > share
    return unstable


def invert(chosen: Sequence[DirectedCoordinate]) -> list[DirectedCoordinate]:
    """The same coordinates, each to the other end of its range."""
    return [(1 - direction, coordinate) for direction, coordinate in chosen]


def merge_two_classes(
    effects: EffectsArray,
    towards_first: Sequence[DirectedCoordinate],
    towards_second: Sequence[DirectedCoordinate],
    *,
    first: int = 0,
    second: int = 1,
    images: npt.ArrayLike | None = None,
) -> list[DirectedCoordinate]:
    """One list for two classes: what leads towards `first`; its inverse leads towards `second`.

    The directions of `towards_second` are inverted, coordinates that `towards_first` already has are dropped
    from it, and all are ordered by mean effect for `first` plus mean effect of the opposite direction for
    `second`. (Notebook; where one list has a coordinate in both directions the notebook keeps both, here the
    one with the larger sum stays, because an image can go to one end only.)

    Args:
        effects: [N, 2, S, K] of all images, those of both classes, as the means are taken over all of them.
        towards_first, towards_second: selections for either class.
        first, second: the class indices.
        images: mask [N] of the images to average over; all by default.

    Raises:
        DataError: as for `select_subset`, or a pair that is not in the effects.
        ConfigError: class indices that are out of range or equal.
    """
    measured = _Measured(effects, images)
    one, other = _target(first, measured.classes), _target(second, measured.classes)
    if one == other:
        raise ConfigError(f"first and second are both class {one}: give two different classes")
    taken = {coordinate for _, coordinate in towards_first}
    pairs = list(dict.fromkeys(towards_first))
    pairs += [pair for pair in dict.fromkeys(invert(towards_second)) if pair[1] not in taken]
    for direction, coordinate in pairs:
        if direction not in (0, 1) or not 0 <= coordinate < measured.coordinates:
            raise DataError(
                f"{(direction, coordinate)} is no (direction, coordinate) of effects {effects.shape}; "
                "select from the same effects"
            )
    if not pairs or not measured.images.any():
        return []
    directions, coordinates = np.array(pairs, dtype=np.int64).T
    sums = np.zeros(len(pairs))
    for start, stop, block in measured.blocks():
        used = block[measured.images[start:stop]]
        sums += used[:, directions, coordinates, one].sum(axis=0, dtype=np.float64)
        sums += used[:, 1 - directions, coordinates, other].sum(axis=0, dtype=np.float64)
    merged: dict[int, DirectedCoordinate] = {}
    for index in np.argsort(-sums, kind="stable"):
        direction, coordinate = pairs[int(index)]
        merged.setdefault(coordinate, (int(direction), int(coordinate)))
    return list(merged.values())


def one_vs_all(
    effects: EffectsArray,
    predicted: npt.ArrayLike,
    count: int,
    *,
    targets: Sequence[int] | None = None,
    select: Callable[..., list[DirectedCoordinate]] = select_subset,
) -> dict[int, list[DirectedCoordinate]]:
    """For more than two classes: a selection for each class, on the images of all other classes.

    With effects in log-odds this is one-vs-all in the output as well: p_k against everything else.

    Args:
        effects: [N, 2, S, K] of all images.
        predicted: class of every image, [N] (the notebook takes the argmax on the reconstruction).
        count: the most coordinates for each class.
        targets: the classes to select for; all K by default.
        select: which selection, called as `select(effects, target, count, images=mask)`; bind its settings
            with `functools.partial`.

    Returns:
        target -> its selection; an empty list for a class that every image already has.
    """
    shape = _effects_shape(effects)
    labels = np.asarray(predicted)
    if labels.shape != shape[:1]:
        raise DataError(f"predicted classes of shape {labels.shape} for {shape[0]} images: give one an image")
    wanted = range(shape[3]) if targets is None else targets
    return {int(target): select(effects, target, count, images=labels != target) for target in wanted}


class _Measured:
    """Effects checked at the door, read in blocks of images."""

    def __init__(self, effects: EffectsArray, images: npt.ArrayLike | None) -> None:
        number, _, self.coordinates, self.classes = _effects_shape(effects)
        self._effects = effects
        self._rows = max(1, _BLOCK_ENTRIES // (2 * self.coordinates * self.classes))
        self.images: BoolArray = np.ones(number, dtype=np.bool_) if images is None else np.asarray(images)
        if self.images.shape != (number,) or self.images.dtype != np.bool_:
            raise DataError(
                f"images is {self.images.dtype} of shape {self.images.shape}: give a mask, bool [{number}]"
            )
        if getattr(effects, "finite", False):  # who made them has looked
            return
        for start, stop, block in self.blocks():
            used = self.images[start:stop]
            finite = np.isfinite(block).all(axis=(1, 2, 3))
            if not finite[used].all():
                image = start + int(np.flatnonzero(used & ~finite)[0])
                direction, coordinate, label = np.argwhere(~np.isfinite(block[image - start]))[0]
                raise DataError(
                    f"effects of image {image} hold NaN or infinity (direction {direction}, coordinate "
                    f"{coordinate}, class {label}): measure that image again, or leave it out"
                )

    def blocks(self) -> Iterator[tuple[int, int, npt.NDArray[Any]]]:
        for start in range(0, self.images.size, self._rows):
            stop = min(start + self._rows, self.images.size)
            yield start, stop, np.asarray(self._effects[start:stop])

    def pair(self, flat: int) -> DirectedCoordinate:
        return flat // self.coordinates, flat % self.coordinates

    def positive_sums(self, target: int, active: BoolArray) -> FloatArray:
        """Sum of positive effects over the active images, [2·S]."""
        sums = np.zeros(2 * self.coordinates)
        for start, stop, block in self.blocks():
            rows = active[start:stop]
            if rows.any():
                sums += np.maximum(block[..., target][rows], 0).sum(axis=0, dtype=np.float64).ravel()
        return sums

    def gains(self, target: int, pick: DirectedCoordinate) -> FloatArray:
        """Positive effect of one pick on every image, [N]."""
        gains = np.zeros(self.images.size)
        for start, stop, block in self.blocks():
            gains[start:stop] = np.maximum(block[:, pick[0], pick[1], target], 0)
        return gains

    def counts_and_sums(self, target: int, threshold: float) -> tuple[npt.NDArray[np.int64], FloatArray]:
        """Images moved by more than the threshold, and sum of positive effects, each [2·S]."""
        counts = np.zeros(2 * self.coordinates, dtype=np.int64)
        sums = np.zeros(2 * self.coordinates)
        for start, stop, block in self.blocks():
            values = block[..., target][self.images[start:stop]]
            counts += (values > threshold).sum(axis=0).ravel()
            sums += np.maximum(values, 0).sum(axis=0, dtype=np.float64).ravel()
        return counts, sums


class _Verdicts:
    """Remembers what `accept` said, so that a coordinate is asked about once."""

    def __init__(self, accept: Callable[[int], bool] | None) -> None:
        self._accept = accept
        self._known: dict[int, bool] = {}

    def accepts(self, coordinate: int) -> bool:
        if self._accept is None:
            return True
        if coordinate not in self._known:
            self._known[coordinate] = bool(self._accept(coordinate))
        return self._known[coordinate]


def _greedy(
    measured: _Measured,
    target: int,
    count: int,
    explained: Callable[[FloatArray], BoolArray],
    accept: Callable[[int], bool] | None,
) -> list[DirectedCoordinate]:
    """The loop of *subset* and *removal*: `explained` turns a pick's gains [N] into the images that leave."""
    target, wanted = _target(target, measured.classes), _count(count)
    verdicts = _Verdicts(accept)
    active = measured.images.copy()
    out = np.zeros(2 * measured.coordinates, dtype=np.bool_)
    chosen: list[DirectedCoordinate] = []
    while len(chosen) < wanted and active.any():
        sums = measured.positive_sums(target, active)
        sums[out] = 0.0
        best = int(sums.argmax())
        while sums[best] > 0 and not verdicts.accepts(best % measured.coordinates):
            both = best % measured.coordinates + np.array([0, measured.coordinates])
            out[both] = True
            sums[both] = 0.0
            best = int(sums.argmax())
        if sums[best] <= 0:
            break
        out[best] = True
        chosen.append(measured.pair(best))
        active &= ~explained(measured.gains(target, chosen[-1]))
    return chosen


def _effects_shape(effects: EffectsArray) -> tuple[int, int, int, int]:
    shape = tuple(getattr(effects, "shape", ()))
    if len(shape) != 4 or shape[1] != 2 or shape[2] < 1 or shape[3] < 1:
        raise DataError(f"effects of shape {shape}: give [images, 2 directions, coordinates, classes]")
    return shape[0], shape[1], shape[2], shape[3]


def _target(target: int, classes: int) -> int:
    index = operator.index(target)
    if not 0 <= index < classes:
        raise ConfigError(f"class index {index} is out of range: the effects have classes 0 to {classes - 1}")
    return index


def _count(count: int) -> int:
    number = operator.index(count)
    if number < 0:
        raise ConfigError(f"count is {number}: give how many coordinates to return, 0 or more")
    return number


def _not_negative(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"{name} is {value}: give a finite number, 0 or more")
    return float(value)


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ConfigError(f"{name} is {value}: give a number above 0")
    return float(value)
