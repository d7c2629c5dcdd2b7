"""Augmentation against hand-made cases; it follows overfitting, and a generator does not learn it."""

from __future__ import annotations

import colorsys
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import training_problems as problems
from stylex.classifiers import Classifier
from stylex.run import read_tensors
from stylex.training.augmentation import Augmentation, Transformation, apply, warp
from stylex.training.losses import StylexLoss, r1_weight
from stylex.training.randomness import StepRandom
from stylex.training.schedule import Phase

CPU = torch.device("cpu")


def draws(step: int = 0) -> StepRandom:
    return StepRandom(0, step, 0, CPU)


def noise(count: int = 4, width: int = 16) -> Tensor:
    return torch.rand(count, 3, width, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


def smooth(count: int = 2, width: int = 32) -> Tensor:
    """A blob off the middle, another in each channel and image; nothing near the edges."""
    line = (torch.arange(width) + 0.5) / width * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    centres = torch.linspace(-0.25, 0.25, count * 3)
    blobs = [torch.exp(-(((x - c) / 0.2) ** 2) - ((y + 0.15) / 0.3) ** 2) for c in centres]
    return torch.stack(blobs).reshape(count, 3, width, width)


def changed(images: Tensor, **fields: object) -> Tensor:
    change = Transformation.identity(len(images))
    for name, value in fields.items():
        setattr(change, name, torch.as_tensor(value, dtype=torch.float32).expand_as(getattr(change, name)))
    return apply(images, change)


def augmentation(p: float, *, flips: bool = True, **options: float) -> Augmentation:
    settings = {"target": 0.6, "kimg": 500.0, "maximum": 0.8} | options
    made = Augmentation(flips=flips, **settings)
    made.state[0] = p
    return made


# One transformation at a time


def test_nothing_happens_at_p_0() -> None:
    images = noise(32)
    assert torch.equal(augmentation(0.0)(images, draws()), images)
    assert not torch.equal(augmentation(0.1)(images, draws()), images)


def test_images_that_nothing_happens_to_come_back_bit_for_bit_among_others() -> None:
    images = noise(64)
    change = Transformation.draw(64, 0.05, draws())
    still = ~(change.moves | change.recolours)
    assert 5 < int(still.sum()) < 60
    result = apply(images, change)
    assert torch.equal(result[still], images[still])
    assert not bool((result[~still] == images[~still]).flatten(1).all(dim=1).any())


def test_blits_are_exact() -> None:
    images = noise()
    close = {"rtol": 0, "atol": 2e-5}
    torch.testing.assert_close(changed(images, flip=1.0), images.flip(3), **close)
    for turns in (1, 2, 3):
        torch.testing.assert_close(changed(images, quarters=turns), images.rot90(turns, (2, 3)), **close)
    moved = changed(images, whole_shift=(2 / 16 + 0.01, -3 / 16))  # to the right by 2 px, up by 3
    torch.testing.assert_close(moved[:, :, :-3, 2:], images[:, :, 3:, :-2], **close)
    torch.testing.assert_close(moved[:, :, :-3, :2], images[:, :, 3:, :2].flip(3), **close)  # reflected
    both = changed(images, flip=1.0, quarters=1)  # the flip comes first
    torch.testing.assert_close(both, images.flip(3).rot90(1, (2, 3)), **close)


def test_geometry_moves_a_smooth_picture_as_calculus_says() -> None:
    width = 32
    line = (torch.arange(width) + 0.5) / width * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")

    def blob(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-(((x - 0.2) / 0.2) ** 2) - ((y + 0.1) / 0.3) ** 2).expand(1, 3, -1, -1)

    images = blob(x, y)
    close = {"rtol": 0, "atol": 0.02}
    torch.testing.assert_close(changed(images, scale=1.2), blob(x / 1.2, y / 1.2), **close)
    torch.testing.assert_close(changed(images, stretch=1.2), blob(x / 1.2, y * 1.2), **close)
    torch.testing.assert_close(changed(images, shift=(0.11, 0.07)), blob(x - 0.22, y - 0.14), **close)
    for name in ("rotation_before", "rotation_after"):
        angle = 0.5  # counterclockwise with y down: (1, 0) goes to (cos, −sin)
        back = (x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle))
        torch.testing.assert_close(changed(images, **{name: angle}), blob(*back), **close)
    before = changed(images, rotation_before=0.5, stretch=1.3)
    after = changed(images, rotation_after=0.5, stretch=1.3)
    assert float((before - after).abs().max()) > 0.1


def test_half_a_turn_is_two_quarters() -> None:
    images = smooth()
    torch.testing.assert_close(
        changed(images, rotation_before=math.pi), changed(images, quarters=2), rtol=0, atol=0.01
    )


