"""Networks in whose pooled features FID, KID, precision and recall are computed, each with its own name."""

from __future__ import annotations

import pickle

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylex.downloads import weights_file
from stylex.errors import ConfigError
from stylex.perceptual import EfficientNetDistance, load_efficientnet

EXTRACTORS = ("auto", "inception-v3", "efficientnet-lite0")
"""What `load_extractor` knows; "auto" is Inception where its weights can be had, else EfficientNet-Lite0."""

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
"""The weights of the published FID, as torch-fidelity distributes them; the last part is their sha256."""

INPUT_SIZE = 224
"""Pixels that EfficientNet-Lite0 was trained at; images are resized to it."""


class Extractor(nn.Module):
    """Images [N, 3, H, W] in [-1, 1] → features [N, D], float32; without gradients.

    Attributes:
        name: says network, layer and input size; two figures are comparable only under the same name.
        num_features: D.
    """

    name: str
    num_features: int

    @torch.inference_mode()
    def extract(self, images: Tensor, batch_size: int = 32) -> Tensor:
        """Features [N, D] on the CPU of any number of images, batch by batch."""
        device = next((weight.device for weight in self.parameters()), torch.device("cpu"))
        parts = [
            self(images[first : first + batch_size].to(device).float()).float().cpu()
            for first in range(0, len(images), batch_size)
        ]
        return torch.cat(parts) if parts else torch.empty(0, self.num_features)


class EfficientNetFeatures(Extractor):
    """What EfficientNet-Lite0's classifier reads: the mean over space of its last map, 1280 numbers.

    Images are resized to 224 × 224 (bicubic, antialiased), the size that the network was trained at; at 64
    the last map would have 2 × 2 places and the features would be far from those the network knows.
    """

    name = f"efficientnet-lite0, pooled, {INPUT_SIZE} px"
    num_features = 1280

    def __init__(self, network: EfficientNetDistance) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        size = (INPUT_SIZE, INPUT_SIZE)
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
        return self.network.pooled(images.clamp(-1, 1))


class InceptionFeatures(Extractor):
    """The 2048 pooled features of the TensorFlow Inception-v3 that the published FID is defined by.

    torch-fidelity's network as torchmetrics wraps it, fed uint8 as there: images are rounded to 256 values.
    """

    name = "inception-v3-compat, pooled, 299 px"
    num_features = 2048

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        pixels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        found: Tensor = self.network(pixels)
        return found.reshape(len(images), -1)


def load_extractor(name: str = "auto") -> Extractor:
    """The extractor of that name (see EXTRACTORS), in evaluation mode, on the CPU.

    Raises:
        ConfigError: an unknown name, or weights or a package that cannot be had (says where to get them).
    """
    if name not in EXTRACTORS:
        raise ConfigError(f"no feature extractor named '{name}'; choose {', '.join(EXTRACTORS)}")
    if name == "efficientnet-lite0":
        return EfficientNetFeatures(load_efficientnet()).eval().requires_grad_(False)
    try:
        return _load_inception().eval().requires_grad_(False)
    except ConfigError:
        if name == "inception-v3":
            raise
        return load_extractor("efficientnet-lite0")


def _load_inception() -> InceptionFeatures:
    try:
        import torch_fidelity  # noqa: F401
        from torchmetrics.image.fid import NoTrainInceptionV3
    except ImportError:
        raise ConfigError("inception-v3 needs torch-fidelity: pip install 'stylex[fid]'") from None
    file = weights_file(INCEPTION_URL, "inception-v3", "efficientnet-lite0")
    try:
        # torch-fidelity reads its file with code allowed; one that passes here holds none.
        torch.load(file, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        raise ConfigError(
            f"{file}: not Inception's weights; delete it, and put a whole copy of {INCEPTION_URL} there"
        ) from None
    with torch.random.fork_rng(devices=[]):
        return InceptionFeatures(NoTrainInceptionV3("inception-v3-compat", ["2048"], str(file)))
