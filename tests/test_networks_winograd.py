"""Convolutions by tiles equal direct ones, and so do their gradients of both orders."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from stylex import fused
from stylex.networks import winograd
from stylex.networks.convolution import convolve
from stylex.networks.winograd import pays


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in double precision and for small layers."""
    monkeypatch.setattr(winograd, "pays", lambda images, weight: True)


def convolve3(images: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return convolve(images, weight, bias, padding=1)


def batch(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(sum(shape))
    return torch.randn(*shape, dtype=dtype)


@pytest.mark.parametrize("size", [(1, 1, 4, 4, 1), (2, 3, 8, 4, 5), (3, 4, 12, 20, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.usefixtures("always")
def test_equals_a_direct_convolution(size: tuple[int, ...], layout: torch.memory_format) -> None:
    count, channels, height, width, features = size
    images = batch(count, channels, height, width).contiguous(memory_format=layout)
    weight, bias = batch(features, channels, 3, 3), batch(features)
    found = convolve3(images, weight, bias)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, F.conv2d(images, weight, bias, padding=1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bytes_at_once", [1, 1 << 20])
@pytest.mark.usefixtures("always")
def test_gradients_by_finite_differences(monkeypatch: pytest.MonkeyPatch, bytes_at_once: int) -> None:
    monkeypatch.setattr(winograd, "PART_BYTES", bytes_at_once)  # image by image, and all at once
    images, weight, bias = (batch(*shape).requires_grad_() for shape in ((2, 2, 8, 4), (3, 2, 3, 3), (3,)))
    assert gradcheck(convolve3, (images, weight, bias))
    assert gradgradcheck(convolve3, (images, weight, bias))


@pytest.mark.usefixtures("always")
def test_only_the_gradients_that_are_asked_for_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    images = batch(1, 2, 4, 4).requires_grad_()
    weight = batch(2, 2, 3, 3).requires_grad_()
    called: list[str] = []
    for name in ("correlation", "outputs"):
        whole = getattr(winograd, name)
        monkeypatch.setattr(
            winograd,
            name,
            lambda *given, whole=whole, name=name, **more: (called.append(name), whole(*given, **more))[1],
        )
    outputs = convolve3(images * 1, weight * 1)
    called.clear()
    torch.autograd.grad(outputs.sum(), images, retain_graph=True)
    assert called == ["outputs"]
    called.clear()
    torch.autograd.grad(outputs.sum(), weight)
    assert called == ["correlation"]


def test_wide_layers_in_float32_are_done_by_tiles_and_stay_close() -> None:
    images = batch(1, winograd.LEAST_CHANNELS, 64, 64, dtype=torch.float32)
    weight = batch(winograd.LEAST_CHANNELS, winograd.LEAST_CHANNELS, 3, 3, dtype=torch.float32) / 42
    assert pays(images, weight)
    exact = F.conv2d(images.double(), weight.double(), padding=1)
    difference = (convolve3(images, weight).double() - exact).abs().max()
    assert 0 < difference < 2e-4
    for other, kernel in (
        (images.bfloat16(), weight.bfloat16()),
        (images.double(), weight.double()),
        (images[:, :-1], weight[:, :-1]),
        (images, weight[:-1]),
        (images[..., :-4], weight),
        (F.pad(images, (0, 2)), weight),
    ):
        assert not pays(other, kernel)
        torch.testing.assert_close(
            convolve3(other, kernel), F.conv2d(other, kernel, padding=1), rtol=0, atol=0
        )


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_with_bias_and_rectifier(slope: float) -> None:
    width = winograd.LEAST_CHANNELS
    images, weight = (
        batch(1, width, 64, 64, dtype=torch.float32),
        batch(width, width, 3, 3, dtype=torch.float32),
    )
    weight, bias = weight / 42, batch(width, dtype=torch.float32)
    found = fused.convolve(images, weight, bias, slope=slope, padding=1)
    expected = F.leaky_relu(F.conv2d(images.double(), weight.double(), bias.double(), padding=1), slope)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-4)
