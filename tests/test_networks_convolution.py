"""Convolutions that will be differentiated twice are PyTorch's, and so are their gradients of both orders."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from kernels import LargestKernel
from stylex.networks import convolution
from stylex.networks.convolution import convolve, convolve_transposed, second_order
from stylex.networks.layers import EqualConv2d


def batch(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(sum(shape))
    return torch.randn(*shape, dtype=dtype)


GEOMETRIES = [(1, 1, 3, (6, 5)), (2, 0, 3, (7, 9)), (2, 0, 3, (8, 6)), (2, 1, 3, (6, 6)), (1, 0, 1, (4, 3))]


@pytest.mark.parametrize(("stride", "padding", "kernel", "size"), GEOMETRIES)
@pytest.mark.parametrize("kernel_of_gradient", [False, True])
def test_a_convolution_and_its_gradients(
    monkeypatch: pytest.MonkeyPatch,
    stride: int,
    padding: int,
    kernel: int,
    size: tuple[int, int],
    kernel_of_gradient: bool,
) -> None:
    monkeypatch.setattr(convolution, "_gradient_is_faster", lambda outputs: kernel_of_gradient)
    given = [
        tensor.requires_grad_() for tensor in (batch(2, 3, *size), batch(4, 3, kernel, kernel), batch(4))
    ]

    def found(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with second_order():
            return convolve(images, weight, bias, stride=stride, padding=padding)

    expected = F.conv2d(*given, stride=stride, padding=padding)
    torch.testing.assert_close(found(*given), expected, rtol=0, atol=1e-12)
    assert gradcheck(found, given)
    assert gradgradcheck(found, given)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("kernel_of_gradient", [False, True])
def test_a_transposed_convolution_and_its_gradients(
    monkeypatch: pytest.MonkeyPatch, kernel: int, kernel_of_gradient: bool
) -> None:
    monkeypatch.setattr(convolution, "_gradient_is_faster", lambda outputs: kernel_of_gradient)
    images, weight = batch(2, 4, 3, 5).requires_grad_(), batch(4, 3, kernel, kernel).requires_grad_()

    def found(images: Tensor, weight: Tensor) -> Tensor:
        with second_order():
            return convolve_transposed(images, weight)

    expected = F.conv_transpose2d(images, weight, stride=2)
    torch.testing.assert_close(found(images, weight), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(convolve_transposed(images, weight), expected, rtol=0, atol=1e-12)
    assert gradcheck(found, (images, weight))
    assert gradgradcheck(found, (images, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel_of_gradient", [False, True])
@pytest.mark.parametrize(("stride", "transposed"), [(1, False), (2, False), (2, True)])
def test_both_gradients_in_the_formats_that_training_computes_in(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    layout: torch.memory_format,
    kernel_of_gradient: bool,
    stride: int,
    transposed: bool,
) -> None:
    """Against PyTorch's own in double precision, of numbers that both formats hold."""
    monkeypatch.setattr(convolution, "_gradient_is_faster", lambda outputs: kernel_of_gradient)
    images = batch(2, 16, 7, 7).bfloat16()
    weight = (batch(8, 16, 3, 3) / 12).bfloat16()  # as a layer that doubles the resolution hands it on
    if transposed:
        weight = (batch(8, 16, 3, 3).transpose(0, 1) / 12).bfloat16()

    def both(images: Tensor, weight: Tensor, ours: bool) -> list[Tensor]:
        images, weight = images.detach().requires_grad_(), weight.detach().requires_grad_()
        if not ours:
            found = (
                F.conv_transpose2d(images, weight, stride=2)
                if transposed
                else F.conv2d(images, weight, stride=stride)
            )
        else:
            with second_order():
                found = (
                    convolve_transposed(images, weight)
                    if transposed
                    else convolve(images, weight, stride=stride)
                )
        (first,) = torch.autograd.grad(found.square().sum(), images, create_graph=True)
        second = torch.autograd.grad(first.square().mean(), (images, weight))
        return [found.detach(), first.detach(), *second]

    exact = both(images.double(), weight.double(), ours=False)
    found = both(images.to(dtype).contiguous(memory_format=layout), weight.to(dtype), ours=True)
    for mine, true in zip(found, exact, strict=True):
        assert mine.dtype == dtype
        error = (mine.double() - true).norm() / true.norm()
        assert error < (1e-5 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize(("channels", "amx", "ours"), [(128, True, 1), (127, True, 0), (128, False, 0)])
def test_wide_layers_in_half_precision_take_the_kernel_of_a_gradient(
    monkeypatch: pytest.MonkeyPatch, channels: int, amx: bool, ours: int
) -> None:
    monkeypatch.setattr(convolution, "has_amx", lambda: amx)
    calls: list[int] = []
    whole = convolution._Geometry.gradients
    monkeypatch.setattr(
        convolution._Geometry, "gradients", lambda *given: (calls.append(1), whole(*given))[1]
    )
    images = batch(2, channels, 4, 4).bfloat16()
    weight = (batch(channels, 8, 3, 3) / 34).bfloat16()
    half = convolve_transposed(images, weight)
    assert len(calls) == ours
    exact = F.conv_transpose2d(images.double(), weight.double(), stride=2)
    torch.testing.assert_close(half.double(), exact, rtol=0.01, atol=0.01)


def test_what_is_not_ours_is_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "_convolution", lambda *given: pytest.fail("ours was taken"))
    weight = batch(3, 2, 3, 3, dtype=torch.float32)
    images = batch(1, 2, 4, 4, dtype=torch.float32)
    with second_order():
        assert convolve(images[:0], weight, padding=1).shape == (0, 3, 4, 4)
        with torch.autocast("cpu", torch.bfloat16):
            assert convolve(images, weight, padding=1).dtype == torch.bfloat16
        exported = torch.export.export(_Layer(weight), (images,))
    assert torch.equal(exported.module()(images), F.conv2d(images, weight, padding=1))


