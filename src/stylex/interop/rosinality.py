"""Networks in the state-dict layout of rosinality's stylegan2-pytorch.

Only the names and the meaning of the entries are used; resolution, widths and depth follow from their shapes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stylex import networks
from stylex.errors import CheckpointError
from stylex.interop.weights import StateDict, as_encoder, doublings, fill, numbers, shape

FILTER = "kernel"

MEAN_SAMPLES = 4096
"""z drawn to estimate the mean of w, which this layout does not keep in the network."""


def convert_generator(
    state: StateDict, mean_w: Tensor | None = None, condition_features: int = 0
) -> tuple[networks.Generator, networks.Mapping | None]:
    """Generator and mapping network from the entries `style.…`, `input.…`, `conv…`, `to_rgb…`, `noises.…`.

    Args:
        state: the entries.
        mean_w: mean of w [w_features], where the file has one (`latent_avg`); else it is estimated over
            4,096 z of a fixed seed, so that the same weights always give the same mean.
        condition_features: how many of the numbers that the affine layers read, the last ones, are the
            condition (the study's networks). The mapping network, which gives all of them and was never
            trained there, is then left out: None.

    Raises:
        CheckpointError: entries are missing, unexpected, of shapes that do not fit each other, or not finite.
    """
    what = "rosinality generator"
    convolutions = len(numbers(state, r"convs\.(\d+)\."))
    sizes = doublings([4 << power for power in range(1 + convolutions // 2)], what)
    channels = {4: shape(state, "conv1.conv.weight", 5, what)[1]}
    channels |= {
        size: shape(state, f"convs.{2 * number + 1}.conv.weight", 5, what)[1]
        for number, size in enumerate(sizes[1:])
    }
    w_features = shape(state, "conv1.conv.modulation.weight", 2, what)[1]
    z_features = shape(state, "style.1.weight", 2, what)[1]
    depth = len(numbers(state, r"style\.(\d+)\.weight"))
    with torch.random.fork_rng(devices=[]):
        generator = networks.Generator(
            w_features - condition_features, condition_features, sizes[-1], channels
        )
        mapping = networks.Mapping(z_features, w_features, layers=depth)

    prefixes = []
    sources = {"synthesis.constant": ["input.input"]}
    counts = {"conv": 0, "rgb": 0}
    for number, place in enumerate(generator.synthesis.layout):
        nth = counts[place.kind]
        counts[place.kind] += 1
        first, others = ("conv1", "convs") if place.kind == "conv" else ("to_rgb1", "to_rgbs")
        theirs = first if nth == 0 else f"{others}.{nth - 1}"
        ours = f"synthesis.layers.{number}"
        prefixes.append(theirs)
        sources[f"{ours}.weight"] = [f"{theirs}.conv.weight"]
        if place.kind == "conv":
            sources[f"{ours}.bias"] = [f"{theirs}.activate.bias"]
            sources[f"{ours}.noise_strength"] = [f"{theirs}.noise.weight"]
            sources[f"{ours}.fixed_noise"] = [f"noises.noise_{nth}"]
        else:
            sources[f"{ours}.bias"] = [f"{theirs}.bias"]
    sources["affine_weight"] = [f"{prefix}.conv.modulation.weight" for prefix in prefixes]
    sources["affine_bias"] = [f"{prefix}.conv.modulation.bias" for prefix in prefixes]
    fill(
        generator,
        sources,
        {key: value for key, value in state.items() if not key.startswith("style.")},
        what,
        FILTER,
    )

    if condition_features:
        return generator, None
    entries = {key: value for key, value in state.items() if key.startswith("style.")}
    entries["latent_avg"] = torch.zeros(w_features) if mean_w is None else mean_w
    sources = {"mean_w": ["latent_avg"]}
    for number in range(depth):
        sources |= {f"layers.{number}.{name}": [f"style.{number + 1}.{name}"] for name in ("weight", "bias")}
    fill(mapping, sources, entries, what, FILTER)
    if mean_w is None:
        z = torch.randn(MEAN_SAMPLES, z_features, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            mapping.mean_w.copy_(mapping(z).mean(dim=0))
    return generator, mapping


def convert_discriminator(state: StateDict, deviation_group: int = 4) -> networks.Discriminator:
    """The residual discriminator from the entries `convs.…`, `final_conv.…`, `final_linear.…`.

    Args:
        state: the entries.
        deviation_group: images in a group of the minibatch standard deviation, which no entry tells.

    Raises:
        CheckpointError: as `convert_generator`.
    """
    what = "rosinality discriminator"
    blocks = len(numbers(state, r"convs\.(\d+)\.")) - 1
    sizes = doublings([4 << power for power in range(1 + blocks)], what)[::-1]
    channels = {sizes[0]: shape(state, "convs.0.0.weight", 4, what)[0]}
    channels |= {
        size: shape(state, f"convs.{number}.conv2.1.weight", 4, what)[0]
        for number, size in enumerate(sizes[1:], 1)
    }
    extra = shape(state, "final_conv.0.weight", 4, what)[1] - channels[4]
    if extra not in (0, 1):
        raise CheckpointError(
            f"{what}: final_conv.0.weight reads {extra} channels of standard deviation, expected 0 or 1"
        )
    outputs = shape(state, "final_linear.1.weight", 2, what)[0]
    group = deviation_group if extra else 0
    with torch.random.fork_rng(devices=[]):
        discriminator = networks.Discriminator(sizes[0], channels, outputs, deviation_group=group)

    sources = {
        "from_rgb.weight": ["convs.0.0.weight"],
        "from_rgb.bias": ["convs.0.1.bias"],
        "conv.weight": ["final_conv.0.weight"],
        "conv.bias": ["final_conv.1.bias"],
        "hidden.weight": ["final_linear.0.weight"],
        "hidden.bias": ["final_linear.0.bias"],
        "output.weight": ["final_linear.1.weight"],
        "output.bias": ["final_linear.1.bias"],
    }
    for number in range(blocks):
        ours, theirs = f"blocks.{number}", f"convs.{number + 1}"
        sources |= {
            f"{ours}.conv0.weight": [f"{theirs}.conv1.0.weight"],
            f"{ours}.conv0.bias": [f"{theirs}.conv1.1.bias"],
            f"{ours}.conv1.weight": [f"{theirs}.conv2.1.weight"],
            f"{ours}.conv1.bias": [f"{theirs}.conv2.2.bias"],
            f"{ours}.skip.weight": [f"{theirs}.skip.1.weight"],
        }
    fill(discriminator, sources, state, what, FILTER)
    return discriminator


def convert_encoder(state: StateDict) -> networks.Encoder:
    """An encoder from a discriminator's entries without standard deviation; errors as there."""
    return as_encoder(convert_discriminator(state), "rosinality encoder")
