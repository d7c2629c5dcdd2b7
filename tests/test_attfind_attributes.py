from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import problems
from stylex.attfind import Findings, find_attributes, sweep
from stylex.attfind.attributes import in_class
from stylex.classifiers import Classifier
from stylex.errors import DataError

ROWS = [[0.1, 0, 0, -0.5, 0, 0], [0, 0.2, 0, -0.3, 0, 0], [0, 0, 0, 0.4, 0, 0], [0.2, 0, 0, 0.6, 0, 0.1]]
"""Two images of "no" and two of "yes"."""


def found(
    classifier: Classifier | None = None, rows: Any = ROWS, accept: Any = None, **settings: Any
) -> Findings:
    model, space = problems.linear_model(classifier), problems.unit_space()
    styles = problems.linear_styles(rows)
    before = model.classify(model.synthesise(styles)).numpy()
    after = sweep(model, space, styles).numpy()
    chosen = problems.everything(**settings)
    return find_attributes(
        before, after, space, model.class_names, chosen, model.classifier.activation, accept
    )


@pytest.mark.parametrize("method", ["subset", "independent", "removal"])
def test_the_planted_coordinate_is_first_in_the_right_direction(method: str) -> None:
    findings = found(method=method)
    # Weights by coordinate: 0.5, 0, -2, 3, 0, 1. Towards "no" every direction turns round.
    assert [entry.change for entry in findings.attributes["yes"]] == [(1, 3), (0, 2), (1, 5), (1, 0)]
    assert [entry.change for entry in findings.attributes["no"]] == [(0, 3), (1, 2), (0, 5), (0, 0)]
    assert [entry.rank for entry in findings.attributes["yes"]] == [1, 2, 3, 4]
    assert findings.merged[0] == (0, 3), "towards the first class"


def test_figures_of_an_attribute() -> None:
    first = found().attributes["yes"][0]
    # On the images of "no", coordinate 3 rises by 1.5 and 1.3, times 3.
    assert first.effect == pytest.approx((4.5 + 3.9) / 2, abs=1e-5)
    assert first.effect_std == pytest.approx(0.3, abs=1e-5)
    assert (first.flipped, first.images) == (1.0, 2)
    assert (first.layer, first.channel, first.resolution) == ("8px.conv0", 0, 8)


def test_rounds_make_the_ranking_as_long_as_was_asked_for() -> None:
    assert len(found(count=1).attributes["yes"]) == 1
    assert len(found(count=3, max_image_effect=0.1).attributes["yes"]) == 3


def test_of_both_directions_the_first_pick_counts() -> None:
    effects = np.zeros((2, 2, 3, 2), np.float32)
    effects[0, 0, 0], effects[1, 1, 0] = [-3, 3], [-2, 2]
    effects[1, 1, 1] = [-1.5, 1.5]
    before = np.array([[1, -1], [1, -1]], np.float32)
    before = np.concatenate([before, -before])
    after = before[:, None, None, :] + np.concatenate([effects / 2, 0 * effects])
    space = problems.unit_space()
    wide = np.repeat(before[:, None, None, :], 2, 1).repeat(6, 2)
    wide[:, :, :3] = after
    settings = problems.everything(count=3)
    attributes = find_attributes(before, wide, space, ("no", "yes"), settings).attributes["yes"]
    assert [entry.change for entry in attributes] == [(0, 0), (1, 1)]


def test_accept_refuses_coordinates() -> None:
    findings = found(accept=lambda target, coordinate: (target, coordinate) != (1, 3))
    assert findings.attributes["yes"][0].change == (0, 2)
    assert findings.attributes["no"][0].change == (0, 3)


def test_three_classes_are_one_against_all() -> None:
    matrix = [[0.0, 0, 0] for _ in range(8)]
    matrix[0][0], matrix[1][1], matrix[2][2] = 2.0, 3.0, 4.0
    classifier = problems.linear_classifier(matrix, [0, 0, 0], ("a", "b", "c"))
    rows = [[0.9, 0, 0, 0, 0, 0], [0, 0.9, 0, 0, 0, 0], [0, 0, 0.9, 0, 0, 0]]
    findings = found(classifier, rows)
    for target, coordinate in zip("abc", range(3), strict=True):
        first = findings.attributes[target][0]
        assert first.change == (1, coordinate)
        assert first.images == 2
    assert findings.merged == ()


def test_sigmoid_labels_are_taken_one_by_one() -> None:
    matrix = [[0.0, 0] for _ in range(8)]
    matrix[0][0], matrix[1][1] = 1.0, 1.0
    classifier = problems.linear_classifier(matrix, [0, 0], ("glasses", "hat"), "sigmoid")
    rows = [[0.5, 0.5, 0, 0, 0, 0], [-0.5, 0.5, 0, 0, 0, 0], [-0.5, -0.5, 0, 0, 0, 0]]
    findings = found(classifier, rows)
    assert [entry.change for entry in findings.attributes["glasses"]] == [(1, 0)]
    assert findings.attributes["glasses"][0].images == 2
    assert findings.attributes["hat"][0].images == 1
    assert findings.attributes["hat"][0].effect == pytest.approx(1.5, abs=1e-5)
    assert findings.merged == (), "two labels are not two sides of one question"


def test_ties_are_in_one_class_only() -> None:
    logits = np.array([[1, 1, 0], [0, 2, 2]], np.float32)
    marks = np.stack([in_class(logits, target, "softmax") for target in range(3)])
    assert marks.sum(axis=0).tolist() == [1, 1]
    assert in_class(np.zeros((1, 1), np.float32), 0, "sigmoid").tolist() == [False]


def test_unstable_images_are_left_out_and_counted() -> None:
    rows = [*ROWS, [-1, 0, 1, -1, 0, -1]]
    stable = found(rows=rows)
    assert (stable.unstable, stable.attributes["yes"][0].images) == (0, 3)
    # Only the last image, at the far end of everything, is moved by 6 (coordinate 3) in log-odds.
    filtered = found(rows=rows, unstable_threshold=5.9, unstable_max_share=0.0)
    assert (filtered.unstable, filtered.attributes["yes"][0].images) == (1, 2)
    with pytest.raises(DataError, match="unstable_threshold=null"):
        found(rows=rows, unstable_threshold=0.01, unstable_max_share=0.0)


def test_nobody_to_send() -> None:
    with pytest.raises(DataError, match="every image counts as 'yes'"):
        found(rows=ROWS[2:])


def test_json_round_trip() -> None:
    findings = found()
    assert Findings.from_json(findings.to_json()) == findings
    assert findings.settings.order == "effect"
    old = findings.to_json()  # written before attributes were put in order: as they were picked
    old["settings"] = {key: value for key, value in old["settings"].items() if key != "order"}
    assert Findings.from_json(old).settings.order == "selection"
    named = findings.attributes["yes"][0].named("hair")
    assert named.title == "hair"
    assert torch.tensor(named.change).tolist() == [1, 3]
