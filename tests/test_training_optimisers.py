"""Adam's rates, corrected for lazy regularisation, and which parts an optimiser step moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import training_problems as problems
from stylex.networks import build
from stylex.training import loop
from stylex.training.optimisers import make_optimisers, set_rates, update
from stylex.training.schedule import phases, updates


def groups(name: str, *assignments: str) -> dict[str, dict[str, Any]]:
    """Part → its group of parameters."""
    recipe = problems.recipe(name, assignments)
    networks = build(recipe, 16, 2)
    optimisers = make_optimisers(networks, recipe, phases(recipe), fused=False)
    return {group["part"]: group for found in optimisers.values() for group in found.param_groups}


def test_rates_are_corrected_for_the_interval() -> None:
    """Karras et al. 2020, appendix B: λ' = c·λ, β' = βᶜ, c = k / (k + 1)."""
    found = groups("stylex", "training.betas=[0.5, 0.99]")
    for part, interval in (("generator", 4), ("encoder", 4), ("mapping", 4), ("discriminator", 16)):
        c = interval / (interval + 1)
        assert found[part]["lr"] == pytest.approx(0.002 * c)
        assert found[part]["betas"] == pytest.approx((0.5**c, 0.99**c))


def test_the_study_halves_the_generators_rate_and_leaves_the_encoders() -> None:
    """Path length at every step is an Adam step of its own, and never touches the encoder."""
    found = groups("study")
    assert found["generator"]["lr"] == pytest.approx(0.0001)
    assert found["generator"]["betas"] == pytest.approx((0, 0.99**0.5))
    assert found["encoder"]["lr"] == pytest.approx(0.0002)
    assert found["encoder"]["betas"] == (0.9, 0.999)
    assert found["discriminator"]["lr"] == pytest.approx(0.0002 * 16 / 17)


def test_no_correction_without_regularisers_or_where_they_join_the_losses() -> None:
    bare = groups("fast", "loss.r1=0", "loss.path_length=0")
    assert {part: group["lr"] for part, group in bare.items()} == {
        "generator": 0.01,
        "encoder": 0.01,
        "discriminator": 0.002,
    }
    joined = groups("vdv")
    assert joined["generator"]["lr"] == joined["encoder"]["lr"] == 0.0002
    assert joined["discriminator"]["lr"] == 0.0003
    assert {group["betas"] for group in joined.values()} == {(0.5, 0.9)}


def test_every_parameter_belongs_to_one_group() -> None:
    recipe = problems.recipe("stylex")
    networks = build(recipe, 16, 2)
    optimisers = make_optimisers(networks, recipe, phases(recipe), fused=False)
    held = [
        id(parameter)
        for optimiser in optimisers.values()
        for group in optimiser.param_groups
        for parameter in group["params"]
    ]
    everything = [id(parameter) for part in networks.parts().values() for parameter in part.parameters()]
    assert sorted(held) == sorted(everything)


def test_rates_are_shares_of_the_full_ones() -> None:
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimiser = torch.optim.Adam(
        [
            {"params": [weights[0]], "lr": 0.5, "full_rate": 0.5},
            {"params": [weights[1]], "lr": 2, "full_rate": 2},
        ]
    )
    for share in (0.5, 0.1):
        set_rates(optimiser, share)
        assert [group["lr"] for group in optimiser.param_groups] == [0.5 * share, 2 * share]


def test_a_part_without_gradients_stays_as_it_is() -> None:
    """With momentum a gradient of 0 would still move it, and would wear its moments down."""
    used = torch.nn.Linear(2, 1)
    idle = torch.nn.Linear(2, 1)
    optimiser = torch.optim.Adam(
        [{"params": list(used.parameters())}, {"params": list(idle.parameters())}], lr=0.1, betas=(0.9, 0.99)
    )
    for part in (used, idle):
        part(torch.ones(1, 2)).sum().backward()
    update(optimiser)
    assert all(parameter.grad is None for parameter in (*used.parameters(), *idle.parameters()))
    before = idle.weight.detach().clone()
    moments = {key: value.clone() for key, value in optimiser.state[idle.weight].items()}
    moved = used.bias.detach().clone()
    (used.weight.sum() * 1.0).backward()  # the bias has no gradient, but its part has
    update(optimiser)
    assert bool((idle.weight == before).all())
    assert all(bool((value == moments[key]).all()) for key, value in optimiser.state[idle.weight].items())
    assert bool((used.bias != moved).all())
    assert int(optimiser.state[used.bias]["step"]) == 2
    assert int(optimiser.state[idle.weight]["step"]) == 1


def test_phases_take_steps_of_their_own_or_join() -> None:
    due = phases(problems.recipe("fast"))
    assert [[phase.name for phase in joined] for joined in updates(due, True)] == [
        ["generator"],
        ["path_length"],
        ["discriminator"],
        ["r1"],
    ]
    assert [[phase.name for phase in joined] for joined in updates(due, False)] == [
        ["generator", "path_length"],
        ["discriminator", "r1"],
    ]


def test_joined_gradients_are_summed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With path length in the same update, gradients are those of the generator's phase and more."""
    trainer = problems.make_trainer(tmp_path / "run", "vdv", ["training.accumulate=2"])
    seen: list[list[torch.Tensor]] = []

    def note(optimiser: torch.optim.Optimizer) -> None:
        held = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        grads = [parameter.grad for parameter in held]
        seen.append([torch.zeros(1) if grad is None else grad.clone() for grad in grads])
        optimiser.zero_grad()

    monkeypatch.setattr(loop, "update", note)
    generator, path_length = trainer.phases[:2]
    for joined in ([generator], [generator, path_length]):
        trainer._update(joined, [trainer._batch(part) for part in range(2)], 1.0, None)
    alone, together = seen
    more = [float((b - a).abs().max()) for a, b in zip(alone, together, strict=True)]
    assert max(more) > 0
    # The last colour bias does not change ‖Jᵀy‖: all of its gradient comes from the generator's phase.
    bias = trainer.state.networks.generator.synthesis.layers[-1].bias
    index = next(i for i, parameter in enumerate(trainer.parameters["generator"]) if parameter is bias)
    assert float(alone[index].abs().max()) > 0
    assert more[index] == 0
