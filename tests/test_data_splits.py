"""Which set an image is in: by hash, by group, or as the source says."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from stylex.data.listing import assign_splits
from stylex.data.splits import official_splits, split_of
from stylex.errors import DataError

KEYS = [f"cat/{i}.png" for i in range(5000)]


def test_shares_are_80_10_10() -> None:
    shares = Counter(map(split_of, KEYS))
    assert shares["training"] / 5000 == pytest.approx(0.8, abs=0.023)
    assert shares["discovery"] / 5000 == pytest.approx(0.1, abs=0.017)
    assert shares["test"] / 5000 == pytest.approx(0.1, abs=0.017)


def test_the_set_is_a_function_of_the_key_that_anyone_can_repeat() -> None:
    for key in KEYS[:200]:
        position = int(hashlib.sha256(key.encode()).hexdigest()[:16], 16) / 16**16
        assert split_of(key) == ("test" if position < 0.1 else "discovery" if position < 0.2 else "training")


def test_adding_images_moves_none() -> None:
    before = dict(zip(KEYS[:100], assign_splits(KEYS[:100], KEYS[:100], None, "here"), strict=True))
    after = dict(zip(KEYS, assign_splits(KEYS, KEYS, None, "here"), strict=True))
    assert before.items() <= after.items()


def test_what_the_source_sets_aside_is_not_carved_out_again() -> None:
    assert Counter(split_of(key, ("test",)) for key in KEYS)["discovery"] / 5000 == pytest.approx(
        1 / 9, abs=0.018
    )
    assert "test" not in {split_of(key, ("test",)) for key in KEYS}
    assert {split_of(key, ("test", "discovery")) for key in KEYS} == {"training"}


def test_official_names() -> None:
    assert official_splits(["cat", "dog", "test"], "x") is None
    assert official_splits(["train", "test"], "x") == {"train": "training", "test": "test"}
    assert official_splits(["Training", "val"], "x") == {"Training": "training", "val": "test"}
    assert official_splits(["train", "validation", "test"], "x") == {
        "train": "training",
        "validation": "discovery",
        "test": "test",
    }
    with pytest.raises(DataError, match="'cat' is no set"):
        official_splits(["train", "cat"], "x")


def test_groups_stay_together() -> None:
    groups = [f"patient {i % 40}" for i in range(400)]
    splits = assign_splits(KEYS[:400], groups, None, "here")
    assert len(set(splits)) == 3
    for group in set(groups):
        assert len({s for s, g in zip(splits, groups, strict=True) if g == group}) == 1


def test_a_group_in_two_official_sets_is_refused() -> None:
    with pytest.raises(DataError, match=r"'p' is in two sets \(a: training, b: test\)"):
        assign_splits(["a", "b"], ["p", "p"], ["train", "test"], "here")
