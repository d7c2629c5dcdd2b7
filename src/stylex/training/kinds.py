"""Two kinds that numbers may come in, by a mixture of two Gaussians, and how far each is of one of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from stylex.networks.evidence import CERTAINTY

VALLEY = 0.5
"""Values about some place between two means, for each about the mean that has fewer, up to which there are
two kinds."""

NEAR = 0.1
"""How far about a place, as a share of the way from one mean to the other."""

STEPS = 300
"""Of the search for two kinds, at most."""

RAREST = 0.02
"""Share of the images that a kind must have."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Kinds:
    """Two kinds that values come in: both means, and where they part, as many deviations from either."""

    low: float
    parting: float
    high: float

    @property
    def below(self) -> float:
        """Slope of `leaning` below the parting."""
        return CERTAINTY / max(self.parting - self.low, 1e-12)

    @property
    def above(self) -> float:
        """Slope of `leaning` above the parting."""
        return CERTAINTY / max(self.high - self.parting, 1e-12)

    @property
    def turned(self) -> Kinds:
        """Of the same values with the other sign."""
        return Kinds(-self.high, -self.parting, -self.low)

    def leaning(self, values: FloatArray) -> FloatArray:
        """How much values [N] are of the higher kind: `CERTAINTY` at its mean, minus that at the other's."""
        away = values - self.parting
        return away * np.where(away < 0, self.below, self.above)

    def which(self, values: FloatArray) -> FloatArray:
        """Which of the two values [N] are, from -1 to 1."""
        which: FloatArray = np.tanh(self.leaning(values) / 2)
        return which


def told_apart(values: FloatArray, kinds: Kinds) -> FloatArray:
    """Which of two kinds values [N] are of, as the generator is told; mean 0 and deviation 1."""
    told = kinds.which(values)
    told -= told.mean()
    return told / max(float(told.std()), 1e-12)


@dataclass(frozen=True, eq=False)
class Mixture:
    """Of two Gaussians, the lower first: log-likelihood of the values, shares, means and deviations [2]."""

    likelihood: float
    shares: FloatArray
    means: FloatArray
    deviations: FloatArray

    @property
    def kinds(self) -> Kinds:
        """The two as kinds, whether or not values come in two."""
        low, high = self.means
        parting = self.means @ self.deviations[::-1] / self.deviations.sum()
        return Kinds(float(low), float(parting), float(high))


def two_kinds(values: FloatArray) -> Kinds | None:
    """The two kinds that values [N] come in; None where they do not.

    A mixture of two Gaussians by expectation maximisation (Dempster, Laird & Rubin 1977), the likeliest from
    several first splits. Two overlapping ones describe a skewed or a flat distribution as well; so what
    counts is the valley: of the values themselves, not of the mixture, at most half as many about some place
    between the means as about the mean that has fewer. Ours.
    """
    if np.ptp(values) == 0:
        return None
    mixture = mixture_of(values)
    kinds = mixture.kinds
    apart = kinds.high - kinds.low
    counts = [
        int((np.abs(values - kinds.low - share * apart) <= NEAR * apart).sum())
        for share in np.linspace(0, 1, 21)
    ]
    if mixture.shares.min() < RAREST or min(counts) > VALLEY * min(counts[0], counts[-1]):
        return None
    return kinds


def mixture_of(values: FloatArray, near: Mixture | None = None) -> Mixture:
    """The likeliest of several first splits of values [N], or the one that lies near another."""
    if near is not None:
        return _expected(values, _belonging(values, near)[0])
    below = [values < np.quantile(values, share) for share in (0.05, 0.2, 0.5, 0.8, 0.95)]
    found = [_expected(values, np.stack([split, ~split]).astype(np.float64)) for split in below]
    return max(found, key=lambda each: each.likelihood)


def _expected(values: FloatArray, belongs: FloatArray) -> Mixture:
    """Expectation maximisation for values [N] that belong to two Gaussians as much as [2, N] says."""
    smallest = max(1e-3 * float(values.std()), 1e-12)
    before, step = -np.inf, 0
    while True:
        step += 1
        weights = belongs.sum(axis=1) + 1e-9
        means = belongs @ values / weights
        variances = (belongs * np.square(values - means[:, None])).sum(axis=1) / weights
        order = np.argsort(means)
        deviations = np.maximum(np.sqrt(variances), smallest)
        mixture = Mixture(0.0, (weights / weights.sum())[order], means[order], deviations[order])
        belongs, likelihood = _belonging(values, mixture)
        if likelihood - before < 1e-6 * len(values) or step == STEPS:
            return replace(mixture, likelihood=likelihood)
        before = likelihood


def _belonging(values: FloatArray, mixture: Mixture) -> tuple[FloatArray, float]:
    """How much values [N] belong to the two of a mixture, [2, N]; their log-likelihood."""
    distances = (values - mixture.means[:, None]) / mixture.deviations[:, None]
    logs = np.log(mixture.shares / mixture.deviations)[:, None] - np.square(distances) / 2
    whole = np.logaddexp(*logs)
    return np.exp(logs - whole), float(whole.sum())
