"""Reading the factors of an image (hair colour, glasses …): one small network with a head for each factor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylex.classifiers.architectures import Block
from stylex.data.table import place_of
from stylex.errors import CheckpointError, ConfigError, DataError
from stylex.evaluation.intervals import Interval, wilson
from stylex.hardware import Hardware, place
from stylex.run import read_tensors, write_tensors

if TYPE_CHECKING:
    from stylex.data.images import ImageSet

KIND = "factor-detector"
"""What a file of ours says that it holds."""

WIDTHS = (24, 64, 96, 128)
"""Channels of the blocks, finest first; blocks of larger images than 64 px have the last width."""

PLACES = 4
"""The heads see the last map averaged over PLACES × PLACES regions: where a thing is tells what it is."""

BLUR = 1.0
"""Standard deviation, in pixels of a 64 px image, of the Gaussian that blurred copies are judged after."""

UNKNOWN = -100
"""Index of a value that the table does not give; such an image counts neither in training nor in figures."""

Values = npt.NDArray[np.int64]


class FactorDetector(nn.Module):
    """Images [N, 3, S, S] in [-1, 1] → the value of every factor.

    Blocks of a 3 × 3 convolution, batch normalisation and ReLU with average pooling between them until the
    map is 8 × 8, then linear heads on its 4 × 4 regional means. Under `compute_dtype` bf16 the network runs
    in autocast; logits are float32.

    Args:
        factors: factor → its values, at least two, in the order of the head's outputs.
        size: S, a power of two, at least 8.

    Raises:
        ConfigError: no factor, a factor of one value, or another size.
    """

    def __init__(self, factors: Mapping[str, Sequence[str]], size: int) -> None:
        super().__init__()
        if size < 8 or size & (size - 1):
            raise ConfigError(f"a factor detector reads images of 8, 16, 32 … pixels, not of {size}")
        few = [name for name, values in factors.items() if len(values) < 2]
        if few or not factors:
            raise ConfigError(f"a factor needs two values or more to be read; look at {few or 'the table'}")
        self.factors = {name: tuple(values) for name, values in factors.items()}
        self.size = size
        self.report: dict[str, Any] = {}
        self.compute_dtype = torch.float32
        count = max(2, int(math.log2(size)) - 2)
        widths = (*WIDTHS, *[WIDTHS[-1]] * count)[:count]
        self.blocks = nn.ModuleList(Block(a, b) for a, b in zip((3, *widths[:-1]), widths, strict=True))
        self.heads = nn.Linear(widths[-1] * PLACES**2, sum(map(len, self.factors.values())))
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits [N, V] of every factor, float32.

        Raises:
            DataError: images of another shape than [N, 3, S, S].
        """
        if images.ndim != 4 or images.shape[1:] != (3, self.size, self.size):
            raise DataError(
                f"the factor detector reads images [N, 3, {self.size}, {self.size}], not {list(images.shape)}"
            )
        with self._precision(images):
            maps = images.contiguous(memory_format=torch.channels_last)
            for index, block in enumerate(self.blocks):
                maps = block(F.avg_pool2d(maps, 2) if index else maps)
            logits = self.heads(F.adaptive_avg_pool2d(maps, PLACES).flatten(1))
        parts = logits.float().split([len(values) for values in self.factors.values()], dim=1)
        return dict(zip(self.factors, parts, strict=True))

    @torch.inference_mode()
    def read(self, images: Tensor, batch_size: int = 256) -> dict[str, Values]:
        """The likeliest value of every factor, as indices [N] into `factors[name]`."""
        was_training = self.training
        self.eval()
        device = self.heads.weight.device
        found: dict[str, list[Tensor]] = {name: [] for name in self.factors}
        for first in range(0, max(1, len(images)), batch_size):
            for name, logits in self(images[first : first + batch_size].to(device)).items():
                found[name].append(logits.argmax(dim=1).cpu())
        self.train(was_training)
        return {name: torch.cat(parts).numpy() for name, parts in found.items()}

    @torch.inference_mode()
    def probabilities(self, images: Tensor, batch_size: int = 256) -> dict[str, npt.NDArray[np.float64]]:
        """Probability of every value of every factor, [N, V] each; of a frozen or evaluated network."""
        device = self.heads.weight.device
        found: dict[str, list[Tensor]] = {name: [] for name in self.factors}
        for first in range(0, max(1, len(images)), batch_size):
            for name, logits in self(images[first : first + batch_size].to(device)).items():
                found[name].append(logits.double().softmax(dim=1).cpu())
        return {name: torch.cat(parts).numpy() for name, parts in found.items()}

    def save(self, path: str | Path) -> None:
        """Write weights, the names of factors and values, and what training reported, as safetensors.

        Raises:
            RunError: the file cannot be written.
        """
        header = {
            "kind": KIND,
            "factors": [[name, list(values)] for name, values in self.factors.items()],
            "size": self.size,
            "report": self.report,
        }
        write_tensors(Path(path), self.state_dict(), header)

    @classmethod
    def load(cls, path: str | Path, hardware: Hardware | None = None) -> Self:
        """Read what `save` wrote, in evaluation mode and frozen; by default on the CPU in float32.

        Raises:
            CheckpointError: damaged, or no factor detector.
        """
        tensors, header = read_tensors(Path(path))
        if header.get("kind") != KIND:
            raise CheckpointError(f"{path}: no factor detector; 'stylex factors train' writes one")
        detector = cls({name: tuple(values) for name, values in header["factors"]}, int(header["size"]))
        try:
            detector.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointError(f"{path}: weights of another layout ({str(error)[:200]})") from None
        detector.report = header["report"]
        detector.eval().requires_grad_(False)
        if hardware is not None:
            place(detector, hardware)
        return detector

    def _precision(self, images: Tensor) -> AbstractContextManager[object]:
        if self.compute_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(images.device.type, dtype=self.compute_dtype)


