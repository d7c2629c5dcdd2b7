"""Intervals against statsmodels, closed forms and their own coverage."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from stylex.errors import ConfigError, DataError
from stylex.evaluation.intervals import bootstrap, bootstrap_mean, paired_difference, wilson


@pytest.mark.parametrize(
    ("successes", "n"), [(0, 1), (1, 1), (0, 40), (40, 40), (7, 40), (947, 1000), (1, 100000)]
)
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_equals_statsmodels(successes: int, n: int, confidence: float) -> None:
    interval = wilson(successes, n, confidence)
    expected = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    np.testing.assert_allclose((interval.low, interval.high), expected, atol=1e-12)
    assert interval.estimate == successes / n
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1


def test_wilson_solves_its_defining_equation() -> None:
    interval = wilson(13, 50)
    for end in (interval.low, interval.high):
        assert abs(13 / 50 - end) / math.sqrt(end * (1 - end) / 50) == pytest.approx(stats.norm.ppf(0.975))


def test_wilson_refuses_what_is_no_share() -> None:
    for successes, n in ((0, 0), (5, 4), (-1, 4)):
        with pytest.raises(DataError, match=f"{successes} of {n}"):
            wilson(successes, n)
    for confidence in (0.0, 1.0, 95.0):
        with pytest.raises(ConfigError, match="confidence"):
            wilson(1, 2, confidence)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_bootstrap_of_a_mean_is_near_students_interval(method: str) -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    interval = bootstrap_mean(values, method=method)
    expected = stats.t.interval(0.95, 399, loc=values.mean(), scale=stats.sem(values))
    np.testing.assert_allclose((interval.low, interval.high), expected, atol=0.02)
    assert interval.estimate == pytest.approx(values.mean())
    assert (interval.n, interval.method) == (400, method)


def test_bootstrap_equals_scipy_on_the_values_themselves() -> None:
    values = np.random.default_rng(1).exponential(1, 60)
    interval = bootstrap_mean(values, 0.9, resamples=500, seed=7)
    theirs = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=0.9,
        n_resamples=500,
        method="BCa",
        random_state=np.random.default_rng(7),
        vectorized=False,
    ).confidence_interval
    np.testing.assert_allclose((interval.low, interval.high), (theirs.low, theirs.high), rtol=1e-12)


def test_bca_leans_with_the_skew() -> None:
    values = np.random.default_rng(2).lognormal(0, 1.2, 80)
    bca, percentile = bootstrap_mean(values), bootstrap_mean(values, method="percentile")
    assert bca.high > percentile.high
    assert bca.low > percentile.low


def test_bootstrap_repeats_with_its_seed() -> None:
    values = np.random.default_rng(3).normal(0, 1, 30)
    assert bootstrap_mean(values, seed=5, resamples=300) == bootstrap_mean(values, seed=5, resamples=300)
    assert bootstrap_mean(values, seed=5, resamples=300) != bootstrap_mean(values, seed=6, resamples=300)


def test_bootstrap_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(4)
    hits = 0
    for seed in range(150):
        interval = bootstrap_mean(
            generator.normal(1, 1, 40), 0.8, method="percentile", resamples=300, seed=seed
        )
        hits += interval.low <= 1 <= interval.high
    assert 0.68 <= hits / 150 <= 0.90


def test_bca_of_equal_values_falls_back_and_says_so() -> None:
    interval = bootstrap_mean([0.25] * 10)
    assert (interval.low, interval.estimate, interval.high, interval.method) == (
        0.25,
        0.25,
        0.25,
        "percentile",
    )


def test_repeated_images_count_once() -> None:
    values = np.random.default_rng(5).normal(0, 1, 50)
    once = bootstrap_mean(values)
    tenfold, image = np.repeat(values, 10), np.repeat(np.arange(50), 10)
    grouped = bootstrap_mean(tenfold, groups=image)
    naive = bootstrap_mean(tenfold)
    assert grouped.n == 50
    np.testing.assert_allclose((grouped.low, grouped.high), (once.low, once.high), atol=1e-9)
    assert naive.high - naive.low < 0.5 * (grouped.high - grouped.low)


def test_groups_of_unequal_size_keep_the_mean_over_rows() -> None:
    interval = bootstrap_mean([1.0, 1.0, 1.0, 5.0], groups=["a", "a", "a", "b"], method="percentile")
    assert interval.estimate == 2.0
    assert (interval.low, interval.high) == (1.0, 5.0)


def test_bootstrap_of_a_correlation_keeps_pairs_together() -> None:
    generator = np.random.default_rng(6)
    x = generator.normal(0, 1, 150)
    pairs = np.stack([x, 0.8 * x + 0.6 * generator.normal(0, 1, 150)], axis=1)
    interval = bootstrap(pairs, lambda rows: np.corrcoef(rows.T)[0, 1], resamples=1500)
    fisher = np.tanh(np.arctanh(interval.estimate) + np.array([-1, 1]) * 1.96 / math.sqrt(147))
    np.testing.assert_allclose((interval.low, interval.high), fisher, atol=0.03)


def test_paired_difference_is_narrower_than_its_parts() -> None:
    generator = np.random.default_rng(7)
    base = generator.normal(0, 3, 100)
    first, second = base + 0.5 + generator.normal(0, 0.2, 100), base
    interval = paired_difference(first, second)
    expected = stats.t.interval(0.95, 99, loc=(first - second).mean(), scale=stats.sem(first - second))
    np.testing.assert_allclose((interval.low, interval.high), expected, atol=0.01)
    assert interval.high - interval.low < 0.2
    assert paired_difference(second, first).estimate == pytest.approx(-interval.estimate)


def test_paired_difference_of_flips_equals_agresti_min() -> None:
    # Agresti and Min 2005: Wald's interval after half an image is added to each of the four outcomes.
    both, only_first, only_second, neither = 10, 12, 4, 24
    first = np.repeat([True, True, False, False], [both, only_first, only_second, neither])
    second = np.repeat([True, False, True, False], [both, only_first, only_second, neither])
    interval = paired_difference(first, second)
    n, b, c = 52, 12.5, 4.5
    half = 1.959963984540054 / n * math.sqrt(b + c - (b - c) ** 2 / n)
    assert interval.estimate == pytest.approx(8 / 50)
    np.testing.assert_allclose((interval.low, interval.high), ((b - c) / n - half, (b - c) / n + half))
    mirrored = paired_difference(second, first)
    np.testing.assert_allclose((mirrored.low, mirrored.high), (-interval.high, -interval.low))
    assert paired_difference(first, second, method="percentile").method == "percentile"


def test_paired_difference_of_equal_flips_still_has_a_width() -> None:
    same = np.array([True, False] * 10)
    interval = paired_difference(same, same)
    assert interval.estimate == 0
    assert interval.low < -0.05
    assert interval.high > 0.05


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match="too few"):
        bootstrap_mean([1.0])
    with pytest.raises(DataError, match="image 1 is NaN"):
        bootstrap_mean([1.0, math.nan, 2.0])
    with pytest.raises(DataError, match="groups"):
        bootstrap_mean([1.0, 2.0], groups=[1])
    with pytest.raises(DataError, match="same images"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(DataError, match="too few"):
        paired_difference([True], [False])
    with pytest.raises(ConfigError, match="bool"):
        paired_difference([1.0, 2.0], [1.0, 1.0], method="agresti-min")
    with pytest.raises(ConfigError, match="resamples"):
        bootstrap_mean([1.0, 2.0], resamples=0)
    with pytest.raises(ConfigError, match="confidence"):
        bootstrap_mean([1.0, 2.0], 1.5)


def test_json_is_plain() -> None:
    interval = wilson(3, 4)
    assert json.loads(json.dumps(interval.to_json(), allow_nan=False)) == interval.to_json()
    assert set(interval.to_json()) == {"estimate", "low", "high", "n", "confidence", "method"}
