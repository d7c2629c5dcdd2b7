"""Conditional networks of StyleGAN2-ADA told one class, as the unconditional networks that they then are.

Such a generator's mapping network reads z and, behind it, an embedding of the label of unit second moment
(`mapping.embed`); its discriminator projects its last layer on a mapping of the label (Miyato and Koyama
2018). With the label fixed both are constants, which go into a bias of the mapping network, and into one
score.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stylex.errors import CheckpointError, ConfigError
from stylex.interop.stylegan2_ada import convert_mapping
from stylex.interop.weights import StateDict, shape

EMBED = "mapping.embed"
"""The layer that reads the label."""


def classes_told(state: StateDict) -> int:
    """Of how many classes a network is told one; 0 for an unconditional network."""
    name = f"{EMBED}.weight"
    return shape(state, name, 2, "conditional network")[1] if name in state else 0


def check_label(label: int | None, classes: int) -> None:
    """See that a label is given where a generator is told one of `classes` classes, and nowhere else.

    Raises:
        CheckpointError: it is missing. ConfigError: it is needless, or there is no such class.
    """
    if classes and label is None:
        raise CheckpointError(
            f"its generator is conditional, told of {classes} classes; expected is an unconditional one, or "
            f"--label to say which class it is to draw, 0 to {classes - 1}"
        )
    if label is not None and not classes:
        raise ConfigError(f"--label {label}: the generator is told of no classes; leave it out")
    if label is not None and not 0 <= label < classes:
        raise ConfigError(
            f"--label {label}: the generator is told of {classes} classes; give 0 to {classes - 1}"
        )


def unconditional_generator(state: StateDict, label: int) -> StateDict:
    """The entries of a conditional generator as those of one that always draws class `label`.

    What the first layer makes of the embedding goes into its bias; its weight on z keeps the gain of a layer
    that reads more.

    Raises:
        CheckpointError: entries are missing, or their shapes do not fit each other.
    """
    what = "StyleGAN2-ADA generator"
    constant = _embedded(state, label, what)
    weight, bias = _layer(state, "mapping.fc0", what)
    read = weight.shape[1]
    z_features = read - len(constant)
    if z_features < 1:
        raise CheckpointError(
            f"{what}: mapping.fc0.weight reads {read} numbers, expected more than the label's {len(constant)}"
        )
    kept = {key: value for key, value in state.items() if not key.startswith(EMBED)}
    return kept | {
        "mapping.fc0.weight": weight[:, :z_features] * math.sqrt(z_features / read),
        "mapping.fc0.bias": bias + weight[:, z_features:] @ constant / math.sqrt(read),
    }


def unconditional_discriminator(state: StateDict, label: int) -> StateDict:
    """The entries of a conditional discriminator as those of one whose only score is that of class `label`.

    Raises:
        CheckpointError: entries are missing, or their shapes do not fit each other.
    """
    what = "StyleGAN2-ADA discriminator"
    constant = _embedded(state, label, what)
    entries = {key: value for key, value in state.items() if not key.startswith(EMBED)}
    entries["mapping.w_avg"] = torch.zeros(len(constant))  # it keeps none
    mapping = convert_mapping(entries, len(constant), what)
    with torch.no_grad():
        wanted = mapping(constant[None].float())[0].double()
    weight, bias = _layer(state, "b4.out", what)
    if len(bias) != len(wanted):
        raise CheckpointError(
            f"{what}: b4.out gives {len(bias)} numbers, expected {len(wanted)} as its mapping of the label"
        )
    share = wanted[None] / math.sqrt(len(wanted))
    kept = {key: value for key, value in state.items() if not key.startswith("mapping.")}
    return kept | {"b4.out.weight": share @ weight, "b4.out.bias": share @ bias}


def _embedded(state: StateDict, label: int, what: str) -> Tensor:
    """What a network makes of a label before its first layer: [E], float64, of unit second moment."""
    weight, bias = _layer(state, EMBED, what)
    classes = weight.shape[1]
    if not 0 <= label < classes:
        raise CheckpointError(f"{what}: is told of {classes} classes, which have no label {label}")
    found = weight[:, label] / math.sqrt(classes) + bias
    return found * torch.rsqrt(found.square().mean() + 1e-8)


def _layer(state: StateDict, name: str, what: str) -> tuple[Tensor, Tensor]:
    """Weight [out, in] and bias [out] of a fully connected layer, float64."""
    outputs, _ = shape(state, f"{name}.weight", 2, what)
    if shape(state, f"{name}.bias", 1, what) != (outputs,):
        raise CheckpointError(
            f"{what}: {name}.bias has shape {list(state[f'{name}.bias'].shape)}, expected [{outputs}]"
        )
    return state[f"{name}.weight"].double(), state[f"{name}.bias"].double()
