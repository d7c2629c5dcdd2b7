from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch

import problems
import training_problems
from stylex.attfind import Findings, find_attributes, sweep
from stylex.classifiers import Classifier
from stylex.data.images import ImageSet
from stylex.errors import DataError
from stylex.evaluation.measure import COUNTS, Evaluation, TestImages, _Bench, evaluate, prepare
from stylex.model import Model

DISCOVERY = [[0.1, 0, 0, -0.5, 0, 0], [0, 0.2, 0, -0.3, 0, 0], [0, 0, 0, 0.4, 0, 0], [0.2, 0, 0, 0.6, 0, 0.1]]

TEST = [[0, 0, 0, -0.5, 0, 0], [0, 0, 0.9, -1, 0, 0], [-0.4, 0, 1, -0.9, 0, -1], [0, 0, 0, 0.3, 0, 0]]
"""Log-odds -1.5, -4.8, -5.9 and 0.9; coordinate 3 (weight 3) alone gives 3, 1.2, -0.2."""


def search(
    model: Model, rows: Any = DISCOVERY, **settings: Any
) -> tuple[Findings, torch.Tensor, torch.Tensor]:
    styles = problems.linear_styles(rows)
    logits = model.classify(model.synthesise(styles))
    after = sweep(model, problems.unit_space(), styles).numpy()
    activation = model.classifier.activation
    chosen = problems.everything(**settings)
    found = find_attributes(
        logits.numpy(), after, problems.unit_space(), model.class_names, chosen, activation
    )
    return found, styles, logits


def on_styles(model: Model, rows: Any, originals: Any = None) -> TestImages:
    styles = problems.linear_styles(rows)
    reconstructions = model.synthesise(styles)
    images = reconstructions if originals is None else model.synthesise(problems.linear_styles(originals))
    return TestImages(
        images,
        styles,
        model.classify(images).numpy(),
        model.classify(reconstructions).numpy(),
        reconstructions,
        tuple(f"{i}.png" for i in range(len(rows))),
    )


def measure(classifier: Classifier | None = None, rows: Any = TEST, **given: Any) -> Evaluation:
    model = problems.linear_model(classifier)
    test = on_styles(model, rows, given.pop("originals", None))
    discovery = given.pop("discovery", DISCOVERY)
    found, styles, logits = search(model, discovery)
    given = {"counts": (1, 2, 3, 6), **given}
    return evaluate(model, problems.unit_space(), found, styles, logits, test, **given)


def method(found: Evaluation, name: str, target: str) -> Any:
    return next(entry for entry in found.methods if (entry.method, entry.target) == (name, target))


def test_flip_curve_known_by_hand() -> None:
    found = measure()
    attfind = method(found, "AttFind", "yes")
    assert attfind.changes == ((1, 3), (0, 2), (1, 5), (1, 0))
    # Coordinate 3 flips the first two; with coordinate 2 the third.
    assert attfind.curve.k == (1, 2, 3)
    assert attfind.curve.flipped == (2, 3, 3)
    assert attfind.curve.n == 3
    assert [round(rate.estimate, 3) for rate in found.single["yes"]] == [0.667, 0.333, 0, 0]
    assert method(found, "AttFind", "no").curve.flipped == (1, 1, 1)
    assert found.agreement.estimate == 1
    assert found.l1 == 0


def test_every_number_of_coordinates_up_to_20() -> None:
    assert measure(counts=COUNTS).methods[0].curve.k == (1, 2, 3, 4)
    model = problems.linear_model()
    changes = [(direction, coordinate) for coordinate in range(6) for direction in (0, 1)] * 2
    bench = _Bench(model, problems.unit_space(), on_styles(model, TEST), 1, None, None, COUNTS)
    assert bench.ranking("any", changes).curve.k == tuple(range(1, 21))


def test_attributes_that_repeat_others_are_left_out_of_a_method_of_its_own() -> None:
    model = problems.linear_model()
    found, styles, logits = search(model)
    assert "AttFind distinct" not in {entry.method for entry in measure().methods}
    yes = list(found.attributes["yes"])
    yes[1] = dataclasses.replace(yes[1], repeats=1)
    marked = dataclasses.replace(found, attributes={**found.attributes, "yes": tuple(yes)})
    test = on_styles(model, TEST)
    result = evaluate(model, problems.unit_space(), marked, styles, logits, test, counts=(1, 2, 3))
    distinct = method(result, "AttFind distinct", "yes")
    assert distinct.changes == ((1, 3), (1, 5), (1, 0))
    # Coordinate 3 leaves the third image at -0.2; coordinate 5 (weight 1, from -1 to 1) adds 2.
    assert distinct.curve.flipped == (2, 3, 3)
    assert method(result, "AttFind", "yes").changes == ((1, 3), (0, 2), (1, 5), (1, 0))
    assert [entry.target for entry in result.methods if entry.method == "AttFind distinct"] == ["yes"]


def test_distance_is_the_mean_change_of_a_pixel() -> None:
    moved = [1.5, 2.0, 1.9]
    distance = method(measure(), "AttFind", "yes").distance[0]
    assert distance == pytest.approx(np.mean(moved) * problems.SCALE / 48, rel=1e-4)


