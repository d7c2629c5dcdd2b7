"""Losses against closed forms, other libraries and slow loops; gradients where they belong, nowhere else."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr
from scipy.stats import entropy
from torch import Tensor, nn
from torch.distributions import Bernoulli
from torch.nn import functional as F

import training_problems as problems
from kernels import LargestKernel
from stylex.config import Recipe, StepKind
from stylex.networks import conditional_score
from stylex.networks.evidence import Evidence
from stylex.parallel import World
from stylex.training.loop import Trainer
from stylex.training.losses import Batch, StylexLoss, agreement, divergence, join
from stylex.training.randomness import StepRandom
from stylex.training.schedule import Phase, adversarial_share, phases
from stylex.training.sparsity import thin_out_condition

CPU = torch.device("cpu")


def fresh_random(step: int = 0) -> StepRandom:
    return StepRandom(0, step, 0, CPU)


def make_batch(kind: StepKind, count: int = 4, step: int = 0) -> Batch:
    return Batch(problems.images().batch(range(count)), kind, fresh_random(step), step)


# Divergence and agreement


def test_divergence_is_kl_of_the_target_from_the_classifier() -> None:
    """KL(C(x) ‖ C(G)), as scipy has it; the two directions differ, so a swap would show."""
    torch.manual_seed(0)
    logits, target = torch.randn(5, 3), torch.randn(5, 3).mul(2).softmax(dim=1)
    expected = np.mean(
        [entropy(p, q) for p, q in zip(target.numpy(), logits.softmax(1).numpy(), strict=True)]
    )
    other_way = np.mean(
        [entropy(q, p) for p, q in zip(target.numpy(), logits.softmax(1).numpy(), strict=True)]
    )
    assert float(divergence(logits, target, "softmax")) == pytest.approx(expected, rel=1e-5)
    assert abs(expected - other_way) > 0.01 * expected


def test_divergence_of_labels_is_summed_over_them() -> None:
    logits, target = torch.randn(5, 3), torch.rand(5, 3)
    q = logits.sigmoid().double().numpy()
    p = target.double().numpy()
    expected = (rel_entr(p, q) + rel_entr(1 - p, 1 - q)).sum(axis=1).mean()
    assert float(divergence(logits, target, "sigmoid")) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_divergence_is_0_where_both_agree_and_finite_where_the_target_is_certain(activation: str) -> None:
    logits = torch.tensor([[2.0, -1.0], [0.0, 3.0]], requires_grad=True)
    same = logits.softmax(1) if activation == "softmax" else logits.sigmoid()
    assert float(divergence(logits.detach(), same.detach(), activation)) == pytest.approx(0, abs=1e-6)
    certain = divergence(logits, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), activation)
    certain.backward()
    assert bool(certain.isfinite())
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_agreement_counts_classes_or_labels() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.0, 3.0], [1.0, 2.0], [4.0, 3.0]])
    target = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.6, 0.4]])
    assert float(agreement(logits, target, "softmax")) == 0.75
    assert float(agreement(logits, target, "sigmoid")) == (2 + 0 + 1 + 1) / 8


# The score of a conditioned discriminator


def test_conditional_scores() -> None:
    outputs = torch.tensor([[1.0, 2.0, 4.0], [3.0, 5.0, 7.0]])
    condition = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    assert conditional_score(outputs[:, 1:], condition).tolist() == [0.25 * 2 + 0.75 * 4, 5.0]
    assert conditional_score(outputs, condition).tolist() == [1 + 3.5, 3 + 5.0]
    assert conditional_score(outputs[:, :1], condition).tolist() == [1.0, 3.0]


# Closed forms with linear networks


class Linear(nn.Module):
    """D_k(x) = a_k · x, for every output k."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, 3, 4, 4))

    def forward(self, images: Tensor) -> Tensor:
        return F.linear(images.flatten(1), self.weight.flatten(1))


def stub_classifier(logits: Tensor) -> Any:
    class Stub:
        activation = "softmax"

        def __call__(self, images: Tensor) -> Tensor:
            return logits[: len(images)]

        def probabilities(self, values: Tensor) -> Tensor:
            return values.softmax(dim=1)

    return Stub()


def linear_loss(recipe: Recipe, discriminator: nn.Module, logits: Tensor, **parts: Any) -> StylexLoss:
    generator = parts.pop("generator", nn.Linear(1, 1))
    networks: Any = SimpleNamespace(
        **{"encoder": None, "discriminator": discriminator, "generator": generator} | parts
    )
    return StylexLoss(networks, stub_classifier(logits), None, recipe)


