"""MobileNet (Howard et al. 2017) as Keras builds it: what the released StylEx explains."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
"""Channels of the stem and of the thirteen blocks."""

STRIDES = (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
"""Of the stem and of each block's depthwise convolution."""

EPSILON = 1e-3
"""Keras's in batch normalisation."""


class Layer(nn.Module):
    """Convolution, batch normalisation, ReLU. With stride 2 zeros are added below and on the right alone."""

    def __init__(
        self, channels: int, width: int, *, kernel: int, stride: int, deep: bool, bounded: bool
    ) -> None:
        super().__init__()
        groups = channels if deep else 1
        padding = kernel // 2 if stride == 1 else 0
        self.convolution = nn.Conv2d(
            channels, width, kernel, stride=stride, padding=padding, groups=groups, bias=False
        )
        self.normalisation = nn.BatchNorm2d(width, eps=EPSILON)
        self.bounded = bounded

    def forward(self, maps: Tensor) -> Tensor:
        if self.convolution.stride[0] == 2:
            maps = F.pad(maps, (0, 1, 0, 1))
        found = self.normalisation(self.convolution(maps))
        return F.relu6(found) if self.bounded else F.relu(found)


class MobileNetV1(nn.Module):
    """Images [N, 3, H, W] → logits [N, K].

    Args:
        classes: K.
        widths: channels of the stem and of each block.
        bounded: whether ReLU has a ceiling of 6.
    """

    def __init__(self, classes: int, widths: Sequence[int] = WIDTHS, bounded: bool = True) -> None:
        super().__init__()
        strides = STRIDES[: len(widths)]
        layers = [Layer(3, widths[0], kernel=3, stride=strides[0], deep=False, bounded=bounded)]
        for before, after, stride in zip(widths, widths[1:], strides[1:], strict=False):
            layers.append(Layer(before, before, kernel=3, stride=stride, deep=True, bounded=bounded))
            layers.append(Layer(before, after, kernel=1, stride=1, deep=False, bounded=bounded))
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(widths[-1], classes)

    def forward_with_features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits [N, K], and the maps before each halving of the resolution and at the end."""
        maps: list[Tensor] = []
        current = images
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            if number and layer.convolution.stride[0] == 2:
                maps.append(current)
            current = layer(current)
        maps.append(current)
        return self.head(current.mean(dim=(2, 3))), maps

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_with_features(images)[0]
