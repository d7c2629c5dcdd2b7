"""What speaks for a class, part by part: components of a classifier's local evidence."""

from __future__ import annotations

from typing import Any

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

CERTAINTY = 6.0
"""Log-odds of its own kind that an image is given which stands where its kind does in the mean."""

TOLD = ("middle", "below", "above", "centre", "spread")
"""Buffers [M] that say what components are told as; 0, and a spread of 1, where that is what they are."""


class Evidence(nn.Module):
    """Images [N, 3, R, R] → components [N, M] of the evidence that a classifier finds in them. Ours.

    Three 3 × 3 convolutions and a 1 × 1 give maps of evidence [N, L, 16, 16] whose sums are the classifier's
    L log-odds, up to a constant: a student that sees no more than a small neighbourhood of each place, as in
    Brendel & Bethge 2019 (BagNet). So evidence of glasses lies on glasses and evidence of grey hair on hair,
    whatever the classifier itself computes. Components of these maps (`training.evidence` fits the student,
    `training.causes` finds them) then vary one by one: each is one thing that speaks for or against a class.

    A component that comes in two kinds (glasses or none) is told as which of the two it is. What varies
    within a kind is not the cause: evidence of glasses is a little stronger over some eyebrows than over
    others, and whoever is told it learns to change the eyebrows along. Of such a component the values are
    (tanh(λ / 2) - m) / d with λ = slope · (component - middle), how much it is of its second kind: -6 at the
    mean of the first and 6 at that of the second, with a slope `below` the middle and one `above` it; m
    (`centre`) and d (`spread`) make it of mean 0 and deviation 0.5 as all the others. Where the slopes are 0
    a component is told as it is.

    Nothing in here is trained with the networks around it; all numbers are buffers.

    Args:
        resolution: R, a power of two, at least 16.
        outputs: L, the classifier's classes.
        components: M; rows of `unmixing` that were not needed stay 0, and so do their components.
    """

    head: Tensor
    mean: Tensor
    unmixing: Tensor
    middle: Tensor
    below: Tensor
    above: Tensor
    centre: Tensor
    spread: Tensor

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
        for name in TOLD:
            self.register_buffer(name, torch.full((components,), float(name == "spread")))
        self.register_load_state_dict_pre_hook(_told_as_they_are)  # type: ignore[no-untyped-call]

    def maps(self, images: Tensor) -> Tensor:
        """Evidence at each place, [N, L, 16, 16], float32; its sum is the log-odds less their mean."""
        small = reduced(images).to(self.compute_dtype, memory_format=torch.channels_last)
        for number, halve in enumerate(halvings(small.shape[-1])):
            if halve:
                small = F.avg_pool2d(small, 2)
            weight, bias = self.get_buffer(f"weight{number}"), self.get_buffer(f"bias{number}")
            small = F.relu(F.conv2d(small, weight.to(small.dtype), bias.to(small.dtype), padding=1))
        return at_least_float32(F.conv2d(small, self.head.to(small.dtype)))

    def linear(self, images: Tensor) -> Tensor:
        """Components [N, M] as they are, whatever they are told as."""
        return F.linear(self.maps(images).flatten(1) - self.mean, self.unmixing)

    def forward(self, images: Tensor) -> Tensor:
        found = self.linear(images)
        which = (torch.tanh(self._leaning(found) / 2) - self.centre) / self.spread
        return torch.where(self.of_two_kinds, which, found)

    @property
    def of_two_kinds(self) -> Tensor:
        """Whether a component is told as which of two kinds it is, [M]."""
        return self.below > 0

    def turned(self, told: Tensor) -> Tensor:
        """What components [N, M] are told as where each is of the other kind, or as far on the other side."""
        second = self.spread * told + self.centre > 0
        other = (torch.where(second, -1.0, 1.0) - self.centre) / self.spread
        return torch.where(self.of_two_kinds, other, torch.where(told > 0, -DEVIATION, DEVIATION))

    def _leaning(self, linear: Tensor) -> Tensor:
        """Log-odds of the second kind, of components that come in two."""
        away = linear - self.middle
        return away * torch.where(away < 0, self.below, self.above)

    def apart(self, images: Tensor, asked: Tensor) -> Tensor:
        """How far the components of images are from those asked for, [N, M], 0 where they agree.

        Squared differences in units of a component's deviation; of one that comes in two kinds the divergence
        of which kind it is from which was asked for: near 6 where one is asked for and the other seen,
        however rare either is (a squared difference is 4 where they are as frequent), and never without a
        slope there.
        """
        found = self.linear(images)
        leaning = self._leaning(found)
        likely = ((asked * self.spread + self.centre + 1) / 2).clamp(0, 1)  # of the second kind
        entropy = -(torch.xlogy(likely, likely) + torch.xlogy(1 - likely, 1 - likely))
        divergence = F.binary_cross_entropy_with_logits(leaning, likely, reduction="none") - entropy
        return torch.where(self.of_two_kinds, divergence, ((found - asked) / DEVIATION).square())

    @property
    def used(self) -> Tensor:
        """How many components were needed, the first ones; on the device of the others."""
        return (self.unmixing != 0).any(dim=1).sum()


def _told_as_they_are(evidence: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any, **__: Any) -> None:
    """Evidence that was stored before components came in two kinds has none that do."""
    for name in TOLD:
        state.setdefault(prefix + name, torch.full_like(evidence.get_buffer(name), name == "spread"))


def reduced(images: Tensor) -> Tensor:
    """Images at the size on which evidence is found: their own, or `LARGEST`."""
    return F.adaptive_avg_pool2d(images, LARGEST) if images.shape[-1] > LARGEST else images


def halvings(size: int) -> tuple[bool, bool, bool]:
    """Whether the maps are halved before each of the three convolutions, so that `MAP_SIZE` is reached."""
    times = (size // MAP_SIZE).bit_length() - 1
    return (False, times > 1, times > 0)
