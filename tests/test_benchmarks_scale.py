"""A training on paper: counts against real networks, real steps and formulas."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

import training_problems as problems
from stylex.benchmarks.profiling import FlopCounter
from stylex.benchmarks.scale import measure, plan_scale
from stylex.cli.app import main
from stylex.config import load_recipe
from stylex.errors import ConfigError
from stylex.networks import build
from stylex.training.schedule import Phase


def test_operations_of_known_work_and_of_gradients_of_gradients() -> None:
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    weight = torch.rand(5, 3, 3, 3, requires_grad=True)
    with FlopCounter() as counter:
        F.conv2d(images, weight, padding=1)
    one = 2 * 2 * 64 * 5 * 3 * 9
    assert counter.total == one
    with FlopCounter() as counter:
        (gradient,) = torch.autograd.grad(
            F.conv2d(images, weight, padding=1).sum(), images, create_graph=True
        )
        gradient.square().sum().backward()  # type: ignore[no-untyped-call]
    assert counter.total >= 3 * one
    with FlopCounter() as counter:
        torch.rand(4, 5) @ torch.rand(5, 6)
    assert counter.total == 2 * 4 * 5 * 6


@pytest.fixture(scope="module")
def recipe() -> object:
    return problems.recipe("stylex", ["loss.perceptual=0", "network.deviation_group=4"])


def test_a_plan_counts_what_real_steps_do(recipe: object, tmp_path: object) -> None:
    """Operations of the real discriminator phase and gradients of every phase, on real tensors."""
    plan = plan_scale(recipe, 16, 2, batch_size=8, precision="fp32")  # type: ignore[arg-type]
    trainer = problems.make_trainer(tmp_path / "run", "stylex", ["loss.perceptual=0"])  # type: ignore[operator]
    trainer.phases = [Phase("generator", "generator")]
    batch = trainer._batch(0)
    for name, phase in (
        ("generator", "generator"),
        ("discriminator", "discriminator"),
        ("r1", "discriminator"),
    ):
        for part, module in trainer.state.networks.parts().items():
            module.requires_grad_((part == "discriminator") == (phase == "discriminator"))
        with FlopCounter() as counter:
            trainer.loss.accumulate_gradients(Phase(name, phase), batch)  # type: ignore[arg-type]
        gradients = 0
        for module in trainer.state.networks.parts().values():
            for parameter in module.parameters():
                if parameter.grad is not None:
                    gradients += 4 * parameter.numel()
                    parameter.grad = None
        cost = plan.phases[f"encode/{name}"]
        assert cost.gradient_bytes == gradients, name
        if name != "generator":  # whose classifier is another
            assert cost.flops == counter.total / 4, name
    parts = build(recipe, 16, 2, 0).parts()  # type: ignore[arg-type]
    assert plan.parameters == {
        name: sum(value.numel() for value in part.parameters()) for name, part in parts.items()
    }


def test_totals_weigh_phases_and_processes(recipe: object) -> None:
    alone, four = (plan_scale(recipe, 16, n, batch_size=8, precision="fp32") for n in (1, 4))  # type: ignore
    cost = alone.phases
    kinds = ("encode", "sample")
    flops = sum(
        (cost[f"{kind}/generator"].flops + cost[f"{kind}/discriminator"].flops) / 2
        + cost[f"{kind}/path_length"].flops / 2 / 4 / 2  # every 4th step, half of the images
        + cost[f"{kind}/r1"].flops / 2 / 16
        for kind in kinds
    )
    assert alone.flops_an_image == pytest.approx(flops)
    assert (alone.sent_bytes, four.sent_bytes) == (0, pytest.approx(2 * 3 / 4 * four.gradient_bytes))
    assert four.kept_bytes == pytest.approx(alone.kept_bytes / 4)
    assert four.noise_numbers == 16 + 2 * 64 + 2 * 256
    computing, averaging = four.hours(2.0, 5.0)
    assert computing == pytest.approx(four.flops_an_image * 40 / (4 * 2e12) / 3600)
    assert averaging == pytest.approx(40 / 8 * four.sent_bytes / 5e9 / 3600)
    with pytest.raises(ConfigError, match="multiple of the 3 processes"):
        plan_scale(recipe, 16, 3, batch_size=8)  # type: ignore[arg-type]


def test_what_backward_keeps_grows_with_the_number_format(recipe: object) -> None:
    half, full = (plan_scale(recipe, 16, 1, batch_size=8, precision=name) for name in ("bf16", "fp32"))  # type: ignore
    for name in ("encode/discriminator", "sample/r1"):
        assert 0.4 < half.phases[name].kept_bytes / full.phases[name].kept_bytes < 1


def test_real_steps_are_measured(recipe: object) -> None:
    found = measure(recipe, 16, problems.HARDWARE, limit_s=0.01)  # type: ignore[arg-type]
    assert set(found.cost.kinds) == {"encode", "sample"}
    assert found.cost.batch_size == 2
    assert found.to_json()["machine"]["precision"] == "fp32"


def test_the_verb(capfd: pytest.CaptureFixture[str]) -> None:
    settings = [f"--set={text}" for text in (*problems.TINY, "loss.perceptual=0")]
    with pytest.raises(SystemExit) as ended:
        main(["bench", "scale", "--size", "16", "--gpus", "2", "--batch", "8", "--json", *settings])
    assert not ended.value.code
    found = json.loads(capfd.readouterr().out)
    assert found["measured"] is None
    assert found["assumed"]["computing_hours"] > 0
    assert found["computed"]["parameters"].keys() == {"generator", "encoder", "mapping", "discriminator"}
    with pytest.raises(SystemExit) as ended:
        main(["bench", "scale", "--gpus", "64", "--batch", "64"])
    assert ended.value.code == 2
    assert "path length takes 32 of 64 images" in capfd.readouterr().err
    assert load_recipe("stylex").loss.path_length_batch_shrink == 2
