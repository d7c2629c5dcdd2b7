from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

import problems
import training_problems
from stylex.attfind import Attribute, search
from stylex.attfind.attributes import ScreenedStage
from stylex.data import Dataset, load_dataset
from stylex.errors import RunError
from stylex.evaluation.measure import TestImages, identify, prepare
from stylex.evaluation.stage import evaluate_run, is_evaluated, load_evaluation
from stylex.explainer import Explainer, open_explainer
from stylex.report.compose import Amounts, _curves, _facts, compose, write_report
from stylex.report.content import Curve
from stylex.report.html import render_html


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Explainer, Dataset, TestImages]:
    folder = tmp_path_factory.mktemp("report")
    data = load_dataset(problems.save_images(folder / "images"), size=16, labelled=False, use_cache=False)
    model = problems.tiny_model()
    run = problems.save_tiny_run(folder / "run", model, str(folder / "images"))
    search(run, model, data.discovery, run.config.attfind)
    explainer = open_explainer(run, training_problems.HARDWARE)
    test = prepare(explainer.model, data.test, 0)
    assert not is_evaluated(explainer)
    with pytest.raises(RunError, match="not evaluated yet"):
        load_evaluation(explainer)
    evaluate_run(explainer, test)
    return explainer, data, test


def test_a_report_from_a_run(explained: tuple[Explainer, Dataset, TestImages]) -> None:
    explainer, data, test = explained
    content = compose(explainer, data, test, "stylex report run", Amounts(2, 3, 1))
    evaluation = load_evaluation(explainer)
    assert content.class_names == ("a", "b")
    assert [section.target for section in content.targets] == list(evaluation["single"])
    for section in content.targets:
        found = explainer.attributes(section.target).distinct
        assert [entry.coordinate for entry in section.attributes] == [entry.coordinate for entry in found[:2]]
        assert {curve.label for curve in section.curves} >= {"AttFind", "Random coordinates"}
        for entry in section.attributes:
            assert entry.flip_share == evaluation["single"][section.target][entry.rank - 1]["estimate"]
            assert len(entry.pairs) <= 3
            assert entry.where.shape == (16, 16)
            assert entry.where.max() == (pytest.approx(1) if entry.pairs else 0)
            for pair in entry.pairs:
                number = test.names.index(pair.name)
                logits = test.logits[number]
                index = content.class_names.index(section.target)
                odds = np.exp(logits - logits.max())
                assert pair.probability_before == pytest.approx(float(odds[index] / odds.sum()), abs=1e-5)
                assert pair.probability_before <= 0.5
    assert any(section.attributes[0].pairs for section in content.targets)
    assert content.provenance["data sha256"] == data.fingerprint


def test_curves_come_in_one_order_and_the_search_says_its_own(
    explained: tuple[Explainer, Dataset, TestImages],
) -> None:
    explainer, _, _ = explained
    names = ["unknown", "random-weight classifier", "AttFind independent", "AttFind subset"]
    names += ["random", "Wu et al.", "AttFind distinct", "AttFind"]
    curve = {"k": [1], "rate": [0.5], "low": [0.4], "high": [0.6], "n": 9}
    methods = [{"method": name, "target": "a", "curve": curve} for name in names]
    expected = ["Random coordinates" if name == "random" else name for name in names[:0:-1]]
    assert [each.label for each in _curves({"methods": methods}, "a")] == [*expected, "unknown"]
    for order, said in (
        ("effect", "subset selection, ranked by effect, on "),
        ("selection", "subset selection on "),
    ):
        settings = explainer.findings.settings.model_copy(update={"order": order})
        findings = dataclasses.replace(explainer.findings, settings=settings)
        searched = Explainer(explainer.run, explainer.model, explainer.discovery, findings)
        assert _facts(searched, None, {"images": 3})["Search"].startswith(said)


