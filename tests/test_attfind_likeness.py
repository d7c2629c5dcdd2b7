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
from stylex.attfind.likeness import LIKENESS_IMAGES, Looks, by_effect, looks, mark_repeats, repeats
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
    found = looks(overlapping(), problems.unit_space(), styles, CHANGES)
    expected = [[1, 0.8, 0, -0.8], [0.8, 1, 0, -1], [0, 0, 1, 0], [-0.8, -1, 0, 1]]
    assert found.alike == pytest.approx(np.array(expected), abs=1e-5)


def test_the_size_of_a_change_is_its_root_mean_square() -> None:
    styles = problems.linear_styles([[0, 0, 0, 0, 0, 0], [-0.5, 0.3, 0.9, 0, 0, 0]])
    model = overlapping()
    found = looks(model, problems.unit_space(), styles, CHANGES)
    before = model.synthesise(styles)
    for number, change in enumerate(CHANGES):
        apart = model.synthesise(problems.unit_space().shift(styles, [change])) - before
        expected = apart.flatten(1).square().mean(dim=1).sqrt().mean()
        assert found.sizes[number] == pytest.approx(float(expected), rel=1e-5)
        assert expected > 0


def test_pictures_that_an_attribute_leaves_as_they_are_do_not_count() -> None:
    styles = problems.linear_styles([[0, 1, 0, 0, 0, 0], [0, -0.2, 0, 0, 0, 0]])  # the first is at the end
    found = looks(overlapping(), problems.unit_space(), styles, CHANGES[:2])
    assert found.alike == pytest.approx(np.array([[1, 0.8], [0.8, 1]]), abs=1e-5)
    nowhere = looks(overlapping(), problems.unit_space(), styles[:1], CHANGES[:2])
    assert nowhere.alike == pytest.approx(np.array([[1, 0], [0, 0]]), abs=1e-5)


def test_a_repetition_names_one_that_repeats_nothing() -> None:
    alike = np.eye(4)
    alike[1, 0] = alike[0, 1] = 0.6
    alike[2, 1] = alike[1, 2] = 0.9  # like the second, which is itself a repetition
    alike[3, 0], alike[3, 2] = 0.7, 0.8
    assert repeats(alike, 0.5) == [None, 0, None, 2]
    assert repeats(alike, 0.65) == [None, None, 1, 0]
    assert repeats(alike, 1.0) == [None] * 4


def alike(count: int, *pairs: tuple[int, int, float]) -> np.ndarray[Any, Any]:
    found = np.eye(count)
    for one, other, value in pairs:
        found[one, other] = found[other, one] = value
    return found


def test_the_order_of_effects() -> None:
    """Distinct ones, repetitions, minor ones; a gentle coordinate stands for those that do the same."""
    matrix = alike(6, (0, 3, 0.8), (0, 5, 0.9), (3, 5, 0.6), (1, 4, 0.7))
    effects = np.array([4.0, 0.1, 2.0, 2.7, 0.19, 2.9])
    sizes = np.array([1.0, 1.0, 1.0, 0.5, 1.0, 0.9])
    # 3 (2.7 of 4.0) is the gentlest but weaker than 0.7 of the strongest, so 0 stands for them.
    assert by_effect(effects, Looks(matrix, sizes), 0.5) == ([0, 2, 5, 3, 4, 1], [None, 4, None, 0, None, 0])
    effects[3] = 2.8  # just strong enough
    assert by_effect(effects, Looks(matrix, sizes), 0.5) == ([3, 2, 0, 5, 4, 1], [3, 4, None, None, None, 3])
    assert by_effect(effects, Looks(matrix, sizes), 0.95) == ([0, 5, 3, 2, 4, 1], [None] * 6)
    assert by_effect(effects, None, None) == ([0, 5, 3, 2, 4, 1], [None] * 6)


def test_what_is_not_like_the_one_that_stands_is_no_repetition_of_it() -> None:
    effects, sizes = np.array([4.0, 3.0, 2.9]), np.array([4.0, 1.0, 1.1])
    opposites = alike(3, (0, 1, 0.45), (0, 2, 0.45), (1, 2, -0.5))
    assert by_effect(effects, Looks(opposites, sizes), 0.4)[1] == [1, None, None]
    chain = alike(3, (0, 1, 0.5), (1, 2, 0.9), (0, 2, 0.2))
    assert by_effect(effects, Looks(chain, sizes), 0.4)[1] == [1, None, 1]


def test_a_cause_is_as_strong_as_its_strongest_coordinate() -> None:
    gentler = np.array([1.0, 1.0, 0.1, 1.0])
    looked = Looks(alike(4, (1, 2, 0.9)), gentler)
    # 2 stands for 1, and its cause is not minor, since 1 has more than 0.05 of the strongest effect.
    order, same = by_effect(np.array([10.0, 0.6, 0.45, 0.55]), looked, 0.4)
    assert (order, same) == ([0, 3, 2, 1], [None, 2, None, None])
    order, same = by_effect(np.array([10.0, 0.4, 0.3, 0.2]), looked, 0.4)
    assert (order, same) == ([0, 2, 3, 1], [None, 2, None, None])
    order, same = by_effect(np.array([-0.3, -0.1, -0.2, -0.4]), looked, 0.4)
    assert (order, same) == ([1, 0, 3, 2], [None, None, 1, None])


