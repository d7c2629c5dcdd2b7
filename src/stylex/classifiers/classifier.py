"""The noun: what is explained, a function from images to logits that owns its resize and normalisation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylex.classifiers.architectures import ARCHITECTURES, TORCHVISION, can_build
from stylex.classifiers.taps import find_taps, run_with_taps
from stylex.errors import ClassifierError, reason_of
from stylex.run import checksum, write_tensors

Activation = Literal["softmax", "sigmoid"]
Order = Literal["rgb", "bgr"]

LUMA = (0.299, 0.587, 0.114)
"""Share of red, green and blue in grey (ITU-R BT.601, as in Pillow's conversion to "L")."""

DATA_IMAGES = 8
"""From so many images on, what a classifier answers on them says something of its outputs."""

CONSTANT = 1e-6
"""Logits that differ by less are the same."""

KIND = "classifier"
"""What a file of ours says that it holds."""


class Classifier(nn.Module):
    """Images [N, 3, H, W] in [-1, 1] → logits [N, K], in float32 whatever the network computes in.

    Images of another size than `input_size` are resized (bilinear, antialiased), made grey or reordered
    where the network wants that, then normalised as ((x + 1) / 2 − mean) / std. Gradients reach the images
    also when the weights are frozen. With `compute_dtype` bf16 the network runs under autocast; with float32
    an autocast around it is respected.

    Args:
        network: normalised images → logits [N, K], or [N, 1] or [N] if `single_logit`. If it has a method
            `forward_with_features` → (logits, list of maps), its features are exposed.
        class_names: K names; for a single logit also the one name of the class that the logit speaks for.
        input_size: pixels along a side; None takes images as they come.
        mean, std: of each channel in the network's order, on the [0, 1] scale; 0.5 and 0.5 leave images in
            [-1, 1].
        channels: 3, or 1 for a network that takes grey images.
        order: of the channels that the network takes.
        activation: "softmax" for classes that exclude each other, "sigmoid" for labels that do not.
        single_logit: the network gives one logit z, which counts as the two logits [-z/2, z/2].
        temperature: logits are divided by it (Guo et al. 2017).
        architecture, options: how `architectures.build` makes the network anew; other names cannot be saved.
        report: what training reported, for the file.
        data_fingerprint: of the data set trained on, for the file.

    Raises:
        ClassifierError: settings at odds with each other.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        class_names: Sequence[str],
        input_size: int | None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels: int = 3,
        order: Order = "rgb",
        activation: Activation = "softmax",
        single_logit: bool = False,
        temperature: float = 1.0,
        architecture: str = "custom",
        options: Mapping[str, Any] | None = None,
        report: Mapping[str, Any] | None = None,
        data_fingerprint: str | None = None,
    ) -> None:
        super().__init__()
        names = tuple(class_names)
        if single_logit and len(names) == 1:
            names = (f"not {names[0]}", names[0])
        if single_logit:
            activation = "softmax"  # softmax([-z/2, z/2]) is [1 − sigmoid(z), sigmoid(z)]
        if len(names) < 2 and activation == "softmax":
            raise ClassifierError(
                f"a classifier of {len(names)} classes decides nothing; give two class names"
            )
        if single_logit and len(names) != 2:
            raise ClassifierError(
                f"a single logit speaks of two classes, but there are {len(names)} class names"
            )
        if len(set(names)) != len(names):
            raise ClassifierError(f"class names must differ, got {', '.join(names)}")
        if activation not in ("softmax", "sigmoid"):
            raise ClassifierError(f"activation is '{activation}'; choose softmax or sigmoid")
        if channels not in (1, 3) or order not in ("rgb", "bgr"):
            raise ClassifierError(
                f"a classifier takes images of 3 channels, in the order rgb or bgr, or of 1; not {channels} "
                f"in the order {order}"
            )
        mean = _for_each(channels, (0.5,) if mean is None else mean)
        std = _for_each(channels, (0.5,) if std is None else std)
        if len(mean) != channels or len(std) != channels or min(std) <= 0 or temperature <= 0:
            count = "three numbers" if channels == 3 else "one number"
            raise ClassifierError(f"mean and std are {count} each; std and temperature are greater than 0")
        if input_size is not None and input_size < 1:
            raise ClassifierError(f"input_size is {input_size}; give the pixels along a side, such as 224")
        self.network = network
        self.class_names = names
        self.input_size = input_size
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        self.channels = channels
        self.order: Order = order
        self.activation: Activation = activation
        self.single_logit = single_logit
        self.temperature = float(temperature)
        self.architecture = architecture
        self.options = dict(options or {})
        self.report = dict(report or {})
        self.data_fingerprint = data_fingerprint
        self.compute_dtype = torch.float32
        self.frozen = False
        self.trusted = False  # whether somebody said that it returns logits, or probabilities
        self.taps = (
            () if hasattr(network, "forward_with_features") else find_taps(network, channels, input_size)
        )
        centre, spread = torch.tensor(self.mean), torch.tensor(self.std)
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", (0.5 / spread)[None, :, None, None], persistent=False)
        self.register_buffer("shift", ((0.5 - centre) / spread)[None, :, None, None], persistent=False)
        self.to(memory_format=torch.channels_last)  # the faster layout, and always the same one

    @property
    def classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def can_be_saved(self) -> bool:
        """Whether `save` can hold the network: one that `architectures.build` makes, no Python code."""
        return can_build(self.architecture)

    @property
    def exposes_features(self) -> bool:
        """Whether `features` can be called."""
        return bool(self.taps) or hasattr(self.network, "forward_with_features")

    @property
    def differentiable(self) -> bool:
        """Whether gradients reach the images; not through an endpoint or a runtime without gradients."""
        return bool(getattr(self.network, "differentiable", True))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights, or of the file; of the name, for a function that has none."""
        told = getattr(self.network, "fingerprint", None)
        if isinstance(told, str):
            return told
        weights = self.network.state_dict()
        if not weights:
            return hashlib.sha256(str(self.network).encode()).hexdigest()
        return checksum(weights)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] in [-1, 1] → logits [N, K], float32.

        Raises:
            ClassifierError: images or logits of the wrong shape.
        """
        prepared = self._prepared(images)
        with self._precision(images):
            output = self.network(prepared)
        return self._logits(output, len(images), images.device)

    def forward_with_features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits [N, K] and intermediate maps [N, C, h, w], fine to coarse, from one pass.

        Raises:
            ClassifierError: the network exposes no features, or shapes are wrong.
        """
        if not self.exposes_features:
            raise ClassifierError(
                f"classifier '{self.architecture}' exposes no features; "
                f"choose another loss.perceptual_network"
            )
        prepared = self._prepared(images)
        with self._precision(images):
            if self.taps:
                output, maps = run_with_taps(self.network, self.taps, prepared)
            else:
                output, maps = self.network.forward_with_features(prepared)  # type: ignore[operator]
        return self._logits(output, len(images), images.device), maps

    def features(self, images: Tensor) -> list[Tensor]:
        """The maps of `forward_with_features`."""
        return self.forward_with_features(images)[1]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits [N, K] → probabilities [N, K]; rows sum to 1 for softmax, not for sigmoid."""
        return logits.softmax(dim=-1) if self.activation == "softmax" else logits.sigmoid()

    def check(self, images: Tensor) -> Tensor:
        """Run on images and look at what comes out, before anything is built on it; returns the logits.

        Eight images or more are taken for data: they must not all get the same answer.

        Raises:
            ClassifierError: the classifier fails on them, gives another shape than [N, K], NaN, infinity or
                probabilities, or is constant.
        """
        name = f"classifier '{self.architecture}'"
        for key, weight in self.named_parameters():
            # Fused convolutions turn NaN into 0 in their ReLU: logits alone would not tell.
            if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
                raise ClassifierError(f"{name} has NaN or infinity in its weights ({key})")
        try:
            with torch.no_grad():
                logits: Tensor = self(images)
        except ClassifierError:
            raise
        except Exception as error:  # whatever code a user's network runs
            reason = reason_of(error)
            advice = device_advice(reason, images.device) or "look at its input size and channels"
            raise ClassifierError(
                f"{name} failed on images {list(images.shape)} ({reason}); {advice}"
            ) from error
        bad = int((~torch.isfinite(logits)).any(dim=1).sum())
        if bad:
            raise ClassifierError(
                f"{name} gives NaN or infinity on {bad} of {len(images)} images; "
                f"look at its weights and normalisation"
            )
        if not self.trusted:
            self._check_logits(name, logits)
        if len(images) >= DATA_IMAGES and not bool((images != images[:1]).any()):
            return logits  # equal images get equal answers
        if len(images) >= DATA_IMAGES and bool((logits.amax(dim=0) - logits.amin(dim=0)).max() < CONSTANT):
            raise ClassifierError(
                f"{name} is constant on the data: the same answer for all of {len(images)} images; "
                f"look at its weights, value range and normalisation with 'stylex doctor'"
            )
        return logits

    def _check_logits(self, name: str, logits: Tensor) -> None:
        """Raise ClassifierError where numbers look like probabilities."""
        sums = logits.sum(dim=1)
        if bool((logits >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
            raise ClassifierError(
                f"{name} gives probabilities (none negative, sum 1 an image) where logits are expected; "
                f"say outputs=probabilities"
            )
        numbers = 2 * logits[:, 1:] * self.temperature if self.single_logit else logits
        labels = self.single_logit or self.activation == "sigmoid"
        if labels and len(logits) >= DATA_IMAGES and bool(((numbers >= 0) & (numbers <= 1)).all()):
            raise ClassifierError(
                f"{name} gives numbers from {float(numbers.min()):.2f} to {float(numbers.max()):.2f} on "
                f"{len(logits)} images, which look like probabilities; say outputs=probabilities, or "
                f"outputs=logits if they are logits"
            )

    def freeze(self) -> Self:
        """Evaluation mode for good, weights without gradients; gradients still flow to images."""
        self.frozen = True
        self.eval()
        self.requires_grad_(False)
        return self

    def train(self, mode: bool = True) -> Self:
        """As of any module, except that a frozen classifier stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def save(self, path: str | Path) -> None:
        """Write weights and everything needed to load them again as safetensors, atomically.

        Raises:
            ClassifierError: the network came from Python code, which a file cannot hold.
            RunError: the file cannot be written.
        """
        if not self.can_be_saved:
            raise ClassifierError(
                f"classifier '{self.architecture}' is Python code, which no file of ours can hold; "
                f"only {', '.join(ARCHITECTURES)} and {TORCHVISION}NAME can be saved"
            )
        header = {
            "kind": KIND,
            "architecture": self.architecture,
            "options": self.options,
            "class_names": list(self.class_names),
            "input_size": self.input_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "channels": self.channels,
            "order": self.order,
            "activation": self.activation,
            "single_logit": self.single_logit,
            "temperature": self.temperature,
            "report": self.report,
            "data_fingerprint": self.data_fingerprint,
        }
        write_tensors(Path(path), self.network.state_dict(), header)

    def _prepared(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ClassifierError(f"images must be [N, 3, H, W], got {list(images.shape)}")
        pixels = images.float()
        size = self.input_size
        if size is not None and pixels.shape[2:] != (size, size):
            pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)
        if self.channels == 1:
            red, green, blue = LUMA
            pixels = red * pixels[:, :1] + green * pixels[:, 1:2] + blue * pixels[:, 2:]
        elif self.order == "bgr":
            pixels = pixels.flip(1)
        return torch.addcmul(self.shift, pixels, self.scale)

    def _precision(self, images: Tensor) -> AbstractContextManager[object]:
        if getattr(self.network, "full_precision", False):  # a graph that knows nothing of other formats
            return torch.autocast(images.device.type, enabled=False)
        if self.compute_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(images.device.type, dtype=self.compute_dtype)

    def _logits(self, output: object, count: int, device: torch.device) -> Tensor:
        if not isinstance(output, Tensor):
            raise ClassifierError(
                f"classifier '{self.architecture}' returned {type(output).__name__}, "
                f"not a tensor of logits [N, K]"
            )
        if output.device.type != device.type:
            raise ClassifierError(
                f"classifier '{self.architecture}' sits on another device than the images: it answers on "
                f"{output.device}, they are on {device}; give the module itself, which can be moved"
            )
        logits = output.float()
        if logits.ndim == 1 and self.single_logit:
            logits = logits[:, None]
        wanted = (count, 1 if self.single_logit else self.classes)
        if logits.shape != wanted:
            raise ClassifierError(
                f"classifier '{self.architecture}' returned shape {list(logits.shape)} for {count} images, "
                f"expected {list(wanted)}: one logit for each of the classes {', '.join(self.class_names)}"
            )
        if self.single_logit:
            logits = torch.cat((-0.5 * logits, 0.5 * logits), dim=1)
        return logits if self.temperature == 1.0 else logits / self.temperature


def _for_each(channels: int, values: Sequence[float]) -> tuple[float, ...]:
    """One number for each channel: as they are, or the same for all where there is one."""
    return tuple(values) * channels if len(values) == 1 else tuple(values)


def device_advice(reason: str, device: torch.device) -> str | None:
    """What to do where PyTorch's reason for a failure on images is that weights are on another device."""
    if not any(word in reason for word in ("device", "meta", "torch.cuda.")):
        return None
    return f"it sits on another device than the images ({device}); give the module itself"
