"""The replication study's work on a public StyleGAN2, run beside ours; its code stays outside.

The study (Bosch et al. 2022) changed the PyTorch StyleGAN2 of github.com/rosinality/stylegan2-pytorch: an
encoder, a classifier and a reconstruction loss were added, its networks and losses kept. Its own repository
cannot be had everywhere; its training step and its measurement of an
effect are here put together from the paper, with that repository's networks as
they are:

    git clone https://github.com/rosinality/stylegan2-pytorch peer
    stylex bench train --peer peer
    stylex bench attfind --peer peer
"""

from __future__ import annotations

import copy
import importlib
import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylex.errors import ConfigError

log = logging.getLogger("stylex")


@contextmanager
def _without_compiled_operations() -> Iterator[None]:
    """The peer compiles CUDA code when it is imported, also where it then computes in plain PyTorch."""
    from torch.utils import cpp_extension

    before = cpp_extension.load
    cpp_extension.load = lambda *arguments, **options: None
    try:
        yield
    finally:
        cpp_extension.load = before


def load_peer(folder: Path) -> ModuleType:
    """The peer's `model` module from its folder; this runs the code in that folder.

    Raises:
        ConfigError: the folder does not hold it.
    """
    if not (folder / "model.py").is_file() or not (folder / "op").is_dir():
        raise ConfigError(
            f"{folder}: not a copy of rosinality/stylegan2-pytorch (no model.py and op/); "
            "git clone https://github.com/rosinality/stylegan2-pytorch"
        )
    sys.path.insert(0, str(folder.resolve()))
    try:
        if torch.cuda.is_available():
            # As the peer's users have it, where its CUDA code can still be compiled.
            with suppress(Exception):
                return importlib.import_module("model")
            for name in [name for name in sys.modules if name in ("model", "op") or name.startswith("op.")]:
                del sys.modules[name]
            log.warning("%s: its CUDA code cannot be compiled here; it computes in plain PyTorch", folder)
        with _without_compiled_operations():
            module = importlib.import_module("model")
        if torch.cuda.is_available():
            _use_plain_operations(module)
        return module
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{folder}: its model.py could not be imported ({error})") from None
    finally:
        sys.path.remove(str(folder.resolve()))


def _use_plain_operations(module: Any) -> None:
    """Let the peer take the way that it takes on CPUs on other devices too."""
    resampling = importlib.import_module("op.upfirdn2d")
    activation = importlib.import_module("op.fused_act")

    def upfirdn2d(images: Tensor, kernel: Tensor, up: int = 1, down: int = 1, pad: Any = (0, 0)) -> Tensor:
        padding = (*pad, *pad) if len(pad) == 2 else pad
        found: Tensor = resampling.upfirdn2d_native(images, kernel, up, up, down, down, *padding)
        return found

    def fused_leaky_relu(
        values: Tensor, bias: Tensor | None = None, negative_slope: float = 0.2, scale: float = 2**0.5
    ) -> Tensor:
        if bias is not None:
            values = values + bias.view(1, -1, *[1] * (values.ndim - 2))
        return F.leaky_relu(values, negative_slope) * scale

    module.upfirdn2d, module.fused_leaky_relu = upfirdn2d, fused_leaky_relu
    resampling.upfirdn2d = upfirdn2d  # type: ignore[attr-defined]
    activation.fused_leaky_relu = fused_leaky_relu  # type: ignore[attr-defined]


class _Encoder(nn.Module):
    """The peer's discriminator without minibatch standard deviation, with D outputs."""

    def __init__(self, peer: Any, resolution: int, features: int) -> None:
        super().__init__()
        self.trunk = peer.Discriminator(resolution).convs
        channels = 512
        self.last = peer.ConvLayer(channels, channels, 3)
        self.linear = nn.Sequential(
            peer.EqualLinear(channels * 16, channels, activation="fused_lrelu"),
            peer.EqualLinear(channels, features),
        )

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.linear(self.last(self.trunk(images)).flatten(1))
        return features


