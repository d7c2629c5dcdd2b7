"""Layers against slow references, in double precision unless rounding is the point."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import slow_references as slow
from stylex.networks import (
    EqualConv2d,
    EqualLinear,
    Mapping,
    blur,
    conditional_score,
    downsample2,
    layers,
    upsample2,
)
from stylex.networks.generator import StyledConv, ToRGB
from stylex.networks.residual import ResidualBlock, minibatch_deviation

SIZES = [(2, 3, 8, 8), (1, 2, 4, 6)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("padding", [1, 2])
def test_blur_is_a_correlation_with_the_filter(size: tuple[int, ...], padding: int) -> None:
    images = torch.randn(size, dtype=torch.float64)
    expected = 1.5 * slow.correlate(F.pad(images, (padding,) * 4), slow.FIR)
    assert_close(blur(images, padding, gain=1.5), expected)


@pytest.mark.parametrize("matrices", [0, layers.MATRIX_PIXELS])
@pytest.mark.parametrize("size", SIZES)
def test_resampling_is_zero_insertion_filter_and_decimation(
    size: tuple[int, ...], matrices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "MATRIX_PIXELS", matrices)
    images = torch.randn(size, dtype=torch.float64)
    assert_close(upsample2(images), slow.upsample(images))
    assert_close(downsample2(images), slow.downsample(images))


def test_resampling_keeps_a_flat_image_flat_inside() -> None:
    flat = torch.full((1, 1, 8, 8), 3.0, dtype=torch.float64)
    assert_close(upsample2(flat)[:, :, 1:-1, 1:-1], torch.full((1, 1, 14, 14), 3.0, dtype=torch.float64))
    assert_close(downsample2(flat)[:, :, 1:-1, 1:-1], torch.full((1, 1, 2, 2), 3.0, dtype=torch.float64))


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("noise", [None, "shared", "own"])
@pytest.mark.parametrize("strength", [1.0, 1e-4], ids=["", "so weak that ε shows"])
def test_styled_convolution_equals_one_with_a_kernel_for_every_image(
    up: bool, noise: str | None, strength: float
) -> None:
    side = 10 if up else 5
    layer = StyledConv(3, 4, side, up=up).double()
    torch.nn.init.normal_(layer.bias)
    torch.nn.init.normal_(layer.noise_strength)
    features = torch.randn(5, 3, 5, 5, dtype=torch.float64)
    style = torch.randn(5, 3, dtype=torch.float64) * strength
    maps = {
        None: None,
        "shared": layer.fixed_noise,
        "own": torch.randn(5, 1, side, side, dtype=torch.float64),
    }[noise]
    convolved = slow.modulated_convolution(features, layer.weight, style, demodulate=True, up=up)
    if maps is not None:
        convolved = convolved + layer.noise_strength * maps
    expected = F.leaky_relu(convolved + layer.bias[None, :, None, None], 0.2) * 2**0.5
    assert_close(layer(features, style, maps), expected, rtol=1e-6, atol=1e-7)


def test_colours_are_a_modulated_convolution_without_demodulation_on_top_of_the_image() -> None:
    layer = ToRGB(4).double()
    torch.nn.init.normal_(layer.bias)
    features = torch.randn(3, 4, 8, 8, dtype=torch.float64)
    style = torch.randn(3, 4, dtype=torch.float64)
    image = torch.randn(3, 3, 4, 4, dtype=torch.float64)
    colours = slow.modulated_convolution(features, layer.weight, style, demodulate=False, up=False)
    colours = colours + layer.bias[None, :, None, None]
    assert_close(layer(features, style, None), colours)
    assert_close(layer(features, style, image), colours + slow.upsample(image))


@pytest.mark.parametrize(("kernel_size", "padding"), [(1, 1), (3, 2)])
def test_downward_convolution_filters_convolves_and_drops(kernel_size: int, padding: int) -> None:
    layer = EqualConv2d(3, 5, kernel_size, down=True, gain=0.7).double()
    torch.nn.init.normal_(layer.bias)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    filtered = slow.correlate(F.pad(images, (padding,) * 4), slow.FIR)
    weight = layer.weight / (3 * kernel_size**2) ** 0.5
    outputs = F.conv2d(filtered, weight)[:, :, ::2, ::2] + layer.bias[None, :, None, None]
    assert outputs.shape == (2, 5, 4, 4)
    assert_close(layer(images), F.leaky_relu(outputs, 0.2) * 2**0.5 * 0.7)


def test_residual_block_is_the_scaled_sum_of_both_ways() -> None:
    block = ResidualBlock(3, 4).double()
    for layer in (block.conv0, block.conv1):
        torch.nn.init.normal_(layer.bias)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    first = F.conv2d(images, block.conv0.weight / 27**0.5, block.conv0.bias, padding=1)
    first = F.leaky_relu(first, 0.2) * 2**0.5
    second = slow.correlate(F.pad(first, (2, 2, 2, 2)), slow.FIR)
    second = F.conv2d(second, block.conv1.weight / 27**0.5, block.conv1.bias)[:, :, ::2, ::2]
    second = F.leaky_relu(second, 0.2) * 2**0.5
    skip = F.conv2d(slow.downsample(images), block.skip.weight / 3**0.5)
    assert_close(block(images), (second + skip) / 2**0.5)


@pytest.mark.parametrize(
    ("count", "group", "used"), [(8, 4, 4), (4, 4, 4), (6, 4, 3), (5, 4, 1), (3, 4, 3), (1, 4, 1)]
)
def test_minibatch_deviation_equals_loops(count: int, group: int, used: int) -> None:
    features = torch.randn(count, 2, 3, 3, dtype=torch.float64)
    result = minibatch_deviation(features, group)
    assert torch.equal(result[:, :2], features)
    assert_close(result[:, 2], slow.minibatch_deviation(features, used))


def test_equal_linear_scales_weight_and_bias() -> None:
    layer = EqualLinear(16, 3, rate=0.01, activate=True).double()
    torch.nn.init.normal_(layer.bias)
    features = torch.randn(2, 16, dtype=torch.float64)
    outputs = features @ (layer.weight * 0.01 / 4).T + layer.bias * 0.01
    assert_close(layer(features), torch.where(outputs > 0, outputs, 0.2 * outputs) * 2**0.5)


@torch.no_grad()
def test_fresh_layers_keep_unit_variance() -> None:
    torch.manual_seed(0)
    features = torch.randn(4096, 256)
    assert float(EqualLinear(256, 128, rate=0.01)(features).std()) == pytest.approx(1.0, rel=0.05)
    # Leaky ReLU scaled by √2 multiplies the second moment of a symmetric input by 1 + 0.2².
    moment = float(Mapping(256, 256, layers=8)(features).square().mean())
    assert moment == pytest.approx(1.04**8, rel=0.15)


def test_mapping_normalises_z_and_truncates_towards_the_mean() -> None:
    mapping = Mapping(6, 5, layers=2)
    mapping.mean_w.normal_()
    z = torch.randn(3, 6)
    w = mapping(z)
    assert_close(mapping(7.0 * z), w)
    assert_close(mapping(z, truncation=0.3), mapping.mean_w + 0.3 * (w - mapping.mean_w))
    assert_close(mapping(z, truncation=0.0), mapping.mean_w.expand(3, -1))


def test_running_mean_of_w_moves_by_its_rate() -> None:
    mapping = Mapping(4, 2, layers=1)
    for _ in range(3):
        mapping.update_mean(torch.tensor([[1.0, 0.0], [3.0, -4.0]]), decay=0.75)
    assert_close(mapping.mean_w, torch.tensor([2.0, -2.0]) * (1 - 0.75**3))


def test_conditional_score_by_hand() -> None:
    outputs = torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]])
    condition = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    assert conditional_score(outputs[:, :1], None).tolist() == [1.0, 2.0]
    assert conditional_score(outputs[:, 1:], condition).tolist() == [77.5, 20.0]
    assert conditional_score(outputs, condition).tolist() == [78.5, 22.0]
