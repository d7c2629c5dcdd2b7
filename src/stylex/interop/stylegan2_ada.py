"""Networks in the state-dict layout of stylegan2-ada-pytorch (and of StyleGAN2 in the stylegan3 repository).

Only the names and the meaning of the entries are used; resolution, widths and depth follow from their shapes.
Layers differ from ours in nothing but names, except that clamping of activations at ±256, which the originals
add for half precision, is left out.
"""

from __future__ import annotations

import torch

from stylex import networks
from stylex.errors import CheckpointError
from stylex.interop.weights import StateDict, as_encoder, doublings, fill, numbers, shape

FILTER = "resample_filter"


def convert_generator(state: StateDict) -> tuple[networks.Generator, networks.Mapping]:
    """The 'skip' generator and its mapping network from the entries `synthesis.…` and `mapping.…`.

    Noise maps, noise strengths and the running mean of w come along. Affine layers that read more than w read
    w ⊕ condition, as StylEx's do.

    Raises:
        CheckpointError: entries are missing, unexpected (a conditional generator, another architecture), of
            shapes that do not fit each other, or not finite.
    """
    what = "StyleGAN2-ADA generator"
    sizes = doublings(numbers(state, r"synthesis\.b(\d+)\."), what)
    channels = {size: shape(state, f"synthesis.b{size}.conv1.weight", 4, what)[0] for size in sizes}
    latent_features = shape(state, "synthesis.b4.conv1.affine.weight", 2, what)[1]
    w_features = state["mapping.w_avg"].shape[0] if "mapping.w_avg" in state else latent_features
    if w_features > latent_features:
        raise CheckpointError(f"{what}: w has {w_features} numbers, the affine layers read {latent_features}")
    with torch.random.fork_rng(devices=[]):
        generator = networks.Generator(w_features, latent_features - w_features, sizes[-1], channels)

    prefixes = []
    sources = {"synthesis.constant": ["synthesis.b4.const"]}
    for number, place in enumerate(generator.synthesis.layout):
        part = "torgb" if place.kind == "rgb" else place.name.rpartition(".")[2]
        theirs = f"synthesis.b{place.resolution}.{part}"
        ours = f"synthesis.layers.{number}"
        prefixes.append(theirs)
        sources |= {f"{ours}.{name}": [f"{theirs}.{name}"] for name in ("weight", "bias")}
        if place.kind == "conv":
            sources[f"{ours}.noise_strength"] = [f"{theirs}.noise_strength"]
            sources[f"{ours}.fixed_noise"] = [f"{theirs}.noise_const"]
    sources["affine_weight"] = [f"{prefix}.affine.weight" for prefix in prefixes]
    sources["affine_bias"] = [f"{prefix}.affine.bias" for prefix in prefixes]
    fill(
        generator,
        sources,
        {key: value for key, value in state.items() if not key.startswith("mapping.")},
        what,
        FILTER,
    )

    return generator, convert_mapping(state, w_features, what)


def convert_mapping(state: StateDict, w_features: int, what: str) -> networks.Mapping:
    """The mapping network from the entries `mapping.…`; errors as for `convert_generator`."""
    entries = {key: value for key, value in state.items() if key.startswith("mapping.")}
    z_features = shape(entries, "mapping.fc0.weight", 2, what)[1]
    depth = len(numbers(entries, r"mapping\.fc(\d+)\.weight"))
    with torch.random.fork_rng(devices=[]):
        mapping = networks.Mapping(z_features, w_features, layers=depth)
    sources = {"mean_w": ["mapping.w_avg"]}
    for number in range(depth):
        sources |= {f"layers.{number}.{name}": [f"mapping.fc{number}.{name}"] for name in ("weight", "bias")}
    fill(mapping, sources, entries, what, FILTER)
    return mapping


def convert_discriminator(state: StateDict, deviation_group: int = 4) -> networks.Discriminator:
    """The residual discriminator from the entries `b{resolution}.…`.

    Args:
        state: the entries.
        deviation_group: images in a group of the minibatch standard deviation, which no entry tells.

    Raises:
        CheckpointError: as `convert_generator`.
    """
    what = "StyleGAN2-ADA discriminator"
    sizes = doublings(numbers(state, r"b(\d+)\."), what)
    largest = sizes[-1]
    channels = {largest: shape(state, f"b{largest}.fromrgb.weight", 4, what)[0]}
    channels |= {size: shape(state, f"b{2 * size}.conv1.weight", 4, what)[0] for size in sizes[:-1]}
    extra = shape(state, "b4.conv.weight", 4, what)[1] - channels[4]
    if extra not in (0, 1):
        raise CheckpointError(
            f"{what}: b4.conv.weight reads {extra} channels of standard deviation, expected 0 or 1"
        )
    outputs = shape(state, "b4.out.weight", 2, what)[0]
    group = deviation_group if extra else 0
    with torch.random.fork_rng(devices=[]):
        discriminator = networks.Discriminator(largest, channels, outputs, deviation_group=group)

    pairs = {"from_rgb": f"b{largest}.fromrgb", "conv": "b4.conv", "hidden": "b4.fc", "output": "b4.out"}
    for number, size in enumerate(reversed(sizes[1:])):
        pairs |= {f"blocks.{number}.{part}": f"b{size}.{part}" for part in ("conv0", "conv1", "skip")}
    sources = {
        f"{ours}.{name}": [f"{theirs}.{name}"]
        for ours, theirs in pairs.items()
        for name in (("weight",) if theirs.endswith(".skip") else ("weight", "bias"))
    }
    fill(discriminator, sources, state, what, FILTER)
    return discriminator


def convert_encoder(state: StateDict) -> networks.Encoder:
    """An encoder from a discriminator's entries without standard deviation; errors as there."""
    return as_encoder(convert_discriminator(state), "StyleGAN2-ADA encoder")