def test_warp_is_nearly_the_identity_and_does_not_alias() -> None:
    images = smooth()
    identity = torch.eye(3)[:2].repeat(len(images), 1, 1)
    torch.testing.assert_close(warp(images, identity), images, rtol=0, atol=5e-3)
    flat = torch.full((1, 3, 16, 16), 0.7)
    turned = changed(flat, rotation_before=0.3, scale=0.7)
    torch.testing.assert_close(turned, flat, rtol=0, atol=1e-5)
    # The finest checkerboard, made 0.6 times as large, has no frequency that the grid can show: grey remains.
    line = torch.arange(32)
    board = (((line[:, None] + line[None]) % 2) * 2.0 - 1.0).expand(1, 3, -1, -1)
    shrunk = changed(board, scale=0.6)
    bare = F.interpolate(board, scale_factor=0.6, mode="bilinear", align_corners=False)
    assert float(shrunk[:, :, 10:22, 10:22].std()) < 0.2 < float(bare.std())


def test_colours() -> None:
    images = noise()
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(changed(images, brightness=0.3), images + 0.3, **close)
    torch.testing.assert_close(changed(images, contrast=1.5), images * 1.5, **close)
    luma = images.mean(dim=1, keepdim=True)
    torch.testing.assert_close(changed(images, luma_flip=1.0), images - 2 * luma, **close)
    torch.testing.assert_close(changed(images, saturation=0.0), luma.expand_as(images), **close)
    torch.testing.assert_close(changed(images, saturation=2.0), luma + 2 * (images - luma), **close)
    turned = changed(images, hue=2 * math.pi / 3)  # a third of the circle: red to green to blue
    torch.testing.assert_close(turned, images[:, [2, 0, 1]], **close)
    both = changed(images, brightness=0.3, contrast=1.5)
    torch.testing.assert_close(both, (images + 0.3) * 1.5, **close)
    red = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
    hue = colorsys.rgb_to_hsv(*changed(red, hue=1.0)[0, :, 0, 0].clamp(0, 1).tolist())[0]
    assert 0.1 < hue < 0.3  # about a sixth of the circle on, not back


def test_how_often_and_how_strongly() -> None:
    count, p = 20_000, 0.3
    change = Transformation.draw(count, p, draws())
    expected = {"flip": p / 2, "luma_flip": p / 2, "quarters": p * 3 / 4, "whole_shift": p, "scale": p}
    expected |= {"stretch": p, "shift": p, "brightness": p, "contrast": p, "hue": p, "saturation": p}
    still = Transformation.identity(count)
    for name, share in expected.items():
        other = (getattr(change, name) != getattr(still, name)).reshape(count, -1).any(dim=1)
        assert float(other.float().mean()) == pytest.approx(share, abs=0.015), name
    turned = (change.rotation_before != 0) | (change.rotation_after != 0)
    assert float(turned.float().mean()) == pytest.approx(p, abs=0.015)
    spread = {
        "scale": 0.2 * math.log(2),
        "stretch": 0.2 * math.log(2),
        "contrast": 0.5 * math.log(2),
        "saturation": math.log(2),
    }
    for name, deviation in spread.items():
        values = getattr(change, name)
        assert float(values[values != 1].log().std()) == pytest.approx(deviation, rel=0.05), name
    shift = change.shift[(change.shift != 0).any(dim=1)]
    assert float(shift.std()) == pytest.approx(0.125, rel=0.05)
    assert float(change.brightness[change.brightness != 0].std()) == pytest.approx(0.2, rel=0.05)
    whole = change.whole_shift.abs()
    assert 0.12 < float(whole.max()) <= 0.125


def test_flips_can_be_left_out() -> None:
    change = Transformation.draw(1000, 0.8, draws(), flips=False)
    assert not bool(change.flip.any() or change.quarters.any())
    other = Transformation.draw(1000, 0.8, draws())
    assert bool(other.flip.any() and other.quarters.any())
    assert torch.equal(change.hue, other.hue)


def test_the_same_step_draws_the_same() -> None:
    images = noise()
    made = augmentation(0.7)
    assert torch.equal(made(images, draws(5)), made(images, draws(5)))
    assert not torch.equal(made(images, draws(5)), made(images, draws(6)))


def test_gradients_are_those_of_the_augmentation() -> None:
    change = Transformation.draw(6, 0.5, draws(1))
    assert bool(change.resamples.any() and change.recolours.any())
    images = noise(6, 8).double().requires_grad_(True)
    single = images.detach().float().requires_grad_(True)
    apply(single, change).square().sum().backward()
    assert single.grad is not None
    assert bool((single.grad != 0).flatten(1).any(dim=1).all())
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    step = 1e-2
    up, down = (apply(single.detach() + s * direction, change).square().sum() for s in (step, -step))
    assert float(up - down) / (2 * step) == pytest.approx(float((single.grad * direction).sum()), rel=1e-2)


