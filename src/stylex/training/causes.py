"""Takes maps of evidence apart into causes: parts of what speaks for a class that vary one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from stylex.attfind.effects import Activation
from stylex.errors import DataError
from stylex.networks.evidence import MAP_SIZE
from stylex.training.randomness import derive_seed

PLACES = MAP_SIZE**2

HELD = 0.98
"""Share of the log-odds' variance that the principal components must hold."""

FELT = 0.1
"""Share of the log-odds' deviation that a principal component moves, before places for and against cancel,
from which on it is taken too: the sum of two causes can hold all the log-odds, their difference nothing."""

STARTS = 4
"""Of the search for the rotation that separates causes; of the searches for what it is measured by, half. Of
more than a dozen components half as many."""

SEARCHED = 4000
"""Images, drawn, on which rotations are compared."""

SWEEPS = 30
"""At most, over all pairs of components, from one start."""

GAUSSIAN, GAUSSIAN_VARIANCE = 0.374567, 0.1898
"""Mean and variance of log cosh ν for a standard normal ν."""

AGREED, BETTER = 0.75, 0.1
"""Agreement of independence and compactness below which classes are let go, if that gives so much more."""

COHERENT = 0.5
"""Of a cause's evidence, how much is left of its absolute sum once places for and against have cancelled."""

TOGETHER = 0.03
"""Cosine of two components' squared maps from which on they act at the same places."""

FloatArray = npt.NDArray[np.float64]

_ANGLES = np.linspace(-np.pi / 4, np.pi / 4, 25, dtype=np.float32)[:, None]


@dataclass(frozen=True, eq=False)
class Causes:
    """What maps of evidence are made of.

    Attributes:
        mean: [L · 256], of the maps.
        unmixing: [n, L · 256]; maps less their mean → causes of mean 0 and deviation 1 over the images.
        held: share of the variance of the maps' sums that the causes hold.
        shares: of each cause, its deviation over that of the sum, largest first.
    """

    mean: FloatArray
    unmixing: FloatArray
    held: float
    shares: tuple[float, ...]


def find_causes(
    maps: FloatArray,
    log_odds: FloatArray,
    activation: Activation,
    most: int,
    seed: int,
    on_sweep: Callable[[], None] | None = None,
) -> Causes:
    """Causes in the maps of evidence of some images.

    What speaks for a class comes together because of the class: wizards have the beard and the glasses. So
    components are made independent within classes, where causes are free of each other, and not over all
    images. Nobody need say which class an image is of: one is drawn from the classifier's own probabilities,
    which for a calibrated classifier is distributed as the true one. Of what then varies, principal
    components are rotated to be independent and to lie at few places (see `separated`). Where the two
    contradict each other, causes may be free of each other but for the class that they decide; then they are
    taken over all images if that agrees better. Components whose evidence cancels over their places are
    added to one that acts where they do. A cause speaks for the class that it moves most, of two for the
    second. Ours.

    Args:
        maps: [N, L · 256], evidence at each place for each of L classes.
        log_odds: [N, L], what the classifier says of these images.
        activation: with softmax an image is of one class, with sigmoid of any.
        most: causes, at most.
        seed: of the classes that are drawn and of the search.
        on_sweep: called before every sweep of the search; what it raises ends it.

    Raises:
        DataError: the maps are the same for all images.
    """
    outputs = maps.shape[1] // PLACES
    mean = maps.mean(axis=0)
    centred = maps - mean
    summing = np.repeat(np.eye(outputs), PLACES, axis=0)  # [L · 256, L]
    sums = centred @ summing
    total = np.maximum(np.sqrt(sums.var(axis=0)), 1e-12)
    random = np.random.default_rng(derive_seed(seed, "causes"))
    within = _within(centred, _drawn_classes(log_odds, activation, random))
    unmixing, agreement = _components(within, centred, summing, most, random, on_sweep)
    if agreement < AGREED:
        over_all, better = _components(centred, centred, summing, most, random, on_sweep)
        if better > agreement + BETTER and len(over_all) >= len(unmixing):
            unmixing = over_all
    unmixing = _merged(unmixing, centred, summing)
    components = centred @ unmixing.T
    contributions = np.linalg.lstsq(components, sums, rcond=None)[0]  # [n, L], log-odds for each deviation
    shares = np.abs(contributions / total).max(axis=1)
    order = np.argsort(-shares, kind="stable")
    pair = activation == "softmax" and outputs == 2
    speaks_for = np.full(len(order), 1) if pair else np.abs(contributions).argmax(axis=1)
    sign = np.where(contributions[np.arange(len(order)), speaks_for] < 0, -1.0, 1.0)
    return Causes(
        mean,
        (unmixing * sign[:, None])[order],
        float(_held(sums, components @ contributions)),
        tuple(float(share) for share in shares[order]),
    )


