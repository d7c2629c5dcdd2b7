"""Which images a question is put with, of sets that are sorted by class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylex.cli import ask
from stylex.cli.app import main
from stylex.data import ImageSet, load_dataset
from stylex.errors import DataError
from stylex.explainer import demo_folder
from stylex.questions import hypothesis
from stylex.questions.examples import matched, spread


def test_draws_are_spread_over_the_classes() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 4])
    drawn = spread(154, 30, 0, labels)
    assert np.bincount(labels[drawn]).tolist() == [13, 13, 4]
    assert len(set(drawn.tolist())) == 30
    assert drawn.tolist() == spread(154, 30, 0, labels).tolist()
    assert drawn.tolist() != spread(154, 30, 1, labels).tolist()
    assert spread(154, 500, 0, labels).tolist() == list(range(154))
    assert len(spread(0, 5, 0)) == 0
    # Without labels they come from the whole set all the same.
    assert np.bincount(spread(1000, 100, 0) // 500).tolist() == pytest.approx([50, 50], abs=15)


def test_with_and_without_are_of_the_same_classes() -> None:
    """Nearly all with it are of class 0, as glasses go along with age."""
    labels = np.repeat([0, 1, 2], [60, 60, 10])
    has = np.arange(130) % 3 == 0
    has[:60] = np.arange(60) < 50
    has[120:] = True  # nobody of class 2 is without it
    first, second = matched(has, 100, 0, labels)
    assert has[first].all()
    assert not has[second].any()
    assert np.bincount(labels[first]).tolist() == np.bincount(labels[second]).tolist() == [10, 20]
    few = matched(has, 8, 0, labels)
    assert [np.bincount(labels[each]).tolist() for each in few] == [[4, 4], [4, 4]]
    assert [len(each) for each in matched(has, 30, 0)] == [30, 30]
    assert [len(each) for each in matched(has & False, 30, 0, labels)] == [0, 0]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `stylex ask use` hands to the test of the hypothesis, which is not carried out."""
    given: list[dict[str, Any]] = []

    def noted(
        model: Any, examples: Any, has: Any, images: Any, concept: str, target: str, **more: Any
    ) -> Any:
        given.append({"examples": examples, "has": has, "images": images, **more})
        raise DataError("enough")

    monkeypatch.setattr(hypothesis, "does_it_use", noted)
    return given


def ask_use(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["ask", "use", *map(str, arguments), "--device", "cpu", "--threads", "1"])
    return int(ended.value.code or 0)


def classes_of(pictures: torch.Tensor, images: Any) -> list[int]:
    """How many of the pictures are of each class of a labelled set."""
    known = {images.batch([i]).numpy().tobytes(): int(label) for i, label in enumerate(images.labels)}
    labels = [
        known[each[None].contiguous(memory_format=torch.channels_last).numpy().tobytes()] for each in pictures
    ]
    return np.bincount(labels, minlength=2).tolist()


def test_the_shipped_demo_is_asked_with_both_classes(asked: list[dict[str, Any]]) -> None:
    """Its images are sorted: the first 163 test faces are old."""
    folder = demo_folder()
    data = load_dataset(folder / "images", size=64, use_cache=False)
    ask_use(folder, "glasses", "--column", "glasses")
    (given,) = asked
    assert classes_of(given["images"], data.test) == [16, 16]
    labels = given["labels"]
    with_, without = (np.bincount(labels[mask]).tolist() for mask in (given["has"], ~given["has"]))
    assert with_ == without
    assert min(with_) >= 20


def test_folders_that_hold_test_images(
    asked: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = demo_folder()
    data = load_dataset(folder / "images", size=64, use_cache=False)
    for name, rows in (("with", range(0, 290, 2)), ("without", range(1, 290, 2))):
        (tmp_path / name).mkdir()
        for row in rows:
            Image.fromarray(data.test.images[row]).save(tmp_path / name / f"{row}.png")
    folders = ("--with", tmp_path / "with", "--without", tmp_path / "without")
    ask_use(folder, "hat", *folders)
    (given,) = asked
    assert len(given["images"]) == 10  # what is left of 300
    assert "290 test images are among the examples" in capsys.readouterr().err
    for row in range(290, 300):
        Image.fromarray(data.test.images[row]).save(tmp_path / "with" / f"{row}.png")
    assert ask_use(folder, "hat", *folders) == 1
    assert "all test images are among the examples" in capsys.readouterr().err
    assert len(asked) == 1
    for name in ("with", "without"):
        for file in list((tmp_path / name).iterdir())[10:]:
            file.unlink()
    ask_use(folder, "hat", *folders)
    assert min(classes_of(asked[1]["images"], data.test)) >= 6


def labelled_set(labels: Any, factors: dict[str, tuple[str, ...]]) -> ImageSet:
    names = tuple(map(str, range(len(labels))))
    return ImageSet(np.zeros((len(labels), 4, 4, 3), np.uint8), names, labels, ("old", "young"), factors)


def test_a_column_that_goes_with_the_class() -> None:
    labels = np.repeat([0, 1], 20)
    images = labelled_set(labels, {"badge": tuple("yes" if label else "no" for label in labels)})
    with pytest.raises(DataError, match="0 discovery images with 'yes' under 'badge' have one without"):
        ask._from_column(images, "badge", "yes", "t.csv", 0)
    with pytest.raises(DataError, match="no discovery image has 'maybe'"):
        ask._from_column(images, "badge", "maybe", "t.csv", 0)
