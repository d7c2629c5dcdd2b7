"""Filling one of our networks from a foreign state dict: every entry accounted for, every shape checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stylex import networks
from stylex.errors import CheckpointError
from stylex.networks.layers import FIR_TAPS

StateDict = Mapping[str, Tensor]
"""Entries of one network by name, as `nn.Module.state_dict` gives them."""


def shape(state: StateDict, key: str, axes: int, what: str) -> tuple[int, ...]:
    """Shape of an entry that must exist with so many axes.

    Raises:
        CheckpointError: the entry is missing, or has another number of axes.
    """
    if key not in state:
        raise CheckpointError(f"{what}: missing key {key}; is this a whole state dict of that layout?")
    found = tuple(state[key].shape)
    if len(found) != axes:
        raise CheckpointError(f"{what}: {key} has shape {list(found)}, expected {axes} axes")
    return found


def numbers(state: StateDict, pattern: str) -> list[int]:
    """The numbers in the first group of `pattern`, over all keys that begin with it: sorted, each once."""
    return sorted({int(match[1]) for key in state if (match := re.match(pattern, key))})


def fill(
    module: nn.Module, sources: Mapping[str, Sequence[str]], state: StateDict, what: str, kept: str
) -> None:
    """Load `module` from `state` in place.

    Args:
        sources: name in our state dict → names in theirs; several are joined along the first axis. Axes of
            length 1 may differ.
        state: the foreign entries. Besides the sources it may hold resampling filters, which must be ours.
        what: what is being read, for messages.
        kept: ending of the names of resampling filters.

    Raises:
        CheckpointError: an entry is missing, unexpected, of another shape or not finite, or a filter differs.
    """
    wanted = {key for keys in sources.values() for key in keys}
    filters = [key for key in state if key.rpartition(".")[2] == kept and key not in wanted]
    require_keys(state, wanted | set(filters), what)
    for key in filters:
        _require_fir(state[key], key, what)
    own = module.state_dict()
    loaded: dict[str, Tensor] = {}
    for name, keys in sources.items():
        parts = [state[key].detach().to("cpu", torch.float32) for key in keys]
        broken = [key for key, part in zip(keys, parts, strict=True) if not part.isfinite().all()]
        if broken:
            raise CheckpointError(
                f"{what}: {_listed(broken)} holds NaN or infinity; take an earlier checkpoint"
            )
        value = parts[0] if len(parts) == 1 else torch.cat(parts)
        if _without_ones(value.shape) != _without_ones(own[name].shape):
            raise CheckpointError(
                f"{what}: {_listed(keys)} has shape {list(value.shape)}, expected {list(own[name].shape)}"
            )
        loaded[name] = value.reshape(own[name].shape)
    module.load_state_dict(loaded)


def require_keys(state: StateDict, wanted: set[str], what: str) -> None:
    """Raise CheckpointError, naming the keys, unless the keys of `state` are `wanted`."""
    missing = sorted(wanted - state.keys())
    unexpected = sorted(state.keys() - wanted)
    reasons = [f"missing {_listed(missing)}"] if missing else []
    reasons += [f"unexpected {_listed(unexpected)}"] if unexpected else []
    if reasons:
        raise CheckpointError(
            f"{what}: {'; '.join(reasons)}; "
            "only unconditional networks of the published default architecture can be read"
        )


def doublings(sizes: Sequence[int], what: str) -> list[int]:
    """Check that the resolutions found are 4, 8, … R with R at least 8, and return them.

    Raises:
        CheckpointError: they are others.
    """
    expected = [4 << power for power in range(len(sizes))]
    if len(sizes) < 2 or list(sizes) != expected:
        raise CheckpointError(
            f"{what}: has layers for resolutions {list(sizes)}, expected 4, 8, 16, … without gaps"
        )
    return expected


def as_encoder(found: networks.Discriminator, what: str) -> networks.Encoder:
    """A discriminator as the encoder of the same shape.

    Raises:
        CheckpointError: it reads the standard deviation of its batch, which an encoder does not.
    """
    if found.deviation_group:
        raise CheckpointError(f"{what}: reads the standard deviation of a batch; it is a discriminator")
    sizes = [4 << power for power in range(len(found.blocks), -1, -1)]
    blocks: Any = found.blocks
    weights = [found.from_rgb.weight, *(block.conv1.weight for block in blocks)]
    channels = {size: int(weight.shape[0]) for size, weight in zip(sizes, weights, strict=True)}
    outputs, hidden = found.output.weight.shape
    with torch.random.fork_rng(devices=[]):
        encoder = networks.Encoder(sizes[0], channels, outputs, hidden=hidden)
    encoder.load_state_dict(found.state_dict())
    return encoder


def _require_fir(values: Tensor, key: str, what: str) -> None:
    taps = torch.tensor(FIR_TAPS, dtype=torch.float64)
    kernel = torch.outer(taps, taps) / taps.sum() ** 2
    found = values.detach().to("cpu", torch.float64)
    if found.shape != kernel.shape or not torch.allclose(found / found.sum(), kernel, atol=1e-4):
        raise CheckpointError(
            f"{what}: {key} is not the resampling filter [1, 3, 3, 1], the only one supported"
        )


def _without_ones(sizes: Sequence[int]) -> list[int]:
    return [size for size in sizes if size != 1]


def _listed(keys: Sequence[str], most: int = 6) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more
