"""A convolution with bias and rectifier in one pass over memory, where PyTorch's CPU library offers it."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from stylex.networks import convolution, winograd


def convolve(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    slope: float | None,
    padding: int = 0,
    groups: int = 1,
    kept: winograd.Kept | None = None,
) -> Tensor:
    """leaky_relu(conv2d(images, weight) + bias, slope), without gradients; slope 0 is ReLU, None neither.

    On CPUs oneDNN applies bias and rectifier while a tile of the result is still in the cache; elsewhere the
    rectifier overwrites the convolution's result. Wide 3 × 3 convolutions are done by tiles (see
    `networks.winograd`). Respects an autocast around it.

    Args:
        images: [N, C, H, W].
        weight: [O, C / groups, k, k].
        bias: [O] or None.
        kept: of this weight, for the next call with it; what it holds comes from the calls before.

    Returns:
        [N, O, H + 2·padding − k + 1, W + 2·padding − k + 1].
    """
    kind = images.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        images, weight = images.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    plain = (padding, groups, *weight.shape[2:]) == (1, 1, 3, 3)
    if plain and winograd.pays(images, weight, images.shape[2:], kept=kept is not None):
        return winograd.outputs(images, weight, bias, slope=slope, kept=kept)
    if slope is None:
        return F.conv2d(images, weight, bias, padding=padding, groups=groups)
    if kind == "cpu" and images.numel() and _offered(images.dtype):
        pads, ones = [padding, padding], [1, 1]
        rectifier, scalars = ("leaky_relu", [slope]) if slope else ("relu", [])
        pointwise: Tensor = torch.ops.mkldnn._convolution_pointwise(
            images, weight, bias, pads, ones, ones, groups, rectifier, scalars, ""
        )
        return pointwise
    found = F.conv2d(images, weight, bias, padding=padding, groups=groups)
    return F.leaky_relu_(found, slope) if slope else F.relu_(found)


def double(images: Tensor, weight: Tensor, kept: winograd.Kept | None = None) -> Tensor:
    """conv_transpose2d with stride 2, without gradients: `networks.convolution`'s, or by tiles.

    Args:
        images: [N, O, H, W].
        weight: [O, C, 3, 3].
        kept: as for `convolve`.

    Returns:
        [N, C, 2·H + 1, 2·W + 1].
    """
    if winograd.pays(images, weight, images.shape[2:], 2, kept=kept is not None):
        return winograd.doubled(images, weight, kept)
    return convolution.convolve_transposed(images, weight)


@cache
def _offered(dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch has the operation for a number format, and it gives what it should.

    It is not part of PyTorch's documented interface, so it is tried once on a few numbers.
    """
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    images = torch.tensor([[[[1.0]], [[-3.0]]]], dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.tensor([[[[1.0]], [[1.0]]], [[[1.0]], [[0.0]]]], dtype=dtype)
    bias = torch.tensor([0.0, 1.0], dtype=dtype)
    try:
        for rectifier, scalars, wanted in (("leaky_relu", [0.5], -1.0), ("relu", [], 0.0)):
            found = torch.ops.mkldnn._convolution_pointwise(
                images, weight, bias, [0, 0], [1, 1], [1, 1], 1, rectifier, scalars, ""
            )
            if found.flatten().tolist() != [wanted, 2.0]:
                return False
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return True
