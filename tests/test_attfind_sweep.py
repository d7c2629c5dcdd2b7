from __future__ import annotations

import pytest
import torch

import problems
import training_problems
from stylex.attfind import sweep, sweep_slowly
from stylex.model import Model
from stylex.stylespace import StyleSpace


def encoded(model: Model) -> tuple[torch.Tensor, StyleSpace]:
    if model.encoder is None:
        latents = model.sample(5, 3)
    else:
        latents, _ = model.encode(training_problems.images(5).batch(range(5)))
    styles = model.styles(latents)
    return styles, StyleSpace.from_styles(model.generator.synthesis.layout, styles)


@pytest.mark.parametrize("recipe", ["fast", "study", "stylegan2"])
def test_the_fast_sweep_equals_the_slow_one(recipe: str) -> None:
    model = problems.tiny_model(recipe)
    styles, space = encoded(model)
    slow = sweep_slowly(model, space, styles[:2])
    before = model.classify(model.synthesise(styles[:2]))
    assert (slow - before[:, None, None].cpu()).abs().max() > 1e-2, (
        "nothing moves: the test would show nothing"
    )
    for batch_size in (1, 7, 64):
        fast = sweep(model, space, styles[:2], batch_size=batch_size)
        assert fast.shape == (2, 2, space.size, 2)
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-4)


def test_shift_reaches_the_sweep() -> None:
    model = problems.tiny_model()
    styles, space = encoded(model)
    fast = sweep(model, space, styles[:1], shift=0.5)
    torch.testing.assert_close(fast, sweep_slowly(model, space, styles[:1], shift=0.5), rtol=0, atol=1e-4)
    assert (fast - sweep(model, space, styles[:1])).abs().max() > 1e-3


def test_linear_effects_are_known() -> None:
    model, space = problems.linear_model(), problems.unit_space()
    styles = problems.linear_styles([[0.5, 0, -1, 1, 0, 0.25]])
    after = sweep(model, space, styles, batch_size=5)
    odds = after[0, :, :, 1] - after[0, :, :, 0]
    weights = torch.tensor([0.5, 0.0, -2.0, 3.0, 0.0, 1.0])
    start = 0.25 + 2 + 3 + 0.25
    ends = torch.tensor([[-1.0], [1.0]])
    torch.testing.assert_close(odds, start + weights * (ends - styles[0, [0, 1, 2, 5, 6, 7]]))
    assert odds[0, 2] == odds[1, 3] == start, "coordinates that lie at their end already change nothing"


def test_progress_counts_images() -> None:
    seen: list[tuple[int, int]] = []
    styles = problems.linear_styles([[0.0] * 6] * 3)
    problem = problems.linear_model(), problems.unit_space()
    sweep(*problem, styles, on_image=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
