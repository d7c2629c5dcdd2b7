"""Adam for generator and discriminator: one group of parameters for each part, with rates of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from stylex.config import Recipe
from stylex.networks import Networks
from stylex.training.schedule import Phase


def make_optimisers(
    networks: Networks, recipe: Recipe, phases: Sequence[Phase], *, fused: bool
) -> dict[str, torch.optim.Adam]:
    """One Adam for the discriminator, one for generator, encoder and mapping together.

    With `training.lazy_adam` the regularisers take steps of their own between the others, every n-th time,
    and learning rate and betas are corrected by n / (n + 1) (Karras et al. 2020, appendix B).
    """
    settings = recipe.training
    intervals = {phase.name: phase.interval for phase in phases}
    groups: dict[str, list[dict[str, object]]] = {"generator": [], "discriminator": []}
    for name, part in networks.parts().items():
        rate, betas, regulariser = settings.learning_rate, settings.betas, intervals.get("path_length")
        if name == "discriminator":
            rate = settings.discriminator_learning_rate or rate
            betas = settings.discriminator_betas or betas
            regulariser = intervals.get("r1")
        elif name == "encoder":
            betas = settings.encoder_betas or betas
            regulariser = regulariser if recipe.loss.path_length_trains_encoder else None
        corrected = regulariser is not None and settings.lazy_adam
        correction = regulariser / (regulariser + 1) if regulariser is not None and corrected else 1.0
        groups["discriminator" if name == "discriminator" else "generator"].append(
            {
                "params": list(part.parameters()),
                "part": name,
                "lr": rate * correction,
                "full_rate": rate * correction,
                "betas": (betas[0] ** correction, betas[1] ** correction),
            }
        )
    return {name: torch.optim.Adam(found, eps=1e-8, fused=fused) for name, found in groups.items()}


def set_rates(optimiser: torch.optim.Optimizer, share: float) -> None:
    """Set the learning rates to a share of the full ones."""
    for group in optimiser.param_groups:
        group["lr"] = group["full_rate"] * share


def update(optimiser: torch.optim.Optimizer) -> None:
    """One step; a part that got no gradient at all had no share in the phase and stays as it is, moments too.

    In a part that had one, parameters without a gradient count as having one of zero (a bias does not change
    the penalty R1, say), so that their moments fade like those of the others, as in StyleGAN2.
    """
    for group in optimiser.param_groups:
        if any(parameter.grad is not None for parameter in group["params"]):
            for parameter in group["params"]:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def parameter_count(module: nn.Module) -> int:
    """Numbers that training changes."""
    return sum(parameter.numel() for parameter in module.parameters())
