"""3 × 3 convolutions with a quarter of the multiplications, where that pays: wide layers in float32 on CPUs.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), F(4 × 4, 3 × 3): the image is cut
into tiles of 6 × 6 that overlap by 2; for Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A each of the 36 places of a tile is one
matrix product over channels. All that surrounds them are matrix products too, of 36 × 36 numbers and fewer.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

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


def outputs(images: Tensor, weight: Tensor, adjoint: bool = False) -> Tensor:
    """conv2d with padding 1, without gradients (`networks.convolution` has them).

    Images [N, C, H, W] and weight [O, C, 3, 3] → [N, O, H, W]; `adjoint`: [N, O, H, W] → [N, C, H, W].
    Results differ by rounding: about four times as far from exact as a direct convolution in float32.
    """
    count, channels, height, width = images.shape
    transformed, back = _weight_tiles(weight, adjoint), _matrix("output", images)
    features = transformed.shape[2]
    shape = (count, features, height, width)
    found = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)
    for part in _parts(images.shape, max(channels, features)):
        tiles = back @ torch.bmm(_input_tiles(images[part]), transformed).view(INPUT**2, -1)
        cut = _cut(found[part].permute(0, 2, 3, 1))
        cut.copy_(tiles.view(cut.shape))
    return found


def correlation(images: Tensor, outputs: Tensor) -> Tensor:
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
