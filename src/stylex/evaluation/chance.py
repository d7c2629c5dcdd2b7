"""Figures beside what chance alone would give: without that, a high number says little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from stylex.errors import DataError
from stylex.evaluation.intervals import Interval

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AgainstChance:
    """A figure with its interval, and the same figure where the explanation is drawn at random.

    Attributes:
        interval: the figure.
        chance: its mean under chance.
        limit: what chance reaches in one case of twenty: the 95 % quantile, or the 5 % one for figures of
            which little is good.
    """

    interval: Interval
    chance: float
    limit: float

    def to_json(self) -> dict[str, Any]:
        """The interval's values, `chance` and `chance_limit`."""
        return {**self.interval.to_json(), "chance": self.chance, "chance_limit": self.limit}


def against(interval: Interval, draws: npt.ArrayLike, good: Literal["high", "low"] = "high") -> AgainstChance:
    """Put a figure beside draws of it under chance.

    Raises:
        DataError: no draws, or one that is not finite.
    """
    values = np.asarray(draws, np.float64)
    if not values.size or not np.isfinite(values).all():
        raise DataError("a figure under chance needs draws, all of them finite")
    limit = np.quantile(values, 0.95 if good == "high" else 0.05)
    return AgainstChance(interval, float(values.mean()), float(limit))


def chance_of_recall(attributes: int, factors: int) -> float:
    """Expected share of given factors that `attributes` find, each at one of `factors` by chance."""
    return 1.0 - (1.0 - 1.0 / factors) ** attributes


def correlation(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Pearson's r; 0 where one of the two never varies, as nothing is then explained."""
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else 0.0
