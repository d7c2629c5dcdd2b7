"""The other selection, and a classifier with random weights as a control."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import problems
import training_problems
from stylex.attfind import find_attributes, load_logits, search
from stylex.classifiers import Classifier
from stylex.classifiers.architectures import build
from stylex.cli.evaluate import describe
from stylex.errors import ClassifierError, RunError, StylexError
from stylex.evaluation.comparison import as_markdown, compare_runs
from stylex.evaluation.controls import (
    RANDOM_WEIGHTS,
    other_selection,
    picked,
    random_weight_ranking,
    random_weights,
)
from stylex.evaluation.measure import prepare
from stylex.evaluation.stage import evaluate_run, is_evaluated
from stylex.explainer import Explainer, open_explainer
from stylex.run import Run, read_json


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("controls") / "run"
    model = problems.tiny_model()
    run = problems.save_tiny_run(folder, model)
    search(run, model, training_problems.images(16), problems.everything(count=4))
    return folder


def opened(path: Path) -> Explainer:
    return open_explainer(Run.open(path), training_problems.HARDWARE)


def test_the_other_selection_is_attfinds_own(path: Path) -> None:
    explainer = opened(path)
    name, rankings = other_selection(explainer)
    assert name == "AttFind independent"
    assert rankings == selected(explainer, "independent")


def selected(explainer: Explainer, method: str) -> dict[str, list[tuple[int, int]]]:
    discovery = explainer.discovery
    after = load_logits(explainer.run, explainer.model, discovery, explainer.findings.settings)
    settings = explainer.findings.settings.model_copy(update={"method": method})
    found = find_attributes(discovery.logits.numpy(), after, discovery.space, explainer.class_names, settings)
    return {target: [entry.change for entry in entries] for target, entries in found.attributes.items()}


def test_the_published_order_is_known_without_effects(path: Path) -> None:
    findings = opened(path).findings
    expected = selected(opened(path), "subset")
    assert picked(findings) == {"AttFind subset": expected}
    turned = {
        target: tuple(replace(entry, rank=rank) for rank, entry in enumerate(reversed(entries), 1))
        for target, entries in findings.attributes.items()
    }
    assert picked(replace(findings, attributes=turned)) == {"AttFind subset": expected}
    settings = findings.settings.model_copy(update={"order": "selection"})
    assert picked(replace(findings, settings=settings)) == {}
    old = {
        target: tuple(replace(entry, pick=None) for entry in entries)
        for target, entries in findings.attributes.items()
    }
    assert picked(replace(findings, attributes=old)) == {}


def test_an_evaluation_has_all_rankings(path: Path, tmp_path: Path) -> None:
    explainer = opened(path)
    test = prepare(explainer.model, training_problems.images(12, seed=5), 0)
    found = evaluate_run(explainer, test, control=True)
    names = {entry.method for entry in found.methods}
    assert names >= {"AttFind", "AttFind subset", "AttFind independent", "random", RANDOM_WEIGHTS}
    assert "AttFind distinct" in names  # its attributes repeat one another
    plain = {entry.method for entry in evaluate_run(explainer, test).methods}
    assert plain == {"AttFind", "AttFind distinct", "Wu et al.", "random"}
    for shard in (path / "effects").iterdir():
        shard.rename(tmp_path / shard.name)
    try:  # without effects, as a packed run has it, the rest is measured all the same
        packed = {entry.method for entry in evaluate_run(opened(path), test, control=True).methods}
        own = {"AttFind", "AttFind distinct", "AttFind subset"}
        assert packed == own | {"Wu et al.", "random", RANDOM_WEIGHTS}
        with pytest.raises(RunError, match="effects"):
            other_selection(explainer)
    finally:
        for shard in tmp_path.iterdir():
            shard.rename(path / "effects" / shard.name)


@pytest.mark.parametrize("error", [ClassifierError, RunError])
def test_a_control_that_cannot_be_had_is_left_out(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: type[StylexError],
) -> None:
    """Weights that cannot be drawn, or that give all images one class, leave the rest of an evaluation."""

    def none(*_: object) -> Classifier:
        raise error("nothing to draw")

    monkeypatch.setattr("stylex.evaluation.controls.random_weights", none)
    (path / "evaluation.json").unlink(missing_ok=True)  # which may hold the control from before
    explainer = opened(path)
    test = prepare(explainer.model, training_problems.images(12, seed=5), 0)
    found = evaluate_run(explainer, test, control=True)
    assert {entry.method for entry in found.methods} >= {"AttFind", "AttFind independent", "random"}
    assert dict(found.left_out) == {RANDOM_WEIGHTS: "nothing to draw"}
    assert read_json(path / "evaluation.json")["left_out"] == found.left_out
    assert f"{RANDOM_WEIGHTS} is left out: nothing to draw" in caplog.text
    assert evaluate_run(explainer, test).left_out == {}
    assert read_json(path / "evaluation.json")["left_out"] == found.left_out  # as the other selection stays


def test_without_an_encoder_nothing_is_said_of_reconstructions(tmp_path: Path) -> None:
    """What a model draws is its own reconstruction, which says nothing of any image."""
    model = problems.tiny_model("stylegan2")
    run = problems.save_tiny_run(tmp_path / "run", model)
    search(run, model, None, problems.everything(count=4))
    explainer = open_explainer(run, training_problems.HARDWARE)
    found = evaluate_run(explainer, prepare(explainer.model, None, 0, count=12), counts=(1, 2))
    assert found.images == 12
    assert found.coverage == ()
    assert (found.agreement, found.l1) == (None, None)
    assert {method.against_original for method in found.methods} == {None}
    stored = read_json(run.path / "evaluation.json")
    assert (stored["coverage"], stored["agreement"], stored["l1"]) == ([], None, None)
    said = describe(found).splitlines()
    assert said[0] == f"12 sampled images, no reconstructions of images; {found.coordinates} coordinates"
    assert not any("class kept" in line or "by their original" in line for line in said)
    rows = compare_runs([run.path]).rows
    assert {row.agreement for row in rows} == {None}
    assert as_markdown(compare_runs([run.path])).splitlines()[-1].endswith("| – |")
    assert is_evaluated(explainer)


@pytest.mark.parametrize("architecture", ["small_cnn", "mobilenet_v2"])
def test_random_weights_are_fresh_and_balanced(architecture: str) -> None:
    torch.manual_seed(0)
    images = training_problems.images(40).batch(slice(None))
    options: dict[str, Any] = {"widths": [4, 4, 8, 8]} if architecture == "small_cnn" else {}
    network = build(architecture, 3, options)
    trained = Classifier(network, class_names=("a", "b", "c"), input_size=None, temperature=2.0).freeze()
    state = torch.random.get_rng_state()
    fresh = random_weights(trained, images, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    logits = fresh(images)
    assert (logits.median(dim=0).values / logits.std(dim=0)).abs().max() < 1e-3
    assert logits.std(dim=0) == pytest.approx(trained(images).std(dim=0), rel=1e-3)
    assert len(set(logits.argmax(dim=1).tolist())) == 3
    assert fresh.fingerprint != trained.fingerprint
    assert torch.equal(random_weights(trained, images, seed=3)(images), logits)
    correlations = np.corrcoef(logits[:, 0].numpy(), random_weights(trained, images, 4)(images)[:, 0].numpy())
    assert abs(correlations[0, 1]) < 0.999


def test_a_single_logit() -> None:
    images = training_problems.images(20).batch(slice(None))
    network = build("small_cnn", 1, {"widths": [4, 4, 8, 8]})
    trained = Classifier(network, class_names=("no", "yes"), input_size=None, single_logit=True).freeze()
    logits = random_weights(trained, images)(images)
    assert torch.allclose(logits[:, 0], -logits[:, 1])
    assert logits[:, 1].median() == pytest.approx(0, abs=1e-5)


def test_what_cannot_be_randomised() -> None:
    with pytest.raises(ClassifierError, match="leave the control out"):
        random_weights(problems.two_classes(), torch.zeros(4, 3, 4, 4))


def test_its_ranking(path: Path) -> None:
    explainer = opened(path)
    found = random_weight_ranking(explainer, swept=8)
    assert set(found) <= set(explainer.class_names)
    assert all(len({coordinate for _, coordinate in each}) == len(each) for each in found.values())
    assert random_weight_ranking(explainer, swept=8) == found