# p follows overfitting


def test_p_rises_when_the_discriminator_knows_the_real_images_and_else_falls() -> None:
    made = augmentation(0.0)
    for _ in range(8):
        made.note(torch.full((16,), 3.0))
        made.after_update()
    assert made.p == pytest.approx(2 * 4 * 16 / 500_000)
    for _ in range(4):
        made.note(torch.tensor([1.0, -1.0] * 8))
        statistics = made.after_update()
    assert made.p == pytest.approx(4 * 16 / 500_000)
    assert float(statistics["augmentation/r"]) == 0
    for _ in range(40):
        made.note(torch.full((16,), -3.0))
        made.after_update()
    assert made.p == 0
    fast = augmentation(0.0, kimg=0.01, maximum=0.7)
    for _ in range(40):
        fast.note(torch.full((16,), 3.0))
        fast.after_update()
    assert fast.p == pytest.approx(0.7)


def test_p_is_adjusted_every_fourth_update_alone() -> None:
    made = augmentation(0.5)
    seen = []
    for _ in range(8):
        made.note(torch.ones(16))
        made.after_update()
        seen.append(made.p)
    assert len(set(seen[0:3])) == len(set(seen[3:7])) == 1
    assert seen[2] < seen[3] < seen[7]


ADA = (
    "training.augmentation=ada",
    "training.augmentation_kimg=0.05",
    "loss.r1_interval=2",
    "loss.adversarial_steps=[encode, sample, swap]",
)


def test_a_discriminator_that_overfits_raises_p_in_training(tmp_path: Path) -> None:
    settings = [*ADA, "loss.adversarial=0", "training.discriminator_learning_rate=0.02", "loss.r1=0"]
    trainer = problems.make_trainer(tmp_path / "run", "stylex", settings)
    for _ in range(60):
        trainer.step()
    assert trainer.loss.augmentation is not None
    assert trainer.loss.augmentation.p > 0.2


class Noting(nn.Module):
    """A perceptual distance that keeps what it is given."""

    def __init__(self, seen: list[Tensor]) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        self.seen += [one.detach(), other.detach()]
        return (one - other).square().flatten(1).mean(dim=1)


@pytest.mark.parametrize("own_features", [True, False])
def test_only_the_discriminator_sees_augmented_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_features: bool
) -> None:
    """Every phase that scores goes through it; all others get the image itself.

    The perceptual distance is taken in the classifier's own features, or by a network of its own.
    """
    trainer = problems.make_trainer(tmp_path / "run", "fast", ADA)
    assert trainer.loss.augmentation is not None
    trainer.loss.augmentation.state[0] = 0.8
    batch = trainer._batch(0)
    seen: dict[str, list[Tensor]] = {"discriminator": [], "encoder": [], "classifier": [], "perceptual": []}
    if not own_features:
        trainer.loss.perceptual = Noting(seen["perceptual"])
    for method in ("forward", "forward_with_features"):
        original = getattr(Classifier, method)

        def noted(self: Classifier, images: Tensor, original: Any = original) -> Any:
            seen["classifier"].append(images.detach())
            return original(self, images)

        monkeypatch.setattr(Classifier, method, noted)
    networks = trainer.state.networks
    assert networks.encoder is not None
    for name, module in (
        ("discriminator", networks.discriminator),
        ("encoder", networks.encoder.from_rgb),
    ):
        module.register_forward_hook(lambda _, given, __, name=name: seen[name].append(given[0].detach()))
    for phase in ("generator", "discriminator", "r1"):
        owner = "generator" if phase == "generator" else "discriminator"
        trainer.loss.accumulate_gradients(Phase(phase, owner), batch)
    assert batch.fake is not None
    assert len(seen["discriminator"]) == 4
    for images in seen["discriminator"]:
        assert not any(torch.equal(images, plain) for plain in (batch.images, batch.fake))
    assert len(seen["classifier"]) == 2
    assert torch.equal(seen["classifier"][0], batch.images)
    assert torch.equal(seen["classifier"][1], batch.fake)
    if not own_features:
        assert torch.equal(seen["perceptual"][0], batch.fake)
        assert torch.equal(seen["perceptual"][1], batch.images)
    assert torch.equal(seen["encoder"][0], batch.images)
    assert torch.equal(seen["encoder"][1], batch.fake)
    assert float(batch.statistics["l1"]) == pytest.approx(float((batch.fake - batch.images).abs().mean()))


