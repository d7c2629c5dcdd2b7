"""StyleGAN2's residual discriminator, and the encoder that shares its shape."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylex.networks.evidence import Evidence
from stylex.networks.layers import EqualConv2d, EqualLinear, at_least_float32
from stylex.parallel import ALONE, World


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions and a 1 × 1 shortcut, resolution halved; the sum is scaled by 1/√2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = math.sqrt(0.5)
        self.conv0 = EqualConv2d(in_channels, in_channels, 3)
        self.conv1 = EqualConv2d(in_channels, out_channels, 3, down=True, gain=half)
        self.skip = EqualConv2d(
            in_channels, out_channels, 1, down=True, activate=False, bias=False, gain=half
        )

    def forward(self, features: Tensor) -> Tensor:
        outputs: Tensor = self.conv1(self.conv0(features)) + self.skip(features)
        return outputs


def minibatch_deviation(features: Tensor, group: int, world: World = ALONE) -> Tensor:
    """Append a channel with the mean standard deviation in groups of images (Karras et al. 2018, section 3).

    features [N, C, H, W] → [N, C + 1, H, W]. Image i is in the group of all j with j ≡ i modulo N / group, as
    in StyleGAN2. The group is the largest divisor of N that is at most `group`. Where several processes share
    a batch, groups are made of the whole batch (`World.gather`), N counting all its images: the result does
    not depend on how many processes there are.
    """
    whole = world.gather(at_least_float32(features))
    count, channels, height, width = whole.shape
    size = next(divisor for divisor in range(min(group, count), 0, -1) if count % divisor == 0)
    grouped = whole.reshape(size, count // size, channels, height, width)
    centred = grouped - grouped.mean(dim=0)
    deviation = (centred.square().mean(dim=0) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    own = world.own(deviation.to(features.dtype).repeat(size))
    plane = own[:, None, None, None].expand(-1, 1, height, width)
    return torch.cat([features, plane], dim=1).contiguous(memory_format=torch.channels_last)


class ResidualNetwork(nn.Module):
    """Images [N, 3, R, R] → [N, outputs], float32.

    Args:
        resolution: R, a power of two, at least 8.
        channels: feature channels of each resolution, from R down to 4.
        outputs: width of the last linear layer.
        hidden: width of the linear layer before it; by default the channels at 4 px, as published.
        deviation_group: images in a group of the minibatch standard deviation, 0 for none.
    """

    def __init__(
        self,
        resolution: int,
        channels: dict[int, int],
        outputs: int,
        *,
        hidden: int | None = None,
        deviation_group: int = 0,
    ) -> None:
        super().__init__()
        self.compute_dtype = torch.float32
        self.deviation_group = deviation_group
        self.world = ALONE  # set by who trains in several processes
        sizes = [2**power for power in range(int(math.log2(resolution)), 2, -1)]
        self.from_rgb = EqualConv2d(3, channels[resolution], 1)
        self.blocks = nn.ModuleList(ResidualBlock(channels[size], channels[size // 2]) for size in sizes)
        extra = 1 if deviation_group else 0
        last = channels[4]
        self.conv = EqualConv2d(last + extra, last, 3)
        self.hidden = EqualLinear(last * 16, hidden or last, activate=True)
        self.output = EqualLinear(hidden or last, outputs)

    def forward(self, images: Tensor) -> Tensor:
        features = images.to(self.compute_dtype, memory_format=torch.channels_last)
        features = self.from_rgb(features)
        for block in self.blocks:
            features = block(features)
        if self.deviation_group:
            features = minibatch_deviation(features, self.deviation_group, self.world)
        features = at_least_float32(self.conv(features)).flatten(1)
        outputs: Tensor = self.output(self.hidden(features))
        return outputs


COMPONENTS_RESOLUTION = 32
"""Principal components are those of images at this size, or at their own if that is smaller."""


class Encoder(ResidualNetwork):
    """Images → latents w [N, latent_features]; a discriminator without minibatch standard deviation.

    With `components` > 0, w = network(x) + A · (x↓ − m): principal components of the training images at 32 px
    are added to the first numbers of what the network finds (`training.components` fits A and m, which no
    gradient changes). Ours, not the paper's: small details are in w from the first step on, where the
    network alone leaves them out until the generator can draw them, which it cannot learn without them.

    Args:
        components: how many, at most latent_features.
        evidence: what the generator is told of the class where the recipe has it so; not part of w.
    """

    component_mean: Tensor
    component_weight: Tensor

    def __init__(
        self,
        resolution: int,
        channels: dict[int, int],
        latent_features: int,
        *,
        hidden: int | None = None,
        components: int = 0,
        evidence: Evidence | None = None,
    ) -> None:
        super().__init__(resolution, channels, latent_features, hidden=hidden)
        self.evidence = evidence
        self.components = components
        self.latent_features = latent_features
        if components:
            pixels = 3 * min(resolution, COMPONENTS_RESOLUTION) ** 2
            self.register_buffer("component_mean", torch.zeros(pixels))
            self.register_buffer("component_weight", torch.zeros(components, pixels))

    def learned(self, images: Tensor) -> Tensor:
        """The network's part of w: [N, latent_features]."""
        outputs: Tensor = super().forward(images)
        return outputs

    def project(self, images: Tensor) -> Tensor:
        """The components' part of w: [N, latent_features], the rest of the numbers 0. Needs components."""
        found = F.linear(shrunk(images) - self.component_mean, self.component_weight)
        return F.pad(found, (0, self.latent_features - self.components))

    def told(self, images: Tensor) -> Tensor:
        """Components of evidence [N, M], differentiable in the images. Needs evidence."""
        assert self.evidence is not None
        found: Tensor = self.evidence(images)
        return found

    def latents(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """w and the network's part of it, each [N, latent_features]; the same tensor without components."""
        learned = self.learned(images)
        return (learned + self.project(images) if self.components else learned), learned

    def forward(self, images: Tensor) -> Tensor:
        return self.latents(images)[0]


def shrunk(images: Tensor) -> Tensor:
    """Images [N, 3, R, R] at the size P = min(R, 32) of the components, as rows [N, 3 · P · P]."""
    small = at_least_float32(images)
    if images.shape[-1] > COMPONENTS_RESOLUTION:
        small = F.adaptive_avg_pool2d(small, COMPONENTS_RESOLUTION)
    return small.flatten(1)


class Discriminator(ResidualNetwork):
    """Images → scores [N, outputs]; see `conditional_score` for more than one output."""

    def __init__(
        self, resolution: int, channels: dict[int, int], outputs: int = 1, *, deviation_group: int = 4
    ) -> None:
        super().__init__(resolution, channels, outputs, deviation_group=deviation_group)


def conditional_score(outputs: Tensor, condition: Tensor | None) -> Tensor:
    """One score an image from the discriminator's outputs: [N].

    One output: that output, the condition ignored (the study). K outputs: Σₖ cₖ · Dₖ(x), the form that the
    authors of StylEx gave by letter. K + 1 outputs: D₀(x) + Σₖ cₖ · Dₖ(x), the recipe `fast`: an image must
    look real by itself, whatever its class.

    Args:
        outputs: [N, 1], [N, K] or [N, K + 1].
        condition: class probabilities [N, K], or None.
    """
    if outputs.shape[1] == 1:
        return outputs[:, 0]
    assert condition is not None
    classes = condition.shape[1]
    score = (outputs[:, -classes:] * condition).sum(dim=1)
    return score + outputs[:, 0] if outputs.shape[1] == classes + 1 else score
