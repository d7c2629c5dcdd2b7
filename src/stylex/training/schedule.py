"""What happens when in a training: pure functions of a recipe and of the images seen."""

from __future__ import annotations

from itertools import groupby

from stylex.config import Recipe
from stylex.training.losses import Phase


def total_images(recipe: Recipe) -> int:
    """Training images after which a recipe ends."""
    return int(recipe.training.total_kimg * 1000)


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
