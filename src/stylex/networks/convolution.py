"""Convolutions whose gradients of second order, on CPUs, are the library's own kernels of a gradient.

A convolution is bilinear, in images and weight, and so are its adjoint (the gradient for the images, which is
the transposed convolution) and the gradient for the weight. So each one's gradients are the other two, and
three kernels are all that R1 and path length need. PyTorch's own second-order gradient makes an ordinary
convolution of it, with the channels as its batch and a kernel as large as the image (docs/benchmarks.md says
what that cost). Here are also two faster ways to first gradients: tiles (`winograd`), and the kernel of a
gradient for wide transposed convolutions in bf16. Everything else stays PyTorch's unless `second_order`
announces a second gradient: a function in Python costs small layers more than it saves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stylex.hardware import has_amx
from stylex.networks import winograd

WIDE_CHANNELS = 128
"""From here on a transposed convolution in bf16 is faster as the kernel of a gradient.

Measured with AMX, 2026-11-28: 128 channels at 8 px 1.0 in place of 2.0 ms, 512 at 32 px 10 in place of 21;
with 64 both are alike. Without AMX nobody has measured it, and PyTorch's stays.
"""

_SECOND_ORDER = ContextVar("second_order", default=False)


@contextmanager
def second_order() -> Iterator[None]:
    """Convolutions within it will be differentiated twice: only their speed depends on it."""
    token = _SECOND_ORDER.set(True)
    try:
        yield
    finally:
        _SECOND_ORDER.reset(token)


@dataclass(frozen=True)
class _Geometry:
    """What a convolution is beside its weight: stride, zeros at the borders, the images' height and width."""

    stride: int
    padding: int
    size: tuple[int, int]

    def outputs(self, images: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.by_tiles(images, weight):
            whole = winograd.outputs if self.stride == 1 else winograd.halved
            return whole(images, weight, bias)
        return F.conv2d(images, weight, bias, stride=self.stride, padding=self.padding)

    def adjoint(self, outputs: Tensor, weight: Tensor) -> Tensor:
        if self.by_tiles(outputs, weight):
            if self.stride == 2:
                return winograd.doubled(outputs, weight)
            return winograd.outputs(outputs, weight, adjoint=True)
        if self.stride > 1 and not _gradient_is_faster(outputs):
            rest = [
                side - (less - 1) * self.stride - weight.shape[-1] + 2 * self.padding
                for side, less in zip(self.size, outputs.shape[2:], strict=True)
            ]
            return F.conv_transpose2d(
                outputs, weight, stride=self.stride, padding=self.padding, output_padding=rest
            )
        images = _blank(outputs, len(outputs), weight.shape[1], *self.size)
        found = self.gradients(outputs, images, weight, [True, False, False])[0]
        assert found is not None
        return found

    def correlation(self, images: Tensor, outputs: Tensor, kernel: int) -> Tensor:
        """The weight's gradient [O, C, k, k]."""
        weight = _blank(images, outputs.shape[1], images.shape[1], kernel, kernel)
        if self.by_tiles(images, weight):
            return winograd.correlation(images, outputs, self.stride)
        found = self.gradients(outputs, images, weight, [False, True, False])[1]
        assert found is not None
        return found

    def by_tiles(self, images: Tensor, weight: Tensor) -> bool:
        """Whether `winograd` does it; `images` are those that go in, here or into the adjoint."""
        shape = (self.stride, self.padding, *weight.shape[2:])
        if shape == (1, 1, 3, 3):
            return winograd.pays(images, weight, self.size)
        odd = self.size[0] % 2 == self.size[1] % 2 == 1
        halves = [side // 2 for side in self.size]
        return shape == (2, 0, 3, 3) and odd and winograd.pays(images, weight, halves, stride=2)

    def gradients(
        self, outputs: Tensor, images: Tensor, weight: Tensor, wanted: list[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of images, weight and bias, those that are wanted; `outputs` is the gradient of the outputs."""
        stride, padding, biases = [self.stride] * 2, [self.padding] * 2, [len(weight)]
        found: tuple[Tensor | None, Tensor | None, Tensor | None] = (
            torch.ops.aten.convolution_backward.default(
                outputs, images, weight, biases, stride, padding, [1, 1], False, [0, 0], 1, wanted
            )
        )
        return found


def _blank(like: Tensor, *shape: int) -> Tensor:
    """Stands for a tensor of which `convolution_backward` reads shape, number format and layout alone."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def convolve(
    images: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int = 0
) -> Tensor:
    """conv2d, gradients of any order; second ones are faster where `second_order` announced them.

    Wide 3 × 3 convolutions in float32 are done by tiles (`networks.winograd`), whose rounding is up to five
    times as large as a direct convolution's.

    Args:
        images: [N, C, H, W].
        weight: [O, C, k, k].
        bias: [O] or None.

    Returns:
        [N, O, (H + 2·padding − k) // stride + 1, (W + 2·padding − k) // stride + 1].
    """
    if _ours(images, weight):
        height, width = images.shape[2:]
        geometry = _Geometry(stride, padding, (height, width))
        if _SECOND_ORDER.get() or geometry.by_tiles(images, weight):
            return _convolution(images, weight, bias, geometry, False)
    return F.conv2d(images, weight, bias, stride=stride, padding=padding)


def convolve_transposed(images: Tensor, weight: Tensor) -> Tensor:
    """conv_transpose2d with stride 2, gradients of any order.

    Args:
        images: [N, O, H, W].
        weight: [O, C, k, k]: that of the convolution with stride 2 whose adjoint this is.

    Returns:
        [N, C, 2·H + k − 2, 2·W + k − 2].
    """
    if _ours(images, weight):
        height, width = (2 * side + weight.shape[-1] - 2 for side in images.shape[2:])
        geometry = _Geometry(2, 0, (height, width))
        if _SECOND_ORDER.get() or _gradient_is_faster(images) or geometry.by_tiles(images, weight):
            return _convolution(images, weight, None, geometry, True)
    return F.conv_transpose2d(images, weight, stride=2)


def _gradient_is_faster(outputs: Tensor) -> bool:
    return outputs.dtype == torch.bfloat16 and outputs.shape[1] >= WIDE_CHANNELS and has_amx()


def _ours(images: Tensor, weight: Tensor) -> bool:
    """On CPUs, where nothing traces or compiles: those know PyTorch's own convolutions."""
    traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if traced or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return images.device.type == "cpu" and images.dtype == weight.dtype and images.numel() > 0


class _Convolution(torch.autograd.Function):
    """The convolution or, with `adjoint`, the map that its gradient is; each is the other's gradient."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry, adjoint: bool
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.geometry, ctx.adjoint = geometry, adjoint
        return geometry.adjoint(images, weight) if adjoint else geometry.outputs(images, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        gradient, geometry, kernel = gradients[0], ctx.geometry, weight.shape[-1]
        wanted = _wanted(ctx, 3)
        if not (torch.is_grad_enabled() or ctx.adjoint or geometry.by_tiles(images, weight)):
            return (*geometry.gradients(gradient, images, weight, wanted), None, None)  # in one call
        inner, outer = (gradient, images) if ctx.adjoint else (images, gradient)
        return (
            _convolution(gradient, weight, None, geometry, not ctx.adjoint) if wanted[0] else None,
            _correlation(inner, outer, geometry, kernel) if wanted[1] else None,
            gradient.sum(dim=(0, 2, 3)) if wanted[2] else None,
            None,
            None,
        )


class _Correlation(torch.autograd.Function):
    """The gradient for the weight: bilinear too, its gradients are convolution and adjoint."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, outputs: Tensor, geometry: _Geometry, kernel: int) -> Tensor:
        ctx.save_for_backward(images, outputs)
        ctx.geometry = geometry
        return geometry.correlation(images, outputs, kernel)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        images, outputs = ctx.saved_tensors
        wanted = _wanted(ctx, 2)
        return (
            _convolution(outputs, gradients[0], None, ctx.geometry, True) if wanted[0] else None,
            _convolution(images, gradients[0], None, ctx.geometry, False) if wanted[1] else None,
            None,
            None,
        )


def _wanted(ctx: Any, count: int) -> list[bool]:
    """Of the first inputs, those from which the present backward pass goes on: some only could."""
    needed = ctx.needs_input_grad
    following = ctx.next_functions
    return [needed[number] and _goes_on(following[number][0]) for number in range(count)]


def _goes_on(node: Any) -> bool:
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except (AttributeError, RuntimeError):  # another version of PyTorch; a leaf, which the call does not take
        return True


def _convolution(
    images: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry, adjoint: bool
) -> Tensor:
    given = (images, weight) if bias is None else (images, weight, bias)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        found: Tensor = _Convolution.apply(images, weight, bias, geometry, adjoint)
        return found
    return geometry.adjoint(images, weight) if adjoint else geometry.outputs(images, weight, bias)


def _correlation(images: Tensor, outputs: Tensor, geometry: _Geometry, kernel: int) -> Tensor:
    if torch.is_grad_enabled() and (images.requires_grad or outputs.requires_grad):
        found: Tensor = _Correlation.apply(images, outputs, geometry, kernel)
        return found
    return geometry.correlation(images, outputs, kernel)
