"""Does it use the concept? Solved by hand on the linear model, and against statsmodels."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from scipy import stats
from statsmodels.stats.power import NormalIndPower

import problems
import training_problems
from stylex.errors import ConfigError, DataError, RunError
from stylex.questions.hypothesis import (
    _as_long,
    columns_of,
    concept_direction,
    detectable_effect,
    does_it_use,
    welch,
)

CLASS, SCARF, HAT = 3, [5, 6, 7], [10, 11, 12]
"""Coordinates of forty: CLASS and SCARF speak for "yes", HAT does not."""

WEIGHTS = np.zeros(40)
WEIGHTS[CLASS], WEIGHTS[SCARF] = 1.5, 1


def examples(concept: list[int], shift: float, count: int = 40, seed: int = 0, noise: float = 0.05) -> Any:
    """Styles around 0; a concept moves three coordinates by `shift`, the first half of the images have it."""
    rows = np.random.default_rng(seed).normal(0, noise, (count, 40))
    has = np.arange(count) < count // 2
    rows[np.ix_(has, concept)] += shift
    model = problems.wide_model(WEIGHTS.tolist())
    return model, drawn(model, rows), has


def drawn(model: Any, rows: Any) -> torch.Tensor:
    return model.synthesise(torch.tensor(rows, dtype=torch.float32))


def others(model: Any, count: int = 20) -> torch.Tensor:
    return drawn(model, np.random.default_rng(9).normal(0, 0.2, (count, 40)))


def test_a_concept_that_the_classifier_uses() -> None:
    model, pictures, has = examples(SCARF, 0.4)
    alike = np.zeros(len(has), np.int64)
    found = does_it_use(model, pictures, has, others(model), "scarf", "yes", labels=alike)
    assert found.answer == "yes"
    assert found.effect.estimate == pytest.approx(1.2, abs=0.1)
    assert found.effect.low < 1.2 < found.effect.high
    assert found.p <= 0.02
    assert found.visible == pytest.approx(1, abs=0.02)
    assert found.sentence.startswith("yes: adding scarf changes the log-odds of 'yes' by +1.")
    assert found.least == 0.1  # the images lie so near to the boundary that a tenth of the way is less
    assert found.least < found.detectable < 1.5
    assert f"less than {found.least:.2f} does not count as use" in found.sentence
    assert f"{found.detectable:.2f} or more would have been found" in found.sentence
    away = does_it_use(model, pictures, has, others(model), "scarf", "no", labels=alike, draws=19)
    assert away.effect.estimate == pytest.approx(-found.effect.estimate)
    # The classifier's own class in place of the true one: too small an effect, if anything.
    blind = does_it_use(model, pictures, has, others(model), "scarf", "yes", draws=39)
    assert 0.2 < blind.effect.estimate < found.effect.estimate
    content = found.to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_a_concept_that_it_does_not_use() -> None:
    model, pictures, has = examples(HAT, 0.4)
    found = does_it_use(model, pictures, has, others(model), "hat", "yes")
    assert found.answer == "no evidence"
    assert found.visible > 0.9
    assert abs(found.effect.estimate) < found.detectable < 0.8
    assert f"{found.detectable:.2f} or more would have been found" in found.sentence


@pytest.mark.parametrize("leak", [0.03, -0.03])
def test_what_the_generator_draws_along_with_an_unused_concept_is_no_use(leak: float) -> None:
    """A hat comes with a trace of a scarf, 1/40 of what a scarf does; with exact examples that is certain."""
    model, pictures, has = examples(HAT, 0.4, noise=0.002)
    rows = model.encode(pictures)[0].numpy().copy()
    rows[has, SCARF[0]] += leak
    found = does_it_use(
        model, drawn(model, rows), has, others(model), "hat", "yes", labels=has.astype(int) * 0
    )
    assert found.effect.estimate == pytest.approx(leak, abs=0.005)
    assert found.effect.low * found.effect.high > 0  # certainly not 0
    assert found.answer == "no evidence"
    # The same trace is use neither where a large part of all directions does as much.
    assert found.p > 0.05


def test_a_change_too_small_to_count() -> None:
    """No other direction does as much, and yet it is a small part of the way to the boundary."""
    model, pictures, has = examples(SCARF, 0.4)
    alike = np.zeros(len(has), np.int64)
    near = does_it_use(model, pictures, has, others(model), "scarf", "yes", labels=alike)
    rows = np.random.default_rng(9).normal(0, 0.2, (20, 40))
    rows[:, CLASS] += 9  # log-odds of 13.5
    far = does_it_use(model, pictures, has, drawn(model, rows), "scarf", "yes", labels=alike)
    assert (near.answer, far.answer) == ("yes", "no evidence")
    assert far.effect.estimate == pytest.approx(near.effect.estimate, abs=0.05)
    assert far.p <= 0.05
    assert far.least == pytest.approx(1.35, abs=0.05)
    assert far.detectable > far.least


def test_what_goes_along_with_the_class_is_held_equal() -> None:
    """Images with the unused concept are mostly "yes" for another reason: a glance at the data misleads."""
    random = np.random.default_rng(1)
    count = 80
    rows = random.normal(0, 0.02, (count, 40))
    has = np.arange(count) < count // 2
    yes = np.where(has, random.random(count) < 0.8, random.random(count) < 0.2)
    rows[:, CLASS] += np.where(yes, 1, -1)
    rows[np.ix_(has, HAT)] += 0.4
    model = problems.wide_model(WEIGHTS.tolist())
    found = does_it_use(model, drawn(model, rows), has, others(model), "hat", "yes")
    assert found.association[1] > 1
    assert found.answer == "no evidence"
    assert abs(found.effect.estimate) < 0.2


def test_a_column_is_held_equal_too() -> None:
    """A scarf (used) goes along with a hat (unused), within the classes as well."""
    random = np.random.default_rng(2)
    count = 80
    has = np.arange(count) < count // 2
    scarf = np.where(has, random.random(count) < 0.8, random.random(count) < 0.2)
    rows = random.normal(0, 0.02, (count, 40))
    rows[np.ix_(has, HAT)] += 0.4
    rows[np.ix_(scarf, SCARF)] += 0.4
    rows[:, CLASS] -= 1  # all are "no"
    model = problems.wide_model(WEIGHTS.tolist())
    pictures = drawn(model, rows)
    naive = does_it_use(model, pictures, has, others(model), "hat", "yes", draws=39)
    assert naive.effect.estimate > 0.3
    held = columns_of({"scarf": tuple(map(str, scarf)), "name": tuple(map(str, range(count)))})
    assert held is not None
    assert held.shape == (count, 1)
    found = does_it_use(model, pictures, has, others(model), "hat", "yes", covariates=held, draws=39)
    assert found.answer == "no evidence"
    with pytest.raises(DataError, match="gives the concept away"):
        does_it_use(
            model, pictures, has, others(model), "hat", "yes", covariates=has[:, None].astype(float), draws=19
        )


def test_what_the_generator_does_not_draw() -> None:
    model, pictures, has = examples(HAT, 0.0)  # nothing sets the examples apart
    found = does_it_use(model, pictures, has, others(model), "hat", "yes", draws=19)
    assert found.answer in ("cannot tell", "no evidence")
    assert abs(found.effect.estimate) < 0.1


def test_the_direction_equals_least_squares() -> None:
    random = np.random.default_rng(0)
    has = random.random(60) < 0.4
    table = random.random((60, 2)) + has[:, None] * 0.3
    held = np.column_stack([np.ones(60), table])
    styles = np.column_stack([3 * has + table[:, 0], 0.02 * has + 0 * table[:, 0]]) + random.normal(
        0, 0.3, (60, 2)
    )
    fits = [sm.OLS(column, np.column_stack([has, held])).fit() for column in styles.T]
    found = concept_direction(styles, has, held)
    expected = [fit.params[0] if abs(fit.tvalues[0]) >= 2.5 else 0.0 for fit in fits]
    assert found == pytest.approx(np.array(expected), abs=1e-9)
    assert found[1] == 0
    assert found[0] == pytest.approx(3, abs=0.2)


def test_no_more_false_answers_than_one_in_twenty() -> None:
    """Concepts are drawn well and the classifier looks at everything alike, at no concept in particular."""
    ps, answers = [], []
    for seed in range(60):
        random = np.random.default_rng(seed)
        model = problems.wide_model(random.normal(0, 1, 40).tolist())
        has = np.arange(24) < 12
        rows = random.normal(0, 0.1, (24, 40))
        rows[has] += random.normal(0, 0.3, 40) * (random.random(40) < 0.3)
        alike = np.zeros(len(has), np.int64)
        near = drawn(model, random.normal(0, 0.02, (4, 40)))
        found = does_it_use(model, drawn(model, rows), has, near, "hat", "yes", labels=alike, draws=19)
        ps.append(found.p)
        answers.append(found.answer)
    assert sum(p <= 0.05 for p in ps) <= 8  # 3 expected; more than 8 in 1 of 300 honest cases
    assert np.mean(ps) == pytest.approx(0.5, abs=0.13)  # and p is not large by construction either
    assert answers.count("yes") <= 8


def test_directions_for_comparison_are_as_long_and_of_as_many_coordinates() -> None:
    random = np.random.default_rng(0)
    has, held = np.arange(40) < 20, np.ones((40, 1))
    styles = random.normal(0, 1, (40, 60))
    styles[:20, :7] += 5
    direction = concept_direction(styles, has, held)
    for _ in range(5):
        found = _as_long(styles, random.permutation(has), held, direction)
        assert np.count_nonzero(found) == np.count_nonzero(direction) >= 7
        assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(direction))
    most = np.flatnonzero(concept_direction(styles, has, held, 7))
    assert most.tolist() == list(range(7))
    assert not _as_long(styles, has, held, np.zeros(60)).any()


def test_statistics_against_other_libraries() -> None:
    random = np.random.default_rng(0)
    one, other = random.normal(1, 1, 12), random.normal(0, 3, 30)
    difference, low, high = welch(one, other)
    compared = sm.stats.CompareMeans(sm.stats.DescrStatsW(one), sm.stats.DescrStatsW(other))
    assert (low, high) == pytest.approx(compared.tconfint_diff(usevar="unequal"))
    assert difference == pytest.approx(one.mean() - other.mean())
    assert welch([1, 1], [0, 0]) == (1, 1, 1)
    # Two groups of n with standard deviation 1: the error of the difference is sqrt(2 / n).
    size = NormalIndPower().solve_power(nobs1=50, alpha=0.05, power=0.8)
    assert detectable_effect(np.sqrt(2 / 50)) == pytest.approx(size, rel=1e-3)
    assert detectable_effect(1.0) == pytest.approx(stats.norm.ppf(0.975) + stats.norm.ppf(0.8))


def test_bad_input() -> None:
    model, pictures, has = examples(SCARF, 0.4)
    few = np.arange(len(has)) < 3
    with pytest.raises(DataError, match="3 examples with hat: at least 8"):
        does_it_use(model, pictures, few, others(model), "hat", "yes")
    with pytest.raises(DataError, match="3 examples without hat"):
        does_it_use(model, pictures, ~few, others(model), "hat", "yes")
    with pytest.raises(ConfigError, match="no class 'perhaps'"):
        does_it_use(model, pictures, has, others(model), "hat", "perhaps")
    with pytest.raises(DataError, match="no test images"):
        does_it_use(model, pictures, has, pictures[:0], "hat", "yes")
    sampled = problems.tiny_model("stylegan2")
    images = training_problems.images(4).batch(slice(None))
    with pytest.raises(RunError, match="no encoder"):
        does_it_use(sampled, images, np.array([True, False] * 2), images, "hat", "a")
    assert columns_of({"name": tuple(map(str, range(30)))}) is None
