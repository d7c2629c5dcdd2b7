"""The rotation to components that are independent and lie at few places."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import numpy.typing as npt

STARTS = 4
"""Of the search for the rotation that separates causes; of the searches for what it is measured by, half. Of
more than a dozen components half as many."""

SWEEPS = 30
"""At most, over all pairs of components, from one start."""

GAUSSIAN, GAUSSIAN_VARIANCE = 0.374567, 0.1898
"""Mean and variance of log cosh ν for a standard normal ν."""

FloatArray = npt.NDArray[np.float64]

_ANGLES = np.linspace(-np.pi / 4, np.pi / 4, 25, dtype=np.float32)[:, None]


def separated(
    white: FloatArray,
    maps: FloatArray,
    random: np.random.Generator,
    on_sweep: Callable[[], None] | None = None,
) -> tuple[FloatArray, float]:
    """The rotation [n, n] to components that are independent and lie at few places; how far both are reached.

    Spatiotemporal independent component analysis (Stone, Porrill, Porter & Wilkinson 2002) with one contrast
    for the components y, Σ (E log cosh y − E log cosh ν)² for ν Gaussian (negentropy, Hyvärinen 1999,
    equation 6), and another for their maps m, Σ mean m⁴ (the quartimax of factor analysis), each as a share
    of the largest that it can have by itself, and the first of four times what chance gives besides. The
    first alone cannot tell two causes from their sum and their difference where they seldom vary apart; the
    second alone takes one cause for two where it is seen at two places. Pairs are rotated by the best of 25
    angles until none moves; the best of several starts counts.

    Args:
        white: [N, n], of covariance 1.
        maps: [n, P], orthonormal, the map of each component.
        random: starts are drawn from it.
        on_sweep: called before every sweep over the pairs; what it raises ends the search.

    Returns:
        The rotation, and the mean of both shares, 0 to 1.
    """
    if white.shape[1] == 1:
        return np.eye(1), 1.0

    def best(weights: tuple[float, float], starts: int) -> tuple[FloatArray, float, float]:
        found = [
            _searched(white, maps, weights, None if start == 0 else random, on_sweep)
            for start in range(starts)
        ]
        return max(found, key=lambda each: weights[0] * each[1] + weights[1] * each[2])

    starts = STARTS if white.shape[1] <= 12 else STARTS // 2
    by_chance = white.shape[1] * GAUSSIAN_VARIANCE / len(white)
    independent = best((1, 0), starts // 2)[1] + 4 * by_chance
    compact = best((0, 1), starts // 2)[2]
    rotation, one, other = best((1 / independent, 1 / compact), starts)
    return rotation, (min(1.0, one / independent) + min(1.0, other / compact)) / 2


def _searched(
    white: FloatArray,
    maps: FloatArray,
    weights: tuple[float, float],
    random: np.random.Generator | None,
    on_sweep: Callable[[], None] | None,
) -> tuple[FloatArray, float, float]:
    """A rotation that no turn of two components improves, its negentropy and its compactness."""
    count = white.shape[1]
    rotation = np.eye(count) if random is None else np.linalg.qr(random.normal(size=(count, count)))[0]
    signals = (rotation @ white.T).astype(np.float32)
    places = (rotation @ maps * maps.shape[1] ** 0.5).astype(np.float32)
    turned = np.zeros(count, np.int64)  # when each was turned last
    visited = np.full((count, count), -1)
    time = 0
    for _ in range(SWEEPS):
        if on_sweep is not None:
            on_sweep()
        begun = time
        for first, second in combinations(range(count), 2):
            if visited[first, second] >= max(turned[first], turned[second]):
                continue
            time += 1
            turn = _best_turn(signals[[first, second]], places[[first, second]], weights)
            if turn is not None:
                for rows in (rotation, signals, places):
                    rows[[first, second]] = turn.astype(rows.dtype) @ rows[[first, second]]
                turned[[first, second]] = time
            visited[first, second] = time
        if time == begun:
            break
    independent = _negentropy(rotation @ white.T).sum()
    compact = _compactness(rotation @ maps * maps.shape[1] ** 0.5).sum()
    return rotation, float(independent), float(compact)


def _best_turn(
    signals: npt.NDArray[np.float32], places: npt.NDArray[np.float32], weights: tuple[float, float]
) -> FloatArray | None:
    """The rotation [2, 2] of two components by the best of the angles; None where none is better."""
    cosine, sine = np.cos(_ANGLES), np.sin(_ANGLES)
    worth = np.zeros(len(_ANGLES))
    for one, other in ((cosine, sine), (-sine, cosine)):
        if weights[0]:
            worth += weights[0] * _negentropy(one * signals[0] + other * signals[1])
        if weights[1]:
            worth += weights[1] * _compactness(one * places[0] + other * places[1])
    best = int(worth.argmax())
    if worth[best] <= worth[len(worth) // 2] * (1 + 1e-6):
        return None
    return np.array([[cosine[best, 0], sine[best, 0]], [-sine[best, 0], cosine[best, 0]]])


def _negentropy(signals: npt.NDArray[np.floating]) -> FloatArray:
    """Of signals [..., N] of deviation 1, up to a factor."""
    found: FloatArray = np.square(np.log(np.cosh(signals)).mean(axis=-1, dtype=np.float64) - GAUSSIAN)
    return found


def _compactness(maps: npt.NDArray[np.floating]) -> FloatArray:
    """Mean fourth power of maps [..., P] of mean square 1."""
    found: FloatArray = np.square(np.square(maps)).mean(axis=-1, dtype=np.float64)
    return found