@pytest.mark.parametrize(("kind", "outputs"), [("plain", 1), ("classes", 2), ("real+classes", 3)])
def test_r1_of_a_linear_discriminator(kind: str, outputs: int) -> None:
    """∇ₓ Σ wₖaₖ·x = Σ wₖaₖ, so the penalty is γ/2 · mean ‖Σ wₖaₖ‖², times the interval."""
    recipe = problems.recipe(
        "fast",
        [f"network.discriminator={kind}", "loss.r1=6", "loss.r1_interval=5"],
    )
    discriminator, logits = Linear(outputs), torch.randn(3, 2)
    loss = linear_loss(recipe, discriminator, logits)
    batch = Batch(torch.randn(3, 3, 4, 4), "encode", fresh_random())
    loss.accumulate_gradients(Phase("r1", "discriminator", 5), batch, gain=0.5)

    condition = logits.softmax(dim=1)
    weights = {
        "plain": torch.ones(3, 1),
        "classes": condition,
        "real+classes": torch.cat([torch.ones(3, 1), condition], dim=1),
    }[kind]
    slopes = torch.einsum("nk,kchw->nchw", weights, discriminator.weight.detach())
    penalty = slopes.square().sum(dim=(1, 2, 3)).mean()
    assert float(batch.statistics["r1"]) == pytest.approx(float(penalty), rel=1e-5)
    # d/daₖ of 6/2 · 5 · 0.5 · mean ‖Σ wₖaₖ‖²
    expected = 3 * 5 * 0.5 * 2 * torch.einsum("nk,nchw->kchw", weights, slopes) / 3
    torch.testing.assert_close(discriminator.weight.grad, expected, rtol=1e-4, atol=1e-5)


class LinearGenerator(nn.Module):
    """Image = A · (latents of all layers in a row); the styles are those latents."""

    latent_size = 3

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(3 * 4 * 4, layers * width))
        self.synthesis: Any = self._synthesis()
        self.synthesis.w_count = layers

    def _synthesis(self) -> Any:
        class Synthesis:
            def __call__(_, styles: Tensor, noise: str, maps: object) -> Tensor:  # noqa: N805
                assert (noise, maps) == ("none", None)
                return F.linear(styles, self.matrix).reshape(-1, 3, 4, 4)

        return Synthesis()

    def styles(self, latents: Tensor) -> Tensor:
        return latents.flatten(1)


