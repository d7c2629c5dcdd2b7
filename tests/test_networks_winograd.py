"""Convolutions by tiles equal direct ones, with either stride, and so do their gradients of both orders."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from stylex import fused
from stylex.networks import winograd
from stylex.networks.convolution import convolve, convolve_transposed
from stylex.networks.winograd import pays


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in double precision and for small layers."""
    monkeypatch.setattr(winograd, "pays", lambda *given, **more: True)


def convolve3(images: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return convolve(images, weight, bias, padding=1)


def halve(images: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return convolve(images, weight, bias, stride=2)


def batch(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(sum(shape))
    return torch.randn(*shape, dtype=dtype)


SIZES = [(1, 1, 4, 4, 1), (2, 3, 8, 4, 5), (3, 4, 12, 20, 2), (2, 2, 64, 48, 3), (1, 2, 64, 4, 2)]
"""By fours, by sixes that fit, and by sixes that reach beyond the image."""

ODD_SIZES = [(2, 3, 7, 7, 2), (1, 2, 14, 9, 3), (2, 1, 1, 5, 1)]
"""Not for stride 2."""


def test_both_kinds_of_tiles_are_among_the_sizes() -> None:
    assert {winograd._way(size[2:4]) for size in SIZES} == {winograd.BY_FOUR, winograd.BY_SIX}


@pytest.mark.parametrize("size", SIZES + ODD_SIZES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.usefixtures("always")
def test_equals_a_direct_convolution(size: tuple[int, ...], layout: torch.memory_format) -> None:
    count, channels, height, width, features = size
    images = batch(count, channels, height, width).contiguous(memory_format=layout)
    weight, bias = batch(features, channels, 3, 3), batch(features)
    found = convolve3(images, weight, bias)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, F.conv2d(images, weight, bias, padding=1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.usefixtures("always")
def test_stride_two_equals_a_direct_convolution_and_its_adjoint(
    size: tuple[int, ...], layout: torch.memory_format
) -> None:
    count, channels, height, width, features = size
    large = batch(count, channels, 2 * height + 1, 2 * width + 1).contiguous(memory_format=layout)
    small = batch(count, features, height, width).contiguous(memory_format=layout)
    weight, bias = batch(features, channels, 3, 3), batch(features)
    found, back = halve(large, weight, bias), convolve_transposed(small, weight)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, F.conv2d(large, weight, bias, stride=2), rtol=0, atol=1e-12)
    torch.testing.assert_close(back, F.conv_transpose2d(small, weight, stride=2), rtol=0, atol=1e-12)
    assert (found * small).sum() - (bias[:, None, None] * small).sum() == pytest.approx(
        float((large * back).sum())
    )


@pytest.mark.parametrize("bytes_at_once", [1, 1 << 20])
@pytest.mark.parametrize(
    ("function", "size"),
    [(convolve3, (8, 4)), (convolve3, (12, 12)), (halve, (9, 17)), (convolve_transposed, (4, 8))],
)
@pytest.mark.usefixtures("always")
def test_gradients_by_finite_differences(
    monkeypatch: pytest.MonkeyPatch, function: Any, size: tuple[int, int], bytes_at_once: int
) -> None:
    monkeypatch.setattr(winograd, "PART_BYTES", bytes_at_once)  # image by image, and all at once
    given = [batch(*shape).requires_grad_() for shape in ((2, 1, *size), (1, 1, 3, 3), (1,))]
    given = given[:2] if function is convolve_transposed else given
    assert gradcheck(function, given)
    assert gradgradcheck(function, given)


@pytest.mark.usefixtures("always")
def test_a_kept_transform_is_used_again() -> None:
    weight, bias = batch(4, 3, 3, 3), batch(4)
    small, large = batch(2, 3, 8, 8), batch(2, 3, 64, 64)
    kept: winograd.Kept = {}
    twice: winograd.Kept = {}
    for _ in range(2):
        for images in (small, large):
            found = fused.convolve(images, weight, bias, slope=0.2, padding=1, kept=kept)
            expected = F.leaky_relu(F.conv2d(images, weight, bias, padding=1), 0.2)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        images = batch(2, 4, 8, 8)
        found = fused.double(images, weight, twice)
        torch.testing.assert_close(found, F.conv_transpose2d(images, weight, stride=2), rtol=0, atol=1e-12)
    assert set(kept) == {winograd.BY_FOUR, winograd.BY_SIX}
    assert set(twice) == {winograd.DOUBLING}
    kept[winograd.BY_FOUR].zero_()
    assert not fused.convolve(small, weight, None, slope=0.2, padding=1, kept=kept).any()


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
    width = winograd.LEAST_CHANNELS[1]
    images = batch(1, width, 64, 64, dtype=torch.float32)
    weight = batch(width, width, 3, 3, dtype=torch.float32) / (9 * width) ** 0.5
    assert pays(images, weight, (64, 64))
    exact = F.conv2d(images.double(), weight.double(), padding=1)
    difference = (convolve3(images, weight).double() - exact).abs().max()
    assert 0 < difference < 1e-4
    for other, kernel in (
        (images.bfloat16(), weight.bfloat16()),
        (images.double(), weight.double()),
        (images[:, :-1], weight[:, :-1]),
        (images, weight[:-1]),
        (images.reshape(1, width, 4096, 1), weight),  # most of a tile would lie beside the image
        (images[..., :48, :48], weight),
    ):
        assert not pays(other, kernel, other.shape[2:])
        torch.testing.assert_close(
            convolve3(other, kernel), F.conv2d(other, kernel, padding=1), rtol=0, atol=0
        )
    some = images[..., :40, :40]
    assert not pays(some, weight, (40, 40))
    assert pays(some, weight, (40, 40), kept=True)


def test_wide_layers_with_stride_two_stay_close() -> None:
    width = winograd.LEAST_CHANNELS[2]
    large, small = (batch(2, width, *size, dtype=torch.float32) for size in ((65, 65), (32, 32)))
    weight = batch(width, width, 3, 3, dtype=torch.float32) / (9 * width) ** 0.5
    assert pays(small, weight, (32, 32), stride=2)
    assert not pays(small, weight[1:], (32, 32), stride=2)
    assert not pays(small[:1], weight, (32, 32), stride=2)
    assert pays(small[:1], weight, (32, 32), stride=2, kept=True)
    for found, exact in (
        (halve(large, weight), F.conv2d(large.double(), weight.double(), stride=2)),
        (convolve_transposed(small, weight), F.conv_transpose2d(small.double(), weight.double(), stride=2)),
    ):
        assert 0 < (found.double() - exact).abs().max() < 1e-4


@pytest.mark.parametrize("slope", [0.0, 0.2, None])
def test_with_bias_and_rectifier(slope: float | None) -> None:
    width = winograd.LEAST_CHANNELS[1]
    images, weight = (
        batch(1, width, 64, 64, dtype=torch.float32),
        batch(width, width, 3, 3, dtype=torch.float32),
    )
    weight, bias = weight / 42, batch(width, dtype=torch.float32)
    found = fused.convolve(images, weight, bias, slope=slope, padding=1)
    expected = F.conv2d(images.double(), weight.double(), bias.double(), padding=1)
    expected = expected if slope is None else F.leaky_relu(expected, slope)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-4)
