"""3 × 3 convolutions with a quarter of the multiplications, where that pays: wide layers in float32 on CPUs.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), F(4 × 4, 3 × 3): the image is cut
into tiles of 6 × 6 that overlap by 2; for Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A each of the 36 places of a tile is one
matrix product over channels. All that surrounds them are matrix products too, of 36 × 36 numbers and fewer.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TILE, INPUT = 4, 6
"""Pixels along a side of a tile of the output, and of the input that it needs."""

LEAST_CHANNELS = 192
"""Below, moving data costs what multiplications save (measured: 128 channels gain a fifth, 64 lose)."""

LEAST_PIXELS = 4096
"""Of all images of a batch together; below, transforming the weights costs too much."""

PART_BYTES = 32 << 20
"""Buffers of tiles up to this size stay in caches, and the heap in one piece."""

_INPUT = (
    (4.0, 0.0, -5.0, 0.0, 1.0, 0.0),
    (0.0, -4.0, -4.0, 1.0, 1.0, 0.0),
    (0.0, 4.0, -4.0, -1.0, 1.0, 0.0),
    (0.0, -2.0, -1.0, 2.0, 1.0, 0.0),
    (0.0, 2.0, -1.0, -2.0, 1.0, 0.0),
    (0.0, 4.0, 0.0, -5.0, 0.0, 1.0),
)
_WEIGHT = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)
_OUTPUT = (
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    (0.0, 1.0, -1.0, 2.0, -2.0, 0.0),
    (0.0, 1.0, 1.0, 4.0, 4.0, 0.0),
    (0.0, 1.0, -1.0, 8.0, -8.0, 1.0),
)


def convolve3(images: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """conv2d with padding 1, by the faster way; gradients of any order.

    Results differ by rounding: about four times as far from exact as a direct convolution in float32.

    Args:
        images: [N, C, H, W].
        weight: [O, C, 3, 3].
        bias: [O] or None.

    Returns:
        [N, O, H, W].
    """
    if not pays(images, weight):
        return F.conv2d(images, weight, bias, padding=1)
    outputs = _convolution(images, weight)
    return outputs if bias is None else outputs.add_(bias[:, None, None])


def pays(images: Tensor, weight: Tensor) -> bool:
    """Whether a 3 × 3 convolution of images [N, C, H, W] is done by tiles."""
    count, _, height, width = images.shape
    return (
        images.device.type == "cpu"
        and images.dtype == weight.dtype == torch.float32
        and min(weight.shape[:2]) >= LEAST_CHANNELS
        and count * height * width >= LEAST_PIXELS
        and height % TILE == width % TILE == 0
        and not torch.is_autocast_enabled("cpu")
    )


class _Convolution(torch.autograd.Function):
    """The convolution or, with `adjoint`, the map that its gradient is; each is the other's gradient."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, adjoint: bool) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.adjoint = adjoint
        return _outputs(images, weight, adjoint)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        images, weight = ctx.saved_tensors
        pair = (gradients[0], images) if ctx.adjoint else (images, gradients[0])
        return (
            _convolution(gradients[0], weight, not ctx.adjoint) if _wanted(ctx, 0) else None,
            _weight_gradient(*pair) if _wanted(ctx, 1) else None,
            None,
        )