class LinearEncoder(nn.Module):
    """w = B · x."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(48, 2)

    def latents(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.linear(images.flatten(1))
        return found, found


@pytest.mark.parametrize("condition", ["probabilities", "none"])
def test_path_length_of_a_linear_generator(condition: str) -> None:
    """J = A whatever the latent, so ‖Jᵀy‖ = √(mean over layers of ‖(Aᵀy) of the layer‖²)."""
    wiring = [] if condition != "none" else ["sparsity.threshold=0", "training.schedule=[encode]"]
    recipe = problems.recipe(
        "fast",
        [
            f"network.condition={condition}",
            "network.discriminator=plain",
            "loss.path_length=3",
            "loss.path_length_batch_shrink=2",
            *wiring,
        ],
    )
    layers, width = 5, 2 + (2 if condition != "none" else 0)
    generator = LinearGenerator(layers, width)
    encoder = LinearEncoder()
    loss = linear_loss(recipe, Linear(1), torch.randn(6, 2), generator=generator, encoder=encoder)
    loss.path_length_mean.fill_(0.5)
    batch = Batch(torch.randn(6, 3, 4, 4), "encode", fresh_random())
    loss.accumulate_gradients(Phase("path_length", "generator", 4), batch, gain=0.25)

    y = fresh_random().normal(3, 3, 4, 4) / 4
    matrix = generator.matrix.detach().clone().requires_grad_(True)
    slopes = (y.flatten(1) @ matrix).reshape(3, layers, width)
    lengths = slopes.square().sum(dim=2).mean(dim=1).sqrt()
    mean = 0.5 + 0.01 * 0.25 * (lengths.detach().mean() - 0.5)
    assert float(batch.statistics["path_length"]) == pytest.approx(float(lengths.detach().mean()), rel=1e-5)
    assert float(loss.path_length_mean) == pytest.approx(float(mean), rel=1e-6)
    (3 * 4 * 0.25 * (lengths - mean).square().mean()).backward()
    torch.testing.assert_close(generator.matrix.grad, matrix.grad, rtol=1e-4, atol=1e-6)


def test_adversarial_losses_are_non_saturating_logistic() -> None:
    recipe = problems.recipe("fast", ["loss.adversarial=0.5"])
    discriminator, logits = Linear(3), torch.randn(4, 2)
    loss = linear_loss(recipe, discriminator, logits)
    condition = logits.softmax(dim=1)
    real, fake = torch.randn(4, 3, 4, 4), torch.randn(4, 3, 4, 4)
    batch = Batch(real, "encode", fresh_random(), fake=fake, condition=condition.flip(0))
    loss.accumulate_gradients(Phase("discriminator", "discriminator"), batch)
    outputs_real, outputs_fake = discriminator(real).detach(), discriminator(fake).detach()
    score_real = outputs_real[:, 0] + (outputs_real[:, 1:] * condition).sum(dim=1)
    score_fake = outputs_fake[:, 0] + (outputs_fake[:, 1:] * condition.flip(0)).sum(dim=1)
    expected = (1 + score_fake.exp()).log().mean() + (1 + (-score_real).exp()).log().mean()
    assert float(batch.statistics["discriminator"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(batch.statistics["score/real"]) == pytest.approx(float(score_real.mean()), rel=1e-5)


# The generator's losses on real networks

JUDGE_ALL = "loss.adversarial_steps=[encode, sample, swap]"


def term_by_term(trainer: Trainer, kind: StepKind) -> tuple[float, dict[str, float], Batch]:
    """The generator's loss with every term computed anew from the images that it made."""
    loss, weights = trainer.loss, trainer.recipe.loss
    batch = make_batch(kind)
    total = float(loss._generator(batch).detach())
    assert batch.fake is not None
    classifier = trainer.classifier
    with torch.no_grad():
        networks = trainer.state.networks
        random = fresh_random()
        target = classifier(batch.images)
        scored = batch.condition
        values = {
            "adversarial": F.softplus(-conditional_score(networks.discriminator(batch.fake), scored)).mean()
        }
        if kind != "sample":
            assert networks.encoder is not None
            # The latent loss leaves out the principal components, which depend on the class.
            w = networks.encoder(batch.images) - networks.encoder.project(batch.images)
            if kind == "swap":
                share = random.uniform(4, 1)
                if weights.proximity > 0 or weights.area > 0 or weights.cycle > 0:
                    share[[0, 2]] = 1.0
                if weights.proximity > 0:
                    values["proximity"] = (batch.fake - batch.images).abs()[[0, 2]].mean()
                if weights.area > 0:
                    squares = ((batch.fake - batch.images)[[0, 2]] ** 2).sum(dim=1) / 3
                    values["area"] = (squares / (squares + 0.15**2)).mean()
                if weights.cycle > 0:
                    own = torch.cat(
                        [networks.encoder(batch.fake), networks.encoder.told(batch.images)], dim=1
                    )[[0, 2]]
                    again = networks.generator.synthesis(networks.generator.styles(own), "none")
                    back = again - batch.images[[0, 2]]
                    values["cycle"] = weights.l1 * back.abs().mean() + weights.l2 * back.square().mean()
                    assert float(batch.statistics["swap/cycle"]) == pytest.approx(
                        float(back.abs().mean()), rel=1e-4
                    )
                w = share * w + (1 - share) * w[random.permutation(4)]
                target = target[random.permutation(4)]
            told_evidence = trainer.recipe.network.condition == "evidence"
            known = slice(None, None, 2 if kind == "swap" and told_evidence else 1)
            p, q = target.softmax(1)[known], classifier(batch.fake).softmax(1)[known]
            if told_evidence:
                assert scored is not None
                evidence = networks.encoder.evidence
                assert evidence is not None
                values["evidence"] = evidence_apart(evidence, batch.fake, scored).mean()
            values["kl"] = torch.from_numpy(rel_entr(p.numpy(), q.numpy())).sum(dim=1).mean()
            again = networks.encoder(batch.fake) - networks.encoder.project(batch.fake)
            values["latent_l1"] = (again - w).abs().mean()
        if kind == "encode":
            values["l1"] = (batch.fake - batch.images).abs().mean()
            values["l2"] = (batch.fake - batch.images).square().mean()
            assert loss.perceptual is not None
            values["perceptual"] = loss.perceptual(batch.fake, batch.images).mean()
    expected = {key: float(value) * getattr(weights, key) for key, value in values.items()}
    return total, expected, batch


def evidence_apart(evidence: Evidence, images: Tensor, asked: Tensor) -> Tensor:
    """Squared differences over their variance, and of components of two kinds divergences; those in use."""
    found = evidence.linear(images)
    away = found - evidence.middle
    leaning = torch.where(away < 0, evidence.below * away, evidence.above * away)
    wanted = ((asked * evidence.spread + evidence.centre + 1) / 2).clamp(1e-7, 1 - 1e-7)
    surprise = wanted * F.softplus(-leaning) + (1 - wanted) * F.softplus(leaning)
    divergence = surprise - Bernoulli(probs=wanted).entropy()
    apart = torch.where(evidence.below > 0, divergence, (found - asked).square() / 0.25)
    return apart[:, : int(evidence.used)]


