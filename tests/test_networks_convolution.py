"""Convolutions that will be differentiated twice are PyTorch's, and so are their gradients of both orders."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from stylex.networks import convolution
from stylex.networks.convolution import convolve, convolve_transposed, second_order
from stylex.networks.layers import EqualConv2d


def batch(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(sum(shape))
    return torch.randn(*shape, dtype=dtype)


GEOMETRIES = [(1, 1, 3, (6, 5)), (2, 0, 3, (7, 9)), (2, 0, 3, (8, 6)), (2, 1, 3, (6, 6)), (1, 0, 1, (4, 3))]


@pytest.mark.parametrize(("stride", "padding", "kernel", "size"), GEOMETRIES)
@pytest.mark.parametrize("widely", [False, True])
def test_a_convolution_and_its_gradients(
    monkeypatch: pytest.MonkeyPatch,
    stride: int,
    padding: int,
    kernel: int,
    size: tuple[int, int],
    widely: bool,
) -> None:
    monkeypatch.setattr(convolution, "_widely", lambda outputs: widely)
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
@pytest.mark.parametrize("widely", [False, True])
def test_a_transposed_convolution_and_its_gradients(
    monkeypatch: pytest.MonkeyPatch, kernel: int, widely: bool
) -> None:
    monkeypatch.setattr(convolution, "_widely", lambda outputs: widely)
    images, weight = batch(2, 4, 3, 5).requires_grad_(), batch(4, 3, kernel, kernel).requires_grad_()

    def found(images: Tensor, weight: Tensor) -> Tensor:
        with second_order():
            return convolve_transposed(images, weight)

    expected = F.conv_transpose2d(images, weight, stride=2)
    torch.testing.assert_close(found(images, weight), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(convolve_transposed(images, weight), expected, rtol=0, atol=1e-12)
    assert gradcheck(found, (images, weight))
    assert gradgradcheck(found, (images, weight))


def test_wide_layers_in_half_precision_agree_with_pytorch() -> None:
    images, weight = batch(2, 128, 4, 4, dtype=torch.float32), batch(128, 8, 3, 3, dtype=torch.float32) / 34
    half = convolve_transposed(images.bfloat16(), weight.bfloat16())
    exact = F.conv_transpose2d(images.bfloat16().double(), weight.bfloat16().double(), stride=2)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), exact, rtol=0.01, atol=0.01)


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The largest kernel that a convolution was given within it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.side = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):  # type: ignore[no-untyped-def]
        if "conv" in function._overloadpacket.__name__:
            kernels = [value for value in arguments[:3] if isinstance(value, Tensor) and value.dim() == 4]
            self.side = max(self.side, kernels[-1].shape[-1])
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("announced", [False, True])
def test_a_second_gradient_needs_no_kernel_as_large_as_the_image(announced: bool) -> None:
    layer = EqualConv2d(2, 3, 3).double()
    images = batch(1, 2, 16, 16).requires_grad_()
    with _Largest() as seen:
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
