"""Flips: counted by hand, against a slow reference, and on a linear toy."""

from __future__ import annotations

import json

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from stylex.attfind import select_subset
from stylex.attfind.effects import log_odds_effects
from stylex.errors import DataError
from stylex.evaluation.flips import (
    confirmed_share,
    flip_curve,
    flip_curves,
    flip_rate,
    flip_rates,
    flipped,
)


def test_flipped_by_hand() -> None:
    before, after = [0, 0, 1, 2], [0, 1, 2, 0]
    assert flipped(before, after).tolist() == [False, True, True, True]
    assert flipped([0, 0, 1], [2, 1, 2], target=2).tolist() == [True, False, True]
    with pytest.raises(DataError, match="image 3 is in class 2"):
        flipped(before, after, target=2)


def test_flip_rate_by_hand() -> None:
    rate = flip_rate([0, 0, 0, 1], [1, 2, 0, 2], target=2)
    assert (rate.flipped, rate.n, rate.rate, rate.target) == (2, 4, 0.5, 2)
    assert (rate.low, rate.high) == pytest.approx(proportion_confint(2, 4, method="wilson"))
    assert flip_rate([0, 0, 0, 1], [1, 2, 0, 2]).flipped == 3


@pytest.mark.parametrize("seed", range(5))
def test_curves_equal_slow_reference(seed: int) -> None:
    generator = np.random.default_rng(seed)
    before = generator.integers(0, 3, 40)
    targets = (before + generator.integers(1, 3, 40)) % 3
    k = [1, 2, 5, 10]
    after = generator.integers(0, 3, (4, 40))
    curves = flip_curves(before, after, k, targets, 0.9)
    assert list(curves) == sorted(set(targets.tolist()))
    for target, curve in curves.items():
        rows = [i for i in range(40) if targets[i] == target]
        for j, number in enumerate(k):
            count = sum(1 for i in rows if after[j, i] == target)
            low, high = proportion_confint(count, len(rows), alpha=0.1, method="wilson")
            point = curve.at(number)
            assert (point.flipped, point.n, point.target) == (count, len(rows), target)
            assert (point.low, point.rate, point.high) == pytest.approx((low, count / len(rows), high))
    rates = flip_rates(before, after[2], targets, 0.9)
    assert rates == {target: curve.at(5) for target, curve in curves.items()}


def test_fewest_coordinates_that_reach_a_rate() -> None:
    curve = flip_curve([0, 0, 0, 0], [[0, 0, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1]], [1, 3, 10], target=1)
    assert curve.rate == (0.25, 0.75, 1.0)
    assert [curve.fewest(rate) for rate in (0.2, 0.5, 0.75, 0.99)] == [1, 3, 3, 10]
    assert flip_curve([0, 0], [[0, 1]], [1]).fewest(0.9) is None
    with pytest.raises(DataError, match=r"k = 2: it was measured at 1, 3, 10"):
        curve.at(2)


def test_linear_toy_flips_with_the_coordinate_that_matters() -> None:
    """Linear generator and classifier: shifts add up, so the curve is known before it is measured."""
    generator = np.random.default_rng(0)
    styles = generator.uniform(-1, 1, (200, 6))
    weights = np.array([0.1, 3.0, 0.0, -1.5, 0.2, 0.0])

    def logits(s: np.ndarray) -> np.ndarray:
        z = s @ weights
        return np.stack([z / 2, -z / 2], axis=-1)

    low, high = styles.min(axis=0), styles.max(axis=0)
    shifted = np.repeat(np.repeat(styles[:, None, None], 2, axis=1), 6, axis=2)
    for s in range(6):
        shifted[:, 0, s, s], shifted[:, 1, s, s] = low[s], high[s]
    effects = log_odds_effects(logits(styles), logits(shifted))
    before = logits(styles).argmax(axis=-1)
    chosen = select_subset(effects, 0, 2, 10.0, images=before != 0)
    assert chosen == [(1, 1), (0, 3)]

    source = styles[before == 1]
    after, edited = [], source.copy()
    for direction, coordinate in chosen:
        edited[:, coordinate] = (low, high)[direction][coordinate]
        after.append(logits(edited).argmax(axis=-1))
    curve = flip_curve(before[before == 1], np.array(after), [1, 2], target=0)
    alone = source @ weights - 3.0 * source[:, 1] + 3.0 * high[1] >= 0
    assert curve.flipped[0] == alone.sum()
    assert curve.rate[0] > 0.9
    assert curve.rate[1] == 1.0
    harmless = source.copy()
    harmless[:, 2] = high[2]
    assert flip_rate(before[before == 1], logits(harmless).argmax(axis=-1)).rate == 0.0


def test_confirmed_share_by_hand() -> None:
    before = [0, 0, 0, 0, 0, 1]
    after = [1, 1, 1, 1, 0, 0]
    judge_before = [0, 0, 0, 1, 0, 1]  # image 3: the judge disagreed from the start
    judge_after = [1, 0, 2, 1, 1, 0]  # image 2: the judge sees a third class
    share = confirmed_share(before, after, judge_before, judge_after)
    assert (share.flips, share.judged, share.confirmed, share.share) == (5, 4, 2, 0.5)
    assert (share.low, share.high) == pytest.approx(proportion_confint(2, 4, method="wilson"))
    towards_one = confirmed_share(before[:5], after[:5], judge_before[:5], judge_after[:5], target=1)
    assert (towards_one.flips, towards_one.judged, towards_one.confirmed) == (4, 3, 1)


def test_nothing_to_confirm_is_said() -> None:
    share = confirmed_share([0, 1], [0, 1], [0, 1], [1, 0])
    assert (share.share, share.low, share.high, share.judged, share.flips) == (None, 0.0, 1.0, 0, 0)


def test_a_judge_equal_to_the_classifier_confirms_everything() -> None:
    generator = np.random.default_rng(0)
    before, after = generator.integers(0, 3, (2, 50))
    share = confirmed_share(before, after, before, after)
    assert share.share == 1.0
    assert share.judged == share.flips == (before != after).sum() > 0


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match="same images"):
        flipped([0, 1], [0, 1, 1])
    with pytest.raises(DataError, match="integers"):
        flip_rate([0.2, 0.8], [0, 1])
    with pytest.raises(DataError, match="no images"):
        flip_rate([], [], target=1)
    with pytest.raises(DataError, match="no images"):
        flip_curves([], np.zeros((1, 0), np.int64), [1], [])
    for k in ([2, 1], [], [-1, 1], [1, 1]):
        with pytest.raises(DataError, match="increasing"):
            flip_curve([0, 0], [[0, 0], [1, 1]], k)
    with pytest.raises(DataError, match="a row for each k"):
        flip_curve([0, 0], [[0, 0]], [1, 2])
    with pytest.raises(DataError, match=r"\[len\(k\), N\]"):
        flip_curves([0, 0], [[1, 1]], [1], [1])
    with pytest.raises(DataError, match="judge"):
        confirmed_share([0, 0], [1, 1], [0], [1, 1])


def test_json_is_plain() -> None:
    before, after = np.array([0, 0, 1]), np.array([[1, 0, 0], [1, 1, 0]])
    curve = flip_curve(before, after, np.array([1, 2]))
    share = confirmed_share(before, after[0], before, after[0])
    for thing in (curve, curve.at(2), share):
        assert json.loads(json.dumps(thing.to_json(), allow_nan=False)) == thing.to_json()
    assert curve.to_json()["k"] == [1, 2]