def test_a_report_says_how_sure_a_screened_search_was(
    explained: tuple[Explainer, Dataset, TestImages],
) -> None:
    explainer, _, _ = explained
    assert "screened" not in _facts(explainer, None, {"images": 3})["Search"]
    settings = explainer.findings.settings.model_copy(update={"sweep": "screened"})

    def said(*stages: ScreenedStage) -> str:
        findings = dataclasses.replace(
            explainer.findings, settings=settings, screening=stages, coordinates=30
        )
        screened = Explainer(explainer.run, explainer.model, explainer.discovery, findings)
        return _facts(screened, None, {"images": 3})["Search"]

    likely = ScreenedStage(80, True, 40, None)
    assert said(likely, ScreenedStage(16, False, 20, 0.994)).endswith(
        "effects on log-odds; 40 of 60 changes screened out before they were measured on all images "
        "(confidence 99.4%)"
    )
    assert said(likely, ScreenedStage(16, False, 40, None)).endswith(
        "; 20 of 60 changes screened out by first-order effects alone"
    )
    everything = (ScreenedStage(80, True, 60, None), ScreenedStage(16, False, 60, None))
    assert said(*everything).endswith("; screened, but every change was measured on all images")
    assert said().endswith("effects on log-odds; screened")  # an earlier version kept no stages


def test_attributes_that_do_the_same_are_shown_once(
    explained: tuple[Explainer, Dataset, TestImages],
) -> None:
    explainer, data, test = explained

    def marked(entry: Attribute) -> Attribute:
        name = "glasses" if entry.rank == 3 else None
        return dataclasses.replace(entry, name=name, repeats=1 if entry.rank in (2, 3) else None)

    ranked = {target: tuple(map(marked, found)) for target, found in explainer.findings.attributes.items()}
    findings = dataclasses.replace(explainer.findings, attributes=ranked)
    repeated = Explainer(explainer.run, explainer.model, explainer.discovery, findings)
    content = compose(repeated, data, test, "stylex report run", Amounts(2, 1, 1))
    for section in content.targets:
        assert [entry.rank for entry in section.attributes] == [1, 4]
        assert [entry.same for entry in section.attributes] == [("Attribute 2", "glasses"), ()]
    first, *rest = content.targets
    ends = {"lows": (0.0,) * 3, "highs": (1.0,) * 3}
    curves = (
        Curve("AttFind", (1, 2, 3), (0.1, 0.2, 0.31), images=9, **ends),
        Curve("AttFind distinct", (1, 2, 3), (0.1, 0.3, 0.62), images=9, **ends),
    )
    content = dataclasses.replace(content, targets=(dataclasses.replace(first, curves=curves), *rest))
    text = render_html(content)
    assert "the first 3 together flip <b>62" in text, "of those that are shown"
    assert text.count("The same change as Attribute 2, glasses") == len(content.targets)
    assert text.count("are shown once, under the first of them") == len(content.targets)


def test_the_file(explained: tuple[Explainer, Dataset, TestImages]) -> None:
    explainer, data, test = explained
    file = write_report(explainer, data, test, "stylex report the-run", Amounts(1, 1, 1))
    text = file.read_text()
    assert file == explainer.run.path / "report.html"
    assert "stylex report the-run" in text
    assert explainer.model.classifier.fingerprint in text


def test_an_evaluation_of_other_attributes_does_not_count(
    explained: tuple[Explainer, Dataset, TestImages],
) -> None:
    explainer, _, _ = explained
    fewer = {target: found[:1] for target, found in explainer.findings.attributes.items()}
    changed = Explainer(
        explainer.run,
        explainer.model,
        explainer.discovery,
        dataclasses.replace(explainer.findings, attributes=fewer),
    )
    assert is_evaluated(explainer)
    assert not is_evaluated(changed)


