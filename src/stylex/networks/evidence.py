"""What speaks for a class, part by part: components of a classifier's local evidence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylex.networks.layers import at_least_float32

WIDTHS = (32, 64, 96)
"""Channels of the three 3 × 3 convolutions that give local evidence."""

MAP_SIZE = 16
"""Side of a map of evidence."""

LARGEST = 64
"""Larger images are averaged down to this size first."""

DEVIATION = 0.5
"""Standard deviation of a component over the training images: near that of the probability of a class."""


class Evidence(nn.Module):
    """Images [N, 3, R, R] → components [N, M] of the evidence that a classifier finds in them. Ours.

    Three 3 × 3 convolutions and a 1 × 1 give maps of evidence [N, L, 16, 16] whose sums are the classifier's
    L log-odds, up to a constant: a student that sees no more than a small neighbourhood of each place, as in
    Brendel & Bethge 2019 (BagNet). So evidence of glasses lies on glasses and evidence of grey hair on hair,
    whatever the classifier itself computes. Components of these maps (`training.evidence` fits the student,
    `training.causes` finds them) then vary one by one: each is one thing that speaks for or against a class.

    Nothing in here is trained with the networks around it; all numbers are buffers.

    Args:
        resolution: R, a power of two, at least 16.
        outputs: L, the classifier's classes.
        components: M; rows of `unmixing` that were not needed stay 0, and so do their components.
    """

    head: Tensor
    mean: Tensor
    unmixing: Tensor

    def __init__(self, resolution: int, outputs: int, components: int) -> None:
        super().__init__()
        self.resolution, self.outputs, self.components = resolution, outputs, components
        self.compute_dtype = torch.float32
        before = 3
        for number, width in enumerate(WIDTHS):
            self.register_buffer(f"weight{number}", torch.zeros(width, before, 3, 3))
            self.register_buffer(f"bias{number}", torch.zeros(width))
            before = width
        self.register_buffer("head", torch.zeros(outputs, before, 1, 1))
        self.register_buffer("mean", torch.zeros(outputs * MAP_SIZE**2))
        self.register_buffer("unmixing", torch.zeros(components, outputs * MAP_SIZE**2))

    def maps(self, images: Tensor) -> Tensor:
        """Evidence at each place, [N, L, 16, 16], float32; its sum is the log-odds less their mean."""
        small = reduced(images).to(self.compute_dtype, memory_format=torch.channels_last)
        for number, halve in enumerate(halvings(small.shape[-1])):
            if halve:
                small = F.avg_pool2d(small, 2)
            weight, bias = self.get_buffer(f"weight{number}"), self.get_buffer(f"bias{number}")
            small = F.relu(F.conv2d(small, weight.to(small.dtype), bias.to(small.dtype), padding=1))
        return at_least_float32(F.conv2d(small, self.head.to(small.dtype)))

    def forward(self, images: Tensor) -> Tensor:
        return F.linear(self.maps(images).flatten(1) - self.mean, self.unmixing)

    @property
    def used(self) -> Tensor:
        """How many components were needed, the first ones; on the device of the others."""
        return (self.unmixing != 0).any(dim=1).sum()


def reduced(images: Tensor) -> Tensor:
    """Images at the size on which evidence is found: their own, or `LARGEST`."""
    return F.adaptive_avg_pool2d(images, LARGEST) if images.shape[-1] > LARGEST else images


def halvings(size: int) -> tuple[bool, bool, bool]:
    """Whether the maps are halved before each of the three convolutions, so that `MAP_SIZE` is reached."""
    times = (size // MAP_SIZE).bit_length() - 1
    return (False, times > 1, times > 0)
