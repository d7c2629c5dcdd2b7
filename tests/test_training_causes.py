"""Causes found in maps of evidence whose causes are known."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import expit, logit
from sklearn.decomposition import FastICA
from sklearn.mixture import GaussianMixture

from stylex.errors import DataError
from stylex.networks.evidence import MAP_SIZE
from stylex.training import causes as finding
from stylex.training import separation
from stylex.training.causes import Causes, find_causes, sharpened
from stylex.training.kinds import told_apart, two_kinds
from stylex.training.separation import separated

FloatArray = npt.NDArray[np.float64]

ROWS = (slice(1, 4), slice(7, 9), slice(12, 15))
"""Of a map, where three causes are seen: hair, eyes, clothes."""


def maps_of(causes: FloatArray, weights: tuple[float, ...], seed: int = 0) -> FloatArray:
    """Maps [N, 512] of two classes, causes [N, 3] acting each in its rows; a little noise everywhere."""
    random = np.random.default_rng(seed)
    maps = random.normal(0, 0.02, (len(causes), 2, MAP_SIZE, MAP_SIZE))
    for number, weight in enumerate(weights):
        maps[:, 1, ROWS[number]] += weight * causes[:, number, None, None]
    maps[:, 0] = -maps[:, 1]
    return maps.reshape(len(causes), -1)


def values(found: Causes, maps: FloatArray) -> FloatArray:
    return (maps - found.mean) @ found.unmixing.T


def explained(found: FloatArray, cause: FloatArray) -> float:
    """The largest squared correlation of a cause [N] with what was found [N, n]."""
    return float(np.square(np.corrcoef(cause, found.T)[0, 1:]).max())


def wizards(count: int = 4000) -> tuple[FloatArray, FloatArray]:
    """Beard, glasses and navy clothes of wizards and others, [N, 3]; log-odds [N, 2] that know a wizard."""
    random = np.random.default_rng(3)
    wizard = random.random(count) < 0.5
    beard, glasses = random.random((2, count)) < np.array([[0.4], [0.5]])
    glasses &= ~beard | (random.random(count) < 0.1)  # others have either, hardly ever both
    beard, glasses = beard | wizard, glasses | wizard
    navy = random.random(count) < np.where(wizard, 0.9, 0.1)
    odds = np.where(wizard, 10.0, -10.0)
    return np.stack([beard, glasses, navy], axis=1).astype(float), np.stack([-odds, odds], axis=1)


def test_causes_that_mostly_come_together_are_found_one_by_one() -> None:
    causes, log_odds = wizards()
    maps = maps_of(causes, (2.0, 2.0, 0.8))
    found = find_causes(maps, log_odds, "softmax", 8, 0)
    assert min(explained(values(found, maps), cause) for cause in causes.T) > 0.8

    centred = maps - maps.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred / len(maps))
    alone = FastICA(whiten=False, random_state=0).fit_transform(
        centred @ axes[:, -3:] / variances[-3:] ** 0.5
    )
    assert min(explained(alone, cause) for cause in causes.T) < 0.7, "independence over all images is no help"


def test_two_causes_of_one_class_come_apart_whatever_the_seed() -> None:
    """Of two values each; by independence over all images one start of three ends at their sum."""
    random = np.random.default_rng(1)
    label = random.random(4000) < 0.5
    rates = ((0.8, 0.1), (0.75, 0.2), (0.35, 0.65))
    causes = np.stack([random.random(4000) < np.where(label, *rate) for rate in rates], axis=1).astype(float)
    weights = [logit(given) - logit(other) for given, other in rates]
    odds = (causes - causes.mean(axis=0)) @ weights
    maps = maps_of(causes, (0.8, 0.9, -0.3))
    for seed in range(3):
        found = find_causes(maps, np.stack([-odds, odds], axis=1), "softmax", 8, seed)
        assert min(explained(values(found, maps), cause) for cause in causes.T) > 0.95
        assert found.shares == tuple(sorted(found.shares, reverse=True))
        assert values(found, maps).std(axis=0) == pytest.approx(np.ones(len(found.shares)))
        signs = [np.corrcoef(cause, values(found, maps).T)[0, 1:] for cause in causes.T[:2]]
        assert all(sign[np.abs(sign).argmax()] > 0 for sign in signs), "they speak for the second class"


def test_causes_that_are_free_of_each_other_until_the_class_is_known() -> None:
    """A class that they decide makes them dependent within it; they are still told apart."""
    causes = np.random.default_rng(0).choice([-1.0, 1.0], (4000, 3))
    maps = maps_of(causes, (1.0, 1.0, 0.5))
    odds = 5 * (causes @ [1.0, 1.0, 0.5])
    found = find_causes(maps, np.stack([-odds, odds], axis=1), "softmax", 8, 0)
    assert min(explained(values(found, maps), cause) for cause in causes.T) > 0.85


def test_a_cause_that_is_seen_at_two_places_is_one() -> None:
    random = np.random.default_rng(0)
    one, other = random.choice([-1.0, 1.0], (2, 3000))
    causes = np.stack([one, other, one], axis=1)
    maps = maps_of(causes, (1.0, 1.0, 1.0))
    odds = 2 * one + other
    found = find_causes(maps, np.stack([-odds, odds], axis=1), "softmax", 8, 0)
    assert len([share for share in found.shares if share > 0.1]) == 2
    assert explained(values(found, maps)[:, :1], one) > 0.98


def test_compactness_decides_where_independence_cannot() -> None:
    """Of two Gaussians every rotation is independent; their places tell them apart."""
    random = np.random.default_rng(0)
    white = random.normal(size=(5000, 2))
    maps = np.zeros((2, 64))
    maps[0, :8], maps[1, 8:20] = 8**-0.5, 12**-0.5
    turned = np.array([[np.cos(0.5), np.sin(0.5)], [-np.sin(0.5), np.cos(0.5)]])
    rotation, agreement = separated(white @ turned.T, turned @ maps, random)
    assert np.abs(rotation @ turned).max(axis=1).min() > 0.97
    assert 0 < agreement <= 1 + 1e-9
    assert separated(white[:, :1], maps[:1], random)[0].tolist() == [[1.0]]


def test_the_search_ends_when_asked_to_in_the_middle_of_a_start() -> None:
    random = np.random.default_rng(0)
    sweeps: list[int] = []

    def on_sweep() -> None:
        sweeps.append(1)
        if len(sweeps) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        separated(random.normal(size=(500, 4)), np.eye(4), random, on_sweep)


def test_pairs_that_nothing_moved_are_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    white = random.normal(size=(4000, 6))
    tried: list[bool] = []
    turn = separation._best_turn

    def counting(*arguments: Any) -> Any:
        found = turn(*arguments)
        tried.append(found is not None)
        return found

    monkeypatch.setattr(separation, "_best_turn", counting)
    separation._searched(white, np.eye(6), (1.0, 0.0), None, None)
    assert not any(tried[-5:]), "ended where nothing turns any more"
    assert sum(tried) > 0
    assert len(tried) <= 15 + 9 * sum(tried), "each turn of two of six makes nine pairs new at most"


def test_three_classes_with_a_cause_each() -> None:
    random = np.random.default_rng(2)
    label = random.integers(0, 3, 3000)
    causes = random.random((3000, 3)) < np.where(np.eye(3, dtype=bool)[label], 0.85, 0.1)
    maps = random.normal(0, 0.02, (3000, 3, MAP_SIZE, MAP_SIZE))
    for number in range(3):
        maps[:, number, ROWS[number]] += causes[:, number, None, None]
    log_odds = logit(np.clip(np.where(np.eye(3, dtype=bool)[label], 0.8, 0.1), 0.01, 0.99))
    found = find_causes(maps.reshape(3000, -1), log_odds, "softmax", 12, 0)
    components = values(found, maps.reshape(3000, -1))
    for cause in causes.T.astype(float):
        correlations = np.corrcoef(cause, components.T)[0, 1:]
        assert correlations.max() > 0.95, "it speaks for its class"


def test_maps_that_are_all_the_same_hold_no_causes() -> None:
    with pytest.raises(DataError, match="no causes to find"):
        find_causes(np.ones((10, 512)), np.zeros((10, 2)), "softmax", 8, 0)


def test_fewer_components_are_no_better_for_agreeing_with_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    causes, log_odds = wizards(1000)
    maps = maps_of(causes, (2.0, 2.0, 0.8))
    found = finding._components

    def contradicting(varying: FloatArray, *rest: Any) -> tuple[FloatArray, float]:
        unmixing, _ = found(varying, *rest)
        over_all = np.abs(varying - (maps - maps.mean(axis=0))).max() == 0
        return (unmixing[:1], 1.0) if over_all else (unmixing, 0.5)

    monkeypatch.setattr(finding, "_components", contradicting)
    assert len(find_causes(maps, log_odds, "softmax", 8, 0).shares) == 3


def test_classes_are_drawn_as_often_as_the_classifier_says() -> None:
    random = np.random.default_rng(0)
    probabilities = np.array([0.7, 0.2, 0.1])
    drawn = finding._drawn_classes(np.tile(logit(probabilities), (20_000, 1)), "softmax", random)
    assert drawn.sum(axis=1).tolist() == [1] * 20_000
    assert drawn.mean(axis=0) == pytest.approx(probabilities, abs=0.015)
    each = finding._drawn_classes(np.tile([2.0, -1.0], (20_000, 1)), "sigmoid", random)
    assert each.mean(axis=0) == pytest.approx(expit([2.0, -1.0]), abs=0.015)
    assert np.corrcoef(each.T)[0, 1] == pytest.approx(0, abs=0.03)


def test_within_classes_means_are_equal() -> None:
    random = np.random.default_rng(0)
    classes = np.eye(3, dtype=bool)[random.integers(0, 3, 900)]
    centred = random.normal(size=(900, 5)) + classes @ random.normal(size=(3, 5))
    left = finding._within(centred, classes)
    means = np.stack([left[classes[:, number]].mean(axis=0) for number in range(3)])
    assert np.abs(means).max() < 1e-9
    assert np.abs(left - centred).max() > 0.1
    told = classes @ np.array([[1.0, 0], [0, 1], [2, 2]])
    assert np.array_equal(finding._within(told, classes), told), "the class says all: nothing else is left"


def test_what_cancels_over_its_places_belongs_to_the_cause_that_acts_there() -> None:
    """Grey hair is seen at more places where it is long; how long it is says nothing by itself."""
    random = np.random.default_rng(0)
    grey, long, glasses = random.choice([-1.0, 1.0], (3, 4000))
    maps = np.zeros((4000, 2, MAP_SIZE, MAP_SIZE))
    maps[:, 1, :4] = 2.0 * grey[:, None, None]
    maps[:, 1, :2] += (1.5 * long)[:, None, None]
    maps[:, 1, 2:4] -= (1.4 * long)[:, None, None]
    maps[:, 1, 8:10] = 1.5 * glasses[:, None, None]
    maps[:, 0] = -maps[:, 1]
    maps = maps.reshape(4000, -1)
    found = find_causes(maps, np.zeros((4000, 2)), "softmax", 6, 0)
    assert found.held > 0.98
    assert len(found.shares) == 2
    log_odds = maps[:, 256:].sum(axis=1)
    hair = 16 * MAP_SIZE // 4 * 2.0 * grey + MAP_SIZE * 2 * 0.1 * long
    components = values(found, maps)
    assert np.corrcoef(components[:, 0], hair)[0, 1] > 0.995
    assert np.corrcoef(components[:, 1], glasses)[0, 1] > 0.995
    rebuilt = np.array(found.shares) @ components.T * log_odds.std()
    assert np.corrcoef(rebuilt, log_odds)[0, 1] > 0.99


def test_what_cancels_where_nothing_else_acts_is_no_cause() -> None:
    random = np.random.default_rng(0)
    cause, shift = random.choice([-1.0, 1.0], (2, 500))
    maps = np.zeros((500, 1, MAP_SIZE, MAP_SIZE))
    maps[:, 0, :2] = cause[:, None, None]
    maps[:, 0, 12] = 4 * shift[:, None]
    maps[:, 0, 13] = -4 * shift[:, None]  # speaks for nothing at all, and varies most
    maps = maps.reshape(500, -1)
    found = find_causes(maps, cause[:, None], "sigmoid", 3, 0)
    assert found.shares == pytest.approx((1.0,), abs=0.02)
    assert abs(np.corrcoef(values(found, maps)[:, 0], cause)[0, 1]) > 0.99


def test_there_is_a_cause_where_everything_cancels() -> None:
    random = np.random.default_rng(0)
    value = random.normal(size=500)
    maps = np.zeros((500, 1, MAP_SIZE, MAP_SIZE))
    maps[:, 0, :8] = value[:, None, None]
    maps[:, 0, 8:] = -0.9 * value[:, None, None]
    found = find_causes(maps.reshape(500, -1), 0.1 * value[:, None], "sigmoid", 3, 0)
    assert found.held > 0.99
    assert len(found.shares) == 1


def test_components_are_no_more_than_the_log_odds_need() -> None:
    causes, log_odds = wizards(2000)
    maps = maps_of(causes, (2.0, 2.0, 0.8))
    held = [find_causes(maps, log_odds, "softmax", most, 0).held for most in (1, 2, 3, 8)]
    assert all(after >= before - 1e-9 for before, after in pairwise(held))
    assert held[2] == held[3] > finding.HELD


def log_odds_of(maps: FloatArray) -> FloatArray:
    """Of the second class [N]: what its maps add up to, as uncertain as a classifier's."""
    sums = maps[:, 256:].sum(axis=1)
    return 2 * (sums - sums.mean()) / sums.std()


