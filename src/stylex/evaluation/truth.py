"""Is the explanation true? Attributes against a classifier's true reliance on the factors of rendered faces.

For every attribute a factor detector reads which factors it changes; drawing the same faces again says which
factors the classifier really relies on, and how much. The two must agree.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from stylex.attfind import Findings
from stylex.errors import DataError
from stylex.evaluation.chance import AgainstChance, against, correlation
from stylex.evaluation.edits import Edits, read_edits
from stylex.evaluation.factors import FactorDetector
from stylex.evaluation.intervals import Interval, bootstrap, wilson
from stylex.evaluation.measure import TestImages
from stylex.evaluation.reliance import (
    LEAST_FACES,
    RELIED_SHARE,
    RESAMPLES,
    Redrawn,
    Reliance,
    crossed_effect,
    reliance,
)
from stylex.model import Model
from stylex.stylespace import StyleSpace

log = logging.getLogger("stylex")

ATTRIBUTES = 10
"""Attributes of each class that are read, by default."""

COUNTS = (1, 3, 5, 10)
"""Numbers of attributes for recall, and of attributes applied at once for flips."""

DRAWS = 500
"""Explanations drawn at random for the chance levels."""

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class AttributeReading:
    """One attribute as the detector reads it.

    Attributes:
        rank, direction, coordinate: which attribute.
        effect: mean change of the target's log-odds.
        shares: factor → how far it changes, 0 to 1 (see `Edits.changed`), mean over images.
        factor: the one that changes most; None where none ever changes.
        purity: share of all changes that fall on that factor; None where there is none.
        repeats: rank of the attribute that does the same; None for one that is distinct.
    """

    rank: int
    direction: int
    coordinate: int
    repeats: int | None
    effect: Interval
    shares: dict[str, float]
    factor: str | None
    purity: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "rank": self.rank,
            "direction": self.direction,
            "coordinate": self.coordinate,
            "repeats": self.repeats,
            "effect": self.effect.to_json(),
            "shares": self.shares,
            "factor": self.factor,
            "purity": self.purity,
        }


@dataclass(frozen=True)
class TargetTruth:
    """How true the explanation towards one class is.

    Attributes:
        images: test images outside the class.
        relied: the factors that the classifier relies on.
        attributes: as the detector reads them.
        recall: k → share of `relied` that the first k attributes change most (each its main factor).
        recall_distinct: the same of the first k that repeat none.
        recall_of_factors: k → share of `relied` among the first k factors by explained effect.
        explained: factor → effect that the attributes give it: the largest, over the attributes, of effect
            times the share of the attribute's changes that fall on the factor.
        correlation: of `explained` with the true effects, over the factors.
        purity: share of the changes of all attributes that fall on each one's main factor; None where
            nothing readable changes.
        purity_distinct: k → the same of the first k that repeat none.
        off_factor: k → share of the flips by the first k attributes at once in which no factor relied on
            changes: adversarial, no explanation. None where nothing flips.
        flips: k → how many images flip.
    """

    images: int
    relied: tuple[str, ...]
    attributes: tuple[AttributeReading, ...]
    recall: dict[int, AgainstChance]
    recall_distinct: dict[int, AgainstChance]
    recall_of_factors: dict[int, AgainstChance]
    explained: dict[str, float]
    correlation: AgainstChance
    purity: AgainstChance | None
    purity_distinct: dict[int, AgainstChance]
    off_factor: dict[int, AgainstChance | None]
    flips: dict[int, int]

    def to_json(self) -> dict[str, Any]:
        """Plain values; figures by k as lists of objects with k."""
        return {
            "images": self.images,
            "relied": list(self.relied),
            "attributes": [entry.to_json() for entry in self.attributes],
            "recall": [{"k": k, **figure.to_json()} for k, figure in self.recall.items()],
            "recall_distinct": [{"k": k, **figure.to_json()} for k, figure in self.recall_distinct.items()],
            "recall_of_factors": [
                {"k": k, **figure.to_json()} for k, figure in self.recall_of_factors.items()
            ],
            "explained": self.explained,
            "correlation": self.correlation.to_json(),
            "purity": None if self.purity is None else self.purity.to_json(),
            "purity_distinct": [{"k": k, **figure.to_json()} for k, figure in self.purity_distinct.items()],
            "off_factor": [
                {"k": k, "flips": self.flips[k], "share": None if share is None else share.to_json()}
                for k, share in self.off_factor.items()
            ],
        }


@dataclass(frozen=True)
class Truth:
    """Reliance of the classifier and the explanation beside it, class by class.

    `detector` gives the detector's accuracy on held-out images, factor by factor: what it reads worse than
    98 % says little about attributes. Classes with too few images outside are missing.
    """

    faces: int
    relied_share: float
    detector: dict[str, float]
    reliance: Reliance
    targets: dict[str, TargetTruth]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "faces": self.faces,
            "relied_share": self.relied_share,
            "detector": self.detector,
            "reliance": {name: [row.to_json() for row in rows] for name, rows in self.reliance.items()},
            "explanation": {name: found.to_json() for name, found in self.targets.items()},
        }


def measure_truth(
    model: Model,
    space: StyleSpace,
    findings: Findings,
    test: TestImages,
    redrawn: Redrawn,
    detector: FactorDetector,
    *,
    attributes: int = ATTRIBUTES,
    relied_share: float = RELIED_SHARE,
    seed: int = 0,
    on_progress: Callable[[str], None] | None = None,
) -> Truth:
    """Compare the attributes of a search with the true reliance, on the same faces.

    Args:
        test: what `prepare` made of the faces.
        redrawn: the same faces drawn again, in the same order.
        attributes: how many of each class are read.

    Raises:
        DataError: other faces in `test` than in `redrawn`, a factor that the detector does not read, or too
            few faces outside every class.
    """
    if test.names != redrawn.names:
        raise DataError("the faces drawn again are not the test images; give the same ones in one order")
    unread = [name for name in redrawn.values if name not in detector.factors]
    if unread:
        raise DataError(
            f"the detector does not read {', '.join(unread)}; train one on images in which they vary"
        )
    say = on_progress or (lambda stage: None)
    found = reliance(redrawn, model.class_names, relied_share=relied_share, seed=seed)
    targets: dict[str, TargetTruth] = {}
    for target, name in enumerate(model.class_names):
        ranked = findings.attributes[name][:attributes]
        changes = [entry.change for entry in ranked]
        if name not in found or not changes:
            continue
        say(f"factors that attributes towards {name} change")
        edits = read_edits(model, space, test, target, changes, COUNTS, detector)
        if len(edits.rows) < LEAST_FACES:
            log.warning(
                "attributes towards '%s' are not compared with the truth: of the reconstructions only %d are "
                "outside, and %d are needed; take more faces",
                name,
                len(edits.rows),
                LEAST_FACES,
            )
        else:
            targets[name] = judge(
                edits,
                redrawn,
                target,
                tuple(detector.factors),
                relied_share,
                repeats=[entry.repeats for entry in ranked],
                seed=seed,
            )
    scores = detector.report.get("factors", {})
    accuracy = {name: scores[name]["accuracy"]["estimate"] for name in redrawn.values if name in scores}
    return Truth(len(redrawn.names), relied_share, accuracy, found, targets)


def judge(
    edits: Edits,
    redrawn: Redrawn,
    target: int,
    factors: Sequence[str],
    relied_share: float = RELIED_SHARE,
    *,
    repeats: Sequence[int | None] | None = None,
    resamples: int = RESAMPLES,
    draws: int = DRAWS,
    seed: int = 0,
) -> TargetTruth:
    """All figures of one class from what was read; intervals by bootstrap over the faces, drawn whole.

    Args:
        factors: names of the J factors in `edits`.
        repeats: for each attribute the rank of the one that it repeats; by default none does.
    """
    joint = _Joint(edits, redrawn, target, factors, relied_share)
    random = np.random.default_rng(seed)
    everything = np.ones(len(redrawn.names))
    true, relied = joint.true_effects(everything), joint.relied(everything)
    shares = joint.shares(everything)
    explained = joint.explained(everything)
    repeats = [None] * len(edits.changes) if repeats is None else repeats
    distinct = [number for number, of in enumerate(repeats) if of is None]
    # Of a classifier that relies on nothing, nothing can be recalled.
    counts = [k for k in COUNTS if k <= len(edits.changes)] if relied.any() else []

    def interval(statistic: Callable[[FloatArray], float]) -> Interval:
        """Faces are drawn with their redrawings and edits; `statistic` gets how often each was drawn."""

        def of_index(index: FloatArray) -> float:
            return statistic(np.bincount(index.astype(np.int64), minlength=len(everything)).astype(float))

        numbers = np.arange(len(everything), dtype=np.float64)
        return bootstrap(numbers, of_index, resamples=resamples, seed=seed)

    def purity(numbers: Sequence[int]) -> AgainstChance | None:
        changed = edits.changed[list(numbers)]
        if not changed.any():
            return None
        return against(
            interval(partial(joint.purity, numbers=numbers)), _purity_by_chance(changed, random, draws)
        )

    recall: dict[int, AgainstChance] = {}
    recall_distinct: dict[int, AgainstChance] = {}
    of_factors: dict[int, AgainstChance] = {}
    for k in counts:
        picked = random.integers(0, len(factors), (draws, k))
        by_chance = [float(np.isin(np.flatnonzero(relied), row).mean()) for row in picked]
        for figures, numbers in ((recall, range(k)), (recall_distinct, distinct[:k])):
            if len(numbers) == k:
                of = partial(joint.recall, numbers=numbers)
                figures[k] = against(interval(of), by_chance)
        orders = random.permuted(np.tile(np.arange(len(factors)), (draws, 1)), axis=1)[:, :k]
        by_chance = [float(np.isin(np.flatnonzero(relied), row).mean()) for row in orders]
        of_factors[k] = against(
            interval(lambda w, k=k: joint.recall_of_factors(w, k)),  # type: ignore[misc]
            by_chance,
        )
    shuffled = random.permuted(np.tile(explained, (draws, 1)), axis=1)
    off_factor: dict[int, AgainstChance | None] = {}
    flips: dict[int, int] = {}
    for number, k in enumerate(edits.counts):
        flips[k] = int(edits.flipped[number].sum())
        off_factor[k] = _off_factor(edits, number, relied, random, draws)
    return TargetTruth(
        images=len(edits.rows),
        relied=tuple(name for name, on in zip(factors, relied, strict=True) if on),
        attributes=tuple(
            _reading(edits, number, shares[number], factors, repeats[number], resamples, seed)
            for number in range(len(edits.changes))
        ),
        recall=recall,
        recall_distinct=recall_distinct,
        recall_of_factors=of_factors,
        explained=dict(zip(factors, explained.tolist(), strict=True)),
        correlation=against(interval(joint.correlation), [correlation(row, true) for row in shuffled]),
        purity=purity(range(len(edits.changes))),
        purity_distinct={
            k: figure for k in COUNTS if k <= len(distinct) and (figure := purity(distinct[:k])) is not None
        },
        off_factor=off_factor,
        flips=flips,
    )


class _Joint:
    """Statistics as functions of how often each face counts, [N]: true effects and edits of one draw."""

    def __init__(
        self, edits: Edits, redrawn: Redrawn, target: int, factors: Sequence[str], relied_share: float
    ) -> None:
        self._outside = redrawn.outside(target)
        self._rows = edits.rows
        self._share = relied_share
        self._changed = edits.changed  # [A, n, J]
        self._gains = edits.gains
        self._changes: list[FloatArray | None] = []
        for name in factors:
            # One that has one value among the faces: nothing can rely on it.
            known = name in redrawn.values
            self._changes.append(redrawn.changes(name, target)[self._outside] if known else None)

    def true_effects(self, weights: FloatArray) -> FloatArray:
        """Mean change of log-odds by each factor's strongest value, [J]; see `reliance.crossed_effect`."""
        own = weights[self._outside]
        return np.array([0.0 if each is None else crossed_effect(each, own) for each in self._changes])

    def relied(self, weights: FloatArray) -> BoolArray:
        effects = self.true_effects(weights)
        return np.asarray((effects >= self._share * effects.max()) & (effects > 0))

    def shares(self, weights: FloatArray) -> FloatArray:
        """How far an attribute changes a factor, mean over the images, [A, J]."""
        own = weights[self._rows]
        shares: FloatArray = np.einsum("n,anj->aj", own, self._changed) / max(own.sum(), 1e-12)
        return shares

    def explained(self, weights: FloatArray) -> FloatArray:
        own = weights[self._rows]
        gains = self._gains @ own / max(own.sum(), 1e-12)
        shares = self.shares(weights)
        split = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-12)
        found: FloatArray = np.maximum((gains[:, None] * split).max(axis=0), 0.0)
        return found

    def recall(self, weights: FloatArray, numbers: Sequence[int]) -> float:
        shares = self.shares(weights)[list(numbers)]
        mains = {int(row.argmax()) for row in shares if row.any()}
        relied = np.flatnonzero(self.relied(weights))
        return sum(int(factor) in mains for factor in relied) / max(1, len(relied))

    def recall_of_factors(self, weights: FloatArray, k: int) -> float:
        explained = self.explained(weights)
        first = [int(factor) for factor in np.argsort(-explained, kind="stable")[:k] if explained[factor] > 0]
        relied = np.flatnonzero(self.relied(weights))
        return sum(int(factor) in first for factor in relied) / max(1, len(relied))

    def correlation(self, weights: FloatArray) -> float:
        return correlation(self.explained(weights), self.true_effects(weights))

    def purity(self, weights: FloatArray, numbers: Sequence[int]) -> float:
        return _pooled_purity(self.shares(weights)[list(numbers)])


