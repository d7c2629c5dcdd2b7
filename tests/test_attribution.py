"""Captum's manner: per-coordinate effects, checked against Captum; and what a notebook shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import problems
import training_problems
from stylex.attfind import load_discovery, search
from stylex.attribution import StyleAttribution
from stylex.errors import ConfigError, DataError
from stylex.explainer import Explainer


@pytest.fixture(scope="module")
def explainer(tmp_path_factory: pytest.TempPathFactory) -> Explainer:
    model = problems.tiny_model()
    run = problems.save_tiny_run(tmp_path_factory.mktemp("made") / "run", model)
    findings = search(run, model, training_problems.images(24), problems.everything(count=3))
    return Explainer(run, model, load_discovery(run, model), findings)


def images(count: int = 2) -> Tensor:
    return training_problems.images(count).batch(range(count))


def test_effects_are_those_of_captums_feature_ablation(explainer: Explainer) -> None:
    from captum.attr import FeatureAblation

    model, space = explainer.model, explainer.discovery.space
    effects = StyleAttribution(explainer).attribute(images(), target="b")
    assert effects.shape == (2, 2, space.size)
    styles = model.styles(model.encode(images())[0]).clone()

    def odds(values: Tensor) -> Tensor:
        logits = model.classify(model.synthesise(values))
        return logits[:, 1] - logits[:, 0]

    for direction in (0, 1):
        baseline = styles.clone()
        baseline[:, space.positions] = space.end(direction)
        with torch.inference_mode():
            ablated = FeatureAblation(odds).attribute(styles, baselines=baseline)
        torch.testing.assert_close(effects[:, direction], -ablated[:, space.positions], atol=1e-3, rtol=1e-3)


def test_a_target_for_each_image_and_batches_that_change_nothing(explainer: Explainer) -> None:
    attribution = StyleAttribution(explainer)
    towards_b = attribution.attribute(images(), 1)
    towards_a = attribution(images(), "a", perturbations_per_eval=3)
    torch.testing.assert_close(towards_a, -towards_b, atol=1e-4, rtol=1e-4)
    mixed = attribution.attribute(images(), torch.tensor([0, 1]))
    torch.testing.assert_close(mixed, torch.stack([towards_a[0], towards_b[1]]), atol=1e-4, rtol=1e-4)
    assert attribution.attribute(images()[0], "a").shape == (1, 2, attribution.coordinates)
    assert attribution.attribute(images()[:0], "a").shape == (0, 2, attribution.coordinates)
    assert attribution.coordinate(1, 0)["direction"] == 1


@pytest.mark.parametrize(
    ("inputs", "target", "error", "message"),
    [
        (lambda: images()[:, :, :8], "a", DataError, r"must be float \[N, 3, 16, 16\]"),
        (lambda: 300 * images(), "a", DataError, "these go from"),
        (images, "z", ConfigError, "no class 'z'; the classifier knows a, b, 0 to 1"),
        (images, 2, ConfigError, "no class 2"),
        (images, ["a"], ConfigError, "1 targets are given for 2 images"),
    ],
)
def test_bad_input(inputs: Any, target: Any, error: Any, message: str, explainer: Explainer) -> None:
    with pytest.raises(error, match=message):
        StyleAttribution(explainer).attribute(inputs(), target)


def test_a_notebook_shows_attributes_and_counterfactuals(explainer: Explainer, tmp_path: Path) -> None:
    ranking = explainer.attributes("b")
    table = ranking._repr_html_()
    assert table.count("<tr>") == 1 + len(ranking)
    assert f"channel {ranking[0].channel}" in table
    named = type(ranking)([ranking[0].named("<script>")])._repr_html_()
    assert "<script>" not in named
    assert "No attribute was found" in type(ranking)()._repr_html_()
    found = explainer.counterfactual(training_problems.images(1).images[0], "b", name="<b>me</b>")
    html = found._repr_html_()
    assert html.count("data:image/") == 3
    assert "&lt;b&gt;me&lt;/b&gt;" in html
    assert np.asarray(found.edited).dtype == np.uint8
