"""The flickering GIF and the figure of a counterfactual."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from report_samples import picture, report_content
from stylex.errors import DataError
from stylex.report import counterfactual_figure, write_gif

EXAMPLE, UNFLIPPED = report_content().targets[0].counterfactuals
STRONG = (11, 106, 112)


def frames(path: Path) -> list[np.ndarray]:
    with Image.open(path) as image:
        found = []
        for number in range(image.n_frames):
            image.seek(number)
            found.append(np.asarray(image.convert("RGB")).astype(np.int64))
        return found


def photo(seed: int = 0) -> np.ndarray:
    """Smooth colours, some thousand of them."""
    coarse = np.random.default_rng(seed).integers(80, 180, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC))


def test_few_colours_are_kept_exactly(tmp_path: Path) -> None:
    numbers = np.arange(256, dtype=np.uint8).reshape(16, 16) // 2
    before = np.stack([numbers, 255 - numbers, numbers // 3], axis=-1)
    after = before.copy()
    after[4:9, 3:7] = (251, 250, 3)
    write_gif(tmp_path / "a.gif", before, after)
    first, second = frames(tmp_path / "a.gif")
    np.testing.assert_array_equal(first, before)
    np.testing.assert_array_equal(second, after)


def test_many_colours_are_close_and_only_the_change_moves(tmp_path: Path) -> None:
    before = photo()
    after = before.copy()
    after[20:40, 10:50] = 255 - after[20:40, 10:50]
    assert len(np.unique(before.reshape(-1, 3), axis=0)) > 1000
    write_gif(tmp_path / "a.gif", before, after)
    first, second = frames(tmp_path / "a.gif")
    assert np.abs(first - before).mean() < 3
    assert np.abs(second - after).mean() < 3
    changed = np.zeros((64, 64), bool)
    changed[20:40, 10:50] = True
    np.testing.assert_array_equal(first[~changed], second[~changed])
    assert (first[changed] != second[changed]).any(axis=-1).mean() > 0.9


def test_is_endless_and_slow_enough(tmp_path: Path) -> None:
    write_gif(tmp_path / "a.gif", picture(1), picture(2), frame_ms=700)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.info["loop"] == 0
        assert image.n_frames == 2
        assert image.info["duration"] == 700


def test_scale_and_captions_make_it_larger(tmp_path: Path) -> None:
    write_gif(tmp_path / "plain.gif", photo(), photo(1), scale=3)
    write_gif(tmp_path / "words.gif", photo(), photo(1), scale=3, captions=("before", "after"))
    plain, words = frames(tmp_path / "plain.gif"), frames(tmp_path / "words.gif")
    assert plain[0].shape == (192, 192, 3)
    assert words[0].shape[0] > 192
    strips = [frame[192:] for frame in words]
    assert all((strip.min(axis=-1) > 230).mean() > 0.5 for strip in strips), "captions stand on white"
    assert (strips[0] != strips[1]).any()
    large = np.asarray(Image.fromarray(plain[0].astype(np.uint8)).resize((64, 64), Image.Resampling.BOX))
    assert np.abs(large.astype(np.int64) - photo()).mean() < 6


def test_equal_pictures_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.gif", "b.gif"):
        write_gif(tmp_path / name, photo(), photo(1), scale=2, captions=("one", "two"))
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()


def test_what_cannot_flicker_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "a.gif"
    with pytest.raises(DataError, match="one size"):
        write_gif(target, photo(), picture(1))
    with pytest.raises(DataError, match="scaled by 0"):
        write_gif(target, picture(1), picture(2), scale=0)
    with pytest.raises(DataError, match="3 times"):
        write_gif(target, picture(1), picture(2), frame_ms=100)
    with pytest.raises(DataError, match="uint8"):
        write_gif(target, picture(1)[..., 0], picture(2)[..., 0])
    assert not target.exists()


def is_color(image: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    return np.asarray((np.asarray(image) == color).all(axis=-1))


def test_figure_shows_the_three_pictures_from_left_to_right() -> None:
    side = 128
    figure = counterfactual_figure(EXAMPLE, "old", side=side)
    lefts = []
    for shown in (EXAMPLE.original, EXAMPLE.reconstruction, EXAMPLE.counterfactual):
        there = is_color(figure, tuple(int(value) for value in shown[0, 0]))
        rows, columns = np.nonzero(there)
        assert there.sum() == side * side
        assert np.ptp(rows) == np.ptp(columns) == side - 1
        lefts.append(int(columns.min()))
    assert lefts == sorted(lefts)


def test_bars_are_as_long_as_the_probabilities() -> None:
    side = 200
    example = dataclasses.replace(EXAMPLE, probability_after=0.35, changes=())
    strong = is_color(counterfactual_figure(example, "old", side=side), STRONG)
    assert strong.sum(axis=1).max() == pytest.approx(0.35 * side, abs=1)


def test_only_a_flip_is_set_off() -> None:
    assert is_color(counterfactual_figure(EXAMPLE, "old"), STRONG).any()
    assert not is_color(counterfactual_figure(UNFLIPPED, "old"), STRONG).any()


def test_every_change_takes_room_and_nothing_leaves_the_page() -> None:
    few = counterfactual_figure(EXAMPLE, "old")
    long = dataclasses.replace(EXAMPLE, changes=(*EXAMPLE.changes, "many words " * 20, "x" * 300))
    many = counterfactual_figure(long, "a class of a rather long name " * 4)
    assert many.width == few.width
    assert many.height > few.height + 5 * 20
    edge = round(256 * 0.12)
    assert (np.asarray(many)[:, -edge:] == 255).all()


def test_letters_outside_the_plain_font_are_drawn_and_differ() -> None:
    figures = [counterfactual_figure(EXAMPLE, name) for name in ("Größe", "Grüße", "возраст", "здоров.")]
    pictures = {figure.tobytes() for figure in figures}
    assert len(pictures) == 4
    boxes = counterfactual_figure(EXAMPLE, "\ufffe" * 7)
    assert boxes.tobytes() not in pictures


def test_figure_is_the_same_every_time() -> None:
    first, second = (counterfactual_figure(EXAMPLE, "old").tobytes() for _ in range(2))
    assert first == second