@pytest.mark.parametrize("name", ["fast", "evidence"])
@pytest.mark.parametrize("kind", ["encode", "swap"])
def test_generator_loss_is_the_weighted_sum_of_its_terms(tmp_path: Path, kind: StepKind, name: str) -> None:
    by_class = name == "fast"
    trainer = problems.make_trainer(tmp_path / "run", name, [JUDGE_ALL])
    trainer.resume()
    encoder = trainer.state.networks.encoder
    assert encoder is not None
    assert bool((encoder.component_weight != 0).any())
    if encoder.evidence is not None:
        encoder.evidence.unmixing[5:] = 0  # of eight: what is not in use does not count
    total, terms, batch = term_by_term(trainer, kind)
    assert total == pytest.approx(sum(terms.values()), rel=1e-4)
    assert set(terms) == {"adversarial", "kl", "latent_l1"} | (set() if by_class else {"evidence"}) | (
        {"l1", "l2", "perceptual"} if kind == "encode" else set()
    )
    assert min(terms.values()) > 0.001
    classifier = trainer.classifier
    own = classifier.probabilities(classifier(batch.images)) if by_class else encoder.told(batch.images)
    assert batch.condition is not None
    if kind == "encode":
        torch.testing.assert_close(batch.condition, own)
        return
    draws = fresh_random()
    draws.uniform(4, 1)
    draws.permutation(4)
    expected = own[draws.permutation(4)]
    if not by_class:
        # Of every second image all components are another's; of the rest each is one of two others'.
        second = own[draws.permutation(4)]
        mixed = torch.where(draws.uniform(*own.shape) < 0.5, expected, second)
        expected = torch.cat([expected[:1], mixed[1:2], expected[2:3], mixed[3:]])
    torch.testing.assert_close(batch.condition, expected)


@pytest.mark.parametrize("kind", ["encode", "swap"])
@pytest.mark.parametrize(("proximity", "area", "cycle"), [(2, 0, 0), (0, 0.5, 0), (0, 0, 3), (2, 3, 4)])
def test_every_second_image_is_kept_and_given_back(
    tmp_path: Path, kind: StepKind, proximity: float, area: float, cycle: float
) -> None:
    """Its latent is not mixed, so that it can be compared with what it should have left of it."""
    keeping = [f"loss.proximity={proximity}", f"loss.area={area}", f"loss.cycle={cycle}"]
    trainer = problems.make_trainer(tmp_path / "run", "evidence", [JUDGE_ALL, *keeping])
    trainer.resume()
    total, terms, batch = term_by_term(trainer, kind)
    assert total == pytest.approx(sum(terms.values()), rel=1e-4)
    for name, weight in (("proximity", proximity), ("area", area), ("cycle", cycle)):
        counts = kind == "swap" and weight > 0
        assert (name in terms) == (f"swap/{name}" in batch.statistics) == counts
        assert not counts or terms[name] > 0.01
    if "proximity" in terms:
        assert 2 * float(batch.statistics["swap/proximity"]) == pytest.approx(terms["proximity"], rel=1e-4)
    if "area" in terms:
        assert area * float(batch.statistics["swap/area"]) == pytest.approx(terms["area"], rel=1e-4)
        assert 0 < float(batch.statistics["swap/area"]) < 1


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_every_second_image_of_all_processes_counts_alike(tmp_path: Path, size: int) -> None:
    """The weights of the processes' means make the mean over the images, whoever has how many of them."""
    loss = problems.make_trainer(tmp_path / "run", "evidence", []).loss
    count, wanted, seen = 6, np.zeros(6 * size), np.zeros(6 * size)
    wanted[::2] = 1 / np.ceil(count * size / 2)
    for rank in range(size):
        loss.world = World(rank, size)
        own = np.arange(rank, count * size, size)[loss._every_second(count)]
        if len(own):
            seen[own] += loss._share_of_every_second(count) / len(own) / size
    assert seen == pytest.approx(wanted)


def test_on_z_steps_there_is_the_adversarial_loss_alone(tmp_path: Path) -> None:
    trainer = problems.make_trainer(tmp_path / "run", "stylex")
    total, terms, batch = term_by_term(trainer, "sample")
    assert total == pytest.approx(terms["adversarial"], rel=1e-5)
    assert set(batch.statistics) == {"adversarial"}
    # … and the condition is the class of the real images of the batch.
    classes = trainer.classifier.probabilities(trainer.classifier(batch.images))
    assert batch.condition is not None
    torch.testing.assert_close(batch.condition, classes)


def test_the_condition_is_what_the_recipe_says(tmp_path: Path) -> None:
    logits = problems.classifier()(problems.images().batch(range(4)))
    for name, expected in (("study", logits), ("stylex", logits.softmax(dim=1)), ("stylegan2", None)):
        trainer = problems.make_trainer(tmp_path / name, name)
        found = trainer.loss.condition(make_batch("sample"))
        if expected is None:
            assert found is None
        else:
            torch.testing.assert_close(found, expected)


def test_logits_as_condition_leave_the_target_of_kl_a_probability(tmp_path: Path) -> None:
    trainer = problems.make_trainer(tmp_path / "run", "study")
    batch = make_batch("encode")
    trainer.loss._generator(batch)
    assert batch.fake is not None
    classifier = trainer.classifier
    p = classifier(batch.images).softmax(1).detach().numpy()
    q = classifier(batch.fake).softmax(1).detach().numpy()
    expected = rel_entr(p, q).sum(axis=1).mean()
    assert float(batch.statistics["encode/kl"]) == pytest.approx(expected, rel=1e-4)