class StudyStep:
    """The study's step: float32, 512 channels, batch 4, path length at every step, R1 at every 16th.

    Args:
        peer: `load_peer`'s module.
        classifier: images [N, 3, R, R] → logits [N, K].
        perceptual: two batches of images → one distance an image.
        images: the batch that every step sees, [4, 3, R, R] in [-1, 1], on the device that computes.
        classes: K.
    """

    def __init__(
        self, peer: Any, classifier: nn.Module, perceptual: nn.Module, images: Tensor, classes: int
    ) -> None:
        resolution, features = images.shape[-1], 512
        device = images.device
        self.images, self.classifier, self.perceptual = images, classifier, perceptual
        self.encoder = _Encoder(peer, resolution, features).to(device)
        self.generator = peer.Generator(resolution, features + classes, 8).to(device)
        self.discriminator = peer.Discriminator(resolution).to(device)
        self.averages = [copy.deepcopy(part) for part in (self.encoder, self.generator)]
        parts = [*self.encoder.parameters(), *self.generator.parameters()]
        self.generator_optimiser = torch.optim.Adam(parts, lr=2e-4, betas=(0.0, 0.99))
        self.discriminator_optimiser = torch.optim.Adam(
            self.discriminator.parameters(), lr=2e-4 * 16 / 17, betas=(0.0, 0.99 ** (16 / 17))
        )
        self.path_length_mean = torch.zeros((), device=device)

    def _latents(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            logits = self.classifier(images)
        return torch.cat([self.encoder(images), logits], dim=1)

    def _require(self, generator: bool) -> None:
        for part in (self.encoder, self.generator):
            part.requires_grad_(generator)
        self.discriminator.requires_grad_(not generator)

    def step(self, with_r1: bool) -> None:
        """One update of everything."""
        images = self.images
        self._require(generator=False)
        fake, _ = self.generator([self._latents(images)], input_is_latent=True)
        loss = F.softplus(self.discriminator(fake)).mean() + F.softplus(-self.discriminator(images)).mean()
        self._update(self.discriminator_optimiser, loss)
        if with_r1:
            real = images.clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.discriminator(real).sum(), real, create_graph=True)
            penalty = 10.0 / 2 * gradient.square().sum(dim=(1, 2, 3)).mean() * 16
            self._update(self.discriminator_optimiser, penalty)

        self._require(generator=True)
        latents = self._latents(images)
        fake, _ = self.generator([latents], input_is_latent=True)
        with torch.no_grad():
            target = self.classifier(images).softmax(dim=1)
        loss = F.softplus(-self.discriminator(fake)).mean()
        loss = loss + (fake - images).abs().mean() + 0.1 * self.perceptual(fake, images).mean()
        loss = loss + 0.1 * (self.encoder(fake) - latents[:, :512]).abs().mean()
        loss = loss + F.kl_div(self.classifier(fake).log_softmax(dim=1), target, reduction="batchmean")
        self._update(self.generator_optimiser, loss)

        with torch.no_grad():
            latents = self._latents(images[: len(images) // 2])
        fake, wide = self.generator([latents.requires_grad_(True)], input_is_latent=True, return_latents=True)
        noise = torch.randn_like(fake) / math.sqrt(fake.shape[2] * fake.shape[3])
        (gradient,) = torch.autograd.grad((fake * noise).sum(), wide, create_graph=True)
        lengths = gradient.square().sum(dim=2).mean(dim=1).sqrt()
        self.path_length_mean = self.path_length_mean.lerp(lengths.detach().mean(), 0.01)
        self._update(self.generator_optimiser, 2.0 * (lengths - self.path_length_mean).square().mean())
        with torch.no_grad():
            for average, part in zip(self.averages, (self.encoder, self.generator), strict=True):
                for mean, now in zip(average.parameters(), part.parameters(), strict=True):
                    mean.lerp_(now, 0.002)

    def _update(self, optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


class StudyEvaluation:
    """The study's measurement of one change: float32, one image, the style moved by editing a layer's bias.

    Args:
        peer: `load_peer`'s module.
        classifier: images [N, 3, R, R] → logits [N, K].
        resolution: R.
        classes: K.
        device: where it computes.
    """

    def __init__(
        self, peer: Any, classifier: nn.Module, resolution: int, classes: int, device: torch.device
    ) -> None:
        self.generator = peer.Generator(resolution, 512 + classes, 8).eval().requires_grad_(False).to(device)
        self.classifier = classifier.to(device)
        self.latent = torch.randn(1, 512 + classes, device=device)

    @torch.no_grad()
    def evaluate(self) -> Tensor:
        """Logits [1, K] after one change of the first layer."""
        bias = self.generator.conv1.conv.modulation.bias
        before = bias.clone()
        bias[0] += 1
        try:
            images, _ = self.generator([self.latent], input_is_latent=True, randomize_noise=False)
            logits: Tensor = self.classifier(images)
        finally:
            bias.copy_(before)
        return logits