@dataclass(frozen=True)
class FactorScore:
    """How well one factor is read on held-out images.

    Attributes:
        values: of the factor, in the order of rows and columns of `confusion`.
        accuracy, blurred: share of images read right, as they are and blurred by a Gaussian of BLUR pixels.
        confusion: [V][V], rows the table's value, columns what was read.
    """

    values: tuple[str, ...]
    accuracy: Interval
    blurred: Interval
    confusion: tuple[tuple[int, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "values": list(self.values),
            "accuracy": self.accuracy.to_json(),
            "blurred": self.blurred.to_json(),
            "confusion": [list(row) for row in self.confusion],
        }


def score_factors(
    detector: FactorDetector,
    images: ImageSet,
    batch_size: int = 256,
    *,
    source: str | Path | None = None,
) -> dict[str, FactorScore]:
    """Accuracy on labelled images, as they are and blurred (see FactorScore).

    Args:
        source: folder or table that the images come from, for messages.

    Raises:
        DataError: no images, a factor without a column, or a value that the detector does not know.
    """
    truth = {name: value_indices(images, name, values, source) for name, values in detector.factors.items()}
    pixels = images.batch(slice(None))
    sharp = detector.read(pixels, batch_size)
    soft = detector.read(blur(pixels, BLUR * detector.size / 64), batch_size)
    scores = {}
    for name, values in detector.factors.items():
        known = truth[name] != UNKNOWN
        right = truth[name][known]
        confusion = np.zeros((len(values), len(values)), np.int64)
        np.add.at(confusion, (right, sharp[name][known]), 1)
        scores[name] = FactorScore(
            values,
            wilson(int((sharp[name][known] == right).sum()), len(right)),
            wilson(int((soft[name][known] == right).sum()), len(right)),
            tuple(tuple(int(entry) for entry in row) for row in confusion),
        )
    return scores


@dataclass(frozen=True)
class FactorAgreement:
    """Which factors survive reconstruction, and how far the detector that says so can be trusted.

    Attributes:
        agreement: factor → share of images whose reconstruction reads the same.
        chance: factor → the share to expect if every reconstruction were that of a random image.
        accuracy, blurred: factor → the detector's accuracy on held-out images, as they are and blurred; empty
            for a detector without a report.
    """

    agreement: dict[str, Interval]
    chance: dict[str, float]
    accuracy: dict[str, float]
    blurred: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Factor → agreement (an interval), chance, accuracy and blurred (the last two None if unknown)."""
        return {
            name: {
                "agreement": share.to_json(),
                "chance": self.chance[name],
                "accuracy": self.accuracy.get(name),
                "blurred": self.blurred.get(name),
            }
            for name, share in self.agreement.items()
        }


def agreement(detector: FactorDetector, images: Tensor, reconstructions: Tensor) -> FactorAgreement:
    """For each factor, the share of images whose reconstruction reads the same, with Wilson's interval.

    Both are read by the detector, so that its errors on images do not count against a reconstruction that
    repeats them; what it is worth is its own accuracy, given beside.

    Args:
        images, reconstructions: [N, 3, S, S] in [-1, 1], pair by pair.

    Raises:
        DataError: no images, or shapes that differ.
    """
    if images.shape != reconstructions.shape or not len(images):
        raise DataError(
            f"images {list(images.shape)} and reconstructions {list(reconstructions.shape)}: "
            "give the same images, one or more"
        )
    before, after = detector.read(images), detector.read(reconstructions)
    scores = detector.report.get("factors", {})
    return FactorAgreement(
        {name: wilson(int((before[name] == after[name]).sum()), len(images)) for name in detector.factors},
        {name: _chance(before[name], after[name], len(values)) for name, values in detector.factors.items()},
        {name: scores[name]["accuracy"]["estimate"] for name in detector.factors if name in scores},
        {name: scores[name]["blurred"]["estimate"] for name in detector.factors if name in scores},
    )


def _chance(before: Values, after: Values, count: int) -> float:
    shares = [np.bincount(values, minlength=count) / len(values) for values in (before, after)]
    return float(shares[0] @ shares[1])


def blur(images: Tensor, deviation: float) -> Tensor:
    """Images [N, 3, H, W] after a Gaussian of `deviation` pixels, cut at 3 deviations, edges repeated."""
    reach = max(1, math.ceil(3 * deviation))
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=images.device) / deviation) ** 2)
    weights = (weights / weights.sum()).to(images.dtype)
    count, channels, height, width = images.shape
    maps = images.reshape(count * channels, 1, height, width)
    maps = F.conv2d(F.pad(maps, (reach, reach, 0, 0), mode="replicate"), weights[None, None, None, :])
    maps = F.conv2d(F.pad(maps, (0, 0, reach, reach), mode="replicate"), weights[None, None, :, None])
    return maps.reshape(images.shape)


def value_indices(
    images: ImageSet, name: str, values: Sequence[str], source: str | Path | None = None
) -> Values:
    """The column as indices into `values`, UNKNOWN where the cell is empty.

    Args:
        source: folder or table that the images come from, for messages.

    Raises:
        DataError: no such column, a value that is not among `values`, or nothing but empty cells.
    """
    if name not in images.factors:
        raise DataError(
            f"the images have no column {name!r}; there are {', '.join(images.factors) or 'none'}"
        )
    places = {value: index for index, value in enumerate(values)} | {"": UNKNOWN}
    for file, value in zip(images.names, images.factors[name], strict=True):
        if value not in places:
            raise DataError(
                f"{place_of(source, file)}: {name} is {value!r}, which the detector does not know"
            )
    found: Values = np.array([places[value] for value in images.factors[name]], dtype=np.int64)
    if not (found != UNKNOWN).any():
        where = "" if source is None else f"{source}: "
        raise DataError(f"{where}no image says what its {name} is; fill in the column, or leave it out")
    return found
