"""A search that measures most changes on no image or a few, and those that could be selected on all.

Of thousands of changes a selection takes a few. First-order effects of all images, which cost a backward pass
for each class, say which are likely to be among them, on the mean or on some images. Those are measured on a
first part of the images; which of them could be selected from all images is asked of resampled images (the
bootstrap, Efron 1979), and only those are measured on a larger part, and so on: successive rejects (Audibert
et al. 2010), with the selection itself in place of a mean, since it takes a coordinate that is weak on all
images if it explains those that are left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stylex.attfind.attributes import in_class
from stylex.attfind.effects import Activation
from stylex.config import AttFindSettings

FIRST_IMAGES = 8
"""Of each class, in the first stage."""

GROWTH = 4
"""How many times as many images the next stage has; the last has all."""

REPLICATES = 200
"""Selections from resampled images whose choices stay, and as many fresh ones that show what they miss."""

CONFIDENCE = 0.99
"""Share of the fresh replicates whose whole selection must be among what stays; else theirs stays too."""

ROUNDS = 5
"""How often fresh replicates are drawn at most: where hundreds of coordinates do as little, none is sure."""

SPARE = 1.5
"""Times the number of attributes wanted, taken of each replicate: weak ones change places."""

ENOUGH_IMAGES = 4
"""Images that a target must have in a part of the images for anything to be given up for it."""

FEWEST_IMAGES = 100
"""With no more than that, everything is measured on all where nobody asked for anything."""

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Stages:
    """Which images are measured in which stage: positions in `order` up to each of `ends`."""

    order: tuple[int, ...]
    ends: tuple[int, ...]

    def images(self, stage: int) -> tuple[int, ...]:
        """The images that a stage adds."""
        return self.order[self.ends[stage - 1] if stage else 0 : self.ends[stage]]


def stages(before: npt.NDArray[np.float32], activation: Activation, seed: int) -> Stages:
    """The images in a random order, of every class in turn, and the sizes of the stages.

    Of labels that do not exclude each other, images with and without each label in turn.

    Args:
        before: logits [N, K] of the unchanged images.
    """
    random = np.random.default_rng(seed)
    number, classes = before.shape
    groups = [in_class(before, k, activation) for k in range(classes)]
    if activation == "sigmoid":
        groups += [~group for group in groups]
    place = np.full(number, np.inf)
    for group in groups:
        members = random.permutation(np.flatnonzero(group))
        place[members] = np.minimum(
            place[members], np.arange(len(members)) + 0.5 * random.random(len(members))
        )
    order = np.argsort(place, kind="stable")
    ends, size = [], FIRST_IMAGES * len(groups)
    while size < number:
        ends.append(size)
        size *= GROWTH
    return Stages(tuple(order.tolist()), (*ends, number))


def survivors(
    effects: FloatArray,
    coordinates: npt.NDArray[np.integer],
    before: npt.NDArray[np.float32],
    stable: BoolArray,
    settings: AttFindSettings,
    activation: Activation,
    seed: int,
) -> tuple[BoolArray, float | None]:
    """Changes [M] that could be selected from all images, judged by these; and how sure that is.

    Args:
        effects: [n, M, K] of the images measured so far and the changes still in question.
        coordinates: which coordinate each of the changes moves, [M].
        before: logits [n, K] of these images, unchanged.
        stable: mask [n] of the images that count.

    Returns:
        The mask, and the smallest share over the targets of fresh replicates whose selection lies within.
        Where a target has fewer than `ENOUGH_IMAGES` images here, or no change is in question, everything
        stays, and it is None.
    """
    random = np.random.default_rng(seed)
    wanted = settings.model_copy(update={"count": int(np.ceil(settings.count * SPARE))})
    kept = np.zeros(effects.shape[1], bool)
    if not len(kept):
        return kept, None
    sure = 1.0
    for target in range(before.shape[1]):
        inside = in_class(before, target, activation)
        if not inside.any() or (activation == "sigmoid" and inside.all()):
            continue  # images with and without it take turns: of the others it is the same
        images = ~inside & stable
        if images.sum() < ENOUGH_IMAGES:
            return np.ones_like(kept), None
        ranking = Resampled(np.ascontiguousarray(effects[images, :, target]), coordinates, settings)
        number = int(images.sum())
        kept[ranking.select(np.ones(number), wanted.count)] = True
        for _ in range(REPLICATES):
            kept[ranking.select(_weights(random, number), wanted.count)] = True
        for _ in range(ROUNDS):
            fresh = [ranking.select(_weights(random, number), settings.count) for _ in range(REPLICATES)]
            within = float(np.mean([kept[choice].all() for choice in fresh]))
            if within >= CONFIDENCE:
                break
            for choice in fresh:
                kept[choice] = True
        sure = min(sure, within)
    return kept, sure


def _weights(random: np.random.Generator, number: int) -> npt.NDArray[np.float64]:
    """How often each of `number` images is drawn, drawing as many with replacement."""
    return np.bincount(random.integers(0, number, number), minlength=number).astype(np.float64)


class Resampled:
    """Selections for one target from images that count more than once: `attributes.select`, with weights.

    Args:
        effects: [n, M] for the target, of the images that may be selected from.
        coordinates: which coordinate each of the changes moves, [M].
    """

    def __init__(
        self, effects: FloatArray, coordinates: npt.NDArray[np.integer], settings: AttFindSettings
    ) -> None:
        self._positive = np.maximum(effects, 0).astype(np.float64)
        self._coordinates = coordinates
        self._settings = settings
        self._moved: npt.NDArray[np.float64] | None = None
        if settings.method == "independent":
            self._moved = (self._positive > settings.independent_threshold).astype(np.float64)

    def select(self, weights: npt.NDArray[np.float64], count: int) -> list[int]:
        """The changes [M] picked for at most `count` coordinates, weights [n]; best first, but for removals.

        A coordinate may be picked at both ends; the later pick is no attribute, but bears on what follows.
        """
        if self._moved is not None:
            return self._independent(self._moved, weights, count)
        picked: list[int] = []
        while (chosen := len(self.coordinates(picked))) < count:
            found = self._round(weights, count - chosen, np.isin(self._coordinates, self.coordinates(picked)))
            if not found:
                break
            picked += found
        return picked

    def coordinates(self, picked: list[int]) -> list[int]:
        """The coordinates of changes, each once, in their order."""
        return list(dict.fromkeys(self._coordinates[picked].tolist()))

    def _round(self, weights: npt.NDArray[np.float64], count: int, closed: BoolArray) -> list[int]:
        """One round of *subset* or *removal*: changes in the order of their picks."""
        limit = self._settings.max_image_effect
        account = np.zeros(len(weights))
        active = weights.copy()
        out = closed.copy()
        found: list[int] = []
        for _ in range(count):
            sums = active @ self._positive
            sums[out] = 0
            best = int(sums.argmax())
            if sums[best] <= 0:
                break
            out[best] = True
            found.append(best)
            gains = self._positive[:, best]
            if self._settings.method == "subset":
                account += gains
                active[account >= limit] = 0
            else:
                active[gains > limit] = 0
            if not active.any():
                break
        return found

    def _independent(
        self, moved: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], count: int
    ) -> list[int]:
        counts, sums = weights @ moved, weights @ self._positive
        kept = (counts > 0) & (counts / weights.sum() >= self._settings.independent_min_share)
        order = np.lexsort((-sums, -counts))
        picked: list[int] = order[kept[order]][: 2 * count].tolist()
        chosen = self.coordinates(picked)[:count]
        return [change for change in picked if self._coordinates[change] in chosen]


@dataclass(frozen=True)
class Left:
    """What is left for a stage, and why; kept in the run, so that nothing is judged twice.

    Attributes:
        images: how many it was judged by; 0 where nothing was and everything stays.
        changes: mask [2, S].
        sure: see `survivors`; None where first-order effects decided, or everything stays.
        protected: changes [2, S] that first-order effects keep in.
        unstable: images [N] that are left out, as far as was known.
    """

    images: int
    changes: BoolArray
    sure: float | None
    protected: BoolArray
    unstable: BoolArray

    def to_json(self) -> dict[str, Any]:
        """Plain values; masks as numbers of what is set."""
        return {
            "images": self.images,
            "changes": np.flatnonzero(self.changes.ravel()).tolist(),
            "sure": self.sure,
            "protected": np.flatnonzero(self.protected.ravel()).tolist(),
            "unstable": np.flatnonzero(self.unstable).tolist(),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any], coordinates: int, images: int) -> Left:
        """The inverse of `to_json`."""
        return cls(
            content["images"],
            _mask(content["changes"], 2 * coordinates).reshape(2, coordinates),
            content["sure"],
            _mask(content["protected"], 2 * coordinates).reshape(2, coordinates),
            _mask(content["unstable"], images),
        )


def _mask(numbers: list[int], size: int) -> BoolArray:
    found = np.zeros(size, bool)
    found[numbers] = True
    return found