def _pooled_purity(shares: FloatArray) -> float:
    """Σₐ maxⱼ / Σₐ Σⱼ of shares [A, J]; 0 where nothing changes."""
    total = float(shares.sum())
    return float(shares.max(axis=1).sum()) / total if total else 0.0


def _purity_by_chance(changed: FloatArray, random: np.random.Generator, draws: int) -> list[float]:
    """Purity where, in every edited image, the factors change as far as they did, but random ones."""
    return [_pooled_purity(random.permuted(changed, axis=2).mean(axis=1)) for _ in range(draws)]


def _off_factor(
    edits: Edits, number: int, relied: BoolArray, random: np.random.Generator, draws: int
) -> AgainstChance | None:
    """Flips without a change of any factor relied on; under chance, an image turns into another one."""
    flipped = edits.flipped[number]
    if not flipped.any():
        return None
    silent = ~edits.together[number][:, relied].any(axis=1)
    before = edits.before[:, relied]
    rows = np.flatnonzero(flipped)
    others = random.integers(0, len(before), (draws, len(rows)))
    by_chance = (before[rows][None] == before[others]).all(axis=2).mean(axis=1)
    return against(wilson(int((flipped & silent).sum()), len(rows)), by_chance, good="low")


def _reading(
    edits: Edits,
    number: int,
    shares: FloatArray,
    factors: Sequence[str],
    repeats: int | None,
    resamples: int,
    seed: int,
) -> AttributeReading:
    total = float(shares.sum())
    direction, coordinate = edits.changes[number]
    return AttributeReading(
        number + 1,
        direction,
        coordinate,
        repeats,
        bootstrap(edits.gains[number], np.mean, resamples=resamples, seed=seed),
        dict(zip(factors, shares.tolist(), strict=True)),
        factors[int(shares.argmax())] if total else None,
        float(shares.max()) / total if total else None,
    )


def unreliable(detector: Mapping[str, float], least: float = 0.98) -> list[str]:
    """Factors that the detector reads too badly to say which attribute changes them."""
    return [name for name, accuracy in detector.items() if accuracy < least]
