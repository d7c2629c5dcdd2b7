"""Takes maps of evidence apart into causes: parts of what speaks for a class that vary one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit

from stylex.attfind.effects import Activation
from stylex.errors import DataError
from stylex.networks.evidence import MAP_SIZE
from stylex.training.kinds import Kinds, mixture_of, told_apart, two_kinds
from stylex.training.randomness import derive_seed
from stylex.training.separation import separated

PLACES = MAP_SIZE**2

HELD = 0.98
"""Share of the log-odds' variance that the principal components must hold."""

FELT = 0.1
"""Share of the log-odds' deviation that a principal component moves, before places for and against cancel,
from which on it is taken too: the sum of two causes can hold all the log-odds, their difference nothing."""

SEARCHED = 4000
"""Images, drawn, on which rotations are compared."""

AGREED, BETTER = 0.75, 0.1
"""Agreement of independence and compactness below which classes are let go, if that gives so much more."""

COHERENT = 0.5
"""Of a cause's evidence, how much is left of its absolute sum once places for and against have cancelled."""

TOGETHER = 0.4
"""Cosine of two components' squared maps from which on they act at the same places."""

MORE = 1.5
"""Principal components of the second search for candidates, for each of the first."""

LARGEST_SEARCH = 24
"""Principal components up to which there is a second search; its time grows with their third power."""

WEAKEST = 0.05
"""Share in the log-odds of a candidate; deviations, as `Causes.shares`."""

ADDED = 0.01
"""Of some class's log-odds, the share of the variance that a cause must account for beside the others."""

ADDED_THERE = 0.05
"""The same of a cause that acts where another does: less than that is what varies within the other."""

PLACED = 0.05
"""Of the largest squared weight of a component's map, from which on it acts at a place."""

RIDGE = 0.01
"""Of the mean variance of the evidence at a component's places, added when its kinds are told apart there."""

AS_GOOD = 0.5
"""Of what a component accounts for by itself, how much it must when told as which of two kinds it is."""

SAME = 0.8
"""Correlation of a component before and after its kinds were told apart, above which it is the same cause."""

