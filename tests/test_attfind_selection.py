"""Selection and effects: the published code's answers, slow references, and toys whose answer is known."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit, softmax

import stylex.attfind
import stylex.attfind.selection as selection
from stylex.attfind import select_independent, select_removal, select_subset, unstable_images
from stylex.attfind.effects import log_odds, log_odds_effects, raw_effects
from stylex.attfind.selection import invert, merge_two_classes, one_vs_all
from stylex.errors import ClassifierError, ConfigError, DataError, StylexError

GOLDEN = np.load(Path(__file__).parent / "data" / "attfind_selection.npz")
SUBSET = [key for key in GOLDEN.files if ".subset." in key]
INDEPENDENT = [key for key in GOLDEN.files if ".independent." in key and not key.endswith(".counts")]
UNSTABLE = [key for key in GOLDEN.files if ".unstable." in key]


def random_effects(seed: int, shape: tuple[int, ...] = (23, 2, 17, 3)) -> np.ndarray:
    """Noise, and some (direction, coordinate) with strong effects on some of the images."""
    generator = np.random.default_rng(seed)
    effects = generator.normal(0, 0.1, shape)
    strong = generator.integers(0, shape[2], 5)
    effects[:, :, strong] += generator.exponential(0.5, (shape[0], 2, 5, shape[3])) * (
        generator.random((shape[0], 2, 5, shape[3])) < 0.4
    )
    return effects


def test_golden_file_is_whole() -> None:
    assert (len(SUBSET), len(INDEPENDENT), len(UNSTABLE)) == (48, 32, 6)


@pytest.mark.parametrize("key", SUBSET)
def test_subset_matches_published_code(key: str) -> None:
    case, target, count, limit = re.fullmatch(
        r"(case\d)\.class(\d)\.subset\.n(\d+)\.max([\d.]+)", key
    ).groups()
    chosen = select_subset(GOLDEN[f"{case}.effects"], int(target), int(count), float(limit))
    assert chosen == [tuple(row) for row in GOLDEN[key].tolist()]
    assert all(type(number) is int for pair in chosen for number in pair)


@pytest.mark.parametrize("key", INDEPENDENT)
def test_independent_matches_published_code(key: str) -> None:
    pattern = r"(case\d)\.class(\d)\.independent\.n(\d+)\.thr([\d.]+)\.frac([\d.]+)"
    case, target, count, threshold, share = re.fullmatch(pattern, key).groups()
    effects = GOLDEN[f"{case}.effects"][..., int(target)]
    chosen = select_independent(
        GOLDEN[f"{case}.effects"], int(target), int(count), float(threshold), float(share)
    )
    counts = [int((effects[:, d, s] > float(threshold)).sum()) for d, s in chosen]
    expected = GOLDEN[f"{key}.counts"].tolist()
    assert counts == expected
    unambiguous = {
        tuple(row) for row, n in zip(GOLDEN[key].tolist(), expected, strict=True) if n > expected[-1]
    }
    assert unambiguous <= set(chosen)
    assert len(set(chosen)) == len(chosen)
    assert all(type(number) is int for pair in chosen for number in pair)


@pytest.mark.parametrize("key", UNSTABLE)
def test_unstable_matches_published_code(key: str) -> None:
    effects = GOLDEN[key.split(".")[0] + ".effects"]
    found = unstable_images(effects, threshold=0.3, max_share=20 / effects[0].size)
    np.testing.assert_array_equal(found, GOLDEN[key])


def slow_greedy(
    effects: np.ndarray, target: int, count: int, limit: float, *, removal: bool
) -> list[tuple[int, int]]:
    """*Subset* and *removal*, one image and one candidate at a time."""
    number, _, coordinates, _ = effects.shape
    account = [0.0] * number
    left = set(range(number))
    chosen: list[tuple[int, int]] = []
    while len(chosen) < count and left:
        best, best_mean = None, 0.0
        for direction in range(2):
            for coordinate in range(coordinates):
                if (direction, coordinate) in chosen:
                    continue
                gains = [max(0.0, float(effects[i, direction, coordinate, target])) for i in sorted(left)]
                if sum(gains) / len(gains) > best_mean:
                    best, best_mean = (direction, coordinate), sum(gains) / len(gains)
        if best is None:
            break
        chosen.append(best)
        for i in range(number):
            gain = max(0.0, float(effects[i, best[0], best[1], target]))
            account[i] += gain
            if (gain > limit) if removal else (account[i] >= limit):
                left.discard(i)
    return chosen


@pytest.mark.parametrize("seed", range(12))
def test_subset_and_removal_equal_slow_reference(seed: int) -> None:
    effects = random_effects(seed)
    target, limit = seed % 3, (0.3, 1.0, 2.5)[seed % 3]
    fast = select_subset(effects, target, 12, limit)
    assert fast == slow_greedy(effects, target, 12, limit, removal=False)
    removed = select_removal(effects, target, 12, limit)
    assert removed == slow_greedy(effects, target, 12, limit, removal=True)


@pytest.mark.parametrize("seed", range(12))
def test_independent_equals_slow_reference(seed: int) -> None:
    effects = random_effects(seed)
    rows = []
    for direction in range(2):
        for coordinate in range(effects.shape[2]):
            values = effects[:, direction, coordinate, 1]
            moved = sum(1 for value in values if value > 0.15)
            strength = sum(max(0.0, float(value)) for value in values)
            if moved and moved / len(effects) >= 0.1:
                rows.append((-moved, -strength, direction, coordinate))
    expected = [(direction, coordinate) for *_, direction, coordinate in sorted(rows)]
    assert select_independent(effects, 1, 100, 0.15, 0.1) == expected
    assert select_independent(effects, 1, 3, 0.15, 0.1) == expected[:3]


def test_subset_differs_from_removal_where_small_effects_add_up() -> None:
    effects = np.zeros((2, 2, 4, 1))
    effects[0, 0, :, 0] = [0.9, 0.8, 0.7, 0.0]
    effects[1, 1, 3, 0] = 0.1
    # Subset: 0.9 + 0.8 explain image 0, which leaves image 1. Removal: no pick exceeds 1, nobody leaves.
    assert select_subset(effects, 0, 3) == [(0, 0), (0, 1), (1, 3)]
    assert select_removal(effects, 0, 3) == [(0, 0), (0, 1), (0, 2)]
    assert select_removal(effects, 0, 3, threshold=0.85) == [(0, 0), (1, 3)]
    assert select_removal(effects, 0, 2, threshold=0.9) == [(0, 0), (0, 1)]  # an effect of just 0.9 stays


def test_stops_when_every_image_is_explained() -> None:
    effects = np.full((3, 2, 5, 2), 0.4)
    effects[:, 1, 2, 0] = 1.0  # reaches the limit exactly, which counts as explained
    assert select_subset(effects, 0, 10) == [(1, 2)]


def test_stops_when_nothing_moves_the_rest() -> None:
    effects = np.full((3, 2, 5, 2), -0.4)
    effects[0, 1, 2, 0] = 5.0
    assert select_subset(effects, 0, 10) == [(1, 2)]
    assert select_removal(effects, 0, 10) == [(1, 2)]
    assert select_independent(effects, 0, 10, min_share=0.0) == [(1, 2)]
    assert select_subset(effects, 1, 10) == []


def test_no_images_select_nothing() -> None:
    effects = np.zeros((0, 2, 5, 2))
    assert select_subset(effects, 0, 3) == []
    assert select_independent(effects, 0, 3) == []
    assert unstable_images(effects).shape == (0,)


def test_min_share_is_exact_at_its_boundary() -> None:
    effects = np.zeros((100, 2, 3, 1))
    effects[:7, 0, 1, 0] = 1.0  # 7 of 100; 0.07 * 100 is 7.000000000000001 in floating point
    effects[:6, 0, 2, 0] = 1.0
    assert select_independent(effects, 0, 3, 0.2, min_share=0.07) == [(0, 1)]


def test_linear_toy_finds_the_flipping_coordinate() -> None:
    """Linear generator and classifier: an effect is the weight times the distance to the range end."""
    generator = np.random.default_rng(0)
    styles = generator.uniform(-1, 1, (60, 8))
    weights = np.array([0.1, 0.0, -4.0, 0.2, 0.0, 0.05, 2.0, 0.0])
    ends = np.stack([styles.min(axis=0), styles.max(axis=0)])
    before = np.stack([styles @ weights / 2, -(styles @ weights) / 2], axis=1)
    moved = (ends[None] - styles[:, None]) * weights
    after = before[:, None, None] + np.stack([moved / 2, -moved / 2], axis=-1)
    effects = log_odds_effects(before, after)
    np.testing.assert_allclose(effects[..., 0], moved, atol=1e-12)
    others = before.argmax(axis=1) == 1
    assert select_subset(effects[others], 0, 2, max_image_effect=10.0) == [(0, 2), (1, 6)]
    assert select_independent(effects[others], 0, 2) == [(0, 2), (1, 6)]
    assert select_subset(effects, 1, 2, 10.0, images=~others) == [(1, 2), (0, 6)]


@pytest.mark.parametrize("select", [select_subset, select_removal, select_independent])
def test_reading_in_blocks_and_by_mask_changes_nothing(select, monkeypatch, tmp_path) -> None:
    effects = random_effects(5, (40, 2, 30, 3)).astype(np.float32)
    mask = np.random.default_rng(1).random(40) < 0.6
    np.save(tmp_path / "effects.npy", effects)
    on_disk = np.load(tmp_path / "effects.npy", mmap_mode="r")

    class Reader:
        """Shape and slices along the first axis, as a reader of shards has them."""

        shape = effects.shape
        largest = 0

        def __getitem__(self, key: slice) -> np.ndarray:
            assert isinstance(key, slice)
            self.largest = max(self.largest, key.stop - key.start)
            return effects[key]

    expected = select(effects[mask], 1, 8)
    assert len(expected) == 8
    monkeypatch.setattr(selection, "_BLOCK_ENTRIES", 3 * effects[0].size)
    reader = Reader()
    for source in (effects, on_disk, reader):
        assert select(source, 1, 8, images=mask) == expected
    assert reader.largest == 3
    np.testing.assert_array_equal(
        unstable_images(reader, 0.3, 0.1), (np.abs(effects) > 0.3).mean(axis=(1, 2, 3)) > 0.1
    )


def test_leaving_unstable_images_out_selects_as_zeroing_them_does() -> None:
    effects = random_effects(3)
    unstable = unstable_images(effects, 0.3, 0.055)
    assert 0 < unstable.sum() < len(effects)
    zeroed = np.where(unstable[:, None, None, None], 0, effects)
    assert select_subset(effects, 0, 8, images=~unstable) == select_subset(zeroed, 0, 8)


@pytest.mark.parametrize("select", [select_subset, select_removal, select_independent])
def test_accept_refuses_a_coordinate_in_both_directions_and_is_asked_once(select) -> None:
    effects = random_effects(2)
    full = select(effects, 0, 34)
    refused = full[0][1]
    asked: list[int] = []

    def accept(coordinate: int) -> bool:
        asked.append(coordinate)
        return coordinate != refused

    chosen = select(effects, 0, 34, accept=accept)
    without = np.delete(effects, refused, axis=2)
    names = [s for s in range(effects.shape[2]) if s != refused]
    assert chosen == [(d, names[s]) for d, s in select(without, 0, 34)]
    assert len(asked) == len(set(asked))
    assert refused in asked


def slow_merge(effects: np.ndarray, first: list, second: list) -> list[tuple[int, int]]:
    """As the notebook merges, for lists in which no coordinate occurs twice."""
    known = [s for _, s in first]
    joined = [(1 - d, s) for d, s in second if s not in known] + list(first)
    scores = [np.mean(effects[:, d, s, 0]) + np.mean(effects[:, 1 - d, s, 1]) for d, s in joined]
    return [joined[i] for i in np.argsort(scores)[::-1]]


@pytest.mark.parametrize("seed", range(6))
def test_merging_equals_the_notebook(seed: int, monkeypatch) -> None:
    effects = random_effects(seed, (30, 2, 20, 2))
    generator = np.random.default_rng(seed)
    first, second = (
        [
            (int(d), int(s))
            for d, s in zip(generator.integers(0, 2, 8), generator.permutation(20)[:8], strict=True)
        ]
        for _ in range(2)
    )
    expected = slow_merge(effects, first, second)
    assert merge_two_classes(effects, first, second) == expected
    monkeypatch.setattr(selection, "_BLOCK_ENTRIES", 4 * effects[0].size)
    assert merge_two_classes(effects, first, second) == expected


def test_merging_seen_from_either_class_is_the_same_list_inverted() -> None:
    effects = random_effects(8, (30, 2, 20, 2))
    first, second = [(0, 3), (1, 5), (0, 11)], [(1, 4), (1, 19)]
    forward = merge_two_classes(effects, first, second)
    assert len(forward) == 5
    assert invert(merge_two_classes(effects, second, first, first=1, second=0)) == forward


def test_merging_keeps_one_direction_of_a_coordinate() -> None:
    effects = np.zeros((4, 2, 3, 2))
    effects[:, 0, 1, 0], effects[:, 1, 1, 0], effects[:, 1, 2, 0] = 0.2, 0.5, 0.3
    assert merge_two_classes(effects, [(0, 1), (1, 1)], [(0, 2)]) == [(1, 1), (1, 2)]
    assert merge_two_classes(effects, [(0, 1)], [(0, 1)]) == [(0, 1)]
    assert merge_two_classes(effects, [], []) == []


def test_merging_takes_directions_of_two_opposite_classes_together() -> None:
    effects = np.zeros((6, 2, 4, 2))
    effects[:, 1, 3, 0], effects[:, 0, 3, 1] = 2.0, 1.0
    effects[:, 0, 2, 0], effects[:, 1, 2, 1] = 1.0, 3.0
    towards_first = select_subset(effects, 0, 1, 10.0)
    towards_second = select_subset(effects, 1, 1, 10.0)
    assert (towards_first, towards_second) == ([(1, 3)], [(1, 2)])
    assert merge_two_classes(effects, towards_first, towards_second) == [(0, 2), (1, 3)]


@pytest.mark.parametrize("select", [select_subset, partial(select_independent, threshold=0.1)])
def test_one_vs_all_uses_images_of_the_other_classes(select) -> None:
    effects = random_effects(7)
    predicted = np.arange(len(effects)) % 3
    chosen = one_vs_all(effects, predicted, 4, select=select)
    assert list(chosen) == [0, 1, 2]
    for target in range(3):
        assert chosen[target] == select(effects[predicted != target], target, 4)
    assert one_vs_all(effects, np.full(len(effects), 2), 4, targets=[2]) == {2: []}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_effects_that_are_not_finite_name_the_image(bad: float, monkeypatch) -> None:
    effects = random_effects(0)
    effects[13, 1, 4, 2] = bad
    monkeypatch.setattr(selection, "_BLOCK_ENTRIES", 5 * effects[0].size)
    whole = (
        partial(select_subset, target=0, count=3),
        partial(select_removal, target=0, count=3),
        partial(select_independent, target=0, count=3),
        unstable_images,
        partial(merge_two_classes, towards_first=[(0, 1)], towards_second=[]),
    )
    for call in whole:
        with pytest.raises(StylexError, match=r"image 13 .*direction 1, coordinate 4, class 2"):
            call(effects)
    keep = np.arange(len(effects)) != 13
    assert select_subset(effects, 0, 5, images=keep) == select_subset(effects[keep], 0, 5)


def test_bad_arguments_are_refused_by_name() -> None:
    effects = random_effects(0)
    with pytest.raises(DataError, match="shape"):
        select_subset(effects[:, 0], 0, 3)
    with pytest.raises(DataError, match="shape"):
        select_independent(np.zeros((4, 3, 5, 2)), 0, 3)
    with pytest.raises(ConfigError, match=r"class index 3 .* 0 to 2"):
        select_subset(effects, 3, 3)
    with pytest.raises(ConfigError, match="class index -1"):
        select_removal(effects, -1, 3)
    with pytest.raises(ConfigError, match="count is -1"):
        select_independent(effects, 0, -1)
    with pytest.raises(ConfigError, match="max_image_effect is 0"):
        select_subset(effects, 0, 3, 0)
    with pytest.raises(ConfigError, match="threshold is nan"):
        unstable_images(effects, float("nan"))
    with pytest.raises(DataError, match="mask"):
        select_subset(effects, 0, 3, images=[0, 1, 2])
    with pytest.raises(DataError, match=r"\(0, 99\)"):
        merge_two_classes(effects, [(0, 99)], [])
    with pytest.raises(ConfigError, match="two different classes"):
        merge_two_classes(effects, [(0, 1)], [], first=1, second=1)
    with pytest.raises(DataError, match="one an image"):
        one_vs_all(effects, [0, 1], 3)


def test_public_names() -> None:
    names = {"select_independent", "select_removal", "select_subset", "unstable_images"}
    assert names <= set(stylex.attfind.__all__)


@pytest.mark.parametrize("classes", [2, 3, 7, 40])
def test_log_odds_equal_those_of_probabilities(classes: int) -> None:
    logits = np.random.default_rng(classes).normal(0, 3, (50, classes))
    np.testing.assert_allclose(log_odds(logits), logit(softmax(logits, axis=-1)), atol=1e-9)
    np.testing.assert_allclose(log_odds(logits, "sigmoid"), logit(expit(logits)), atol=1e-9)


def test_log_odds_stay_exact_where_probabilities_would_saturate() -> None:
    two = np.array([[900.0, -900.0], [0.25, 0.125]])
    np.testing.assert_array_equal(log_odds(two), [[1800.0, -1800.0], [0.125, -0.125]])
    three = np.array([[1000.0, 0.0, 0.0], [5.0, 5.0, -2000.0]])
    expected = [[1000 - np.log(2), -1000.0, -1000.0], [0.0, 0.0, -2005 - np.log(2)]]
    np.testing.assert_allclose(log_odds(three), expected, atol=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_shift_common_to_all_logits_is_no_effect(classes: int) -> None:
    generator = np.random.default_rng(0)
    before = generator.normal(0, 2, (6, classes))
    shift = generator.normal(0, 5, (6, 2, 9, 1))
    after = before[:, None, None] + shift
    np.testing.assert_allclose(log_odds_effects(before, after), 0, atol=1e-12)
    np.testing.assert_allclose(raw_effects(before, after), np.broadcast_to(shift, after.shape), atol=1e-12)


def test_effects_of_a_single_logit_given_as_a_pair() -> None:
    z_before, z_after = np.array([0.5, -1.0]), np.array([[2.0], [3.0]])
    before = np.stack([-z_before / 2, z_before / 2], axis=-1)
    after = np.stack([-z_after / 2, z_after / 2], axis=-1)
    np.testing.assert_allclose(log_odds_effects(before, after)[:, 0, 1], [1.5, 4.0])
    np.testing.assert_allclose(log_odds_effects(before, after)[:, 0, 0], [-1.5, -4.0])


def test_multi_label_effects_are_taken_label_by_label() -> None:
    before = np.array([[0.0, 1.0, 2.0]])
    after = np.array([[[0.0, 4.0, 2.0]]])
    np.testing.assert_array_equal(log_odds_effects(before, after, "sigmoid"), [[[0.0, 3.0, 0.0]]])
    assert log_odds_effects(before, after)[0, 0, 2] < 0


def test_effects_keep_single_precision() -> None:
    before, after = np.zeros((2, 3), np.float32), np.ones((2, 2, 4, 3), np.float32)
    assert log_odds_effects(before, after).dtype == np.float32
    assert raw_effects(before, after).dtype == np.float32
    assert log_odds_effects(before, after.astype(np.float64)).dtype == np.float64


def test_bad_logits_are_refused() -> None:
    with pytest.raises(ClassifierError, match="do not belong together"):
        log_odds_effects(np.zeros((3, 2)), np.zeros((4, 2, 5, 2)))
    with pytest.raises(ClassifierError, match="row 1"):
        raw_effects(np.zeros((2, 2)), np.array([[0.0, 1.0], [np.nan, 0.0]]))
    with pytest.raises(ClassifierError, match="single logit"):
        log_odds(np.zeros((3, 1)))
    with pytest.raises(ClassifierError, match="unknown"):
        log_odds(np.zeros((3, 2)), "tanh")  # type: ignore[arg-type]
