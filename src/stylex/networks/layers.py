"""Layers shared by all networks: equalised learning rate, FIR resampling, activation."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylex.networks.convolution import convolve

FIR_TAPS = (1.0, 3.0, 3.0, 1.0)
"""The resampling filter of StyleGAN2, separable, before normalisation."""

SQRT2 = math.sqrt(2.0)

MATRIX_PIXELS = 128
"""Up to this side, an image is doubled by matrix products on CPUs."""


def at_least_float32(values: Tensor) -> Tensor:
    """Half-precision values as float32; float32 and float64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _make_fir_kernel(channels: int, gain: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    taps = torch.tensor(FIR_TAPS, dtype=torch.float32)
    kernel = torch.outer(taps, taps) * (gain / sum(FIR_TAPS) ** 2)
    # in this layout oneDNN's gradients of depthwise convolutions are fastest
    kernel = kernel.to(dtype).expand(channels, 1, 4, 4).contiguous(memory_format=torch.channels_last)
    return kernel.to(device)


@cache
def _kept_fir_kernel(channels: int, gain: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():  # made once, used everywhere
        return _make_fir_kernel(channels, gain, dtype, device)


def _fir_kernel(channels: int, gain: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    # Kept on GPUs, where nothing can be copied while a graph is recorded; not where exporters trace.
    kept = device.type == "cuda"
    return (_kept_fir_kernel if kept else _make_fir_kernel)(channels, gain, dtype, device)


def _filter(images: Tensor, padding: int, stride: int, gain: float) -> Tensor:
    channels = images.shape[1]
    kernel = _fir_kernel(channels, gain, images.dtype, images.device)
    return F.conv2d(images, kernel, padding=padding, stride=stride, groups=channels)


def _spread(outputs: Tensor, padding: int, stride: int, gain: float) -> Tensor:
    """The adjoint of `_filter`: the kernel is symmetric."""
    if stride == 1:
        return _filter(outputs, 3 - padding, 1, gain)
    channels = outputs.shape[1]
    wide = at_least_float32(outputs)  # in bf16 oneDNN takes thirty times as long
    kernel = _fir_kernel(channels, gain, wide.dtype, wide.device)
    found = F.conv_transpose2d(wide, kernel, padding=padding, stride=stride, groups=channels)
    return found.to(outputs.dtype)


class _Fir(torch.autograd.Function):
    """The FIR filter and its adjoint, each the other's gradient, so that gradients of any order are cheap.

    PyTorch's second-order gradient of a depthwise convolution loops over the channels.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, padding: int, stride: int, gain: float, adjoint: bool) -> Tensor:
        ctx.settings = padding, stride, gain, adjoint
        return (_spread if adjoint else _filter)(images, padding, stride, gain)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        padding, stride, gain, adjoint = ctx.settings
        return _fir(gradients[0], padding, stride, gain, not adjoint), None, None, None, None


def _fir(images: Tensor, padding: int, stride: int, gain: float, adjoint: bool = False) -> Tensor:
    if torch.is_grad_enabled() and images.requires_grad:
        found: Tensor = _Fir.apply(images, padding, stride, gain, adjoint)
        return found
    return (_spread if adjoint else _filter)(images, padding, stride, gain)


def blur(images: Tensor, padding: int, gain: float = 1.0) -> Tensor:
    """Filter every channel with the 4 × 4 FIR kernel.

    Args:
        images: [N, C, H, W].
        padding: zeros added on all four sides, 0 to 3.
        gain: factor on the output.

    Returns:
        [N, C, H + 2·padding − 3, W + 2·padding − 3].
    """
    return _fir(images, padding, 1, gain)


def downsample2(images: Tensor) -> Tensor:
    """Halve the resolution with the FIR filter: [N, C, H, W] → [N, C, H/2, W/2]; H and W even."""
    return _fir(images, 1, 2, 1.0)


def upsample2(images: Tensor) -> Tensor:
    """Double the resolution with the FIR filter: [N, C, H, W] → [N, C, 2H, 2W].

    Equal to inserting zeros and filtering with gain 4. Each output sample sees two inputs per axis with
    weights 3/4 and 1/4, so inside the image this is bilinear interpolation; the border is padded with zeros.
    On CPUs it is two matrix products, with images of 128 px or less: three times as fast, forward and back.
    """
    if _by_matrices(images):
        rows, columns = (_doubling(side).to(images.dtype) for side in images.shape[2:])
        return rows @ (images.contiguous() @ columns.t())
    return F.interpolate(F.pad(images, (1, 1, 1, 1)), scale_factor=2, mode="bilinear", align_corners=False)[
        :, :, 2:-2, 2:-2
    ]


def _by_matrices(images: Tensor) -> bool:
    small = images.device.type == "cpu" and max(images.shape[2:]) <= MATRIX_PIXELS
    traced = torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined, no-untyped-call]
    return small and images.dtype in (torch.float32, torch.float64) and not traced


@cache
def _doubling(side: int) -> Tensor:
    """What `upsample2` does to an axis: [2 · side, side]."""
    with torch.inference_mode(False), torch.no_grad():  # made once, used everywhere
        even = 0.75 * torch.eye(side) + 0.25 * torch.eye(side).roll(1, 0).tril()
        return torch.stack([even, even.t()], dim=1).flatten(0, 1)


def conv_weight(out_channels: int, in_channels: int, kernel_size: int) -> nn.Parameter:
    """N(0, 1) weights [O, I, k, k], laid out as the features are: otherwise every use would copy them."""
    weight = torch.randn(out_channels, in_channels, kernel_size, kernel_size)
    return nn.Parameter(weight.contiguous(memory_format=torch.channels_last))


class _Energy(torch.autograd.Function):
    """Sums of squares of kernels, with a gradient of one pass over the weights (PyTorch's takes four)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return weight.square().sum(dim=(2, 3))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        weight: Tensor = ctx.saved_tensors[0]
        return weight * (2 * gradients[0])[:, :, None, None]


def energy(weight: Tensor) -> Tensor:
    """Σ of squares over a kernel's places: [O, C, k, k] → [O, C]."""
    if torch.is_grad_enabled() and weight.requires_grad:
        found: Tensor = _Energy.apply(weight)
        return found
    return weight.square().sum(dim=(2, 3))


class EqualLinear(nn.Module):
    """Fully connected layer with equalised learning rate: [N, in_features] → [N, out_features].

    The stored weight is N(0, 1) / `rate`; the effective one is weight · rate / √in_features and the effective
    bias is bias · rate (Karras et al. 2018, section 4.1; `rate` is StyleGAN2's learning-rate multiplier).
    With `activate`, leaky ReLU (0.2) scaled by √2 follows.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias_init: float = 0.0,
        rate: float = 1.0,
        activate: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / rate)
        self.bias = nn.Parameter(torch.full((out_features,), bias_init / rate))
        self.weight_gain = rate / math.sqrt(in_features)
        self.bias_gain = rate
        self.activate = activate

    def forward(self, features: Tensor) -> Tensor:
        outputs = F.linear(features, self.weight * self.weight_gain, self.bias * self.bias_gain)
        return F.leaky_relu(outputs, 0.2) * SQRT2 if self.activate else outputs


class EqualConv2d(nn.Module):
    """k × k convolution with equalised learning rate; `down` filters with the FIR kernel and strides by 2.

    [N, in_channels, H, W] → [N, out_channels, H, W] or, with `down`, [N, out_channels, H/2, W/2]. With
    `activate`, bias and leaky ReLU (0.2) follow; the activation's √2, like `gain`, is folded into the weight
    and bias, which costs nothing because leaky ReLU is positively homogeneous.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        down: bool = False,
        activate: bool = True,
        bias: bool = True,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = conv_weight(out_channels, in_channels, kernel_size)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.down = down
        self.activate = activate
        self.output_gain = gain * (SQRT2 if activate else 1.0)
        self.weight_gain = self.output_gain / math.sqrt(in_channels * kernel_size**2)

    def forward(self, images: Tensor) -> Tensor:
        kernel_size = self.weight.shape[-1]
        weight = (self.weight * self.weight_gain).to(images.dtype)
        bias = None if self.bias is None else (self.bias * self.output_gain).to(images.dtype)
        if not self.down:
            outputs = convolve(images, weight, bias, padding=kernel_size // 2)
        elif kernel_size == 1:
            outputs = convolve(downsample2(images), weight, bias)
        else:
            outputs = convolve(blur(images, padding=2), weight, bias, stride=2)
        return F.leaky_relu_(outputs, 0.2) if self.activate else outputs