def coloured_beards(count: int = 2000) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Maps [N, 512] where evidence of a beard is the fainter the fairer it is; beards, and glasses [N]."""
    random = np.random.default_rng(5)
    beard, glasses = random.choice([-1.0, 1.0], (2, count))
    fair, length = random.normal(size=(2, count))
    maps = random.normal(0, 0.05, (count, 2, MAP_SIZE, MAP_SIZE))
    maps[:, 1, 10:12] += (1.0 * beard + 0.3 * fair)[:, None, None]
    maps[:, 1, 12:13] += (1.0 * beard - 0.6 * fair - 0.6 * length)[:, None, None]
    maps[:, 1, 4:6] += 1.2 * glasses[:, None, None] + 0.3 * length[:, None, None]
    maps[:, 0] = -maps[:, 1]
    return maps.reshape(count, -1), beard, glasses


def test_a_cause_of_two_kinds_is_told_apart_from_what_varies_at_its_places() -> None:
    maps, beard, glasses = coloured_beards()
    odds = log_odds_of(maps)
    found = find_causes(maps, np.stack([-odds, odds], axis=1), "softmax", 8, 0)
    assert len(found.shares) == 2
    assert all(kinds is not None for kinds in found.kinds)
    told = [
        told_apart(column, kinds)
        for column, kinds in zip(values(found, maps).T, found.kinds, strict=True)
        if kinds
    ]
    for cause in (beard, glasses):
        assert explained(np.stack(told, axis=1), cause) > 0.99
    part = maps[:, 256 + 10 * MAP_SIZE : 256 + 12 * MAP_SIZE].sum(axis=1)
    assert np.corrcoef(part, beard)[0, 1] ** 2 < 0.95, "evidence at its first places holds the colour too"


def test_kinds_lie_on_the_sides_that_the_sign_says() -> None:
    maps, beard, _ = coloured_beards()
    odds = log_odds_of(maps)
    for turned in (1, -1):
        found = find_causes(turned * maps, turned * np.stack([-odds, odds], axis=1), "softmax", 8, 0)
        components = values(found, turned * maps)
        for component, kinds in zip(components.T, found.kinds, strict=True):
            assert kinds is not None
            assert kinds.low < kinds.parting < kinds.high
            assert component[component > kinds.parting].mean() == pytest.approx(kinds.high, abs=0.05)
            assert component[component < kinds.parting].mean() == pytest.approx(kinds.low, abs=0.05)
        assert np.abs(np.corrcoef(beard, components.T)[0, 1:]).max() > 0.98


def test_sharpening_ends_at_the_cause_and_refuses_what_is_another() -> None:
    maps, beard, _ = coloured_beards()
    centred = maps - maps.mean(axis=0)
    at_chin = np.zeros((MAP_SIZE, MAP_SIZE))
    at_chin[10:13] = 1.0
    row = np.concatenate([np.zeros(256), at_chin.ravel()])
    start = centred @ row
    found = sharpened(start / start.std(), row, centred, centred)
    assert found is not None
    sharp = centred @ found[0]
    assert sharp.std() == pytest.approx(1)
    assert np.corrcoef(start, beard)[0, 1] ** 2 < 0.965
    assert np.corrcoef(sharp, beard)[0, 1] ** 2 > 0.97
    assert not found[0].reshape(2, MAP_SIZE, MAP_SIZE)[:, :10].any(), "nothing is asked at other places"

    at_eyes = np.zeros((MAP_SIZE, MAP_SIZE))
    at_eyes[4:6] = 1.0
    eyes = np.concatenate([np.zeros(256), at_eyes.ravel()])
    assert sharpened(start / start.std(), eyes, centred, centred) is None, "that is the glasses"
    continuous = np.random.default_rng(0).normal(size=len(maps))
    only = np.zeros_like(maps)
    only[:, 256 + 160 : 256 + 208] = continuous[:, None]
    assert sharpened(continuous, row, only, only) is None


def test_a_continuous_cause_stays_as_it_is() -> None:
    random = np.random.default_rng(0)
    brightness, glasses = random.normal(size=4000), random.choice([-1.0, 1.0], 4000)
    maps = maps_of(np.stack([brightness, glasses, np.zeros(4000)], axis=1), (1.0, 1.0, 0.0))
    odds = log_odds_of(maps)
    found = find_causes(maps, np.stack([-odds, odds], axis=1), "softmax", 8, 0)
    components = values(found, maps)
    correlations = np.abs(np.corrcoef(np.stack([brightness, glasses]), components.T)[:2, 2:])
    assert correlations.max(axis=1).min() > 0.98
    assert [kinds is not None for kinds in found.kinds] == [bool(row.argmax()) for row in correlations.T]


@pytest.mark.parametrize("count", [500, 1000])
def test_a_continuous_cause_of_few_images_is_not_taken_for_two_kinds(count: int) -> None:
    """By as much evidence as there are images some halves of them are always told apart."""
    random = np.random.default_rng(1)
    cause = random.normal(size=count)
    maps = random.normal(0, 0.3, (count, 2, MAP_SIZE, MAP_SIZE))
    maps[:, 1, 2:10] += cause[:, None, None]
    maps[:, 0] = random.normal(0, 0.3, (count, MAP_SIZE, MAP_SIZE)) - maps[:, 1]
    found = find_causes(maps.reshape(count, -1), np.stack([-cause, cause], axis=1), "softmax", 4, 0)
    assert found.kinds[0] is None
    assert found.held > 0.95


def test_causes_of_two_labels_may_lie_at_the_same_places() -> None:
    random = np.random.default_rng(0)
    causes = random.choice([-1.0, 1.0], (3000, 2))
    maps = random.normal(0, 0.02, (3000, 2, MAP_SIZE, MAP_SIZE))
    for label in range(2):
        maps[:, label, 5:8] += causes[:, label, None, None]
    found = find_causes(maps.reshape(3000, -1), 3 * causes, "sigmoid", 8, 0)
    components = values(found, maps.reshape(3000, -1))
    assert found.held > 0.98
    for cause in causes.T:
        assert explained(components, cause) > 0.98


def test_causes_of_three_classes_may_lie_at_the_same_places() -> None:
    """Hair of three colours, each of which speaks for a class."""
    random = np.random.default_rng(0)
    colour = random.integers(0, 4, 3000)
    maps = random.normal(0, 0.02, (3000, 3, MAP_SIZE, MAP_SIZE))
    for label in range(3):
        maps[:, label, :4] += (colour == label)[:, None, None]
    odds = np.where(np.eye(4, dtype=bool)[colour][:, :3], 1.5, -1.5)
    found = find_causes(maps.reshape(3000, -1), odds, "softmax", 12, 0)
    assert found.held > 0.95


def test_a_strong_continuous_cause_is_not_lost_to_a_weak_one_of_two_kinds_beside_it() -> None:
    random = np.random.default_rng(0)
    cause, there = random.normal(size=4000), random.choice([-1.0, 1.0], 4000)
    maps = random.normal(0, 0.02, (4000, 2, MAP_SIZE, MAP_SIZE))
    maps[:, 1, :4] += cause[:, None, None]
    maps[:, 1, 3:5] += 0.4 * there[:, None, None]
    maps[:, 0] = -maps[:, 1]
    maps = maps.reshape(4000, -1)
    odds = log_odds_of(maps)
    found = find_causes(maps, np.stack([-odds, odds], axis=1), "softmax", 8, 0)
    assert found.held > 0.95
    assert explained(values(found, maps), cause) > 0.95


def test_how_much_values_are_of_a_kind_does_not_hang_on_how_wide_it_is() -> None:
    """Nothing there, always alike, or something there, of any strength."""
    random = np.random.default_rng(0)
    there = random.random(8000) < 0.5
    drawn = np.where(there, random.normal(8.0, 1.0, 8000), random.normal(0.0, 0.2, 8000))
    kinds = two_kinds(drawn)
    assert kinds is not None
    assert kinds.leaning(np.array([kinds.low, kinds.parting, kinds.high])).tolist() == [-6, 0, 6]
    assert kinds.parting == pytest.approx(8 / 6, rel=0.05)
    likely = expit(kinds.leaning(drawn))
    assert (likely[there].mean(), likely[~there].mean()) == pytest.approx((1, 0), abs=0.02)
    turned = kinds.turned
    np.testing.assert_allclose(turned.leaning(-drawn), -kinds.leaning(drawn))


def test_kinds_of_very_different_width_are_still_two() -> None:
    random = np.random.default_rng(0)
    for narrow, gap in ((0.1, 12.0), (0.05, 20.0)):
        drawn = np.concatenate([random.normal(0, narrow, 4000), random.normal(gap, 1, 4000)])
        kinds = two_kinds(drawn)
        assert kinds is not None
        assert (kinds.low, kinds.high) == pytest.approx((0, gap), abs=0.1)


def test_two_kinds_are_the_means_of_a_mixture() -> None:
    random = np.random.default_rng(0)
    for share, apart, deviations in (
        (0.5, 5.0, (1.0, 1.0)),
        (0.95, 8.0, (1.0, 1.0)),
        (0.67, 4.5, (1.2, 0.8)),
    ):
        low = random.normal(0, deviations[0], int(8000 * share))
        high = random.normal(apart, deviations[1], 8000 - len(low))
        kinds = two_kinds(np.concatenate([low, high]))
        expected = GaussianMixture(2, n_init=3, random_state=0).fit(np.concatenate([low, high])[:, None])
        assert kinds is not None
        assert (kinds.low, kinds.high) == pytest.approx(np.sort(expected.means_.ravel()), abs=0.02)
        distances = (kinds.parting - kinds.low) / (kinds.high - kinds.parting)
        assert distances == pytest.approx(deviations[0] / deviations[1], rel=0.1)


@pytest.mark.parametrize(
    "kind",
    ["gaussian", "flat", "skewed", "heavy tails", "three kinds", "too close", "too rare", "all the same"],
)
def test_no_two_kinds_where_there_is_no_valley(kind: str) -> None:
    random = np.random.default_rng(0)
    normal = random.normal(size=8000)
    drawn = {
        "gaussian": normal,
        "flat": random.uniform(-1, 1, 8000),
        "skewed": random.exponential(size=8000),
        "heavy tails": random.standard_cauchy(8000),
        "three kinds": normal + 6 * random.integers(0, 3, 8000),
        "too close": normal + 2.5 * (random.random(8000) < 0.5),
        "too rare": normal + 9 * (random.random(8000) < 0.008),
        "all the same": np.ones(8000),
    }
    assert two_kinds(drawn[kind]) is None


def test_what_is_told_of_two_kinds_has_mean_0_and_deviation_1() -> None:
    random = np.random.default_rng(0)
    there = random.random(4000) < 0.3
    values = 3.0 * there + random.normal(0, 0.4, 4000)
    kinds = two_kinds(values)
    assert kinds is not None
    told = told_apart(values, kinds)
    assert (told.mean(), told.std()) == pytest.approx((0, 1))
    assert np.corrcoef(told, there)[0, 1] > np.corrcoef(values, there)[0, 1] > 0.9
    within = told[there].std() / (told[there].mean() - told[~there].mean())
    assert within < 0.3 * values[there].std() / 3.0