def test_stylegan2_never_asks_the_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = problems.make_trainer(tmp_path / "run", "stylegan2")
    monkeypatch.setattr(trainer.loss, "_logits", lambda batch: pytest.fail("asked"))
    trainer.step()


def test_condition_reaches_the_generator_beside_w() -> None:
    w, condition = torch.randn(2, 3), torch.rand(2, 2)
    assert join(w, None) is w
    assert join(w, condition).tolist() == [
        [*a, *b] for a, b in zip(w.tolist(), condition.tolist(), strict=True)
    ]
    wide = join(w[:, None].expand(-1, 4, -1), condition)
    assert wide.shape == (2, 4, 5)
    assert bool((wide == join(w, condition)[:, None]).all())


# Style mixing


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_style_mixing_gives_the_later_layers_another_latent(tmp_path: Path, share: float) -> None:
    trainer = problems.make_trainer(tmp_path / "run", "stylex", [f"training.style_mixing={share}"])
    loss = trainer.loss
    layers = loss.networks.generator.synthesis.w_count
    w = loss._w(torch.zeros(400, 3, 16, 16), "sample", fresh_random()).detach()
    if share == 0:
        assert w.dim() == 2
        return
    changes = (w[:, 1:] != w[:, :-1]).any(dim=2)
    assert bool((changes.sum(dim=1) <= 1).all())  # at most one cut, and early layers share one latent
    assert float(changes.any(dim=1).float().mean()) == pytest.approx(share, abs=0.1)
    cuts = changes.float().argmax(dim=1)[changes.any(dim=1)]
    assert set(cuts.tolist()) == set(range(layers - 1))  # every cut occurs


# Who learns from what


EXPECTED = {
    ("fast", "generator", "encode"): {"generator", "encoder"},
    ("fast", "generator", "swap"): {"generator", "encoder"},
    ("fast", "path_length", "encode"): {"generator", "encoder"},
    ("fast", "discriminator", "swap"): {"discriminator"},
    ("fast", "r1", "encode"): {"discriminator"},
    ("evidence", "generator", "swap"): {"generator", "encoder"},
    ("evidence", "discriminator", "swap"): {"discriminator"},
    ("stylex", "generator", "encode"): {"generator", "encoder"},
    ("stylex", "generator", "sample"): {"generator", "mapping"},
    ("stylex", "discriminator", "sample"): {"discriminator"},
    ("study", "generator", "encode"): {"generator", "encoder"},
    ("study", "path_length", "encode"): {"generator"},
    ("stylegan2", "generator", "sample"): {"generator", "mapping"},
    ("stylegan2", "path_length", "sample"): {"generator", "mapping"},
    ("stylegan2", "r1", "sample"): {"discriminator"},
}


@pytest.mark.parametrize(("name", "phase", "kind"), EXPECTED)
def test_gradients_reach_only_the_parts_that_the_phase_trains(
    tmp_path: Path, name: str, phase: str, kind: StepKind
) -> None:
    trainer = problems.make_trainer(tmp_path / "run", name)
    problems.some_evidence(trainer.state.networks.encoder)
    found = next(entry for entry in trainer.phases if entry.name == phase)
    batch = make_batch(kind)
    if found.optimiser == "discriminator":
        batch.fake, batch.condition = torch.rand_like(batch.images), trainer.loss.condition(batch)
    for optimiser, parameters in trainer.parameters.items():
        for parameter in parameters:
            parameter.requires_grad_(optimiser == found.optimiser)
    trainer.loss.accumulate_gradients(found, batch)
    parts = trainer.state.networks.parts()
    touched = {
        part
        for part, network in parts.items()
        if any(
            parameter.grad is not None and bool(parameter.grad.any()) for parameter in network.parameters()
        )
    }
    assert touched == EXPECTED[name, phase, kind]
    assert all(parameter.grad is None for parameter in trainer.classifier.parameters())


@pytest.mark.parametrize("phase", ["r1", "path_length"])
def test_second_gradients_take_no_kernel_as_large_as_an_image(tmp_path: Path, phase: str) -> None:
    trainer = problems.make_trainer(tmp_path / "run", "stylex")
    found = next(entry for entry in trainer.phases if entry.name == phase)
    with LargestKernel() as seen:
        trainer.loss.accumulate_gradients(found, make_batch("encode"))
    assert seen.side == 4, "the resampling filter's; 3 without it"


