"""3 × 3 convolutions with fewer multiplications, where that pays: wide layers in float32 on CPUs.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015): the image is cut into overlapping
tiles; for Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A each place of a transformed tile is one matrix product over channels.
F(4 × 4, 3 × 3) has 36 places for 16 pixels, F(6 × 6, 3 × 3) 64 for 36: 2.25 and 1.78 multiplications in place
of 9. Their points here are others than the paper's; they halve the rounding.

For stride 2, and for the transposed convolution, the paper has nothing. There every second pixel of an axis
meets two of the three taps, which is F(4, 2) with 5 places for 4 pixels, and the others meet the middle tap
alone: 9 places of an axis in place of 12, so 81 products in place of 144 for 4 × 4 pixels of the small image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_CHANNELS = {1: 96, 2: 320}
"""By stride, on either side; below, moving data costs what multiplications save (docs/benchmarks.md)."""

LEAST_WORK = {1: 1 << 18, 2: 1 << 19}
"""By stride, channels times pixels of a batch (of the smaller images).

Below, transforming the weight and calling many operations cost what multiplications save; where the
transformed weight is kept, below half of it.
"""

PART_BYTES = 32 << 20
"""Buffers of tiles up to this size stay in caches, and the heap in one piece."""


@dataclass(frozen=True, eq=False)
class Way:
    """What an axis of a tile goes through: pixels → places → times weights → pixels.

    `inputs` [P, pixels read]; `weights` [distinct weights, 3 taps]; `outputs` [pixels written, P], float64.
    The first `own` places have a weight each, all behind them the last weight together. Tiles read every
    `step` pixels of images with `before` zeros in front.
    """

    inputs: Tensor
    weights: Tensor
    outputs: Tensor
    own: int
    step: int
    before: int

    @property
    def places(self) -> int:
        return len(self.inputs)

    @property
    def written(self) -> int:
        return len(self.outputs)


Kept = dict[Way, Tensor]
"""What one weight was transformed to, for callers that convolve with it again and again."""


def _toom_cook(points: Sequence[float], pixels: int, taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bᵀ, G and Aᵀ of F(pixels, taps): polynomials multiplied by values at some points and at infinity."""
    inputs, weights = [], []
    for number, point in enumerate(points):
        others = [other for place, other in enumerate(points) if place != number]
        scale = 1.0
        for other in others:
            scale *= point - other
        inputs.append([*_from_roots(others), 0.0])
        weights.append([point**power / scale for power in range(taps)])
    inputs.append(_from_roots(points))
    weights.append([0.0] * (taps - 1) + [1.0])
    outputs = [[*(point**power for point in points), float(power == pixels - 1)] for power in range(pixels)]
    return _exact(inputs), _exact(weights), _exact(outputs)


def _from_roots(roots: Sequence[float]) -> list[float]:
    """Coefficients of Π (x − root), the constant first."""
    found = [1.0]
    for root in roots:
        found = [low - root * high for low, high in zip([0.0, *found], [*found, 0.0], strict=True)]
    return found