def test_an_evaluation_says_which_images_it_measured_and_counts_for_them_alone(
    explained: tuple[Explainer, Dataset, TestImages],
) -> None:
    explainer, data, test = explained
    measured = load_evaluation(explainer)["measured"]
    assert measured["names"] == list(data.test.names)
    assert measured["sha256"] == hashlib.sha256(data.test.images.tobytes()).hexdigest()
    assert measured["source"] == explainer.run.config.data
    assert is_evaluated(explainer, test)
    others = prepare(explainer.model, data.discovery, 0)
    assert not is_evaluated(explainer, others)
    renamed = dataclasses.replace(test, names=tuple(reversed(test.names)))
    assert not is_evaluated(explainer, renamed)
    changed = dataclasses.replace(test, images=test.images.flip(3))
    assert not is_evaluated(explainer, changed)


def test_images_that_a_model_sampled_have_no_source() -> None:
    model = problems.tiny_model("stylegan2")
    test = prepare(model, None, 0, count=3)
    assert identify(model, test).to_json() == {
        "source": None,
        "sha256": None,
        "names": ["sample 0", "sample 1", "sample 2"],
    }


@pytest.mark.parametrize("content", ['{"attributes": "abc', "[]", '{"attributes": "FINGERPRINT"}'])
def test_a_damaged_evaluation_is_to_be_made_again(
    explained: tuple[Explainer, Dataset, TestImages], caplog: pytest.LogCaptureFixture, content: str
) -> None:
    explainer, _, test = explained
    file = explainer.run.path / "evaluation.json"
    whole = file.read_text()
    try:
        file.write_text(content.replace("FINGERPRINT", explainer.fingerprint))
        assert not is_evaluated(explainer, test)
        with pytest.raises(RunError, match=r"'stylex evaluate .*' does it"):
            load_evaluation(explainer)
        if "abc" in content:
            assert "evaluation.json: damaged" in caplog.text
            assert "measured again" in caplog.text
    finally:
        file.write_text(whole)


def test_naming_an_attribute_leaves_the_evaluation_valid(
    explained: tuple[Explainer, Dataset, TestImages],
) -> None:
    explainer, _, _ = explained
    named = {
        target: tuple(entry.named("hair") for entry in found)
        for target, found in explainer.findings.attributes.items()
    }
    changed = dataclasses.replace(explainer.findings, attributes=named)
    assert is_evaluated(Explainer(explainer.run, explainer.model, explainer.discovery, changed))


def test_test_images_of_one_class_only(
    explained: tuple[Explainer, Dataset, TestImages], tmp_path: Path
) -> None:
    explainer, data, test = explained
    target = 1
    rows = np.flatnonzero(test.logits.argmax(axis=1) != target)
    assert len(rows)
    one = TestImages(
        test.images[rows],
        test.styles[rows],
        test.logits_original[rows],
        test.logits[rows],
        test.reconstructions[rows],
        tuple(test.names[i] for i in rows),
    )
    kept = (explainer.run.path / "evaluation.json").read_bytes()
    try:
        evaluate_run(explainer, one)
        content = compose(explainer, data, one, "", Amounts(1, 1, 1))
    finally:
        (explainer.run.path / "evaluation.json").write_bytes(kept)
    assert [section.target for section in content.targets] == ["b"]
    assert any("nothing is said" in warning for warning in content.warnings)


def test_a_model_that_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr("stylex.attfind.discovery.SAMPLED_POOL", 40)
    model = problems.tiny_model("stylegan2")
    run = problems.save_tiny_run(tmp_path / "run", model)
    search(run, model, None, run.config.attfind)
    explainer = open_explainer(run, training_problems.HARDWARE)
    test = prepare(explainer.model, None, 0, count=12)
    evaluate_run(explainer, test)
    content = compose(explainer, None, test, "", Amounts(1, 1, 1))
    assert content.reconstructions == ()
    assert content.reconstruction_figures == {}
    assert "12 images that the model sampled anew" in content.facts["Test"]
    assert "Does the generator keep" not in render_html(content)
    assert content.provenance["data sha256"] == "sampled latents"
    assert any(section.counterfactuals for section in content.targets)