def test_path_length_takes_the_kinds_in_turn(tmp_path: Path) -> None:
    """At every fourth step the step's own kind is always "encode"; the recipe takes z every other time."""
    trainer = problems.make_trainer(tmp_path / "run", "stylex")
    seen = []
    original = trainer.loss._w

    def note(images: Tensor, kind: StepKind, random: StepRandom) -> Tensor:
        seen.append(kind)
        return original(images, kind, random)

    trainer.loss._w = note  # type: ignore[method-assign]
    for step in (0, 4, 8, 12):
        trainer.loss._path_length(make_batch("encode", step=step), 1.0)
    assert seen == ["encode", "sample", "encode", "sample"]
    seen.clear()
    trainer.loss.recipe = problems.recipe("stylex", ["loss.path_length_in_turn=false"])
    for step in (0, 4, 8, 12):
        trainer.loss._path_length(make_batch("encode", step=step), 1.0)
    assert seen == ["encode"] * 4


def test_path_length_of_swapped_images_has_their_conditions(tmp_path: Path) -> None:
    """As in the generator's own phase: those of other images."""
    settings = ["loss.path_length_batch_shrink=1"]
    trainer = problems.make_trainer(tmp_path / "run", "fast", settings)
    seen = []
    original = trainer.loss._synthesise

    def note(latents: Tensor, random: StepRandom) -> Tensor:
        seen.append(latents[:, 0, -2:].detach())
        return original(latents, random)

    trainer.loss._synthesise = note  # type: ignore[method-assign]
    for kind in ("encode", "swap"):
        batch = make_batch(kind, count=8)
        trainer.loss._path_length(batch, 1.0)
        own = trainer.loss.condition(batch)
    assert own is not None
    assert torch.equal(seen[0], own)
    assert not torch.equal(seen[1], own)
    assert torch.equal(seen[1].sort(dim=0).values, own.sort(dim=0).values)


def test_phases_are_data() -> None:
    fast = phases(problems.recipe("fast"))
    assert [(phase.name, phase.optimiser, phase.interval) for phase in fast] == [
        ("generator", "generator", 1),
        ("path_length", "generator", 16),
        ("discriminator", "discriminator", 1),
        ("r1", "discriminator", 16),
    ]
    bare = phases(problems.recipe("fast", ["loss.r1=0", "loss.path_length=0"]))
    assert [phase.name for phase in bare] == ["generator", "discriminator"]
    warm = phases(problems.recipe("fast", ["loss.adversarial_start_kimg=2", "loss.path_length_start_kimg=3"]))
    assert [phase.start_images for phase in warm] == [0, 3000, 2000, 2000]
    late = next(phase for phase in phases(problems.recipe("vdv")) if phase.name == "path_length")
    assert late.start_images == 160_000


@pytest.mark.parametrize(
    ("images", "share"), [(0, 0.0), (1999, 0.0), (2000, 0.001), (2499, 0.5), (2999, 1.0), (9000, 1.0)]
)
def test_the_adversarial_weight_rises_after_the_warm_up(images: int, share: float) -> None:
    recipe = problems.recipe("fast", ["loss.adversarial_start_kimg=2", "loss.adversarial_ramp_kimg=1"])
    assert adversarial_share(recipe, images) == pytest.approx(share)
    sudden = problems.recipe("fast", ["loss.adversarial_start_kimg=2", "loss.adversarial_ramp_kimg=0"])
    assert adversarial_share(sudden, images) == float(images >= 2000)
    assert adversarial_share(problems.recipe("stylex"), images) == 1.0


def test_the_adversarial_share_multiplies_the_weight(tmp_path: Path) -> None:
    trainer = problems.make_trainer(tmp_path / "run", "fast", ["loss.adversarial=0.2", JUDGE_ALL])
    losses, statistics = [], []
    for share in (1.0, 0.25, 0.0):
        batch = make_batch("encode")
        batch.adversarial_share, batch.judged = share, share > 0
        losses.append(float(trainer.loss._generator(batch).detach()))
        statistics.append(batch.statistics.get("adversarial"))
    assert statistics[0] is not None
    assert losses[0] - losses[1] == pytest.approx(0.2 * 0.75 * float(statistics[0]), rel=1e-3)
    assert losses[0] - losses[2] == pytest.approx(0.2 * float(statistics[0]), rel=1e-3)
    assert statistics[2] is None


def test_on_kinds_that_are_not_judged_the_discriminator_rests(tmp_path: Path) -> None:
    """Neither in the generator's loss nor in its own phase; the penalty on real images stays."""
    trainer = problems.make_trainer(tmp_path / "run", "fast", ["loss.adversarial_steps=[swap]"])
    weight = trainer.state.networks.discriminator.output.weight
    for kind, judged in (("encode", False), ("swap", True)):
        batch = make_batch(kind)  # type: ignore[arg-type]
        trainer.loss._generator(batch)
        assert ("adversarial" in batch.statistics) == judged
        for phase in trainer.phases:
            assert trainer.loss.takes_part(phase, batch) == (judged or phase.name != "discriminator")
    moved = set()
    for _ in range(4):
        before = weight.detach().clone()
        trainer.state.step += trainer.state.step % 16 == 0  # a step without the lazy phases
        kind = trainer.recipe.training.schedule[trainer.state.step % 2]
        statistics = trainer.step()
        moved.add((kind, bool((weight != before).any()), "discriminator" in statistics))
    assert moved == {("encode", False, False), ("swap", True, True)}


