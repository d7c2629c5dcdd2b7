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
    columns_of,
    concept_direction,
    detectable_effect,
    does_it_use,
    welch,
)


def examples(coordinate: int, shift: float, count: int = 40, seed: int = 0, class_shift: float = 0.0) -> Any:
    """Styles around 0; a concept moves one searchable coordinate by `shift`, half of the images have it.

    With `class_shift` images of the concept also lie further towards "yes" in coordinate 3.
    """
    random = np.random.default_rng(seed)
    rows = random.normal(0, 0.05, (count, 6))
    has = np.arange(count) < count // 2
    rows[has, coordinate] += shift
    rows[has, 3] += class_shift
    model = problems.linear_model(batch_size=64)
    return model, model.synthesise(problems.linear_styles(rows.tolist())), has


def others(model: Any, count: int = 20) -> torch.Tensor:
    rows = np.random.default_rng(9).normal(0, 0.2, (count, 6))
    return model.synthesise(problems.linear_styles(rows.tolist()))


def test_a_concept_that_the_classifier_uses() -> None:
    model, pictures, has = examples(5, 0.8)  # coordinate 5 has weight 1
    alike = np.zeros(len(has), np.int64)
    found = does_it_use(model, pictures, has, others(model), "hat", "yes", labels=alike)
    assert found.answer == "yes"
    assert found.effect.estimate == pytest.approx(0.8, abs=0.1)
    assert found.effect.low < 0.8 < found.effect.high
    assert found.p == pytest.approx(0.01)
    assert found.visible == pytest.approx(1, abs=0.02)
    assert found.sentence.startswith("yes: adding hat changes the log-odds of 'yes' by +0.8")
    away = does_it_use(model, pictures, has, others(model), "hat", "no", labels=alike, draws=19)
    assert away.effect.estimate == pytest.approx(-found.effect.estimate)
    # The classifier's own class in place of the true one: too small an effect, if anything.
    blind = does_it_use(model, pictures, has, others(model), "hat", "yes", draws=39)
    assert 0.2 < blind.effect.estimate < found.effect.estimate
    content = found.to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_a_concept_that_it_does_not_use() -> None:
    model, pictures, has = examples(1, 0.8)  # coordinate 1 has weight 0
    found = does_it_use(model, pictures, has, others(model), "hat", "yes")
    assert found.answer == "no evidence"
    assert abs(found.effect.estimate) < found.detectable < 0.5
    assert f"{found.detectable:.2f} or more would have been found" in found.sentence


def test_what_goes_along_with_the_class_is_held_equal() -> None:
    """Images with the unused concept are mostly "yes" for another reason: a glance at the data misleads."""
    random = np.random.default_rng(1)
    count = 80
    rows = random.normal(0, 0.02, (count, 6))
    has = np.arange(count) < count // 2
    yes = np.where(has, random.random(count) < 0.8, random.random(count) < 0.2)
    rows[:, 3] += np.where(yes, 0.5, -0.5)
    rows[has, 1] += 0.8
    model = problems.linear_model(batch_size=64)
    pictures = model.synthesise(problems.linear_styles(rows.tolist()))
    found = does_it_use(model, pictures, has, others(model), "hat", "yes")
    assert found.association[1] > 1
    assert found.answer == "no evidence"
    assert abs(found.effect.estimate) < 0.2


def test_a_column_is_held_equal_too() -> None:
    """Scarf (coordinate 5, used) goes along with hat (unused), within the classes as well."""
    random = np.random.default_rng(2)
    count = 80
    has = np.arange(count) < count // 2
    scarf = np.where(has, random.random(count) < 0.8, random.random(count) < 0.2)
    rows = random.normal(0, 0.02, (count, 6))
    rows[has, 1] += 0.8
    rows[scarf, 5] += 0.8
    rows[:, 3] -= 1  # all are "no"
    model = problems.linear_model(batch_size=64)
    pictures = model.synthesise(problems.linear_styles(rows.tolist()))
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
    model, pictures, has = examples(1, 0.0)  # nothing sets the examples apart
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


def test_p_is_uniform_where_labels_mean_nothing() -> None:
    """Of tests on meaningless labels about one in twenty is significant, not more."""
    ps = []
    for seed in range(20):
        model, pictures, has = examples(1, 0.0, count=24, seed=seed)
        ps.append(does_it_use(model, pictures, has, others(model, 4), "hat", "yes", draws=19).p)
    assert sum(p <= 0.05 for p in ps) <= 4
    assert min(ps) >= 1 / 20


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
    model, pictures, has = examples(5, 0.8)
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
