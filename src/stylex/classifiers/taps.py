"""Feature maps of a network that exposes none by itself: outputs of parts within it, found by trying."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

MOST = 4
"""Maps that are taken, fine to coarse."""

DEFAULT_SIZE = 64
"""Pixels at which a network that names no size is tried."""


def find_taps(network: nn.Module, channels: int, input_size: int | None) -> tuple[str, ...]:
    """Names of the parts whose outputs are taken as feature maps, fine to coarse; () where there are none.

    The network runs once on a grey image. Of the parts that give maps [1, C, h, w] (or tokens [1, T, C] of a
    square of patches, with or without a class token) the last at each resolution counts; a network of one
    resolution, such as a plain vision transformer, is tapped at evenly spaced depths.
    """
    if not getattr(network, "differentiable", True):
        return ()
    seen: list[tuple[str, int]] = []
    size = input_size or DEFAULT_SIZE
    names = {module: name for name, module in network.named_modules() if name}
    if not names:
        return ()
    tensor = next(network.parameters(), None)
    device = torch.device("cpu") if tensor is None else tensor.device
    if device.type == "meta":
        return ()

    def record(module: nn.Module, output: Any) -> None:
        maps = as_maps(output)
        if maps is not None and 2 <= maps.shape[2] <= size:
            seen.append((names[module], maps.shape[2]))

    was_training = network.training
    try:
        network.eval()
        with _hooked(names, record), torch.no_grad():
            network(torch.zeros(1, channels, size, size, device=device))
    except Exception:  # whatever a user's network raises; loading runs it again and says what is wrong
        return ()
    finally:
        network.train(was_training)
    last = {resolution: name for name, resolution in seen}
    if len(last) > 1:
        finest = sorted(last, reverse=True)
        return tuple(last[resolution] for resolution in finest[-MOST:])
    each = list(dict.fromkeys(name for name, _ in seen))
    count = min(MOST, len(each))
    return tuple(each[math.ceil((number + 1) * len(each) / count) - 1] for number in range(count))


def run_with_taps(network: nn.Module, taps: Sequence[str], prepared: Tensor) -> tuple[Any, list[Tensor]]:
    """The network's output, and the maps [N, C, h, w] of the tapped parts."""
    found: dict[str, Tensor] = {}
    names = {network.get_submodule(name): name for name in taps}

    def record(module: nn.Module, output: Any) -> None:
        maps = as_maps(output)
        if maps is not None:
            found[names[module]] = maps

    with _hooked(names, record):
        output = network(prepared)
    return output, [found[name] for name in taps]


def as_maps(output: Any) -> Tensor | None:
    """What a part of a network returned, as maps [N, C, h, h]; None where it is nothing like that."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return None
    if output.ndim == 4 and output.shape[1] > 1:
        if output.shape[2] == output.shape[3]:
            return output
        return output.permute(0, 3, 1, 2) if output.shape[1] == output.shape[2] else None
    if output.ndim == 3 and output.shape[2] > 1:
        for extra in (0, 1, 2):  # class token, distillation token
            side = math.isqrt(max(0, output.shape[1] - extra))
            if side > 1 and side * side == output.shape[1] - extra:
                tokens = output[:, extra:].transpose(1, 2)
                return tokens.reshape(len(tokens), -1, side, side)
    return None


@contextmanager
def _hooked(modules: dict[nn.Module, str], record: Any) -> Iterator[None]:
    handles = [module.register_forward_hook(lambda m, _, output: record(m, output)) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
