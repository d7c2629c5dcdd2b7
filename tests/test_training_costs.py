"""What a training will take: counted, and measured in steps that leave nothing behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

import training_problems as problems
from stylex.config import RunConfig
from stylex.networks import build
from stylex.training import parameter_count
from stylex.training.costs import ROUNDS, StepCost, estimate, measure_size, measure_step
from stylex.training.loop import Trainer


@pytest.mark.parametrize("name", problems.RECIPES)
def test_sizes_are_those_of_real_networks(name: str) -> None:
    recipe = problems.recipe(name)
    size = measure_size(recipe, 16, 3)
    networks = build(recipe, 16, 3)
    counts = {part: parameter_count(module) for part, module in networks.parts().items()}
    assert size.parameters == counts
    layout = networks.generator.synthesis.layout
    assert size.searchable == sum(place.channels for place in layout if place.kind == "conv")
    assert size.styles == networks.generator.synthesis.style_size > size.searchable
    assert size.state_bytes == 4 * (4 * sum(counts.values()) + sum(counts.values()) - counts["discriminator"])


@pytest.mark.parametrize("name", ["fast", "evidence", "stylex", "stylegan2"])
def test_an_estimate_writes_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    warms_up = name in ("fast", "evidence")
    warm = ["loss.adversarial_start_kimg=0.02"] if warms_up else []
    recipe = problems.recipe(name, warm)
    config = RunConfig(experiment="test", data="none", classifier="none", resolution=16, recipe=recipe)
    found = estimate(config, problems.images(), problems.classifier(), problems.HARDWARE, limit_s=0.2)
    assert list(tmp_path.iterdir()) == []
    assert found.cost is not None
    assert set(found.cost.kinds) == set(recipe.training.schedule)
    assert set(found.cost.phases) == {"r1", "path_length"}
    assert (found.cost.warm_up is not None) == warms_up
    assert (found.preparation > 0) == (name == "evidence")
    assert (found.images, found.steps) == (40, 10)
    assert found.seconds is not None
    assert found.seconds > 0
    assert found.size.state_bytes < found.peak_bytes


@pytest.mark.parametrize(
    ("first_s", "other_s", "batch_size", "rounds"),
    [
        (
            4.0,
            0.01,
            4,
            ROUNDS,
        ),  # kernels that are built count neither in the figures nor against the full batch
        (30.0, 0.5, 2, 1),  # 120 s of them: a second round might take as long
    ],
)
def test_the_first_round_builds_kernels_and_does_not_count(
    monkeypatch: pytest.MonkeyPatch, first_s: float, other_s: float, batch_size: int, rounds: int
) -> None:
    """Steps that take `first_s` the first time that there are such networks and such a step."""
    now, seen = [0.0], set()

    def slow(self: Trainer) -> dict[str, Tensor]:
        kind = (id(self.state), self.recipe.training.batch_size, len(self.phases), self.state.step)
        now[0] += other_s if kind in seen or self.recipe.training.batch_size > 2 else first_s
        seen.add(kind)
        return {}

    monkeypatch.setattr(Trainer, "step", slow)
    recipe = problems.recipe("fast", ["loss.adversarial_start_kimg=0"])
    config = RunConfig(experiment="test", data="none", classifier="none", resolution=16, recipe=recipe)
    cost = measure_step(
        config,
        problems.images(),
        problems.classifier(),
        problems.HARDWARE,
        limit_s=60.0,
        clock=lambda: now[0],
    )
    assert (cost.batch_size, cost.rounds) == (batch_size, rounds)
    expected = other_s if rounds > 1 else first_s
    assert cost.kinds == pytest.approx({"encode": expected, "swap": expected})


def test_what_is_known_is_not_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "step", lambda _: pytest.fail("a step was timed"))
    config = RunConfig(
        experiment="test", data="none", classifier="none", resolution=16, recipe=problems.recipe("fast")
    )
    cost = StepCost(4, {"encode": 1.0, "swap": 3.0}, {}, None, 1000, 0, 3, asking=2.0)
    found = estimate(config, problems.images(), problems.classifier(), problems.HARDWARE, cost=cost)
    assert (found.cost, found.seconds, found.ran_out) == (cost, 10 * 2 + 2, False)
    assert found.preparation == 2
    begun = estimate(
        config, problems.images(), problems.classifier(), problems.HARDWARE, prepared=True, cost=cost
    )
    assert (begun.images_done, begun.seconds, begun.preparation) == (0, 10 * 2, 0)
    failed = replace(cost, failed_batch=4)
    again = estimate(config, problems.images(), problems.classifier(), problems.HARDWARE, cost=failed)
    assert again.ran_out


def test_what_takes_too_long_is_measured_in_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "step", lambda _: {})
    recipe = problems.recipe("fast", ["training.batch_size=64"])
    config = RunConfig(experiment="test", data="none", classifier="none", resolution=16, recipe=recipe)
    ticks = iter(range(10_000))
    slow = measure_step(
        config, problems.images(), problems.classifier(), problems.HARDWARE, clock=lambda: float(next(ticks))
    )
    assert slow.batch_size == 2
    quick = measure_step(
        config,
        problems.images(),
        problems.classifier(),
        problems.HARDWARE,
        clock=lambda: 1e-3 * next(ticks),
        limit_s=0.5,
    )
    assert quick.batch_size == 64
    ticks = iter(range(10_000))
    between = measure_step(
        config,
        problems.images(),
        problems.classifier(),
        problems.HARDWARE,
        clock=lambda: float(next(ticks)),
        limit_s=100,
    )
    assert between.batch_size == 16