def test_p_and_its_counts_come_back_from_a_checkpoint(tmp_path: Path) -> None:
    trainer = problems.make_trainer(tmp_path / "run", "fast", ADA)
    for _ in range(6):
        trainer.step()
    trainer._save()
    kept = trainer.state.augmentation
    assert kept is not None
    assert kept[3] == 2  # in the middle between two adjustments
    file = trainer.run.checkpoint_files()[-1]
    assert torch.equal(read_tensors(file)[0]["augmentation"], kept)
    again = problems.Trainer(
        trainer.run, problems.images(), problems.classifier(), problems.HARDWARE, problems.images(3)
    )
    again.resume()
    assert again.loss.augmentation is not None
    assert torch.equal(again.loss.augmentation.state, kept)


def test_recipes_without_augmentation_keep_their_checkpoints(tmp_path: Path) -> None:
    trainer = problems.make_trainer(tmp_path / "run", "fast")
    assert isinstance(trainer.loss, StylexLoss)
    assert trainer.loss.augmentation is None
    assert "augmentation" not in trainer.state.tensors()


def test_flips_follow_mirror_unless_they_are_named() -> None:
    from stylex.training.losses import make_augmentation

    for mirror, named, expected in ((True, "null", True), (False, "null", False), (False, "true", True)):
        recipe = problems.recipe(
            "fast", [*ADA, f"training.mirror={mirror}", f"training.augmentation_flips={named}"]
        )
        made = make_augmentation(recipe)
        assert made is not None
        assert made.flips is expected


def test_r1_by_resolution() -> None:
    recipe = problems.recipe("fast", ["loss.r1=auto", "training.batch_size=32", "training.accumulate=2"])
    assert r1_weight(recipe, 1024) == pytest.approx(0.0002 * 1024**2 / 64)
    assert r1_weight(problems.recipe("study"), 1024) == 10


# It does not leak


def halves(count: int = 4, width: int = 8) -> Tensor:
    """The upper half bright, in each of four orientations: [4, 3, 8, 8]."""
    image = torch.full((1, 3, width, width), -0.5)
    image[:, :, : width // 2] = 0.5
    return torch.cat([image.rot90(turns, (2, 3)) for turns in range(count)])


def learned(p: float, *, augment_fakes: bool = True, steps: int = 400) -> tuple[Tensor, float]:
    """A generator with five parameters, trained against a discriminator on images of one orientation.

    It chooses between four orientations (a share of each) and adds a brightness; the real images all have
    the first orientation and a brightness of 0.2. Returns what it ended with: shares [4] and brightness.
    """
    torch.manual_seed(0)
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(192, 48), nn.LeakyReLU(0.2), nn.Linear(48, 1))
    orientation = torch.zeros(4, requires_grad=True)
    brightness = torch.zeros((), requires_grad=True)
    generate = torch.optim.Adam([orientation, brightness], lr=0.03, betas=(0.0, 0.9))
    judge = torch.optim.Adam(discriminator.parameters(), lr=0.003, betas=(0.0, 0.9))
    each, bases, made = 24, halves(), augmentation(p)
    kept: list[tuple[Tensor, float]] = []
    for step in range(steps):
        random = StepRandom(1, step, 0, CPU)
        real = made(bases[:1].expand(2 * each, -1, -1, -1) + 0.2, random)
        fake = bases.repeat_interleave(each, 0) + brightness
        fake = made(fake, random) if augment_fakes else fake
        weights = (orientation.softmax(0) / each).repeat_interleave(each)
        judge.zero_grad()
        real = real.detach().requires_grad_(True)
        score = discriminator(real)[:, 0]
        (slope,) = torch.autograd.grad(score.sum(), real, create_graph=True)
        loss = F.softplus(-score).mean() + 0.02 * slope.square().flatten(1).sum(1).mean()
        loss = loss + (weights.detach() * F.softplus(discriminator(fake.detach())[:, 0])).sum()
        loss.backward()
        judge.step()
        generate.zero_grad()
        (weights * F.softplus(-discriminator(fake)[:, 0])).sum().backward()
        generate.step()
        if step >= steps - 100:
            kept.append((orientation.detach().softmax(0), float(brightness.detach())))
    shares = torch.stack([shares for shares, _ in kept]).mean(dim=0)
    return shares, sum(value for _, value in kept) / len(kept)


def test_a_generator_learns_the_images_and_not_their_augmentations() -> None:
    shares, brightness = learned(0.5)
    assert float(shares[0]) > 0.85
    assert brightness == pytest.approx(0.2, abs=0.1)


def test_what_leaks_is_noticed() -> None:
    """At p = 1 every orientation is as good; with fakes as they are the generator has to imitate the rest.

    After so many steps one that learns the images gives the first orientation 0.8.
    """
    assert float(learned(1.0, steps=250)[0][0]) < 0.5
    assert float(learned(0.5, augment_fakes=False, steps=250)[0][0]) < 0.5