@pytest.mark.parametrize("seed", range(20))
def test_no_two_distinct_ones_do_the_same_and_repetitions_follow_what_they_repeat(seed: int) -> None:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(12, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    matrix, effects = vectors @ vectors.T, random.normal(size=12) + 0.5
    order, same = by_effect(effects, Looks(matrix, random.uniform(0.1, 2, 12)), 0.6)
    assert sorted(order) == list(range(12))
    place = {number: rank for rank, number in enumerate(order)}
    distinct = [number for number in order if same[number] is None]
    assert 1 < len(distinct) < 12
    assert (np.triu(matrix[np.ix_(distinct, distinct)], 1) < 0.6).all()
    for number, of in enumerate(same):
        if of is not None:
            assert matrix[number, of] >= 0.6
            assert same[of] is None
            assert place[of] < place[number]


def test_of_what_moves_nothing_towards_the_class_the_least_bad_stands_for_the_others() -> None:
    looked = Looks(np.ones((2, 2)), np.array([1.0, 0.1]))
    assert by_effect(np.array([-0.1, -0.2]), looked, 0.5) == ([0, 1], [None, 0])
    assert by_effect(np.array([0.0, 0.0]), looked, 0.5) == ([0, 1], [None, 0])


def test_a_change_that_no_picture_shows_is_not_taken_for_a_gentle_one() -> None:
    """Its size is 0; a division by it would make it the gentlest of all, at any effect."""
    looked = Looks(np.ones((2, 2)), np.array([0.002, 0.0]))
    assert by_effect(np.array([1.0, 0.9]), looked, 0.5)[1] == [1, None]  # 0.9 / 0.001 against 1 / 0.002
    looked = Looks(np.ones((2, 2)), np.array([0.001, 0.0]))
    assert by_effect(np.array([1.0, 0.9]), looked, 0.5)[1] == [None, 0]


@pytest.mark.parametrize("threshold", [0.4, None])
def test_attributes_are_put_into_the_order_of_their_effects(threshold: float | None) -> None:
    styles = problems.linear_styles([[0, 0, 0, -1, 0, 0]] * 2)
    model, space = overlapping(), problems.unit_space()
    logits = model.classify(model.synthesise(styles))
    entries = [attribute(1, 2), attribute(2, 1), attribute(3, 0)]
    entries = [
        dataclasses.replace(entry, effect=effect)
        for entry, effect in zip(entries, (1.0, 3.0, 3.1), strict=True)
    ]
    found = mark_repeats(model, space, styles, logits, findings(*entries, alike=threshold, order="effect"))
    got = [(entry.rank, entry.coordinate, entry.repeats) for entry in found.attributes["yes"]]
    # Coordinates 0 and 1 move a picture alike and as far: the stronger stands for both.
    repeated = [(1, 0, None), (2, 2, None), (3, 1, 1)]
    assert got == (repeated if threshold else [(1, 0, None), (2, 1, None), (3, 2, None)])
    kept = mark_repeats(model, space, styles, logits, findings(*entries, alike=threshold, order="selection"))
    got = [(entry.rank, entry.coordinate, entry.repeats) for entry in kept.attributes["yes"]]
    assert got == [(1, 2, None), (2, 1, None), (3, 0, 2 if threshold else None)]


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
        del entry["repeats"], entry["pick"]  # written before attributes were compared
    assert [entry.repeats for entry in Findings.from_json(old).attributes["yes"]] == [None] * 3


def test_a_search_compares_what_it_found(tmp_path: Path) -> None:
    model = problems.tiny_model()
    run = problems.save_tiny_run(tmp_path / "run", model)
    images = problems.training_problems.images(24)
    settings = problems.everything(count=6, images_per_class=4, alike=0.01)
    search(Run.open(run.path), model, images, settings)
    found, kept = load_findings(run), load_discovery(run, model)
    for target, name in enumerate(model.class_names):
        entries = found.attributes[name]
        outside = torch.from_numpy(np.flatnonzero(kept.logits.argmax(dim=1).numpy() != target))
        seen = looks(model, kept.space, kept.styles[outside], [entry.change for entry in entries])
        assert [entry.rank for entry in entries] == list(range(1, len(entries) + 1))
        assert sorted(entry.pick or 0 for entry in entries) == [entry.rank for entry in entries]
        distinct = [entry.rank - 1 for entry in entries if entry.repeats is None]
        assert (np.triu(seen.alike[np.ix_(distinct, distinct)], 1) < 0.01).all()
        repeating = [(entry.rank - 1, entry.repeats - 1) for entry in entries if entry.repeats]
        assert repeating
        assert all(seen.alike[one, other] >= 0.01 for one, other in repeating)
