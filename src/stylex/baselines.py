"""What AttFind is compared with: the ranking of Wu et al. (StyleSpace, 2021), and random coordinates.

Both return what selection returns, a list of (direction, coordinate), so that everything downstream treats
the three alike. Wu et al. look at styles and at the class of each image only: they never ask what a change of
a coordinate does to the classifier.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stylex.attfind.selection import DirectedCoordinate
from stylex.errors import ConfigError, DataError


@dataclass(frozen=True, eq=False)
class WuScores:
    """How much each coordinate sets one class apart.

    Attributes:
        target: the class.
        score: [S], |mean z| / std z over the samples of the class; 0 for a coordinate that never varies,
            infinite for one that has a single value within the class and others outside it.
        direction: [S], 1 where the class lies above the overall mean, else 0.
        samples: how many images stand for the class.
    """

    target: int
    score: npt.NDArray[np.float64]
    direction: npt.NDArray[np.int64]
    samples: int

    def ranking(self) -> list[DirectedCoordinate]:
        """(direction, coordinate), best first, equal ones in order; without those that never vary."""
        order = np.argsort(-self.score, kind="stable")
        return [(int(self.direction[index]), int(index)) for index in order if self.score[index] > 0]

    def to_json(self) -> dict[str, Any]:
        """Plain values; an infinite score becomes None."""
        return {
            "target": self.target,
            "samples": self.samples,
            "direction": self.direction.tolist(),
            "score": [value if math.isfinite(value) else None for value in self.score.tolist()],
        }


def wu_scores(
    styles: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    target: int,
    threshold: float = 0.9,
    top_share: float | None = None,
) -> WuScores:
    """Score of every coordinate for one class, after Wu et al. 2021, section 4.

    z = (style - mean) / std, with mean and std over all images; then |mean z| / std z over the images that
    show the class clearly. Those are the ones with a probability above `threshold` (the study's choice, for
    want of images) or, with `top_share=0.02`, the 2 % with the highest probability (Wu et al.).

    Args:
        styles: [N, S], of all images, whatever their class.
        probabilities: [N, K], 0 to 1 (not logits).
        target: class index.
        threshold: used when `top_share` is None.
        top_share: share of all images, above 0 and at most 1; equal probabilities are taken in order.

    Raises:
        DataError: arrays that do not belong together, that are not finite or no probabilities, or fewer than
            two images that show the class.
        ConfigError: target, threshold or share out of range.
    """
    s = np.asarray(styles, dtype=np.float64)
    p = np.asarray(probabilities, dtype=np.float64)
    if s.ndim != 2 or p.ndim != 2 or len(s) != len(p):
        raise DataError(
            f"styles {s.shape} and probabilities {p.shape}: give [N, S] and [N, K] of the same images"
        )
    if not np.isfinite(s).all():
        row = int(np.flatnonzero(~np.isfinite(s).all(axis=1))[0])
        raise DataError(
            f"styles of image {row} hold NaN or infinity: encode that image again, or leave it out"
        )
    if not ((p >= 0) & (p <= 1)).all():
        row = int(np.flatnonzero(~((p >= 0) & (p <= 1)).all(axis=1))[0])
        raise DataError(f"probabilities of image {row} are not within 0 to 1: give probabilities, not logits")
    if not 0 <= target < p.shape[1]:
        raise ConfigError(f"class index {target} is out of range: there are classes 0 to {p.shape[1] - 1}")
    samples = _samples_of_class(p[:, target], target, threshold, top_share)

    varies = s.max(axis=0) > s.min(axis=0)
    spread = np.where(varies, s.std(axis=0), 1.0)
    within = s[samples]
    mean_z = np.where(varies, (within.mean(axis=0) - s.mean(axis=0)) / spread, 0.0)
    varies_within = within.max(axis=0) > within.min(axis=0)
    std_z = np.where(varies_within, within.std(axis=0) / spread, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.where(mean_z == 0, 0.0, np.abs(mean_z) / std_z)
    return WuScores(int(target), score, (mean_z > 0).astype(np.int64), len(samples))


def rank_wu(
    styles: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    target: int,
    threshold: float = 0.9,
    *,
    top_share: float | None = None,
    count: int | None = None,
) -> list[DirectedCoordinate]:
    """Coordinates that set the target class apart, best first, each with the direction that leads to it.

    `count` keeps the first so many (the study: 10). For the rest see `wu_scores`. The study ranks for class 0
    and inverts the directions for class 1: `stylex.attfind.selection.invert`.
    """
    if count is not None and count < 0:
        raise ConfigError(f"count is {count}: give how many coordinates to return, 0 or more")
    return wu_scores(styles, probabilities, target, threshold, top_share).ranking()[:count]


def random_coordinates(coordinates: int, count: int, seed: int) -> list[DirectedCoordinate]:
    """`count` different ones of `coordinates` coordinates, each in a random direction; the same for a seed.

    Raises:
        ConfigError: more coordinates asked for than there are, or a negative number.
    """
    if not 0 <= count <= coordinates:
        raise ConfigError(f"count is {count}: give 0 to {coordinates}, the number of coordinates")
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(coordinates)[:count]
    directions = generator.integers(0, 2, size=coordinates)[:count]
    return [
        (int(direction), int(coordinate)) for direction, coordinate in zip(directions, chosen, strict=True)
    ]


def _samples_of_class(
    probability: npt.NDArray[np.float64], target: int, threshold: float, top_share: float | None
) -> npt.NDArray[np.intp]:
    """Indices of the images that show the class clearly."""
    if top_share is None:
        if not 0 <= threshold < 1:
            raise ConfigError(f"threshold is {threshold}: give a probability from 0 to below 1")
        samples = np.flatnonzero(probability > threshold)
        remedy = "lower the threshold, give top_share, or add images"
    else:
        if not 0 < top_share <= 1:
            raise ConfigError(f"top_share is {top_share}: give a share above 0 and at most 1")
        number = round(top_share * len(probability))
        samples = np.sort(np.argsort(-probability, kind="stable")[:number])
        remedy = "raise top_share, or add images"
    if len(samples) < 2:
        raise DataError(
            f"class {target}: {len(samples)} images show it clearly, at least 2 are needed; {remedy}"
        )
    return samples
