"""What happens when in a training: pure functions of a recipe and of the images seen."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from stylex.config import Recipe

PhaseName = Literal["generator", "path_length", "discriminator", "r1"]


@dataclass(frozen=True)
class Phase:
    """A part of a training step: whose optimiser it drives, how often, and from which image on."""

    name: PhaseName
    optimiser: Literal["generator", "discriminator"]
    interval: int = 1
    start_images: float = 0.0


def phases(recipe: Recipe) -> list[Phase]:
    """The phases of a recipe in the order in which a step runs them; lazy regularisation is an interval."""
    loss = recipe.loss
    begin = loss.adversarial_start_kimg * 1000
    result = [Phase("generator", "generator")]
    if loss.path_length > 0:
        start = max(begin, loss.path_length_start_kimg * 1000)
        result.append(Phase("path_length", "generator", loss.path_length_interval, start))
    result.append(Phase("discriminator", "discriminator", 1, begin))
    if loss.r1 == "auto" or loss.r1 > 0:
        result.append(Phase("r1", "discriminator", loss.r1_interval, begin))
    return result


def adversarial_share(recipe: Recipe, images: int) -> float:
    """The adversarial weight now as a share of the full one: 0 in the warm-up, then rising to 1."""
    loss = recipe.loss
    begun_kimg = images / 1000 - loss.adversarial_start_kimg
    if begun_kimg < 0:
        return 0.0
    # One image more than have been seen: a share of 0 would count as warm-up still.
    return min(1.0, (begun_kimg + 1e-3) / loss.adversarial_ramp_kimg) if loss.adversarial_ramp_kimg else 1.0


def total_images(recipe: Recipe) -> int:
    """Training images after which a recipe ends."""
    return int(recipe.training.total_kimg * 1000)


def never_begins(recipe: Recipe) -> list[str]:
    """What a recipe asks for and its training ends before: a sentence for each of losses and sparsity.

    A time budget scales these with the length (`plan.scale_total`), a length that is set by itself does not.
    """
    total, loss, sparsity = recipe.training.total_kimg, recipe.loss, recipe.sparsity
    sparse = sparsity.threshold > 0 or sparsity.latent_threshold > 0
    late = (
        ("loss.adversarial_start_kimg", loss.adversarial_start_kimg, "images are only reconstructed"),
        ("sparsity.start_kimg", sparsity.start_kimg if sparse else 0.0, "styles are not made sparse"),
    )
    return [
        f"{key} is {start:g}, but training ends at training.total_kimg {total:g}: {without}"
        for key, start, without in late
        if start >= total
    ]


def evidence_kimg(recipe: Recipe) -> float:
    """Thousand images that the evidence's student learns from: no more than the networks see after it."""
    return min(recipe.training.evidence_kimg, recipe.training.total_kimg)


def updates(due: list[Phase], lazy_adam: bool) -> list[list[Phase]]:
    """Which phases make an optimiser step together: each its own, or all that share an optimiser."""
    if lazy_adam:
        return [[phase] for phase in due]
    return [list(joined) for _, joined in groupby(due, key=lambda phase: phase.optimiser)]


def rate_share(recipe: Recipe, images: int) -> float:
    """Learning rate now as a share of the full one: 1, then linear to its final share over the last fifth."""
    final = recipe.training.final_learning_rate_share
    left = max(0.0, 1.0 - images / total_images(recipe))
    return 1.0 if left >= 0.2 else final + (1.0 - final) * left / 0.2


def ema_decay(recipe: Recipe, images: int, images_per_step: int) -> float:
    """Decay of the weight averages for a step: half-life in images, shorter at the start (`ema_rampup`)."""
    settings = recipe.training
    halflife = settings.ema_halflife_kimg * 1000
    if settings.ema_rampup is not None:
        halflife = min(halflife, images * settings.ema_rampup)
    return float(0.5 ** (images_per_step / max(halflife, 1e-8)))