@pytest.mark.parametrize("warm_up", [0, 1])
def test_where_the_mean_of_path_lengths_starts(tmp_path: Path, warm_up: int) -> None:
    """At 0, as published; after a warm-up at the first lengths."""
    trainer = problems.make_trainer(tmp_path / "run", "fast", [f"loss.adversarial_start_kimg={warm_up}"])
    batch = make_batch("encode")
    trainer.loss._path_length(batch, 1.0)
    first = float(batch.statistics["path_length"])
    assert float(trainer.loss.path_length_mean) == pytest.approx(first if warm_up else 0.01 * first)
    batch = make_batch("encode", step=1)
    before = float(trainer.loss.path_length_mean)
    trainer.loss._path_length(batch, 1.0)
    second = float(batch.statistics["path_length"])
    assert float(trainer.loss.path_length_mean) == pytest.approx(before + 0.01 * (second - before))


# Sparse dependence on the condition


def slow_thin_out(weight: Tensor, features: int, threshold: float, sums_to_one: bool) -> tuple[Tensor, float]:
    result, free = weight.clone(), 0
    for row in range(len(weight)):
        columns = [float(value) for value in weight[row, -features:]]
        mean = sum(columns) / features if sums_to_one else 0.0
        deviations = []
        for value in columns:
            deviation = value - mean
            deviations.append(math.copysign(max(abs(deviation) - threshold, 0.0), deviation))
        free += all(deviation == 0 for deviation in deviations)
        for column, deviation in enumerate(deviations):
            result[row, weight.shape[1] - features + column] = mean + deviation
    return result, free / len(weight)


@pytest.mark.parametrize("classes", [1, 2, 3, 5])
@pytest.mark.parametrize("sums_to_one", [True, False])
def test_thinning_out_equals_a_loop(classes: int, sums_to_one: bool) -> None:
    weight = torch.randn(200, 6 + classes, dtype=torch.float64)
    expected, share = slow_thin_out(weight, classes, 0.6, sums_to_one)
    found = thin_out_condition(weight, classes, 0.6, sums_to_one=sums_to_one)
    torch.testing.assert_close(weight, expected)
    assert found == pytest.approx(share)
    assert share > 0


@pytest.mark.parametrize("exclusive", [0.3, 1.0])
@pytest.mark.parametrize("sums_to_one", [True, False])
def test_exclusive_thinning_out_equals_a_loop(exclusive: float, sums_to_one: bool) -> None:
    classes, threshold = 3, 0.4
    weight = torch.randn(100, 5 + classes, dtype=torch.float64)
    weight[7] = 0.0  # reads nothing; no length to take a share of
    expected = weight.clone()
    for row in range(len(weight)):
        w, columns = weight[row, :5], weight[row, 5:]
        mean = columns.mean() if sums_to_one else torch.zeros((), dtype=torch.float64)
        apart = columns - mean
        length = math.sqrt(sum(float(x) ** 2 for x in w)) + math.sqrt(sum(float(x) ** 2 for x in apart))
        shares = [abs(float(x)) / length if length else 0.0 for x in apart]
        for column in range(classes):
            own = threshold * (1 + exclusive * (1 - 2 * shares[column]))
            left = max(abs(float(apart[column])) - own, 0.0)
            expected[row, 5 + column] = mean + math.copysign(left, float(apart[column]))
        for column in range(5):
            left = max(abs(float(w[column])) - threshold * exclusive * max(shares), 0.0)
            expected[row, column] = math.copysign(left, float(w[column]))
    thin_out_condition(weight, classes, threshold, sums_to_one=sums_to_one, exclusive=exclusive)
    torch.testing.assert_close(weight, expected)


def test_a_style_comes_to_read_a_part_of_the_condition_or_w_alone() -> None:
    """Two rows pulled towards targets of both kinds: what is a little stronger at first is all that stays."""
    target = torch.tensor([[0.25, 0.25, 2.0, 0.6], [2.0, -2.0, 0.5, 0.0]], dtype=torch.float64)
    together = target.clone()
    apart = target.clone()
    for _ in range(2000):
        for weight, exclusive in ((together, 0.0), (apart, 1.0)):
            weight += 0.01 * (target - weight)  # a gradient step of a squared distance
            thin_out_condition(weight, 2, 0.004, sums_to_one=False, exclusive=exclusive)
    assert (apart[0] != 0).tolist() == [False, False, True, False]
    assert (apart[1] != 0).tolist() == [True, True, False, False]
    assert ((together != 0) == (target != 0)).all()  # 0.4 is all that the plain threshold can take off


