"""Attributes that do the same, against pictures whose changes are known by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import problems
from stylex.attfind import Attribute, Findings, load_discovery, load_findings, search
from stylex.attfind.attributes import Ranking
from stylex.attfind.likeness import LIKENESS_IMAGES, likeness, mark_repeats, repeats
from stylex.model import Model
from stylex.run import Run

CHANGES = ((1, 0), (1, 1), (1, 2), (0, 1))


class Overlapping(problems.LinearSynthesis):
    """Coordinate 1 moves pixel 0 by 0.8 of what it is moved by, pixel 1 by 0.6; the others one pixel each."""

    def forward(self, styles: Tensor, noise: str = "none") -> Tensor:
        mixed = styles.clone()
        mixed[:, 0] = styles[:, 0] + 0.8 * styles[:, 1]
        mixed[:, 1] = 0.6 * styles[:, 1]
        return super().forward(mixed, noise)


def overlapping() -> Model:
    model = problems.linear_model()
    model.generator.synthesis = Overlapping()
    return model


def attribute(rank: int, coordinate: int, direction: int = 1) -> Attribute:
    return Attribute("yes", rank, direction, coordinate, "4px.conv1", 4, coordinate, 1.0, 0.1, 0.5, 9)


def findings(*found: Attribute, **settings: Any) -> Findings:
    return Findings({"no": (), "yes": found}, (), 9, 0, 6, problems.everything(**settings))


def test_likeness_is_the_cosine_of_what_two_changes_do_to_a_picture() -> None:
    styles = problems.linear_styles([[0, 0, 0, 0, 0, 0], [-0.5, 0.3, 0.9, 0, 0, 0]])
    found = likeness(overlapping(), problems.unit_space(), styles, CHANGES)
    expected = [[1, 0.8, 0, -0.8], [0.8, 1, 0, -1], [0, 0, 1, 0], [-0.8, -1, 0, 1]]
    assert found == pytest.approx(np.array(expected), abs=1e-5)


def test_pictures_that_an_attribute_leaves_as_they_are_do_not_count() -> None:
    styles = problems.linear_styles([[0, 1, 0, 0, 0, 0], [0, -0.2, 0, 0, 0, 0]])  # the first is at the end
    found = likeness(overlapping(), problems.unit_space(), styles, CHANGES[:2])
    assert found == pytest.approx(np.array([[1, 0.8], [0.8, 1]]), abs=1e-5)
    nowhere = likeness(overlapping(), problems.unit_space(), styles[:1], CHANGES[:2])
    assert nowhere == pytest.approx(np.array([[1, 0], [0, 0]]), abs=1e-5)


def test_a_repetition_names_one_that_repeats_nothing() -> None:
    alike = np.eye(4)
    alike[1, 0] = alike[0, 1] = 0.6
    alike[2, 1] = alike[1, 2] = 0.9  # like the second, which is itself a repetition
    alike[3, 0], alike[3, 2] = 0.7, 0.8
    assert repeats(alike, 0.5) == [None, 0, None, 2]
    assert repeats(alike, 0.65) == [None, None, 1, 0]
    assert repeats(alike, 1.0) == [None] * 4


def test_attributes_say_which_one_they_repeat() -> None:
    styles = problems.linear_styles([[0, 0, 0, -1, 0, 0]] * 2)
    model, space = overlapping(), problems.unit_space()
    logits = model.classify(model.synthesise(styles))

    def marked(given: Findings) -> list[int | None]:
        return [
            entry.repeats for entry in mark_repeats(model, space, styles, logits, given).attributes["yes"]
        ]

    three = (attribute(1, 1), attribute(2, 2), attribute(3, 0))
    assert marked(findings(*three)) == [None, None, 1]
    assert marked(findings(*three, alike=0.9)) == [None, None, None]
    assert marked(findings(*three, alike=None)) == [None, None, None]
    assert marked(findings(attribute(1, 1), attribute(2, 0, direction=0))) == [None, None]


def test_many_images_are_not_all_looked_at() -> None:
    model, space = overlapping(), problems.unit_space()
    styles = problems.linear_styles([[0, 0, 0, -1, 0, 0]] * 200)
    logits = model.classify(model.synthesise(styles))
    drawn: list[int] = []
    synthesise = Model.synthesise

    def counted(self: Model, given: Tensor) -> Tensor:
        drawn.append(len(given))
        return synthesise(self, given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "synthesise", counted)
        mark_repeats(model, space, styles, logits, findings(attribute(1, 1), attribute(2, 0)))
    assert sum(drawn) == LIKENESS_IMAGES * 3


def test_a_ranking_without_repetitions_keeps_its_ranks_and_its_file_the_marks() -> None:
    entries = (attribute(1, 1), dataclasses.replace(attribute(2, 0), repeats=1), attribute(3, 2))
    assert [entry.rank for entry in Ranking(entries).distinct] == [1, 3]
    assert isinstance(Ranking(entries).distinct, Ranking)
    given = findings(*entries)
    assert Findings.from_json(given.to_json()) == given
    old = given.to_json()
    for entry in old["attributes"]["yes"]:
        del entry["repeats"]  # written before attributes were compared
    assert [entry.repeats for entry in Findings.from_json(old).attributes["yes"]] == [None] * 3


def test_a_search_compares_what_it_found(tmp_path: Path) -> None:
    model = problems.tiny_model()
    run = problems.save_tiny_run(tmp_path / "run", model)
    images = problems.training_problems.images(24)
    search(Run.open(run.path), model, images, problems.everything(count=6, images_per_class=4, alike=0.01))
    found, kept = load_findings(run), load_discovery(run, model)
    for target, name in enumerate(model.class_names):
        entries = found.attributes[name]
        outside = torch.from_numpy(np.flatnonzero(kept.logits.argmax(dim=1).numpy() != target))
        changes = [entry.change for entry in entries]
        alike = likeness(model, kept.space, kept.styles[outside], changes)
        expected = [None if first is None else first + 1 for first in repeats(alike, 0.01)]
        assert [entry.repeats for entry in entries] == expected
        assert any(expected)