class _Layer(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, images: Tensor) -> Tensor:
        return convolve(images, self.weight, padding=1)


@pytest.mark.parametrize("announced", [False, True])
def test_a_second_gradient_needs_no_kernel_as_large_as_the_image(announced: bool) -> None:
    layer = EqualConv2d(2, 3, 3).double()
    images = batch(1, 2, 16, 16).requires_grad_()
    with LargestKernel() as seen:
        if announced:
            with second_order():
                outputs = layer(images)
        else:
            outputs = layer(images)
        (gradient,) = torch.autograd.grad(outputs.square().sum(), images, create_graph=True)
        gradient.square().sum().backward()
    assert seen.side == (3 if announced else 16)
    assert layer.weight.grad is not None


def test_only_the_gradients_that_are_asked_for_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[list[bool]] = []
    whole = convolution._Geometry.gradients

    def noted(self, outputs, images, weight, wanted):  # type: ignore[no-untyped-def]
        masks.append(wanted)
        return whole(self, outputs, images, weight, wanted)

    monkeypatch.setattr(convolution._Geometry, "gradients", noted)
    images, weight = batch(1, 2, 4, 4).requires_grad_(), batch(2, 2, 3, 3).requires_grad_()
    with second_order():
        outputs = convolve(images * 1, weight * 1, padding=1)
    torch.autograd.grad(outputs.sum(), images, retain_graph=True)
    torch.autograd.grad(outputs.sum(), weight, retain_graph=True)
    torch.autograd.grad(outputs.sum(), (images, weight))
    assert masks == [[True, False, False], [False, True, False], [True, True, False]]


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
def test_what_is_traced_is_pytorchs_own() -> None:
    weight = batch(128, 2, 3, 3, dtype=torch.bfloat16)
    traced = torch.jit.trace(
        lambda images: convolve_transposed(images, weight), batch(1, 128, 2, 2, dtype=torch.bfloat16)
    )
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    assert "aten::convolution_backward" not in kinds
    assert kinds & {"aten::conv_transpose2d", "aten::_convolution"}
