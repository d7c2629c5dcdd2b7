"""Does the classifier use glasses? A named hypothesis, tested on the generator with examples of the concept.

Examples with and without the concept are encoded; what sets them apart in style, other things held equal, is
added to test images, and the change of the classifier's output is read. Directions as long and of as many
coordinates, from examples whose labels are shuffled, say what any change of that size does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor

from stylex.attfind.attributes import in_class
from stylex.attfind.effects import Activation, log_odds
from stylex.errors import ConfigError, DataError, RunError
from stylex.evaluation.intervals import Interval
from stylex.model import Model

Answer = Literal["yes", "no evidence", "cannot tell"]

LEAST_EXAMPLES = 8
"""Examples with, and as many without, below which a difference of styles is noise."""

DRAWS = 99
"""Resamples of the examples, and as many shuffles: p goes down to 0.01."""

IMAGES = 32
"""Test images that the concept is added to."""

VISIBLE = 0.3
"""Share of the added difference that must be found again when the edited images are encoded."""

LEAST_CHANGE = 0.1
"""Change of the log-odds, about a tenth of the odds, below which nothing counts as use."""

LEAST_SHARE = 0.1
"""Share of the way to the boundary (mean |log-odds| of the test images) below which nothing counts either.

In the same spirit a factor counts as relied on from a tenth of the strongest (`evaluation.reliance`).
"""

SIGNIFICANCE, POWER = 0.05, 0.8

_CERTAIN = 2.5  # standard errors from 0 at which a coordinate takes part

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Verdict:
    """The answer to "does the classifier use this to decide for the class?".

    Attributes:
        concept, target: what was asked.
        answer: "yes", where p is at most 0.05 and the whole interval lies beyond `least`; "no evidence",
            which says that an effect as large as `detectable` would most likely have been found; or "cannot
            tell", where the generator does not draw the concept.
        effect: mean change of the target's log-odds when the concept is added; interval by bootstrap over
            examples and test images.
        p: share of other directions that change the log-odds as much or more; they are as long, of as many
            coordinates, and come from the same examples with the concept shuffled within classes.
        least: the change that counts as use, see LEAST_CHANGE and LEAST_SHARE. A generator draws little
            without some other thing beside it, so that a small effect may be that thing's.
        detectable: the effect to which the answer would be "yes" in four of five cases.
        flips: shares of test images that adding it sends (to the target, away from it).
        visible: share of the added difference that the encoder finds again in the edited images.
        association: difference of the target's log-odds between the examples with and without, other things
            not held equal (Welch): what a glance at the data shows.
        examples_with, examples_without, images: how many of each.
    """

    concept: str
    target: str
    answer: Answer
    effect: Interval
    p: float
    least: float
    detectable: float
    flips: tuple[float, float]
    visible: float
    association: tuple[float, float, float]
    examples_with: int
    examples_without: int
    images: int

    @property
    def sentence(self) -> str:
        """The answer in words."""
        shown = (
            f"adding {self.concept} changes the log-odds of '{self.target}' by {self.effect.estimate:+.2f} "
            f"({self.effect.low:+.2f} to {self.effect.high:+.2f}, p = {self.p:.2g})"
        )
        if self.answer == "cannot tell":
            return (
                f"cannot tell: of the difference that makes {self.concept}, only {self.visible:.0%} shows in "
                "the images that the generator draws"
            )
        return (
            f"{self.answer}: {shown}; less than {self.least:.2f} does not count as use, and an effect of "
            f"{self.detectable:.2f} or more would have been found in four of five cases"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        estimate, low, high = self.association
        return {
            "concept": self.concept,
            "target": self.target,
            "answer": self.answer,
            "sentence": self.sentence,
            "effect": self.effect.to_json(),
            "p": self.p,
            "least": self.least,
            "detectable": self.detectable,
            "flips": {"to": self.flips[0], "away": self.flips[1]},
            "visible": self.visible,
            "association": {"estimate": estimate, "low": low, "high": high},
            "examples_with": self.examples_with,
            "examples_without": self.examples_without,
            "images": self.images,
        }


def does_it_use(
    model: Model,
    examples: Tensor,
    has: npt.NDArray[np.bool_],
    images: Tensor,
    concept: str,
    target: str,
    *,
    labels: npt.NDArray[np.int64] | None = None,
    covariates: FloatArray | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Verdict:
    """Test whether the classifier uses a concept to decide for a class.

    Args:
        examples: [M, 3, R, R] in [-1, 1].
        has: [M], which of the examples show the concept.
        images: [N, 3, R, R], test images without the concept (or of which that is not known), none of them
            an example.
        labels: [M], true class of each example, which is held equal: images of a class share much more than
            the concept. Where it is not known the classifier's own class stands in for it; as that follows
            from the concept where the concept is used, the effect then comes out too small, if anything.
        covariates: [M, C], what else to hold equal.
        draws: resamples for the interval, and shuffles for p.

    That p compares with directions of equal length is what tells use from chance. A concept that can be drawn
    makes a long direction, and along a long direction every classifier answers a little differently; the
    short ones of shuffled labels would find each such concept significant.

    Raises:
        DataError: fewer than LEAST_EXAMPLES with or without, no test images, or a concept that the covariates
            give away already.
        ConfigError: no such class. RunError: the model has no encoder.
    """
    if model.encoder is None:
        raise RunError(f"recipe '{model.recipe.name}' has no encoder, so it cannot take examples")
    if target not in model.class_names:
        raise ConfigError(f"no class '{target}'; the classifier knows {', '.join(model.class_names)}")
    for what, count in (("with", int(has.sum())), ("without", int((~has).sum()))):
        if count < LEAST_EXAMPLES:
            raise DataError(f"{count} examples {what} {concept}: at least {LEAST_EXAMPLES} are needed")
    if not len(images):
        raise DataError(f"there are no test images to add {concept} to")
    index, activation = model.class_names.index(target), model.classifier.activation
    latents, logits = model.encode(examples)
    styles = model.styles(latents).double().cpu().numpy()
    answers = logits.double().cpu().numpy()
    strata = in_class_matrix(answers, activation)
    if labels is not None:
        strata = (labels[:, None] == np.unique(labels)[None]).astype(np.float64)
    held = _held_equal(strata, covariates)
    direction = concept_direction(styles, has, held)
    base = model.styles(model.encode(images)[0])
    before = model.classify(model.synthesise(base)).double().cpu().numpy()
    odds = log_odds(before, activation)[:, index]

    def edited(by: FloatArray) -> tuple[Tensor, FloatArray]:
        moved = base + torch.from_numpy(by).to(base)
        drawn = model.synthesise(moved)
        return drawn, model.classify(drawn).double().cpu().numpy()

    def effects(by: FloatArray) -> FloatArray:
        found: FloatArray = log_odds(edited(by)[1], activation)[:, index] - odds
        return found

    drawn, after = edited(direction)
    observed = log_odds(after, activation)[:, index] - odds
    random = np.random.default_rng(seed)
    resampled, shuffled = [], []
    for number in range(draws):
        rows, anew = _resample(has, random), _shuffle(has, strata, random)
        with suppress(DataError):  # a draw in which the concept and what is held equal coincide
            found = effects(concept_direction(styles[rows], has[rows], held[rows]))
            resampled.append(float(found[random.integers(0, len(found), len(found))].mean()))
        with suppress(DataError):
            shuffled.append(float(effects(_as_long(styles, anew, held, direction)).mean()))
        if on_progress is not None:
            on_progress(number + 1, draws)
    if min(len(resampled), len(shuffled)) < draws / 2:
        raise DataError(f"the examples of {concept} and what is held equal nearly coincide; add examples")
    low, high = np.quantile(resampled, [0.025, 0.975])
    mean = float(observed.mean())
    p = (1 + int((np.abs(shuffled) >= abs(mean)).sum())) / (1 + len(shuffled))
    least = max(LEAST_CHANGE, LEAST_SHARE * float(np.abs(odds).mean()))
    spread = float(np.std(resampled, ddof=1))
    usual = float(np.quantile(np.abs(shuffled), 1 - SIGNIFICANCE))  # what p asks to exceed
    visible = _visible(model, base, drawn, direction)
    inside, now = (in_class_matrix(each, activation)[:, index] > 0 for each in (before, after))
    answer: Answer = "no evidence"
    if visible < VISIBLE:
        answer = "cannot tell"
    elif p <= SIGNIFICANCE and (low > least or high < -least):
        answer = "yes"
    known = log_odds(answers, activation)[:, index]
    return Verdict(
        concept,
        target,
        answer,
        Interval(mean, float(low), float(high), len(images), 0.95, "percentile"),
        p,
        least,
        max(least + detectable_effect(spread), usual + float(stats.norm.ppf(POWER)) * spread),
        (_share(now[~inside]), _share(~now[inside])),
        visible,
        welch(known[has], known[~has]),
        int(has.sum()),
        int((~has).sum()),
        len(images),
    )


def concept_direction(
    styles: FloatArray, has: npt.NDArray[np.bool_], held: FloatArray, most: int | None = None
) -> FloatArray:
    """What sets styles [M, T] with a concept apart from those without, other things held equal: [T].

    The least-squares coefficient of the concept beside the columns of `held` [M, C] (which span the
    constant), coordinate by coordinate; 0 where it is less than 2.5 standard errors from 0, so that most
    coordinates that differ by luck stay out. With `most` so many coordinates stay instead, those with the
    most standard errors.

    Raises:
        DataError: what is held equal gives the concept away already.
    """
    label = has.astype(np.float64)
    rest = label - held @ np.linalg.lstsq(held, label, rcond=None)[0]
    power = float(rest @ rest)
    if power < 1e-6 * len(label):
        raise DataError(
            "what is held equal gives the concept away already; "
            "add examples, or hold less equal (--no-adjust)"
        )
    found: FloatArray = rest @ styles / power
    residual = styles - held @ np.linalg.lstsq(held, styles, rcond=None)[0] - rest[:, None] * found
    freedom = max(1, len(label) - np.linalg.matrix_rank(held) - 1)
    error = np.sqrt((residual**2).sum(axis=0) / freedom / power)
    if most is None:
        kept = np.abs(found) >= _CERTAIN * error
    else:
        certain = np.divide(np.abs(found), error, out=np.zeros_like(found), where=error > 0)
        kept = np.zeros(len(found), np.bool_)
        kept[np.argsort(-certain, kind="stable")[:most]] = True
    return np.where(kept, found, 0.0)


def detectable_effect(
    standard_error: float, significance: float = SIGNIFICANCE, power: float = POWER
) -> float:
    """The effect that a two-sided test finds with the given power: (z₁₋ₐ⸝₂ + z_power) · standard error."""
    return float((stats.norm.ppf(1 - significance / 2) + stats.norm.ppf(power)) * standard_error)


def welch(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[float, float, float]:
    """Difference of two means with its 95 % interval, variances not taken for equal (Welch 1947)."""
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    difference = float(one.mean() - other.mean())
    if one.std() == 0 and other.std() == 0:
        return difference, difference, difference
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of values that are nearly all the same
        interval = stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    return difference, float(interval.low), float(interval.high)


def columns_of(table: Mapping[str, Sequence[str]], most_values: int = 20) -> FloatArray | None:
    """Indicator columns [M, C] of factor columns, one a value but the last; None where there are none.

    Columns with more values than `most_values` are taken for identifiers and left out.
    """
    found = []
    for values in table.values():
        cells = np.asarray(values)
        kinds = np.unique(cells)
        if 1 < len(kinds) <= most_values:
            found += [(cells == kind).astype(np.float64) for kind in kinds[:-1]]
    return np.stack(found, axis=1) if found else None


def in_class_matrix(logits: npt.NDArray[Any], activation: Activation) -> FloatArray:
    """Indicators [M, K] of the class of each image, or of every label."""
    columns = [in_class(logits.astype(np.float32), k, activation) for k in range(logits.shape[1])]
    return np.stack(columns, axis=1).astype(np.float64)


def _held_equal(classes: FloatArray, covariates: FloatArray | None) -> FloatArray:
    parts = [np.ones((len(classes), 1)), classes]
    if covariates is not None:
        if len(covariates) != len(classes):
            raise DataError(f"{len(covariates)} rows to hold equal for {len(classes)} examples")
        parts.append(covariates)
    return np.concatenate(parts, axis=1)


def _resample(has: npt.NDArray[np.bool_], random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Examples drawn with replacement, as many with and without as there are."""
    kinds = (np.flatnonzero(has), np.flatnonzero(~has))
    return np.concatenate([random.choice(kind, len(kind)) for kind in kinds])