@pytest.mark.parametrize(("classes", "taken"), [(2, 2 - math.sqrt(2)), (3, 2 - 2 * math.sqrt(2 / 3))])
def test_a_style_that_reads_the_class_alone_is_still_thinned_out(classes: int, taken: float) -> None:
    """No deviation from a mean is all of its row; a column by itself is, and stays as it is."""
    one = torch.zeros(1, 4 + classes, dtype=torch.float64)
    one[0, 4] = 3.0
    alone = one.clone()
    thin_out_condition(alone, classes, 0.1, sums_to_one=False, exclusive=1.0)
    assert alone.tolist() == one.tolist()
    thin_out_condition(one, classes, 0.1, exclusive=1.0)
    assert float(one[0, 4]) == pytest.approx(3 - 0.1 * taken)


def test_thinned_out_styles_do_not_depend_on_the_class() -> None:
    weight = torch.randn(20, 4 + 3)
    thin_out_condition(weight, 3, 100.0)
    w, one, other = torch.randn(4), torch.tensor([0.2, 0.3, 0.5]), torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(weight @ torch.cat([w, one]), weight @ torch.cat([w, other]))


@pytest.mark.parametrize("name", ["fast", "evidence"])
@pytest.mark.parametrize(
    ("images", "expected"), [(999, None), (1000, 0.0), (1500, 0.25), (2000, 0.5), (90_000, 0.5)]
)
def test_sparsity_starts_ramps_and_follows_the_rate(
    tmp_path: Path, images: int, expected: float | None, name: str
) -> None:
    """Threshold 1, half the learning rate: from 1,000 images on, in full after 1,000 more.

    Components of evidence do not sum to one: each column by itself.
    """
    settings = ["sparsity.threshold=1", "sparsity.start_kimg=1", "sparsity.ramp_kimg=1"]
    trainer = problems.make_trainer(tmp_path / "run", name, settings)
    weight = trainer.state.networks.generator.affine_weight
    before = weight.detach().clone()
    generator, other = trainer.phases[0], trainer.phases[2]
    assert trainer.loss.after_update(other, images, 0.5) == {}
    found = trainer.loss.after_update(generator, images, 0.5)
    if expected is None:
        assert found == {}
        assert bool((weight == before).all())
        return
    reference, share = slow_thin_out(before, 2 if name == "fast" else 8, expected, name == "fast")
    torch.testing.assert_close(weight.detach(), reference)
    assert float(found["class_free_styles"]) == pytest.approx(share)


def test_a_recipe_sets_the_readers_of_a_style_against_each_other(tmp_path: Path) -> None:
    settings = ["sparsity.threshold=0.5", "sparsity.exclusive=0.7"]
    settings += ["sparsity.start_kimg=0", "sparsity.ramp_kimg=0"]
    trainer = problems.make_trainer(tmp_path / "run", "fast", settings)
    weight = trainer.state.networks.generator.affine_weight
    expected = weight.detach().clone()
    read = weight.detach()[:, -2:].diff(dim=1)[:, 0]
    trainer.loss.after_update(trainer.phases[0], 10, 0.5)
    layout = trainer.state.networks.generator.synthesis.layout
    searched = torch.cat([torch.full((place.channels,), place.kind == "conv") for place in layout])
    assert 0 < searched.sum() < len(searched)
    thin_out_condition(expected, 2, 0.25, exclusive=0.7, readers=searched)
    torch.testing.assert_close(weight.detach(), expected)
    left = weight.detach()[:, -2:].diff(dim=1)[:, 0]
    assert (read[~searched] != 0).all(), "else it would show nothing"
    assert (left[~searched] == 0).all(), "styles that are not searched read nothing of the class"
    assert (left[searched] != 0).any()


@pytest.mark.parametrize("alone", [True, False])
def test_the_dependence_on_the_latents_is_thinned_out_by_itself(tmp_path: Path, alone: bool) -> None:
    settings = ["sparsity.latent_threshold=0.8", "sparsity.start_kimg=0", "sparsity.ramp_kimg=0"]
    settings.append(f"sparsity.threshold={0 if alone else 0.5}")
    trainer = problems.make_trainer(tmp_path / "run", "fast", settings)
    weight = trainer.state.networks.generator.affine_weight
    before = weight.detach().clone()
    found = trainer.loss.after_update(trainer.phases[0], 10, 0.5)
    expected, _ = slow_thin_out(before, 2, 0.0 if alone else 0.25, True)
    expected[:, :-2] = before[:, :-2].sign() * (before[:, :-2].abs() - 0.4).clamp_min(0)
    torch.testing.assert_close(weight.detach(), expected)
    assert 0 < float(found["unused_latents"]) == pytest.approx(float((expected[:, :-2] == 0).float().mean()))
    assert ("class_free_styles" in found) != alone
