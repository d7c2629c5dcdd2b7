"""First and second derivatives of whole networks: what R1 and path length regularisation need."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from stylex.networks import Discriminator, Encoder, Generator, blur, downsample2
from stylex.networks.convolution import second_order

CHANNELS = {4: 3, 8: 2}

Announced = Callable[[], AbstractContextManager[None]]


def in_double(network: nn.Module) -> None:
    network.double()
    for module in network.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.float64


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    generator = Generator(3, 1, 8, CHANNELS)
    in_double(generator)
    return generator


@pytest.fixture
def discriminator() -> Discriminator:
    torch.manual_seed(0)
    discriminator = Discriminator(8, CHANNELS, 2)
    in_double(discriminator)
    return discriminator


def test_generator_by_finite_differences(generator: Generator) -> None:
    generator.requires_grad_(False)
    latents = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(generator, (latents,), fast_mode=True)
    assert gradgradcheck(generator, (latents,), fast_mode=True)


def test_discriminator_and_encoder_by_finite_differences(discriminator: Discriminator) -> None:
    encoder = Encoder(8, CHANNELS, 3)
    in_double(encoder)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    for network in (discriminator, encoder):
        network.requires_grad_(False)
        assert gradcheck(network, (images,), fast_mode=True)
        assert gradgradcheck(network, (images,), fast_mode=True)


def assert_gradient(network: nn.Module, loss: Callable[[], Tensor], step: float = 1e-6) -> None:
    """Compare a loss's slope along a random direction in weight space with a central difference."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    directions = [torch.randn_like(parameter) for parameter in parameters]
    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    pairs = zip(gradients, directions, strict=True)
    slope = sum(
        float((gradient * direction).sum().detach()) for gradient, direction in pairs if gradient is not None
    )

    def at(distance: float) -> float:
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += distance * direction
        value = float(loss().detach())
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter -= distance * direction
        return value

    measured = (at(step) - at(-step)) / (2 * step)
    assert abs(slope) > 1e-3
    assert measured == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("announced", [nullcontext, second_order])
def test_gradient_of_the_r1_penalty(discriminator: Discriminator, announced: Announced) -> None:
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)

    def penalty() -> Tensor:
        with announced():
            score = discriminator(images).sum()
        (gradient,) = torch.autograd.grad(score, images, create_graph=True)
        return gradient.square().sum(dim=(1, 2, 3)).mean()

    assert_gradient(discriminator, penalty)


@pytest.mark.parametrize("announced", [nullcontext, second_order])
@pytest.mark.parametrize("per_layer", [False, True])
def test_gradient_of_the_path_length_penalty(
    generator: Generator, per_layer: bool, announced: Announced
) -> None:
    shape = (2, generator.synthesis.w_count, 4) if per_layer else (2, 4)
    latents = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(2, 3, 8, 8, dtype=torch.float64) / 8

    def penalty() -> Tensor:
        with announced():
            image = generator(latents)
        (gradient,) = torch.autograd.grad((image * direction).sum(), latents, create_graph=True)
        lengths = gradient.square().flatten(1).sum(dim=1).sqrt()
        return (lengths - 0.1).square().mean()

    assert_gradient(generator, penalty)


@pytest.mark.parametrize("padding", [0, 1, 2, 3])
def test_the_filter_by_finite_differences(padding: int) -> None:
    images = torch.randn(2, 3, 6, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: blur(x, padding, 1.5), (images,))
    assert gradgradcheck(lambda x: blur(x, padding, 1.5), (images,))


def test_halving_by_finite_differences() -> None:
    images = torch.randn(2, 3, 6, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(downsample2, (images,))
    assert gradgradcheck(downsample2, (images,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_the_filter_are_autograds_own(dtype: torch.dtype) -> None:
    images = torch.randn(2, 5, 8, 8).to(dtype).requires_grad_()
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=dtype)
    kernel = (torch.outer(taps, taps) / 64).expand(5, 1, 4, 4)
    for mine, plain in (
        (blur(images, 2), F.conv2d(images, kernel, padding=2, groups=5)),
        (downsample2(images), F.conv2d(images, kernel, padding=1, stride=2, groups=5)),
    ):
        upstream = torch.randn_like(plain)
        found, expected = (torch.autograd.grad(out, images, upstream)[0] for out in (mine, plain))
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.02)