class _WeightGradient(torch.autograd.Function):
    """Bilinear like the convolution itself, so that its gradients are convolutions again."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, outputs: Tensor) -> Tensor:
        ctx.save_for_backward(images, outputs)
        return _correlation(images, outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        images, outputs = ctx.saved_tensors
        return (
            _convolution(outputs, gradients[0], True) if _wanted(ctx, 0) else None,
            _convolution(images, gradients[0], False) if _wanted(ctx, 1) else None,
        )


def _wanted(ctx: Any, number: int) -> bool:
    """Whether the present backward pass goes on from an input: `needs_input_grad` says if any could."""
    if not ctx.needs_input_grad[number]:
        return False
    try:
        return bool(torch._C._will_engine_execute_node(ctx.next_functions[number][0]))
    except (AttributeError, RuntimeError):  # another version of PyTorch; a leaf, which the call does not take
        return True


def _convolution(images: Tensor, weight: Tensor, adjoint: bool = False) -> Tensor:
    if torch.is_grad_enabled() and (images.requires_grad or weight.requires_grad):
        found: Tensor = _Convolution.apply(images, weight, adjoint)
        return found
    return _outputs(images, weight, adjoint)


def _weight_gradient(images: Tensor, outputs: Tensor) -> Tensor:
    if torch.is_grad_enabled() and (images.requires_grad or outputs.requires_grad):
        found: Tensor = _WeightGradient.apply(images, outputs)
        return found
    return _correlation(images, outputs)


def _outputs(images: Tensor, weight: Tensor, adjoint: bool = False) -> Tensor:
    """Images [N, C, H, W] → [N, O, H, W] or, with `adjoint`, [N, O, H, W] → [N, C, H, W]."""
    count, channels, height, width = images.shape
    transformed, back = _weight_tiles(weight, adjoint), _matrix("output", images)
    features = transformed.shape[2]
    outputs = torch.empty(
        count, features, height, width, dtype=images.dtype, memory_format=torch.channels_last
    )
    for part in _parts(images.shape, max(channels, features)):
        tiles = back @ torch.bmm(_input_tiles(images[part]), transformed).view(INPUT**2, -1)
        cut = _cut(outputs[part].permute(0, 2, 3, 1))
        cut.copy_(tiles.view(cut.shape))
    return outputs


def _correlation(images: Tensor, outputs: Tensor) -> Tensor:
    """The weight's gradient [O, C, 3, 3], of images [N, C, H, W] and the outputs' gradient [N, O, H, W]."""
    channels, features = images.shape[1], outputs.shape[1]
    forth = _matrix("output", outputs).t()
    found = images.new_zeros(INPUT**2, features, channels)
    for part in _parts(images.shape, max(channels, features)):
        cut = _cut(outputs[part].permute(0, 2, 3, 1).contiguous())
        products = (forth @ cut.reshape(TILE**2, -1)).view(INPUT**2, -1, features)
        found.baddbmm_(products.transpose(1, 2), _input_tiles(images[part]))
    weight = _matrix("weight", outputs).t() @ found.view(INPUT**2, -1)
    return weight.view(3, 3, features, channels).permute(2, 3, 0, 1)


def _parts(shape: torch.Size, channels: int) -> Iterator[slice]:
    """Images that are worked on at once: as many as keep a buffer of tiles under PART_BYTES."""
    each = 4 * INPUT**2 * (shape[2] // TILE) * (shape[3] // TILE) * channels
    size = max(1, PART_BYTES // each)
    for first in range(0, shape[0], size):
        yield slice(first, first + size)


def _cut(pixels: Tensor) -> Tensor:
    """A view of pixels [n, H, W, C], contiguous, as places of tiles: [4, 4, n, H/4, W/4, C]."""
    count, height, width, channels = pixels.shape
    tiles = pixels.view(count, height // TILE, TILE, width // TILE, TILE, channels)
    return tiles.permute(2, 4, 0, 1, 3, 5)


def _input_tiles(images: Tensor) -> Tensor:
    """Bᵀ d B of every tile: [N, C, H, W] → [36, N · H/4 · W/4, C]."""
    count, channels, height, width = images.shape
    pixels = F.pad(images.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()
    image, row, column, _ = pixels.stride()
    tiles = pixels.as_strided(
        (INPUT, INPUT, count, height // TILE, width // TILE, channels),
        (row, column, image, TILE * row, TILE * column, 1),
    )
    return (_matrix("input", images) @ tiles.reshape(INPUT**2, -1)).view(INPUT**2, -1, channels)


def _weight_tiles(weight: Tensor, adjoint: bool) -> Tensor:
    """G g Gᵀ: [O, C, 3, 3] → [36, C, O], or for the adjoint [36, O, C]."""
    features, channels = weight.shape[:2]
    taps = weight.permute(2, 3, 0, 1).reshape(9, -1)
    if adjoint:
        taps = taps.flip(0)
    tiles = (_matrix("weight", weight) @ taps).view(INPUT**2, features, channels)
    return tiles if adjoint else tiles.transpose(1, 2)


def _matrix(which: str, like: Tensor) -> Tensor:
    return _two_dimensional(which).to(like)


@cache
def _two_dimensional(which: str) -> Tensor:
    """The transform of both axes at once, as a matrix for flattened tiles."""
    one = torch.tensor({"input": _INPUT, "weight": _WEIGHT, "output": _OUTPUT}[which], dtype=torch.float64)
    return torch.kron(one, one)
