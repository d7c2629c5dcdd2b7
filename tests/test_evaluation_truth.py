"""Ground truth: figures worked out by hand, and chance levels against their closed forms."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import problems
from stylex.attfind import find_attributes, sweep
from stylex.errors import DataError
from stylex.evaluation.chance import against, chance_of_recall, correlation
from stylex.evaluation.edits import Edits, read_edits
from stylex.evaluation.intervals import wilson
from stylex.evaluation.measure import TestImages
from stylex.evaluation.reliance import Redrawn, reliance
from stylex.evaluation.truth import TargetTruth, _Joint, _pooled_purity, measure_truth, unreliable
from stylex.evaluation.truth import judge as judge_thoroughly

FACTORS = ("a", "b", "c", "d")
COUNT = 20


def judge(*given: Any, **options: Any) -> TargetTruth:
    """With few resamples and draws, where the test is not about them."""
    return judge_thoroughly(*given, relied_share=0.2, **({"resamples": 99, "draws": 50} | options))


def redrawn(effects: Any = (2.0, 1.0, 0.1, 0.0)) -> Redrawn:
    """Every face at log-odds −1 for class 1; its other value of a factor adds the effect."""
    base = np.tile(np.float32([0.5, -0.5]), (COUNT, 1))
    logits = {}
    for name, effect in zip(FACTORS, effects, strict=True):
        after = np.tile(np.float32([(1 - effect) / 2, (effect - 1) / 2]), (COUNT, 1))
        logits[name] = np.stack([base, after], axis=1)
    own = {name: np.zeros(COUNT, np.int64) for name in FACTORS}
    values = dict.fromkeys(FACTORS, ("no", "yes"))
    return Redrawn(tuple(map(str, range(COUNT))), values, own, base, logits, "softmax")


def edits(changed: Any, gains: Any, together: Any = None, flipped: Any = None) -> Edits:
    """`changed` [A][J]: in how many of the images an attribute changes a factor."""
    marks = np.zeros((len(changed), COUNT, len(FACTORS)))
    for attribute, row in enumerate(changed):
        for factor, number in enumerate(row):
            marks[attribute, :number, factor] = 1
    nothing = np.zeros((1, COUNT, len(FACTORS)), bool)
    return Edits(
        np.arange(COUNT),
        tuple((0, number) for number in range(len(changed))),
        marks,
        np.tile(np.array(gains, float)[:, None], (1, COUNT)),
        (1,),
        nothing if together is None else together,
        np.zeros((1, COUNT), bool) if flipped is None else flipped,
        np.zeros((COUNT, len(FACTORS)), np.int64),
    )


def test_a_true_explanation() -> None:
    found = judge(edits([[20, 0, 0, 0], [0, 20, 0, 0], [0, 0, 20, 0]], [2, 1, 0.1]), redrawn(), 1, FACTORS)
    assert found.relied == ("a", "b")
    assert [entry.factor for entry in found.attributes] == ["a", "b", "c"]
    assert {k: figure.interval.estimate for k, figure in found.recall.items()} == {1: 0.5, 3: 1}
    assert found.recall_of_factors[3].interval.estimate == 1
    assert found.explained == {"a": 2, "b": 1, "c": pytest.approx(0.1), "d": 0}
    assert found.correlation.interval.estimate == pytest.approx(1)
    assert found.purity is not None
    assert (found.purity.interval.estimate, found.purity.interval.low) == (1, 1)


def test_recall_of_the_distinct_attributes() -> None:
    """The second attribute repeats the first, so that the other factor comes second of the distinct ones."""
    given = edits([[20, 0, 0, 0], [20, 0, 0, 0], [0, 0, 20, 0], [0, 20, 0, 0]], [2, 2, 1, 1])
    found = judge(given, redrawn(), 1, FACTORS, repeats=[None, 1, None, None])
    assert {k: figure.interval.estimate for k, figure in found.recall.items()} == {1: 0.5, 3: 0.5}
    assert {k: figure.interval.estimate for k, figure in found.recall_distinct.items()} == {1: 0.5, 3: 1}
    assert found.recall_distinct[3].chance == found.recall[3].chance
    assert [entry.repeats for entry in found.attributes] == [None, 1, None, None]
    plain = judge(given, redrawn(), 1, FACTORS)
    assert plain.recall_distinct == plain.recall


def test_purity_of_the_distinct_attributes() -> None:
    """The second repeats the first and is impure; of three distinct ones two are pure, the third half."""
    given = edits([[20, 0, 0, 0], [20, 20, 0, 0], [0, 20, 0, 0], [0, 0, 20, 20]], [2, 2, 1, 1])
    found = judge(given, redrawn(), 1, FACTORS, repeats=[None, 1, None, None])
    assert found.purity is not None
    assert found.purity.interval.estimate == pytest.approx(80 / 120)
    assert {k: figure.interval.estimate for k, figure in found.purity_distinct.items()} == {1: 1, 3: 60 / 80}
    silent = judge(edits([[0, 0, 0, 0], [20, 0, 0, 0]], [2, 1]), redrawn(), 1, FACTORS, repeats=[None, 1])
    assert silent.purity_distinct == {}


def test_a_false_explanation() -> None:
    found = judge(edits([[0, 0, 0, 20], [0, 0, 10, 20]], [3, 2]), redrawn(), 1, FACTORS)
    assert found.recall[1].interval.estimate == 0
    assert found.explained == {"a": 0, "b": 0, "c": pytest.approx(2 / 3), "d": 3}
    expected = stats.pearsonr([0, 0, 2 / 3, 3], [2, 1, 0.1, 0]).statistic
    assert found.correlation.interval.estimate == pytest.approx(expected)
    assert found.purity is not None
    assert found.purity.interval.estimate == pytest.approx(40 / 50)


def test_attributes_that_change_nothing_readable() -> None:
    found = judge(edits([[0, 0, 0, 0]], [3]), redrawn(), 1, FACTORS)
    assert found.purity is None
    assert found.attributes[0].factor is None
    assert found.correlation.interval.estimate == 0
    assert found.recall[1].interval.estimate == 0


def test_true_effects_are_those_of_the_reliance() -> None:
    """In the joint statistics, also where faces are inside the class and count several times."""
    faces = redrawn((2.0, 1.0, 0.1, 0.0))
    random = np.random.default_rng(0)
    noise = {name: random.normal(0, 1, each.shape).astype(np.float32) for name, each in faces.logits.items()}
    base = faces.base.copy()
    base[:3] = (-1, 1)
    faces = replace(
        faces, base=base, logits={name: each + noise[name] for name, each in faces.logits.items()}
    )
    joint = _Joint(edits([[0, 0, 0, 0]], [2]), faces, 1, FACTORS, 0.2)
    rows = reliance(faces, ("no", "yes"), resamples=9)["yes"]
    found = dict(zip(FACTORS, joint.true_effects(np.ones(COUNT)), strict=True))
    assert found == pytest.approx({row.factor: row.effect.estimate for row in rows})
    twice = np.ones(COUNT)
    twice[:3] = 7
    assert joint.true_effects(twice) == pytest.approx(joint.true_effects(np.ones(COUNT)))


def test_a_classifier_that_relies_on_nothing() -> None:
    found = judge(edits([[20, 0, 0, 0]], [0]), redrawn((0, 0, 0, 0)), 1, FACTORS)
    assert (found.relied, found.recall, found.recall_of_factors) == ((), {}, {})


def test_off_factor_flips() -> None:
    """Ten flip; in six a cause changes, in three only c, in one nothing."""
    together = np.zeros((1, COUNT, 4), bool)
    together[0, :6, 0] = True
    together[0, 6:9, 2] = True
    flipped = np.zeros((1, COUNT), bool)
    flipped[0, :10] = True
    found = judge(edits([[20, 0, 0, 0]], [2], together, flipped), redrawn(), 1, FACTORS)
    share = found.off_factor[1]
    assert share is not None
    assert share.interval == wilson(4, 10)
    assert found.flips == {1: 10}
    assert share.chance == 1  # all faces read alike, so another face changes no cause either
    none = judge(edits([[20, 0, 0, 0]], [2]), redrawn(), 1, FACTORS)
    assert none.off_factor == {1: None}


def test_chance_of_off_factor_flips_is_that_of_another_face() -> None:
    before = np.zeros((COUNT, 4), np.int64)
    before[: COUNT // 2, 0] = 1  # half the faces have cause a, so half of random pairs agree in it
    flipped = np.ones((1, COUNT), bool)
    given = replace(edits([[20, 0, 0, 0]], [2], flipped=flipped), before=before)
    share = judge(given, redrawn(), 1, FACTORS, draws=2000).off_factor[1]
    assert share is not None
    assert share.chance == pytest.approx(0.5, abs=0.02)
    assert share.limit < 0.5


def test_intervals_follow_the_faces() -> None:
    """An attribute changes a in 11 faces and c in the other 9: its main factor hangs on who is drawn."""
    marks = np.zeros((1, COUNT, 4))
    marks[0, :11, 0], marks[0, 11:, 2] = 1, 1
    found = judge(replace(edits([[0, 0, 0, 0]], [2]), changed=marks), redrawn(), 1, FACTORS)
    assert found.recall[1].interval.estimate == 0.5
    assert (found.recall[1].interval.low, found.recall[1].interval.high) == (0, 0.5)
    assert found.purity is not None
    assert found.purity.interval.low < 0.56 < found.purity.interval.high
    certain = judge(edits([[20, 0, 0, 0]], [2]), redrawn(), 1, FACTORS)
    assert (certain.recall[1].interval.low, certain.recall[1].interval.high) == (0.5, 0.5)


def test_chance_levels_equal_their_closed_forms() -> None:
    found = judge(edits([[20, 0, 0, 0]] * 3, [1, 1, 1]), redrawn(), 1, FACTORS, draws=3000, resamples=19)
    assert found.recall[3].chance == pytest.approx(chance_of_recall(3, 4), abs=0.02)
    assert found.recall_of_factors[3].chance == pytest.approx(3 / 4, abs=0.02)
    assert found.correlation.chance == pytest.approx(0, abs=0.03)
    assert found.purity is not None
    # One change an image, each at one of four factors: the largest of four shares of 20, three attributes.
    counts = np.random.default_rng(0).multinomial(20, [0.25] * 4, 20_000)
    assert found.purity.chance == pytest.approx(counts.max(axis=1).mean() / 20, abs=0.01)
    every = [correlation(order, [2, 1, 0.1, 0]) for order in permutations([1, 0, 0, 0])]
    assert found.correlation.limit == pytest.approx(np.quantile(every, 0.95), abs=0.05)


def test_correlation_and_purity() -> None:
    random = np.random.default_rng(0)
    x, y = random.random((2, 9))
    assert correlation(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)
    assert correlation(x, np.ones(9)) == 0
    assert _pooled_purity(np.array([[0.5, 0.5], [1.0, 0.0]])) == 0.75
    assert _pooled_purity(np.zeros((2, 2))) == 0
    with pytest.raises(DataError, match="finite"):
        against(wilson(1, 2), [np.nan])
    figure = against(wilson(1, 2), np.arange(101), good="low")
    assert (figure.chance, figure.limit) == (50, 5)
    assert unreliable({"a": 0.979, "b": 0.98}) == ["a"]


class Reader:
    """Reads whether pixels 3 and 6 of the linear generator (styles 5 and 0) are above 0."""

    def __init__(self) -> None:
        self.factors = {"strong": ("no", "yes"), "weak": ("no", "yes")}
        self.report: dict[str, Any] = {"factors": {"strong": {"accuracy": {"estimate": 0.99}}}}

    def probabilities(self, images: torch.Tensor) -> dict[str, Any]:
        pixels = images.flatten(1).numpy()
        sure = {"strong": pixels[:, 5] > 0, "weak": pixels[:, 0] > 0}
        return {name: np.where(marks[:, None], [0.1, 0.9], [0.9, 0.1]) for name, marks in sure.items()}


def prepared(rows: Any) -> tuple[Any, TestImages]:
    model = problems.linear_model()
    styles = problems.linear_styles(rows)
    images = model.synthesise(styles)
    logits = model.classify(images).numpy()
    names = tuple(map(str, range(len(rows))))
    return model, TestImages(images, styles, logits, logits, images, names)


def test_edits_of_a_linear_model() -> None:
    model, test = prepared([[-0.5, 0, 0, -0.5, 0, 0], [0.5, 0, 0, -0.1, 0, 0], [0, 0, 0, 0.5, 0, 0]])
    found = read_edits(model, problems.unit_space(), test, 1, [(1, 3), (1, 0)], (1, 2, 5), Reader())  # type: ignore[arg-type]
    assert found.rows.tolist() == [0, 1]
    assert found.counts == (1, 2)
    # Coordinate 3 has weight 3 and goes from −0.5 and −0.1 to 1; coordinate 0 weight 0.5, from ∓0.5 to 1.
    assert found.gains == pytest.approx(np.array([[4.5, 3.3], [0.75, 0.25]]), abs=1e-4)
    assert found.changed == pytest.approx(np.array([[[0.8, 0], [0.8, 0]], [[0, 0.8], [0, 0]]]))
    assert found.together[1].tolist() == [[True, True], [True, False]]
    assert found.flipped.tolist() == [[True, True], [True, True]]
    assert found.before.tolist() == [[0, 0], [0, 1]]


def test_the_whole_measurement(caplog: pytest.LogCaptureFixture) -> None:
    random = np.random.default_rng(0)
    rows = np.zeros((24, 6))
    rows[:, 3] = random.uniform(-0.9, -0.2, 24)
    rows[:, 0] = random.uniform(-1, 1, 24)
    rows[:3, 3] = 0.5
    model, test = prepared(rows.tolist())
    styles, logits = test.styles, test.logits
    after = sweep(model, problems.unit_space(), styles).numpy()
    findings = find_attributes(
        logits, after, problems.unit_space(), model.class_names, problems.everything(), "softmax"
    )
    base = test.logits

    def with_change(effect: float) -> Any:
        return np.stack([base, base + np.float32([-effect / 2, effect / 2])], axis=1)

    faces = Redrawn(
        test.names,
        {"strong": ("no", "yes"), "weak": ("no", "yes")},
        {name: np.zeros(24, np.int64) for name in ("strong", "weak")},
        base,
        {"strong": with_change(4.0), "weak": with_change(0.3)},
        "softmax",
    )
    found = measure_truth(model, problems.unit_space(), findings, test, faces, Reader())  # type: ignore[arg-type]
    assert set(found.targets) == {"yes"}  # three images only are outside "no"
    towards = found.targets["yes"]
    assert towards.relied == ("strong",)
    assert towards.attributes[0].factor == "strong"
    assert towards.recall[1].interval.estimate == 1
    assert found.detector == {"strong": 0.99}
    assert "not measured towards 'no' (3)" in caplog.text
    inside = np.tile(np.float32([-1, 1]), (24, 1))  # the reconstructions are all in "yes", the faces are not
    lost = measure_truth(
        model, problems.unit_space(), findings, replace(test, logits=inside), faces, Reader()
    )  # type: ignore[arg-type]
    assert lost.targets == {}
    assert "attributes towards 'yes' are not compared with the truth" in caplog.text
    content = found.to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    with pytest.raises(DataError, match="are not the test images"):
        measure_truth(
            model,
            problems.unit_space(),
            findings,
            test,
            replace(faces, names=faces.names[::-1]),
            Reader(),  # type: ignore[arg-type]
        )
    unknown = replace(faces, values={**faces.values, "hat": ("no", "yes")})
    with pytest.raises(DataError, match="does not read hat"):
        measure_truth(model, problems.unit_space(), findings, test, unknown, Reader())  # type: ignore[arg-type]
