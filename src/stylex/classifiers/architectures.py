"""The networks that `stylex classifier train` can train, built by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import MobileNetV2, get_model, list_models

from stylex import fused
from stylex.classifiers.mobilenet_v1 import MobileNetV1
from stylex.errors import ClassifierError
from stylex.extras import import_extra

SMALL_CNN_WIDTHS = (32, 64, 128, 128)
"""Channels of the four blocks of `small_cnn`."""

MOBILENET_STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
"""Expansion, channels and blocks of each stage of MobileNetV2 (Sandler et al. 2018, table 2)."""

MOBILENET_FEATURES = (3, 6, 13, 17)
"""Blocks whose outputs MobileNetV2 exposes: the ends of the stages with 24, 32, 96 and 320 channels."""


class Block(nn.Module):
    """3 × 3 convolution, batch normalisation, ReLU: [N, C, H, W] → [N, width, H, W]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.normalisation = nn.BatchNorm2d(width)

    def forward(self, maps: Tensor) -> Tensor:
        if self.training:
            return F.relu(self.normalisation(self.convolution(maps)))
        weight, bias = self.folded()
        if torch.is_grad_enabled():
            return F.relu(F.conv2d(maps, weight, bias, padding=1))
        return fused.convolve(maps, weight, bias, slope=0.0, padding=1)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight [width, C, 3, 3] and bias [width] of the one convolution that this is out of training.

        The normalisation is a fixed affine map then: folding it into the small weight saves a pass over the
        large maps, forwards and backwards.
        """
        norm = self.normalisation
        assert norm.running_mean is not None
        assert norm.running_var is not None
        gain = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return self.convolution.weight * gain[:, None, None, None], norm.bias - norm.running_mean * gain


class SmallCNN(nn.Module):
    """Four blocks with average pooling between them, then the mean over space and one linear layer.

    Its features are the four ReLU maps, at 1, 1/2, 1/4 and 1/8 of the input's resolution.
    """

    def __init__(self, classes: int, widths: Sequence[int] = SMALL_CNN_WIDTHS) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(a, b) for a, b in zip((3, *widths[:-1]), widths, strict=True))
        self.head = nn.Linear(widths[-1], classes)

    def forward_with_features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits [N, K] and the ReLU maps, from images [N, 3, H, W]."""
        maps: list[Tensor] = []
        current = images
        for index, block in enumerate(self.blocks):
            current = block(_halved(current) if index else current)
            maps.append(current)
        return self.head(current.mean(dim=(2, 3))), maps

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_with_features(images)[0]


def _halved(maps: Tensor) -> Tensor:
    """Mean of every 2 × 2 pixels. Without gradients as a depthwise convolution, on CPUs twice as fast."""
    if torch.is_grad_enabled():
        return F.avg_pool2d(maps, 2)
    channels = maps.shape[1]
    quarters = torch.full((), 0.25, dtype=maps.dtype, device=maps.device).expand(channels, 1, 2, 2)
    return F.conv2d(maps, quarters, stride=2, groups=channels)


class MobileNet(MobileNetV2):  # type: ignore[misc]
    """MobileNetV2 as torchvision has it, with the first strides adaptable and features exposed.

    `first_strides` are those of the stem and of the second stage, (2, 2) as published; (1, 1) keeps four
    times the resolution, for images of 64 px or less. State-dict names are torchvision's.
    """

    def __init__(self, classes: int, first_strides: Sequence[int] = (2, 2), dropout: float = 0.2) -> None:
        strides = (1, first_strides[1], 2, 2, 1, 2, 1)
        setting = [[*stage, stride] for stage, stride in zip(MOBILENET_STAGES, strides, strict=True)]
        super().__init__(num_classes=classes, inverted_residual_setting=setting, dropout=dropout)
        self.features[0][0].stride = (first_strides[0], first_strides[0])

    def forward_with_features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits [N, K] and the outputs of the blocks in MOBILENET_FEATURES, from images [N, 3, H, W]."""
        maps: list[Tensor] = []
        current = images
        for index, block in enumerate(self.features):
            current = block(current)
            if index in MOBILENET_FEATURES:
                maps.append(current)
        return self.classifier(current.mean(dim=(2, 3))), maps


def default_options(architecture: str, input_size: int) -> dict[str, Any]:
    """The options that suit an input size; they are stored with the weights."""
    if architecture == "mobilenet_v2":
        return {"first_strides": [1, 1] if input_size <= 64 else [1, 2] if input_size <= 128 else [2, 2]}
    return {}


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "small_cnn": SmallCNN,
    "mobilenet_v2": MobileNet,
    "mobilenet_v1": MobileNetV1,
}
"""Name → builder, called with the number of classes and the architecture's options."""


TORCHVISION, TIMM, TRANSFORMERS = "torchvision:", "timm:", "transformers:"
"""Before a name, these mean the model of that name in the package, unchanged."""


def can_build(architecture: str) -> bool:
    """Whether `build` knows the name."""
    if architecture.startswith((TIMM, TRANSFORMERS)):
        return True
    name = architecture.removeprefix(TORCHVISION)
    return architecture in ARCHITECTURES or (name != architecture and name in torchvision_names())


class Logits(nn.Module):
    """A network of transformers, whose answer is an object, as one that returns logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.model(pixel_values=images).logits
        return found


def torchvision_names() -> list[str]:
    """Torchvision's image classification models."""
    return list(list_models(module=torchvision.models))


def build(architecture: str, classes: int, options: Mapping[str, Any]) -> nn.Module:
    """A network with fresh random weights.

    Raises:
        ClassifierError: the architecture or an option is unknown.
    """
    if not can_build(architecture):
        raise ClassifierError(
            f"architecture '{architecture}' is unknown; "
            f"choose from {', '.join(ARCHITECTURES)}, {TORCHVISION}NAME or {TIMM}NAME"
        )
    try:
        if architecture.startswith(TIMM):
            timm = import_extra("timm", architecture)
            name = architecture.removeprefix(TIMM)
            made: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, **options)
            return made
        if architecture.startswith(TRANSFORMERS):
            transformers = import_extra("transformers", architecture)
            kind = architecture.removeprefix(TRANSFORMERS)
            config = transformers.AutoConfig.for_model(kind, **options)
            return Logits(transformers.AutoModelForImageClassification.from_config(config))
        if architecture in ARCHITECTURES:
            return ARCHITECTURES[architecture](classes, **options)
        network = get_model(
            architecture.removeprefix(TORCHVISION), weights=None, num_classes=classes, **options
        )
        assert isinstance(network, nn.Module)
        return network
    except (TypeError, ValueError, IndexError, RuntimeError, KeyError) as error:
        raise ClassifierError(
            f"{architecture}: cannot be built with options {dict(options)} ({error})"
        ) from None
