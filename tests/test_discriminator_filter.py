from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import problems
import training_problems
from stylex.attfind import effects_of, sweep
from stylex.attfind.discriminator_filter import DiscriminatorFilter
from stylex.errors import RunError
from stylex.model import Model
from stylex.networks import conditional_score
from stylex.stylespace import StyleSpace


def slow_accept(
    model: Model,
    space: StyleSpace,
    styles: torch.Tensor,
    effects: np.ndarray,
    limit: float,
    target: int,
    coordinate: int,
) -> bool:
    """The rule as facts.md words it, image by image."""

    def score(style: torch.Tensor) -> float:
        image = model.synthesise(style)
        if model.recipe.network.condition == "evidence":
            condition = model.encoder.told(image)
        else:
            condition = model.classify(image).softmax(dim=1)
        return float(conditional_score(model.discriminator(image), condition))

    for direction in (0, 1):
        first = [n for n in range(len(styles)) if effects[n, direction, coordinate, target] > 0.2][:10]
        for number in first:
            style = styles[number : number + 1]
            moved = space.shift(style, [(direction, coordinate)], by=2.0)
            if abs(score(moved) - score(style)) > limit:
                return False
    return True


def test_the_filter_holds_a_batch_of_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """And scores as it does with all of them at once."""
    model = dataclasses.replace(problems.tiny_model(), batch_size=5)
    styles = model.styles(model.encode(training_problems.images(12).batch(range(12)))[0])
    space = StyleSpace.from_styles(model.generator.synthesis.layout, styles)
    held: list[int] = []
    scores = Model.scores

    def scored(self: Model, images: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        held.append(len(images))
        return scores(self, images, logits)

    monkeypatch.setattr(Model, "scores", scored)
    found = DiscriminatorFilter(model, space, styles, np.zeros((12, 2, space.size, 2)), 0.2)
    assert held == [5, 5, 2]
    images = model.synthesise(styles)
    torch.testing.assert_close(found._before, scores(model, images, model.classify(images)).cpu())


@pytest.mark.parametrize("recipe", ["fast", "evidence"])
def test_the_filter_follows_the_rule(recipe: str) -> None:
    model = problems.tiny_model(recipe)
    latents, _ = model.encode(training_problems.images(12).batch(range(12)))
    styles = model.styles(latents)
    space = StyleSpace.from_styles(model.generator.synthesis.layout, styles)
    before = model.classify(model.synthesise(styles)).numpy()
    effects = effects_of(before, sweep(model, space, styles).numpy(), problems.everything(), "softmax")
    verdicts = []
    for limit in (0.02, 0.1):
        accept = DiscriminatorFilter(model, space, styles, effects, limit)
        for target in (0, 1):
            for coordinate in range(0, space.size, 5):
                wanted = slow_accept(model, space, styles, effects, limit, target, coordinate)
                assert accept(target, coordinate) == wanted
                verdicts.append(wanted)
    assert 0 < sum(verdicts) < len(verdicts), "the limits decide nothing: the test would show nothing"


@pytest.mark.parametrize("recipe", ["fast", "stylex", "stylegan2"])
def test_a_score_does_not_hang_on_the_batch(recipe: str) -> None:
    model = problems.tiny_model(recipe)
    images = training_problems.images(5).batch(range(5))
    logits = model.classify(images)
    together = model.scores(images, logits)
    alone = torch.cat([model.scores(images[i : i + 1], logits[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert together.std() > 1e-4


def test_without_a_discriminator() -> None:
    model = dataclasses.replace(problems.tiny_model(), discriminator=None)
    with pytest.raises(RunError, match="no discriminator"):
        model.scores(torch.zeros(1, 3, 16, 16), torch.zeros(1, 2))