def _shuffle(
    has: npt.NDArray[np.bool_], strata: FloatArray, random: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """The concept exchanged among examples of one class, so that the class stays as telling as it was."""
    found = has.copy()
    _, places = np.unique(strata, axis=0, return_inverse=True)
    places = places.reshape(-1)
    for stratum in range(places.max() + 1):
        members = np.flatnonzero(places == stratum)
        found[members] = random.permutation(found[members])
    return found


def _as_long(
    styles: FloatArray, has: npt.NDArray[np.bool_], held: FloatArray, direction: FloatArray
) -> FloatArray:
    """What sets `has` apart, in as many coordinates as `direction` and of its (Euclidean) length: [T]."""
    found = concept_direction(styles, has, held, int(np.count_nonzero(direction)))
    length = float(np.linalg.norm(found))
    scaled: FloatArray = found * (float(np.linalg.norm(direction)) / length) if length else found
    return scaled


def _visible(model: Model, base: Tensor, drawn: Tensor, direction: FloatArray) -> float:
    """Which share of the direction the encoder finds again in the edited images, on average."""
    length = float(direction @ direction)
    if length == 0:
        return 0.0
    again = model.styles(model.encode(drawn)[0]) - model.styles(model.encode(model.synthesise(base))[0])
    moved = again.double().cpu().numpy() @ direction / length
    return float(np.clip(moved.mean(), 0.0, 1.0))


def _share(marks: npt.NDArray[np.bool_]) -> float:
    return float(marks.mean()) if marks.size else 0.0
