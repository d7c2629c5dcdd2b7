"""Slow, obvious forms of the layers, for tests to compare the fast ones with."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

FIR = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])).double() / 64


def correlate(images: Tensor, kernel: Tensor) -> Tensor:
    """Every channel of [N, C, H, W] with a kernel [h, w], valid positions only, tap by tap."""
    rows, columns = kernel.shape
    height, width = images.shape[2] - rows + 1, images.shape[3] - columns + 1
    total = torch.zeros_like(images[:, :, :height, :width])
    for row in range(rows):
        for column in range(columns):
            part = images[:, :, row : row + height, column : column + width]
            total += kernel[row, column].to(images.dtype) * part
    return total


def insert_zeros(images: Tensor) -> Tensor:
    """A zero after every sample of both axes: [N, C, H, W] → [N, C, 2H, 2W]."""
    count, channels, height, width = images.shape
    result = images.new_zeros(count, channels, 2 * height, 2 * width)
    result[:, :, ::2, ::2] = images
    return result


def upsample(images: Tensor) -> Tensor:
    """Insert zeros, filter with gain 4."""
    return correlate(F.pad(insert_zeros(images), (2, 1, 2, 1)), 4 * FIR)


def downsample(images: Tensor) -> Tensor:
    """Filter, keep every second sample."""
    return correlate(F.pad(images, (1, 1, 1, 1)), FIR)[:, :, ::2, ::2]


def modulated_convolution(
    images: Tensor, weight: Tensor, style: Tensor, *, demodulate: bool, up: bool
) -> Tensor:
    """Karras et al. 2020, equations 1 and 3: a kernel for every image, in one grouped convolution.

    With `up`, the images are up-sampled first and then convolved with the mirrored kernel, as a transposed
    convolution does. images [N, I, H, W], weight [O, I, k, k], style [N, I].
    """
    outputs, inputs, size, _ = weight.shape
    kernels = weight[None] / math.sqrt(inputs * size**2) * style[:, None, :, None, None]
    if demodulate:
        kernels = kernels / (kernels.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8).sqrt()
    padding = size // 2
    if up:
        # The border needs what the filter spreads outside the image: keep it, and cut after the convolution.
        images = correlate(F.pad(insert_zeros(images), (4, 3, 4, 3)), 4 * FIR)
        kernels = kernels.flip(3, 4)
        padding = 0
    count, _, height, width = images.shape
    grouped = F.conv2d(
        images.reshape(1, count * inputs, height, width),
        kernels.reshape(count * outputs, inputs, size, size),
        padding=padding,
        groups=count,
    )
    result = grouped.reshape(count, outputs, *grouped.shape[2:])
    return result[:, :, 1:-1, 1:-1] if up else result


def minibatch_deviation(features: Tensor, size: int) -> Tensor:
    """The extra channel of minibatch standard deviation, [N, H, W], loop by loop; `size` divides N."""
    count, channels, height, width = features.shape
    plane = torch.zeros(count, height, width, dtype=features.dtype)
    for image in range(count):
        group = [other for other in range(count) if other % (count // size) == image % (count // size)]
        deviations = []
        for channel in range(channels):
            for row in range(height):
                for column in range(width):
                    values = [float(features[other, channel, row, column]) for other in group]
                    mean = sum(values) / len(values)
                    variance = sum((value - mean) ** 2 for value in values) / len(values)
                    deviations.append(math.sqrt(variance + 1e-8))
        plane[image] = sum(deviations) / len(deviations)
    return plane