def _exact(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _same(points: Sequence[float], pixels: int) -> Way:
    return Way(*_toom_cook(points, pixels, 3), own=pixels + 2, step=pixels, before=1)


def _halving() -> Way:
    """v[i] = g₀ z[2i] + g₁ z[2i + 1] + g₂ z[2i + 2]: from 9 pixels to 4."""
    pair, taps, together = _toom_cook(TWO_TAPS, 4, 2)
    inputs, weights = _exact([[0.0] * 9] * 9), _exact([[0.0] * 3] * 6)
    inputs[:5, 0::2], inputs[5:, 1::2] = pair, torch.eye(4)
    weights[:5, 0::2], weights[5, 1] = taps, 1
    return Way(inputs, weights, torch.cat([together, torch.eye(4)], 1), own=5, step=8, before=0)


def _doubling() -> Way:
    """u[2i] = k₂ x[i − 1] + k₀ x[i] and u[2i + 1] = k₁ x[i]: from 5 pixels to 8."""
    pair, taps, together = _toom_cook(TWO_TAPS, 4, 2)
    weights, outputs = _exact([[0.0] * 3] * 6), _exact([[0.0] * 9] * 8)
    weights[:5, [2, 0]], weights[5, 1] = taps, 1
    outputs[0::2, :5], outputs[1::2, 5:] = together, torch.eye(4)
    return Way(torch.cat([pair, torch.eye(5)[1:]]), weights, outputs, own=5, step=4, before=1)


TWO_TAPS = (0.0, 0.5, -1.0, 2.0)
BY_FOUR = _same((0.0, 0.625, -0.625, 1.5, -1.5), 4)
BY_SIX = _same((0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0), 6)
HALVING, DOUBLING = _halving(), _doubling()


def pays(images: Tensor, weight: Tensor, size: Sequence[int], stride: int = 1, *, kept: bool = False) -> bool:
    """Whether a 3 × 3 convolution is done by tiles.

    Args:
        images: [N, C, h, w], those that go in.
        weight: [O, C, 3, 3].
        size: height and width of the smaller images, of those that go in and those that come out.
        stride: 1, or 2 for a convolution that halves and for a transposed one that doubles.
        kept: the transformed weight is kept for many calls.
    """
    height, width = size
    channels = min(weight.shape[:2])
    least = LEAST_WORK[stride] // (2 if kept else 1)
    return (
        images.device.type == "cpu"
        and images.dtype == weight.dtype == torch.float32
        and channels >= LEAST_CHANNELS[stride]
        and channels * len(images) * height * width >= least
        and (_saves(size) if stride == 1 else height % 4 == width % 4 == 0)
        and not torch.is_autocast_enabled("cpu")
    )


def outputs(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    adjoint: bool = False,
    slope: float | None = None,
    kept: Kept | None = None,
) -> Tensor:
    """conv2d with padding 1, without gradients (`networks.convolution` has them).

    Images [N, C, H, W], weight [O, C, 3, 3], bias [O] → [N, O, H, W]; `adjoint`: [N, O, H, W] → [N, C, H, W].
    With `slope` a leaky ReLU follows, while its pixels are in the cache.
    Results differ by rounding: up to five times as far from exact as a direct convolution in float32.
    """
    size = images.shape[2:]
    tiles = _transformed_weight(_way(size), weight.flip(2, 3) if adjoint else weight, adjoint, kept)
    found = _empty(images, tiles.shape[3], size)
    for part, products in _products(_way(size), images, tiles, size):
        _write(_transformed(_way(size).outputs, products), found[part], bias)
        if slope is not None:
            F.leaky_relu_(found[part], slope)
    return found


def halved(images: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """conv2d with stride 2, without gradients.

    Images [N, C, 2·H + 1, 2·W + 1] and weight [O, C, 3, 3] → [N, O, H, W].
    """
    tiles = _transformed_weight(HALVING, weight, False, None)
    size = [side // 2 for side in images.shape[2:]]
    found = _empty(images, len(weight), size)
    for part, products in _products(HALVING, images, tiles, size):
        _write(_transformed(HALVING.outputs, products), found[part], bias)
    return found


def doubled(images: Tensor, weight: Tensor, kept: Kept | None = None) -> Tensor:
    """conv_transpose2d with stride 2, the adjoint of `halved`: [N, O, H, W] → [N, C, 2·H + 1, 2·W + 1]."""
    tiles = _transformed_weight(DOUBLING, weight, True, kept)
    size = [2 * side for side in images.shape[2:]]
    found = _empty(images, weight.shape[1], [side + 1 for side in size])
    for part, products in _products(DOUBLING, images, tiles, size):
        _write_doubled(products, found[part, :, :-1, :-1])
    # The last pixel of an axis meets the last tap alone.
    found[:, :, -1] = _line_doubled(images[:, :, -1], weight[:, :, 2])
    found[:, :, :, -1] = _line_doubled(images[:, :, :, -1], weight[:, :, :, 2])
    return found


def correlation(images: Tensor, outputs: Tensor, stride: int = 1) -> Tensor:
    """The weight's gradient [O, C, 3, 3], of images and the gradient of what `outputs` or `halved` gave."""
    channels, features = images.shape[1], outputs.shape[1]
    size = outputs.shape[2:]
    way = _way(size) if stride == 1 else HALVING
    distinct, own = len(way.weights), way.own
    found = images.new_zeros(distinct, distinct, features, channels)
    for part in _parts(way, outputs.shape, max(channels, features)):
        read = _transformed(way.inputs, _read(way, images[part], size))
        written = _windows(outputs[part], way.written, way.written, 0, _tiles(way, size))
        written = _transformed(way.outputs.t(), written)
        for place in range(way.places):
            into = found[min(place, distinct - 1)]
            into[:own].baddbmm_(written[place, :own].transpose(1, 2), read[place, :own])
            if own < way.places:
                into[own].addmm_(written[place, own:].flatten(0, 1).t(), read[place, own:].flatten(0, 1))
    taps = _transformed(way.weights.t(), found.view(distinct, distinct, 1, -1))
    return taps.view(3, 3, features, channels).permute(2, 3, 0, 1)


def _products(
    way: Way, images: Tensor, weights: Tensor, size: Sequence[int]
) -> Iterator[tuple[slice, Tensor]]:
    """Of some images [N, C, h, w] after others, and which: places [P, P, T, C] times weights [D, D, C, O].

    `size` is the height and width of what tiles write.
    """
    own, features = way.own, weights.shape[3]
    for part in _parts(way, [len(images), 0, *size], max(images.shape[1], features)):
        read = _transformed(way.inputs, _read(way, images[part], size))
        products = read.new_empty(*read.shape[:3], features)
        for place in range(way.places):
            row = weights[min(place, len(weights) - 1)]
            torch.bmm(read[place, :own], row[:own], out=products[place, :own])
            if own < way.places:
                torch.mm(read[place, own:].flatten(0, 1), row[own], out=products[place, own:].flatten(0, 1))
        yield part, products


def _write(tiles: Tensor, found: Tensor, bias: Tensor | None) -> None:
    """Put tiles [w, w, n · rows · columns, O], with the bias, to their places in found [n, O, H, W]."""
    written, (height, width) = len(tiles), found.shape[2:]
    whole = found
    if height % written or width % written:
        whole = _empty(found, found.shape[1], [-(-side // written) * written for side in (height, width)])
    cut = _cut(whole, written)
    tiles = tiles.view(cut.shape)
    if bias is None:
        cut.copy_(tiles)
    else:
        torch.add(tiles, bias, out=cut)
    if whole is not found:
        found.copy_(whole[:, :, :height, :width])


def _write_doubled(products: Tensor, found: Tensor) -> None:
    """Pixels of products [9, 9, T, C]: those of odd rows or columns are what the last four places hold."""
    cut, together = _cut(found, DOUBLING.written), DOUBLING.outputs[0::2, :5].to(products)
    both = _transformed(together, products[:5, :5])
    rows = together @ products[:5, 5:].reshape(5, -1)
    columns = torch.matmul(together, products[5:, :5].flatten(2))
    for row, column, tiles in ((0, 0, both), (0, 1, rows), (1, 0, columns), (1, 1, products[5:, 5:])):
        into = cut[row::2, column::2]
        into.copy_(tiles.reshape(into.shape))


def _cut(images: Tensor, side: int) -> Tensor:
    """A view of images [n, C, H, W] as places of tiles: [side, side, n, H / side, W / side, C]."""
    count, channels, height, width = images.shape
    image, _, row, column = images.stride()
    return images.as_strided(
        (side, side, count, height // side, width // side, channels),
        (row, column, image, side * row, side * column, 1),
        images.storage_offset(),
    )


def _line_doubled(line: Tensor, taps: Tensor) -> Tensor:
    """A transposed convolution along one axis: [N, O, n] and [O, C, 3] → [N, C, 2·n + 1]."""
    products = line.transpose(1, 2)[None] @ taps.permute(2, 0, 1)[:, None]  # [3, N, n, C]
    count, length, channels = products.shape[1:]
    found = line.new_zeros(count, 2 * length + 1, channels)
    found[:, :-1:2], found[:, 1::2] = products[0], products[1]
    found[:, 2::2] += products[2]
    return found.transpose(1, 2)


def _way(size: Sequence[int]) -> Way:
    """By fours or sixes, whichever has fewer places for an image of this height and width."""
    return min((BY_FOUR, BY_SIX), key=lambda way: way.places**2 * math.prod(_tiles(way, size)))


def _saves(size: Sequence[int]) -> bool:
    """Whether at most half of the multiplications are left, although tiles reach beyond the image."""
    way = _way(size)
    return 2 * way.places**2 * math.prod(_tiles(way, size)) <= 9 * math.prod(size)


def _tiles(way: Way, size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of tiles that write an image of this height and width."""
    height, width = size
    return -(-height // way.written), -(-width // way.written)


def _parts(way: Way, shape: Sequence[int], channels: int) -> Iterator[slice]:
    """Images [N, ·, H, W] that are worked on at once: alike many, and a buffer stays about PART_BYTES."""
    each = 4 * way.places**2 * math.prod(_tiles(way, shape[2:])) * channels
    parts = max(1, min(shape[0], round(shape[0] * each / PART_BYTES)))
    size = -(-shape[0] // parts)
    for first in range(0, shape[0], size):
        yield slice(first, first + size)


def _read(way: Way, images: Tensor, size: Sequence[int]) -> Tensor:
    return _windows(images, way.inputs.shape[1], way.step, way.before, _tiles(way, size))


def _windows(images: Tensor, side: int, step: int, before: int, tiles: tuple[int, int]) -> Tensor:
    """Squares of an image, one every `step` pixels: [n, C, h, w] → [side, side, n · rows · columns, C]."""
    count, channels, height, width = images.shape
    rows, columns = tiles
    below = (rows - 1) * step + side - before - height
    right = (columns - 1) * step + side - before - width
    pixels = F.pad(images.permute(0, 2, 3, 1), (0, 0, before, right, before, below)).contiguous()
    image, row, column, _ = pixels.stride()
    found = pixels.as_strided(
        (side, side, count, rows, columns, channels), (row, column, image, step * row, step * column, 1)
    )
    return found.reshape(side, side, -1, channels)


def _transformed(matrix: Tensor, tiles: Tensor) -> Tensor:
    """A transform [P, side] of both axes: [side, side, T, C] → [P, P, T, C]."""
    matrix = matrix.to(tiles)
    rows, side = matrix.shape
    flat = tiles.reshape(side, side, -1)
    columns = torch.matmul(matrix, flat.transpose(0, 1))  # [column, P, T · C]
    found: Tensor = torch.matmul(matrix, columns.transpose(0, 1))
    return found.view(rows, rows, *tiles.shape[2:])


def _transformed_weight(way: Way, weight: Tensor, adjoint: bool, kept: Kept | None) -> Tensor:
    """G g Gᵀ: [O, C, 3, 3] → [D, D, C, O], or for the adjoint [D, D, O, C]."""
    if kept is not None and way in kept:
        return kept[way]
    tiles = _transformed(way.weights, weight.permute(2, 3, 0, 1).contiguous())
    tiles = tiles if adjoint else tiles.transpose(2, 3)
    if kept is not None:
        kept[way] = tiles
    return tiles


def _empty(like: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    shape = (len(like), channels, *size)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