def test_the_batch_size_changes_nothing() -> None:
    model = problems.linear_model()
    found, styles, logits = search(model)
    results = [
        evaluate(
            dataclasses.replace(model, batch_size=size),
            problems.unit_space(),
            found,
            styles,
            logits,
            on_styles(model, TEST),
            counts=(1, 2),
        )
        for size in (1, 64)
    ]
    assert results[0] == results[1]


def test_originals_of_another_class_are_told_apart() -> None:
    originals = [[0, 0, 0, 0.5, 0, 0], *TEST[1:]]
    found = measure(originals=originals)
    assert found.agreement.estimate == 0.75
    assert found.l1 == pytest.approx(problems.SCALE / 48 / 4)
    attfind = method(found, "AttFind", "yes")
    assert (attfind.curve.n, attfind.against_original.n) == (3, 2)
    assert attfind.against_original.flipped == (1, 2, 2)
    everywhere = measure(rows=TEST[:3], originals=[[0, 0, 0, 0.5, 0, 0]] * 3)
    assert method(everywhere, "AttFind", "yes").against_original is None


def test_an_independent_judge() -> None:
    blind = problems.linear_classifier([[0.0, 0.0] for _ in problems.WEIGHTS], [1, 0], ("no", "yes"))
    assert [s.share for s in method(measure(judge=blind), "AttFind", "yes").confirmed] == [0, 0, 0]
    same = method(measure(judge=problems.two_classes()), "AttFind", "yes")
    assert [share.share for share in same.confirmed] == [1, 1, 1]
    assert [share.flips for share in same.confirmed] == list(same.curve.flipped)
    assert method(measure(), "AttFind", "yes").confirmed is None


def test_random_coordinates_depend_on_the_seed_alone() -> None:
    rows = np.random.default_rng(0).uniform(-1, 1, (40, 6)).tolist()
    first, again, other = (method(measure(rows=rows, seed=seed), "random", "yes") for seed in (0, 0, 1))
    assert first == again
    assert first.distance != other.distance
    assert first.curve.k == (1, 2, 3, 6)


def test_a_target_outside_of_which_there_is_nothing() -> None:
    found = measure(rows=TEST[:3])
    assert set(found.single) == {"yes"}
    assert {entry.target for entry in found.methods} == {"yes"}


def test_wu_is_left_out_where_no_image_shows_the_class(caplog: pytest.LogCaptureFixture) -> None:
    assert all(entry.method != "Wu et al." for entry in measure().methods)
    assert "Wu et al. towards 'yes' are left out" in caplog.text
    clear = [[0, 0, 0, -1, 0, 0.1], [0, 0, 0, -0.9, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0.9, 0, 0.2]]
    wu = method(measure(discovery=clear), "Wu et al.", "yes")
    assert wu.changes[0] == (1, 3)
    assert wu.curve.flipped[0] == 2


def test_labels_are_taken_one_by_one() -> None:
    matrix = [[0.0, 0.0] for _ in range(8)]
    matrix[0][0], matrix[1][1] = 1.0, 3.0
    classifier = problems.linear_classifier(matrix, [0, 0], ("glasses", "hat"), "sigmoid")
    rows = [[-0.5, 0.9, 0, 0, 0, 0], [0.5, -0.5, 0, 0, 0, 0], [-0.5, -0.5, 0, 0, 0, 0]]
    found = measure(classifier, rows, discovery=rows, judge=classifier)
    # On the first image "hat" is the stronger label before and after: "glasses" flips on all the same.
    glasses = method(found, "AttFind", "glasses")
    assert (glasses.curve.n, glasses.curve.flipped) == (2, (2,))
    assert glasses.confirmed[0].share == 1


def test_json_is_plain() -> None:
    content = measure(judge=problems.two_classes()).to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_prepared_images_are_those_of_the_set() -> None:
    model = problems.linear_model()
    pixels = np.random.default_rng(0).integers(100, 156, (3, 4, 4, 3), dtype=np.uint8)
    images = ImageSet(pixels, ("a", "b", "c"), None, None, {})
    found = prepare(model, images, 0)
    assert torch.equal(found.images, images.batch(range(3)))
    assert found.names == images.names
    torch.testing.assert_close(found.reconstructions.flatten(1)[:, :8], found.images.flatten(1)[:, :8])
    with pytest.raises(DataError, match="no test images"):
        prepare(model, None, 0)


def test_sampled_images_are_not_those_of_discovery() -> None:
    model = problems.tiny_model("stylegan2")
    found = prepare(model, None, 0, count=6)
    assert found.images is found.reconstructions
    assert len(found.names) == 6
    assert not torch.allclose(found.styles, model.styles(model.sample(6, 0)))
    torch.testing.assert_close(found.images, model.synthesise(found.styles))
    assert found.images.shape[-1] == training_problems.RESOLUTION


def test_the_interval_of_random_coordinates_holds() -> None:
    """Log-odds -0.15: four of twelve single changes flip it. 95 % intervals must cover that nearly always."""
    model = problems.linear_model(batch_size=200)
    test = on_styles(model, [[0, 0, 0, -0.05, 0, 0]] * 200)
    bench = _Bench(model, problems.unit_space(), test, 1, None, None, (1,))
    curves = [bench.random(seed).curve.at(1) for seed in range(10)]
    assert sum(curve.low <= 1 / 3 <= curve.high for curve in curves) >= 8
