"""What `stylex evaluate` says of figures known by hand, and what it keeps of an earlier evaluation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import problems
import training_problems
from stylex.attfind import search
from stylex.cli.evaluate import describe, describe_flips
from stylex.evaluation.controls import RANDOM_WEIGHTS
from stylex.evaluation.flips import confirmed_share, flip_curve
from stylex.evaluation.measure import MethodResult, TestImages, prepare
from stylex.evaluation.stage import OTHER_SELECTION, PARTS, evaluate_run
from stylex.explainer import Explainer, open_explainer
from stylex.run import read_json, write_json
from test_evaluation_measure import measure


def method(name: str, *, judged: bool = True, apart: bool = True) -> MethodResult:
    """Ten images outside class 1; with k of 1 to 6 coordinates k flip, and the judge sees all but one."""
    before = [0] * 10
    after = [[1] * k + [0] * (10 - k) for k in range(1, 7)]
    curve = flip_curve(before, after, range(1, 7), 1)
    of_original = flip_curve(before[2:], [row[2:] for row in after], range(1, 7), 1)
    shares = tuple(confirmed_share(before, row, before, [0, *row[1:]], 1) for row in after)
    return MethodResult(
        name,
        "old",
        curve,
        of_original if apart else None,
        shares if judged else None,
        tuple(0.01 * k for k in range(1, 7)),
        (),
    )


def test_flip_rates_come_with_their_companions() -> None:
    lines = describe_flips([method("AttFind"), method("random-weight classifier")])
    assert lines == [
        "→ 'old': 10 images, 8 of them outside by their original too",
        "  method                    k  flips %     of original %  confirmed %  moved",
        "  AttFind                   1  10 (2–40)   0 (0–32)       0 (0–79)     0.0100",
        "                            3  30 (11–60)  12 (2–47)      67 (21–94)   0.0300",
        "                            5  50 (24–76)  38 (14–69)     80 (38–96)   0.0500",
        "                            6  60 (31–83)  50 (22–78)     83 (44–97)   0.0600",
        "  random-weight classifier  1  10 (2–40)   0 (0–32)       0 (0–79)     0.0100",
        "                            3  30 (11–60)  12 (2–47)      67 (21–94)   0.0300",
        "                            5  50 (24–76)  38 (14–69)     80 (38–96)   0.0500",
        "                            6  60 (31–83)  50 (22–78)     83 (44–97)   0.0600",
    ]
    bare = describe_flips([method("AttFind", judged=False, apart=False)])
    assert bare[1:3] == [
        "  method   k  flips %     of original %  moved",
        "  AttFind  1  10 (2–40)   –              0.0100",
    ]


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    certain = method("random-weight classifier")
    whole = dataclasses.replace(
        certain.curve, rate=(1.0,) * 6, low=(0.99,) * 6, high=(1.0,) * 6, k=(1, 3, 5, 10, 19, 20)
    )
    wide = dataclasses.replace(certain, curve=whole, against_original=whole)
    assert max(map(len, describe_flips([wide]))) <= 80
    for judge in (None, problems.two_classes()):
        text = describe(measure(judge=judge))
        assert max(len(line) for line in text.splitlines()[1:]) <= 84
        assert ("confirmed %" in text) == (judge is not None)


@pytest.fixture(scope="module")
def explainer(tmp_path_factory: pytest.TempPathFactory) -> Explainer:
    model = problems.tiny_model()
    run = problems.save_tiny_run(tmp_path_factory.mktemp("kept") / "run", model)
    search(run, model, training_problems.images(16), problems.everything(count=4))
    return open_explainer(run, training_problems.HARDWARE)


def earlier(explainer: Explainer, test: TestImages, **changes: Any) -> dict[str, Any]:
    """What an evaluation with everything has left in the run, some of it changed."""
    evaluate_run(explainer, test)
    file = explainer.run.path / "evaluation.json"
    content = read_json(file)
    control = {**content["methods"][0], "method": RANDOM_WEIGHTS}
    content |= {"truth": {"faces": 24}, "factors": {"hat": {}}, "quality": {"fidelity": None}}
    content["methods"] += [control, {**control, "method": "a method of another version"}]
    write_json(file, content | changes)
    return dict(content)


def again(explainer: Explainer, test: TestImages, **given: Any) -> tuple[dict[str, Any], set[str]]:
    evaluate_run(explainer, test, **given)
    content = read_json(explainer.run.path / "evaluation.json")
    return content, {method["method"] for method in content["methods"]}


def test_an_evaluation_keeps_what_it_was_not_asked_for(
    explainer: Explainer, caplog: pytest.LogCaptureFixture
) -> None:
    test = prepare(explainer.model, training_problems.images(12, seed=5), 0)
    before = earlier(explainer, test)
    content, methods = again(explainer, test)
    assert {part: content[part] for part in PARTS} == {part: before[part] for part in PARTS}
    assert RANDOM_WEIGHTS in methods
    assert "a method of another version" not in methods
    assert "keeps factors, quality, truth, random-weight classifier as measured before" in caplog.text


@pytest.mark.parametrize("what", ["attributes", "images", "names"])
def test_of_other_attributes_or_images_nothing_is_kept(
    explainer: Explainer, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    test = prepare(explainer.model, training_problems.images(12, seed=5), 0)
    earlier(explainer, test, **({"attributes": "others"} if what == "attributes" else {}))
    if what == "images":
        test = prepare(explainer.model, training_problems.images(12, seed=6), 0)
    if what == "names":
        test = dataclasses.replace(test, names=test.names[::-1])
    content, methods = again(explainer, test)
    assert [content[part] for part in PARTS] == [None] * 3
    assert RANDOM_WEIGHTS not in methods
    assert "factors, quality, truth, random-weight classifier of other attributes or images" in caplog.text


def test_what_another_judge_said_is_not_kept(explainer: Explainer, tmp_path: Path) -> None:
    test = prepare(explainer.model, training_problems.images(12, seed=5), 0)
    judge = training_problems.classifier(seed=3)
    judge.options = {"widths": [4, 4, 8, 8]}
    judge.save(tmp_path / "judge.safetensors")
    earlier(explainer, test, quality={"fidelity": {"judge_agreement": {"estimate": 1.0}}})
    content, methods = again(explainer, test, judge=tmp_path / "judge.safetensors")
    assert (content["quality"], content["truth"]) == (None, {"faces": 24})
    assert RANDOM_WEIGHTS not in methods


def test_why_a_control_is_left_out_stays_as_long_as_the_controls_do(
    explainer: Explainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = prepare(explainer.model, training_problems.images(12, seed=5), 0)
    why = {OTHER_SELECTION: "it was screened"}
    earlier(explainer, test, left_out=why)
    assert again(explainer, test)[0]["left_out"] == why
    assert again(explainer, test)[0]["left_out"] == why

    def controls(*_: object) -> tuple[dict[str, Any], dict[str, str]]:
        return {}, {RANDOM_WEIGHTS: "nothing to draw"}

    with monkeypatch.context() as patched:  # asked for again: what holds is what came out now
        patched.setattr("stylex.evaluation.stage._controls", controls)
        content, methods = again(explainer, test, control=True)
        assert RANDOM_WEIGHTS in methods  # as measured before, so that there is one
        assert content["left_out"] == {}
        earlier(explainer, test, left_out=why, methods=[])
        assert again(explainer, test, control=True)[0]["left_out"] == {RANDOM_WEIGHTS: "nothing to draw"}
    earlier(explainer, test, left_out=why, attributes="others")
    assert again(explainer, test)[0]["left_out"] == {}
    judge = training_problems.classifier(seed=3)
    judge.options = {"widths": [4, 4, 8, 8]}
    judge.save(tmp_path / "judge.safetensors")
    earlier(explainer, test, left_out=why)  # another judge: the controls go, and what is said of them
    assert again(explainer, test, judge=tmp_path / "judge.safetensors")[0]["left_out"] == {}
