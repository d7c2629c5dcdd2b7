from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import problems
from stylex.attfind import find_attributes, sweep
from stylex.classifiers import Classifier
from stylex.counterfactuals import Counterfactual, explain_styles, to_picture
from stylex.errors import ConfigError

POOL = [[0.1, 0, 0, -0.5, 0, 0], [0, 0.2, 0, -0.3, 0, 0], [0, 0, 0, 0.4, 0, 0], [0.2, 0, 0, 0.6, 0, 0.1]]
SMALLEST = 1 / 64


def explain(
    row: list[float], target: str = "yes", classifier: Classifier | None = None, **given: Any
) -> Counterfactual:
    """Explain one style row; the attributes are those of the classifier without a shifted bias."""
    known, space = problems.linear_model(), problems.unit_space()
    pool = problems.linear_styles(POOL)
    before = known.classify(known.synthesise(pool)).numpy()
    after = sweep(known, space, pool).numpy()
    found = find_attributes(before, after, space, ("no", "yes"), problems.everything())
    model = problems.linear_model(classifier)
    styles = problems.linear_styles([row])
    return explain_styles(model, space, found.attributes[target], styles, target, name="it", **given)


def changes(found: Counterfactual) -> dict[tuple[int, int], float]:
    return {change.attribute.change: change.amount for change in found.changes}


def test_one_attribute_moved_no_farther_than_needed() -> None:
    found = explain([0, 0, 0, -0.5, 0, 0])
    # Log-odds 3 · (-0.5) = -1.5 pass 0 at a third of the way from -0.5 to 1.
    assert found.flipped
    assert list(changes(found)) == [(1, 3)]
    assert 1 / 3 < changes(found)[1, 3] <= 1 / 3 + SMALLEST
    assert found.probabilities_before[1] == pytest.approx(1 / (1 + np.exp(1.5)), abs=1e-5)
    assert found.probabilities_after[1] > 0.5
    assert "→" in found.answer
    assert "raise" in found.answer


def test_the_fewest_of_several() -> None:
    # Log-odds -4.5 - 1: coordinates 3 and 2 give 3 each, no single one is enough.
    found = explain([0, 0, 0.5, 0, 0, 0], classifier=problems.two_classes(bias=-4.5))
    assert found.flipped
    assert set(changes(found)) == {(1, 3), (0, 2)}
    total = 3 * changes(found)[1, 3] + 3 * changes(found)[0, 2]
    assert 5.5 < total <= 5.5 + 3 * SMALLEST * 2


def test_what_is_not_needed_is_taken_back() -> None:
    """Greedy begins with coordinate 0, which lifts "a"; once "b" and "c" are pushed down it is not needed."""
    matrix = [[0.0, 0, 0] for _ in range(8)]
    matrix[0], matrix[1], matrix[2] = [1.0, 0, 0], [0, -2.5, 0], [0, 0, -2.5]
    classifier = problems.linear_classifier(matrix, [0, 2, 2], ("a", "b", "c"))
    some = explain([0, 0, 0, -0.5, 0, 0]).changes[0].attribute
    attributes = [dataclasses.replace(some, direction=1, coordinate=coordinate) for coordinate in range(3)]
    found = explain_styles(
        problems.linear_model(classifier),
        problems.unit_space(),
        attributes,
        problems.linear_styles([[0, 0, 0, 0, 0, 0]]),
        "a",
    )
    assert found.flipped
    assert set(changes(found)) == {(1, 1), (1, 2)}
    assert all(0.8 <= amount <= 0.8 + SMALLEST for amount in changes(found).values())


def test_nothing_flips_it() -> None:
    found = explain([0, 0, 0, 0, 0, 0], classifier=problems.two_classes(bias=-50))
    assert not found.flipped
    assert not found.already
    assert len(found.changes) == 4
    assert "Nothing found flips it" in found.answer
    assert found.probabilities_after[1] > found.probabilities_before[1]


def test_changes_that_do_not_help_are_not_made() -> None:
    found = explain([1, 0, -1, 1, 0, 1], classifier=problems.two_classes(bias=-50))
    assert not found.flipped
    assert found.changes == (), "every attribute lies at its end already"
    assert np.array_equal(found.edited, found.reconstruction)


def test_already_the_target() -> None:
    found = explain([0, 0, 0, 0.5, 0, 0])
    assert found.already
    assert found.flipped
    assert found.changes == ()
    assert "already counts as 'yes'" in found.answer


def test_the_edited_picture_is_what_the_changes_make() -> None:
    found = explain([0, 0, 0, -0.5, 0, 0])
    model, styles = problems.linear_model(), problems.linear_styles([[0, 0, 0, -0.5, 0, 0]])
    moved = problems.unit_space().shift(styles, changes(found))
    assert np.array_equal(found.edited, to_picture(model.synthesise(moved)[0]))
    assert np.array_equal(found.reconstruction, to_picture(model.synthesise(styles)[0]))


def test_a_reconstruction_of_another_class_is_warned_of() -> None:
    model = problems.linear_model()
    faithful = model.synthesise(problems.linear_styles([[0, 0, 0, -0.5, 0, 0]]))
    other = model.synthesise(problems.linear_styles([[0, 0, 0, 0.5, 0, 0]]))
    kept = explain([0, 0, 0, -0.5, 0, 0], image=faithful)
    lost = explain([0, 0, 0, -0.5, 0, 0], image=other)
    assert kept.reconstruction_keeps_class
    assert kept.warning is None
    assert not lost.reconstruction_keeps_class
    assert lost.warning is not None
    assert "should not be trusted" in lost.warning
    assert lost.probabilities_original is not None
    assert lost.probabilities_original[1] > 0.5 > lost.probabilities_before[1]


def test_files(tmp_path: Path) -> None:
    found = explain([0, 0, 0, -0.5, 0, 0])
    for suffix in (".png", ".gif", ".json"):
        found.save(tmp_path / f"why{suffix}")
    assert json.loads((tmp_path / "why.json").read_text()) == json.loads(json.dumps(found.to_json()))
    with Image.open(tmp_path / "why.gif") as animation:
        assert animation.n_frames > 1
    with Image.open(tmp_path / "why.png") as figure:
        assert figure.format == "PNG"
    with pytest.raises(ConfigError, match=r"not '\.bmp'"):
        found.save(tmp_path / "why.bmp")


def test_pictures_are_rounded_and_clipped() -> None:
    image = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).expand(3, 1, 5)
    assert to_picture(image)[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_a_flip_does_not_hang_on_the_batch() -> None:
    """Kernels round differently for other batch sizes, and bisection ends right at the boundary."""

    class Rounds(problems.LinearNetwork):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = super().forward(images)
            return logits + torch.tensor([0.0, 0.2 if len(images) == 1 else 0.0])

    exact = problems.two_classes().network
    network = Rounds(exact.matrix, exact.bias)
    classifier = Classifier(network, class_names=("no", "yes"), input_size=None).freeze()
    found = explain([0, 0, 0, -0.5, 0, 0], classifier=classifier)
    assert found.flipped
    assert found.probabilities_after[1] > 0.5