SHARPENED = 30
"""Times that the kinds of a component are told apart, at most."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Causes:
    """What maps of evidence are made of.

    Attributes:
        mean: [L · 256], of the maps.
        unmixing: [n, L · 256]; maps less their mean → causes of mean 0 and deviation 1 over the images.
        held: share of the variance of the maps' sums that the causes hold.
        shares: of each cause, its deviation over that of the sum, largest first.
        kinds: of each cause the two kinds that it comes in, if it does.
    """

    mean: FloatArray
    unmixing: FloatArray
    held: float
    shares: tuple[float, ...]
    kinds: tuple[Kinds | None, ...]


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
    added to the one that acts where they do.

    What this finds are candidates, of searches among fewer and among more principal components. Most causes
    come in two kinds, and `sharpened` then tells the kinds apart as well as the evidence at their places can;
    wherever the search ended near a cause, that ends at the cause itself. Of all candidates those are taken,
    one by one, that account for most of the log-odds beside the ones before, those of two kinds first; of
    what acts where one of them does, only what accounts for much. A cause speaks for the class that it moves
    most, of two for the second. Ours.

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

    def search(fewest: int, most: int) -> tuple[list[_Candidate], int]:
        varying = within
        unmixing, agreement = _components(varying, centred, summing, fewest, most, random, on_sweep)
        if agreement < AGREED:
            over_all, better = _components(centred, centred, summing, fewest, most, random, on_sweep)
            if better > agreement + BETTER and len(over_all) >= len(unmixing):
                varying, unmixing = centred, over_all
        return _candidates(unmixing, varying, centred, summing, on_sweep), len(unmixing)

    candidates, count = search(1, most)
    more = int(MORE * count)
    if count < more <= LARGEST_SEARCH:
        candidates += search(more, more)[0]
    chosen = _chosen(candidates, sums / total, most)
    told = np.stack([candidate.told for candidate in chosen], axis=1)
    contributions = np.linalg.lstsq(told, sums, rcond=None)[0]  # [n, L], log-odds for each deviation
    shares = np.abs(contributions / total).max(axis=1)
    order = np.argsort(-shares, kind="stable")
    pair = activation == "softmax" and outputs == 2
    speaks_for = np.full(len(order), 1) if pair else np.abs(contributions).argmax(axis=1)
    sign = np.where(contributions[np.arange(len(order)), speaks_for] < 0, -1.0, 1.0)
    kinds = [chosen[number].kinds for number in order]
    return Causes(
        mean,
        np.stack([chosen[number].row * sign[number] for number in order]),
        float(_held(sums, told @ contributions)),
        tuple(float(share) for share in shares[order]),
        tuple(
            each.turned if each is not None and sign[number] < 0 else each
            for number, each in zip(order, kinds, strict=True)
        ),
    )


@dataclass(frozen=True, eq=False)
class _Candidate:
    """What may be a cause.

    Attributes:
        row: [L · 256]; centred maps → values of deviation 1.
        told: [N], values of mean 0 and deviation 1 as the generator is told them.
        places: [L · 256], how much it acts where and for which class, of length 1.
        kinds: the two that the values come in, if they do.
    """

    row: FloatArray
    told: FloatArray
    places: FloatArray
    kinds: Kinds | None


def _candidates(
    unmixing: FloatArray,
    within: FloatArray,
    centred: FloatArray,
    summing: FloatArray,
    on_sweep: Callable[[], None] | None,
) -> list[_Candidate]:
    """What the components of an unmixing matrix [n, L · 256] make of themselves: those that may be causes."""
    unmixing, maps, coherent = _merged(unmixing, centred, summing)
    components = centred @ unmixing.T
    sums = centred @ summing
    contributions = np.linalg.lstsq(components, sums, rcond=None)[0]
    shares = np.abs(contributions / np.maximum(sums.std(axis=0), 1e-12)).max(axis=1)
    found = []
    for number, row in enumerate(unmixing):
        strongest = shares[number] == shares.max()
        if shares[number] < WEAKEST and not strongest:
            continue
        component, places = components[:, number], np.square(maps[number])
        length = max(float(np.linalg.norm(places)), 1e-12)
        sharp = sharpened(component, places, within, centred, on_sweep)
        if sharp is not None:
            told = told_apart(centred @ sharp[0], sharp[1])
            if _accounted(told, sums) >= AS_GOOD * _accounted(component, sums):
                found.append(_Candidate(sharp[0], told, places / length, sharp[1]))
                continue
        if coherent[number] or strongest:
            found.append(_Candidate(row, component, places / length, None))
    return found


def _accounted(values: FloatArray, sums: FloatArray) -> float:
    """The largest share of the variance of some sum [N, L] that values [N] of deviation 1 account for."""
    together = (values - values.mean()) @ (sums - sums.mean(axis=0)) / len(values)
    return float((np.square(together) / np.maximum(sums.var(axis=0), 1e-24)).max())


def _chosen(candidates: list[_Candidate], sums: FloatArray, most: int) -> list[_Candidate]:
    """The candidates that account for sums [N, L] of deviation 1, at most so many and at least one.

    Taken one after the other; and from the beginning without the one that says least beside the others, while
    that is too little, or they are too many.
    """
    while True:
        chosen = _taken(candidates, sums)
        known = np.stack([candidate.told for candidate in chosen], axis=1)
        inverse = np.linalg.pinv(known.T @ known / len(known))
        lost = np.square(inverse @ known.T @ sums / len(known)) / np.diag(inverse)[:, None]  # [n, L]
        least = int(lost.max(axis=1).argmin())
        if len(chosen) == 1 or (len(chosen) <= most and lost[least].max() >= ADDED):
            return chosen
        candidates = [candidate for candidate in candidates if candidate is not chosen[least]]


def _taken(candidates: list[_Candidate], sums: FloatArray) -> list[_Candidate]:
    """Forward selection, by what is left of candidates and of sums [N, L] beside those already taken."""
    chosen: list[_Candidate] = []
    told = np.stack([candidate.told for candidate in candidates], axis=1)  # [N, n]
    places = np.stack([candidate.places for candidate in candidates])
    of_two_kinds = np.array([candidate.kinds is not None for candidate in candidates])
    left = sums - sums.mean(axis=0)
    needed = np.full(len(candidates), ADDED)
    for allowed in (of_two_kinds, ~of_two_kinds):
        while True:
            lengths = np.square(told).sum(axis=0)
            gains = np.square(told.T @ left) / (np.maximum(lengths, 1e-12) * len(told))[:, None]  # [n, L]
            usable = allowed & (lengths > 1e-9 * len(told)) & (gains.max(axis=1) >= needed)
            if not usable.any():
                break
            best = int(np.where(usable, gains.sum(axis=1), -1.0).argmax())
            chosen.append(candidates[best])
            needed[places @ places[best] >= TOGETHER] = ADDED_THERE
            known = told[:, best] / lengths[best] ** 0.5
            left -= np.outer(known, known @ left)
            told -= np.outer(known, known @ told)
    if not chosen:
        chosen = [candidates[int(np.square(told.T @ left).sum(axis=1).argmax())]]
    return chosen


def _components(
    varying: FloatArray,
    centred: FloatArray,
    summing: FloatArray,
    fewest: int,
    most: int,
    random: np.random.Generator,
    on_sweep: Callable[[], None] | None,
) -> tuple[FloatArray, float]:
    """Unmixing [n, L · 256] into components of deviation 1, of what varies in `varying`; their agreement.

    As many as the log-odds need, but no fewer and no more than asked for.
    """
    sums = centred @ summing
    total = np.maximum(np.sqrt(sums.var(axis=0)), 1e-12)
    variances, axes = np.linalg.eigh(varying.T @ varying / len(varying))
    variances, axes = variances[::-1], axes[:, ::-1]
    most = min(most, int((variances > max(1e-9 * variances[0], 1e-24)).sum()))
    if not most:
        raise DataError("local evidence is the same in all training images: there are no causes to find")
    moved = np.sqrt(variances[:most, None]) * (np.abs(axes[:, :most]).T @ summing) / total
    felt = 1 + int(np.flatnonzero(moved.max(axis=1) >= FELT).max(initial=0))
    for count in range(max(felt, min(fewest, most)), most + 1):
        kept = axes[:, :count]
        if _held(sums, (centred @ kept) @ (kept.T @ summing)) >= HELD:
            break
    whitening = axes[:, :count] / np.sqrt(variances[:count])  # [L · 256, n]
    some = random.permutation(len(varying))[:SEARCHED]
    rotation, agreement = separated(varying[some] @ whitening, axes[:, :count].T, random, on_sweep)
    unmixing = rotation @ whitening.T
    return unmixing / (centred @ unmixing.T).std(axis=0)[:, None], agreement


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


def _merged(
    unmixing: FloatArray, centred: FloatArray, summing: FloatArray
) -> tuple[FloatArray, FloatArray, npt.NDArray[np.bool_]]:
    """Rows of an unmixing matrix [n, L · 256], those that are no cause of their own added to another.

    What raises the log-odds raises them at every place where it can be seen. A component whose places speak
    for and against alike corrects another instead (more grey hair is seen where hair is long), or is one half
    of a cause that came in two; it goes to the one that acts most at the same places, weighted by its
    log-odds, so that the parts of one cause sum to its own. One after the other, until those that are left
    act elsewhere.

    Returns:
        The rows, of deviation 1 over all images, their maps [n, L · 256], and whether each is coherent.
    """
    while True:
        components = centred @ unmixing.T
        mixing = np.linalg.lstsq(components, centred, rcond=None)[0]
        contributions = mixing @ summing  # [n, L]
        largest = np.abs(contributions).argmax(axis=1)
        maps = mixing.reshape(len(mixing), -1, PLACES)[np.arange(len(mixing)), largest]  # [n, 256]
        coherence = np.abs(maps.sum(axis=1)) / np.maximum(np.abs(maps).sum(axis=1), 1e-12)
        strength = np.linalg.norm(contributions, axis=1)
        coherent: npt.NDArray[np.bool_] = (coherence >= COHERENT) | (strength == strength.max())
        places = maps**2 / np.maximum(np.linalg.norm(maps**2, axis=1, keepdims=True), 1e-12)
        overlap = places @ places.T
        np.fill_diagonal(overlap, 0)
        overlap[coherent] = 0
        one, other = np.unravel_index(overlap.argmax(), overlap.shape)
        if overlap[one, other] < TOGETHER:
            return unmixing, np.asarray(mixing), np.asarray(coherent)
        pair = np.array([one, other])
        stronger = contributions[pair[strength[pair].argmax()]]
        weights = contributions[pair] @ stronger / max(float(np.linalg.norm(stronger)), 1e-12)
        weights[weights == 0] = 1e-12  # what adds nothing to any log-odds is still a component
        row = weights @ unmixing[pair]
        row /= max(float((centred @ row).std()), 1e-12)
        unmixing = np.vstack([np.delete(unmixing, pair, axis=0), row])


def sharpened(
    component: FloatArray,
    places: FloatArray,
    within: FloatArray,
    centred: FloatArray,
    on_sweep: Callable[[], None] | None = None,
) -> tuple[FloatArray, Kinds] | None:
    """The row [L · 256] that tells two kinds of a component apart best by the evidence at its places.

    A component found among few principal components holds a cause and a little of what else varies there.
    Where it comes in two kinds, a mixture of two Gaussians says of every image which one it is likely of, and
    linear discriminant analysis (Fisher 1936), of the evidence at the component's places within classes,
    finds what tells those apart; of its values the kinds are asked again, until nothing moves. That is
    FastICA's fixed point (Hyvärinen 1999, equation 20) with the tanh of a mixture and few places in place of
    few components, and a step of expectation maximisation. Whether there are two kinds is asked of images
    that the discriminant was not made from: of few images, by much evidence, any two halves are told apart.
    Ours.

    Args:
        component: [N], deviation 1.
        places: [L · 256], its squared map.
        within: [N, L · 256], the maps within classes, see `find_causes`.
        centred: [N, L · 256], the maps less their mean.
        on_sweep: called before the kinds are told apart, each time; what it raises ends it.

    Returns:
        The row, whose values have deviation 1 over all images, and their kinds; None where the values do not
        come in two, or have become another cause's.
    """
    columns = np.flatnonzero(places >= PLACED * places.max())
    here, varying = centred[:, columns], within[:, columns]
    seen, unseen = slice(0, None, 2), slice(1, None, 2)
    tried = _fixed_point(component[seen], varying[seen], here[seen], on_sweep)
    if tried is None or two_kinds(here[unseen] @ tried) is None:
        return None
    weights = _fixed_point(component, varying, here, on_sweep)
    if weights is None:
        return None
    values = here @ weights
    kinds = two_kinds(values)
    if kinds is None or np.corrcoef(component, values)[0, 1] < SAME:
        return None
    row = np.zeros(centred.shape[1])
    row[columns] = weights
    return row, kinds


def _fixed_point(
    component: FloatArray, varying: FloatArray, here: FloatArray, on_sweep: Callable[[], None] | None
) -> FloatArray | None:
    """Weights [P] of evidence `here` [N, P], `varying` within classes, that tell kinds apart."""
    covariance = varying.T @ varying / len(varying)
    covariance += (RIDGE * np.trace(covariance) / len(covariance) + 1e-24) * np.eye(len(covariance))
    factor = cho_factor(covariance)
    values, mixture = component, mixture_of(component)
    for _ in range(SHARPENED):
        if on_sweep is not None:
            on_sweep()
        told = told_apart(values, mixture.kinds)
        weights: FloatArray = cho_solve(factor, varying.T @ told / len(told))
        after = here @ weights
        deviation = float(after.std())
        if deviation < 1e-12:
            return None
        weights /= deviation
        before, values = values, after / deviation
        mixture = mixture_of(values, mixture)
        if np.corrcoef(before, values)[0, 1] > 1 - 1e-4:
            break
    return weights
