"""A discriminator that looks at images through a frozen, pretrained network: Projected GANs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from stylex.networks.layers import EqualLinear, at_least_float32
from stylex.parallel import ALONE

WIDTH = 64
"""Channels of the mixed features and of the convolutions that judge them."""

SMALLEST, LARGEST = 128, 256
"""Pixels a side of what the frozen network sees; images of other sizes are resized."""

STRIDES = (4, 8, 16, 32)


class ProjectedDiscriminator(nn.Module):
    """Images [N, 3, R, R] → scores [N, outputs], float32, as those of `Discriminator`.

    Source: Sauer et al. 2021, "Projected GANs Converge Faster", arXiv 2111.01007, section 3.2. Features of a
    frozen network at four scales are mixed across channels by random 1 × 1 convolutions and across scales,
    from coarse to fine, by random 3 × 3 ones, none of which is trained. Convolutions with spectral
    normalisation judge each scale.

    Departures: the scales' scores are summed before the loss and not after it, since all losses here take
    one score an image; no batch normalisation, so that a score does not hang on its neighbours in the batch;
    all convolutions 64 wide. The loss is the logistic one of all other recipes, not the hinge; R1 is the
    recipe's, the paper has none.

    Args:
        backbone: its `features` of images in [-1, 1] are maps, the last four at 1/4, 1/8, 1/16 and 1/32 of
            their size; it is frozen for good.
        channels: of these four.
        resolution: R, a power of two.
        outputs: scores an image.
    """

    def __init__(
        self, backbone: nn.Module, channels: Sequence[int], resolution: int, outputs: int = 1
    ) -> None:
        super().__init__()
        self.compute_dtype = torch.float32
        self.deviation_group, self.world = 0, ALONE  # as those of `Discriminator`; there is no such layer
        self.size = min(max(resolution, SMALLEST), LARGEST)
        self._backbone = (backbone,)  # no part of this module's state: it comes with its package
        self.across_channels = nn.ModuleList(nn.Conv2d(count, WIDTH, 1, bias=False) for count in channels)
        self.across_scales = nn.ModuleList(
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False) for _ in STRIDES[:-1]
        )
        for mixing in (*self.across_channels, *self.across_scales):
            assert isinstance(mixing, nn.Conv2d)
            nn.init.kaiming_normal_(mixing.weight, nonlinearity="linear")
            _freeze(mixing)
        self.judges = nn.ModuleList(_judge(self.size // stride) for stride in STRIDES)
        self.output = EqualLinear(WIDTH * len(STRIDES), outputs)

    @property
    def backbone(self) -> nn.Module:
        """The frozen network; it goes where this module goes."""
        return self._backbone[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.backbone._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, images: Tensor) -> Tensor:
        images = at_least_float32(images)
        if images.shape[-1] != self.size:
            images = F.interpolate(
                images, size=self.size, mode="bilinear", antialias=self.size < images.shape[-1]
            )
        backbone: Any = self.backbone
        exact = self.compute_dtype == torch.float32
        with nullcontext() if exact else torch.autocast(images.device.type, self.compute_dtype):
            mixed = self._mixed(backbone.features(images)[-len(STRIDES) :])
            found = [judge(maps).mean(dim=(2, 3)) for judge, maps in zip(self.judges, mixed, strict=True)]
        scores: Tensor = self.output(at_least_float32(torch.cat(found, dim=1)))
        return scores

    def _mixed(self, features: list[Tensor]) -> list[Tensor]:
        """Random mixtures of the features, finest first."""
        sides = [mix(maps) for mix, maps in zip(self.across_channels, features, strict=True)]
        mixed = [sides.pop()]
        for mix, maps in zip(reversed(self.across_scales), reversed(sides), strict=True):
            coarse = F.interpolate(mixed[0], scale_factor=2.0, mode="nearest")
            mixed.insert(0, mix((coarse + maps) * 0.5**0.5))
        return mixed


def _judge(size: int) -> nn.Sequential:
    """Maps [N, 64, S, S] → [N, 64, 4, 4] by halvings, then one more convolution."""
    layers: list[nn.Module] = []
    while size > 4:
        layers += [spectral_norm(nn.Conv2d(WIDTH, WIDTH, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
        size //= 2
    layers += [spectral_norm(nn.Conv2d(WIDTH, WIDTH, 3, padding=1)), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers)


def _freeze(mixing: nn.Conv2d) -> None:
    """Make a buffer of a convolution's weight: whoever trains the others would train it too."""
    weight = mixing.weight.detach()
    del mixing.weight
    mixing.register_buffer("weight", weight)