def _components(
    varying: FloatArray,
    centred: FloatArray,
    summing: FloatArray,
    most: int,
    random: np.random.Generator,
    on_sweep: Callable[[], None] | None,
) -> tuple[FloatArray, float]:
    """Unmixing [n, L · 256] into components of deviation 1, of what varies in `varying`; their agreement."""
    sums = centred @ summing
    total = np.maximum(np.sqrt(sums.var(axis=0)), 1e-12)
    variances, axes = np.linalg.eigh(varying.T @ varying / len(varying))
    variances, axes = variances[::-1], axes[:, ::-1]
    most = min(most, int((variances > max(1e-9 * variances[0], 1e-24)).sum()))
    if not most:
        raise DataError("local evidence is the same in all training images: there are no causes to find")
    moved = np.sqrt(variances[:most, None]) * (np.abs(axes[:, :most]).T @ summing) / total
    for count in range(1 + int(np.flatnonzero(moved.max(axis=1) >= FELT).max(initial=0)), most + 1):
        kept = axes[:, :count]
        if _held(sums, (centred @ kept) @ (kept.T @ summing)) >= HELD:
            break
    whitening = axes[:, :count] / np.sqrt(variances[:count])  # [L · 256, n]
    some = random.permutation(len(varying))[:SEARCHED]
    rotation, agreement = separated(varying[some] @ whitening, axes[:, :count].T, random, on_sweep)
    unmixing = rotation @ whitening.T
    return unmixing / (centred @ unmixing.T).std(axis=0)[:, None], agreement


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


def _drawn_classes(
    log_odds: FloatArray, activation: Activation, random: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Classes [N, L] drawn from the classifier's probabilities: one of an image, with sigmoid any number."""
    probabilities = expit(log_odds)
    if activation == "sigmoid":
        return np.asarray(random.random(probabilities.shape) < probabilities)
    shares = np.cumsum(probabilities / probabilities.sum(axis=1, keepdims=True), axis=1)
    chosen = (random.random((len(shares), 1)) > shares[:, :-1]).sum(axis=1)
    return np.asarray(chosen[:, None] == np.arange(probabilities.shape[1]))


def _within(centred: FloatArray, classes: npt.NDArray[np.bool_]) -> FloatArray:
    """What is left of centred maps [N, P] once the classes [N, L] account for what they can."""
    known = np.hstack([np.ones((len(classes), 1)), classes])
    left = centred - known @ np.linalg.lstsq(known, centred, rcond=None)[0]
    return left if left.var() > 1e-6 * centred.var() else centred


def _held(sums: FloatArray, by: FloatArray) -> float:
    """Share of the variance of sums [N, L] that others hold."""
    return 1 - float((sums - by).var(axis=0).sum() / max(sums.var(axis=0).sum(), 1e-12))


def _merged(unmixing: FloatArray, centred: FloatArray, summing: FloatArray) -> FloatArray:
    """Rows of an unmixing matrix [n, L · 256], those that are no cause of their own added to another.

    What raises the log-odds raises them at every place where it can be seen. A component whose places speak
    for and against alike corrects another instead (more grey hair is seen where hair is long); it goes to the
    one that acts at the same places, if there is one. So weighted, parts of one cause sum to its log-odds.
    The components of the rows that come and go have deviation 1 over all images.
    """
    components = centred @ unmixing.T
    mixing = np.linalg.lstsq(components, centred, rcond=None)[0]
    contributions = mixing @ summing  # [n, L]
    largest = np.abs(contributions).argmax(axis=1)
    maps = mixing.reshape(len(mixing), -1, PLACES)[np.arange(len(mixing)), largest]  # [n, 256]
    coherence = np.abs(maps.sum(axis=1)) / np.maximum(np.abs(maps).sum(axis=1), 1e-12)
    strength = np.linalg.norm(contributions, axis=1)
    coherent = (coherence >= COHERENT) | (strength == strength.max())
    places = maps**2 / np.maximum(np.linalg.norm(maps**2, axis=1, keepdims=True), 1e-12)
    overlap = np.where(coherent, places @ places.T, 0.0)
    target = np.where(
        ~coherent & (overlap.max(axis=1) >= TOGETHER), overlap.argmax(axis=1), np.arange(len(maps))
    )
    causes = np.unique(target)
    weights = (contributions * contributions[target]).sum(axis=1) / np.maximum(strength[target], 1e-12)
    weights[weights == 0] = 1e-12  # what adds nothing to any log-odds is still a component
    merged = np.stack([weights[target == cause] @ unmixing[target == cause] for cause in causes])
    scaled: FloatArray = merged / (centred @ merged.T).std(axis=0)[:, None]
    return scaled
