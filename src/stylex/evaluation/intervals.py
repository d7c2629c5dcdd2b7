"""Intervals: how far a figure could be off, given how many images it rests on.

Shares of images get Wilson's score interval, means the bootstrap over images, and two figures from the same
images the interval of their paired difference. An image that enters a figure more than once counts once:
give `groups`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from stylex.errors import ConfigError, DataError

Method = Literal["wilson", "percentile", "bca", "agresti-min"]
Bootstrap = Literal["percentile", "bca"]
FloatArray = npt.NDArray[np.float64]

_BATCH_ENTRIES = 1 << 22


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval.

    Attributes:
        estimate: the figure itself.
        low, high: the ends of the interval, in the unit of the figure.
        n: distinct images it rests on.
        confidence: of the interval, 0.95 for 95 %.
        method: how it was computed.
    """

    estimate: float
    low: float
    high: float
    n: int
    confidence: float
    method: Method

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for a share, successes / n (Wilson 1927); honest at 0 and at 1 too.

    Raises:
        DataError: no images, or more successes than images.
        ConfigError: a confidence that is not between 0 and 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise DataError(
            f"{successes} of {n} images: an interval for a share needs 0 <= successes <= n and n >= 1"
        )
    z = _normal_quantile(confidence)
    share = successes / n
    shrink = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(share, low, high, int(n), confidence, "wilson")


def bootstrap_mean(
    values: npt.ArrayLike,
    confidence: float = 0.95,
    *,
    groups: npt.ArrayLike | None = None,
    method: Bootstrap = "bca",
    resamples: int = 4999,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of a mean over images.

    Args:
        values: [N], one number a row.
        confidence: between 0 and 1.
        groups: [N], which image a row belongs to, where images occur repeatedly: whole images are drawn, and
            the mean stays that over rows. Each row is its own image by default.
        method: BCa corrects for bias and skew (Efron 1987); where it is undefined, as for values that are all
            the same, the percentile interval is given and named.
        resamples, seed: the same seed gives the same interval.

    Raises:
        DataError: fewer than two images, numbers that are not finite, or groups of another length.
    """
    rows = _numbers("values", values)
    if groups is None:
        return bootstrap(rows, np.mean, confidence, method=method, resamples=resamples, seed=seed)
    labels = np.asarray(groups)
    if labels.shape != rows.shape:
        raise DataError(f"groups of shape {labels.shape} for values of shape {rows.shape}: give one a value")
    _, index, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.bincount(index, weights=rows)
    pairs = np.stack([sums, sizes.astype(np.float64)], axis=1)
    return bootstrap(pairs, _ratio_of_sums, confidence, method=method, resamples=resamples, seed=seed)


def bootstrap(
    values: npt.ArrayLike,
    statistic: Callable[[FloatArray], Any],
    confidence: float = 0.95,
    *,
    method: Bootstrap = "bca",
    resamples: int = 4999,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of any statistic of images, by `scipy.stats.bootstrap`.

    Args:
        values: [N] or [N, M], one row an image; rows are drawn whole, so that a correlation of two columns,
            say, keeps its pairs.
        statistic: takes rows of that form and returns one number.
        confidence, method, resamples, seed: as for `bootstrap_mean`.
    """
    rows = _numbers("values", values)
    _normal_quantile(confidence)
    if len(rows) < 2:
        raise DataError(f"{len(rows)} images are too few for a bootstrap interval: at least 2 are needed")
    if resamples < 1:
        raise ConfigError(f"resamples is {resamples}: give 1 or more")
    estimate = float(statistic(rows))

    def of_indices(indices: npt.NDArray[np.intp]) -> float:
        return float(statistic(rows[indices]))

    def interval(kind: str) -> tuple[float, float]:
        result = stats.bootstrap(
            (np.arange(len(rows)),),
            of_indices,
            vectorized=False,
            n_resamples=resamples,
            confidence_level=confidence,
            method=kind,
            batch=max(1, _BATCH_ENTRIES // len(rows)),
            random_state=np.random.default_rng(seed),
        )
        return float(result.confidence_interval.low), float(result.confidence_interval.high)

    used: Bootstrap = method
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        low, high = interval("BCa" if method == "bca" else "percentile")
        if method == "bca" and not (math.isfinite(low) and math.isfinite(high)):
            used = "percentile"
            low, high = interval("percentile")
    return Interval(estimate, low, high, len(rows), confidence, used)


def paired_difference(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    confidence: float = 0.95,
    *,
    method: Literal["percentile", "bca", "agresti-min"] | None = None,
    resamples: int = 4999,
    seed: int = 0,
) -> Interval:
    """Mean of first - second over the same images, with its interval: does one method flip more than another?

    Args:
        first, second: [N] each, image by image; bool (flipped or not) or numbers.
        method: by default Agresti and Min's adjusted Wald interval for two bool arrays (half an image added
            to each of the four outcomes, so that it has a width even where no image differs), else BCa.
        confidence, resamples, seed: as for `bootstrap_mean`.

    Raises:
        DataError: arrays of different length, fewer than two images, numbers that are not finite.
        ConfigError: "agresti-min" for numbers.
    """
    one, other = np.asarray(first), np.asarray(second)
    if one.shape != other.shape or one.ndim != 1:
        raise DataError(
            f"shapes {one.shape} and {other.shape}: a paired difference needs the same images, [N] each"
        )
    both_bool = one.dtype == np.bool_ and other.dtype == np.bool_
    chosen = method or ("agresti-min" if both_bool else "bca")
    difference = _numbers("differences", one.astype(np.float64) - other.astype(np.float64))
    if chosen != "agresti-min":
        return bootstrap(difference, np.mean, confidence, method=chosen, resamples=resamples, seed=seed)
    if not both_bool:
        raise ConfigError("agresti-min is for two bool arrays: give bool, or method 'bca' or 'percentile'")
    if len(difference) < 2:
        raise DataError(
            f"{len(difference)} images are too few for a paired difference: at least 2 are needed"
        )
    z = _normal_quantile(confidence)
    only_first = int((one & ~other).sum()) + 0.5
    only_second = int((other & ~one).sum()) + 0.5
    total = len(one) + 2
    centre = (only_first - only_second) / total
    variance = (only_first + only_second - (only_first - only_second) ** 2 / total) / total**2
    half = z * math.sqrt(variance)
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return Interval(float(difference.mean()), low, high, len(one), confidence, "agresti-min")


def _ratio_of_sums(pairs: FloatArray) -> float:
    return float(pairs[:, 0].sum() / pairs[:, 1].sum())


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}: give a number between 0 and 1, such as 0.95")
    return float(stats.norm.ppf(0.5 + confidence / 2))


def _numbers(name: str, values: npt.ArrayLike) -> FloatArray:
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim not in (1, 2):
        raise DataError(f"{name} of shape {rows.shape}: give one row an image, [N] or [N, M]")
    bad = ~np.isfinite(rows) if rows.ndim == 1 else ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise DataError(
            f"{name} of image {int(np.flatnonzero(bad)[0])} is NaN or infinite: leave that image out"
        )
    return rows
