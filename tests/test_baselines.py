"""Baselines: a slow reference, planted coordinates, and seeds."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from stylex.baselines import random_coordinates, rank_wu, wu_scores
from stylex.errors import ConfigError, DataError


def planted(seed: int, images: int = 200, coordinates: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Styles in which coordinate 4 is high and 9, more loosely, low for class 1; and probabilities."""
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 2, images)
    styles = generator.normal(5, 2, (images, coordinates))
    styles[:, 4] += 8 * label
    styles[:, 9] -= 3 * label
    clear = generator.uniform(0.85, 1.0, images)
    p1 = np.where(label == 1, clear, 1 - clear)
    return styles, np.stack([1 - p1, p1], axis=1)


def slow_score(styles: np.ndarray, chosen: list[int], coordinate: int) -> tuple[float, int]:
    everything = [float(row[coordinate]) for row in styles]
    mean = sum(everything) / len(everything)
    std = math.sqrt(sum((value - mean) ** 2 for value in everything) / len(everything))
    z = [(float(styles[i, coordinate]) - mean) / std for i in chosen]
    mean_z = sum(z) / len(z)
    std_z = math.sqrt(sum((value - mean_z) ** 2 for value in z) / len(z))
    return abs(mean_z) / std_z, int(mean_z > 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("target", [0, 1])
def test_scores_equal_slow_reference(seed: int, target: int) -> None:
    styles, probabilities = planted(seed)
    scores = wu_scores(styles, probabilities, target)
    chosen = [i for i in range(len(styles)) if probabilities[i, target] > 0.9]
    assert scores.samples == len(chosen)
    expected = [slow_score(styles, chosen, s) for s in range(styles.shape[1])]
    np.testing.assert_allclose(scores.score, [score for score, _ in expected], rtol=1e-9)
    assert scores.direction.tolist() == [direction for _, direction in expected]
    order = sorted(range(styles.shape[1]), key=lambda s: -expected[s][0])
    assert rank_wu(styles, probabilities, target) == [(expected[s][1], s) for s in order]


def test_planted_coordinates_lead_with_their_direction() -> None:
    styles, probabilities = planted(0)
    assert rank_wu(styles, probabilities, 1, count=2) == [(1, 4), (0, 9)]
    assert rank_wu(styles, probabilities, 0, count=2) == [(0, 4), (1, 9)]
    ranking = rank_wu(styles.astype(np.float32), probabilities, 1)
    assert all(type(number) is int for pair in ranking for number in pair)


def test_top_share_takes_the_most_confident_images() -> None:
    styles, probabilities = planted(1, images=400)
    scores = wu_scores(styles, probabilities, 1, top_share=0.02)
    assert scores.samples == 8
    best = np.argsort(-probabilities[:, 1])[:8].tolist()
    np.testing.assert_allclose(scores.score[4], slow_score(styles, best, 4)[0], rtol=1e-9)
    assert rank_wu(styles, probabilities, 1, top_share=0.02)[0] == (1, 4)


def test_constant_coordinates_are_not_ranked_and_pure_ones_lead() -> None:
    styles, probabilities = planted(2)
    styles[:, 3] = 0.1
    styles[:, 7] = np.where(probabilities[:, 1] > 0.5, -2.0, 2.0)
    scores = wu_scores(styles, probabilities, 1)
    assert scores.score[3] == 0
    assert scores.score[7] == math.inf
    ranking = scores.ranking()
    assert ranking[0] == (0, 7)
    assert 3 not in {coordinate for _, coordinate in ranking}
    plain = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert (plain["score"][7], plain["score"][3], plain["samples"]) == (None, 0.0, scores.samples)


def test_scale_and_offset_of_a_coordinate_change_nothing() -> None:
    styles, probabilities = planted(3)
    scaled = styles * np.linspace(0.01, 100, styles.shape[1]) + np.arange(styles.shape[1])
    assert rank_wu(scaled, probabilities, 1) == rank_wu(styles, probabilities, 1)


def test_bad_input_is_named() -> None:
    styles, probabilities = planted(0)
    with pytest.raises(DataError, match="same images"):
        rank_wu(styles[:-1], probabilities, 1)
    with pytest.raises(DataError, match=r"class 1: 0 images .* lower the threshold"):
        rank_wu(styles, probabilities * 0.5, 1)
    with pytest.raises(DataError, match="raise top_share"):
        rank_wu(styles, probabilities, 1, top_share=0.001)
    with pytest.raises(DataError, match="not logits"):
        rank_wu(styles, probabilities * 3, 1)
    with pytest.raises(ConfigError, match="class index 2"):
        rank_wu(styles, probabilities, 2)
    with pytest.raises(ConfigError, match="top_share"):
        rank_wu(styles, probabilities, 1, top_share=2.0)
    with pytest.raises(ConfigError, match="threshold"):
        rank_wu(styles, probabilities, 1, threshold=1.0)
    with pytest.raises(ConfigError, match="count"):
        rank_wu(styles, probabilities, 1, count=-1)
    styles[17, 2] = np.nan
    with pytest.raises(DataError, match="image 17"):
        rank_wu(styles, probabilities, 1)


def test_random_coordinates_differ_repeat_and_cover() -> None:
    drawn = random_coordinates(50, 20, seed=3)
    assert drawn == random_coordinates(50, 20, seed=3)
    assert drawn != random_coordinates(50, 20, seed=4)
    assert len({coordinate for _, coordinate in drawn}) == 20
    assert random_coordinates(50, 8, seed=3) == drawn[:8]
    everything = random_coordinates(50, 50, seed=0)
    assert {coordinate for _, coordinate in everything} == set(range(50))
    assert {direction for direction, _ in everything} == {0, 1}
    first = [random_coordinates(4, 1, seed=seed)[0] for seed in range(400)]
    shares = np.bincount([2 * coordinate + direction for direction, coordinate in first], minlength=8) / 400
    assert np.abs(shares - 1 / 8).max() < 0.06
    for count in (51, -1):
        with pytest.raises(ConfigError, match="count"):
            random_coordinates(50, count, seed=0)
