"""Reading the factors of an image (hair colour, glasses …): one small network with a head for each factor."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
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
from stylex.errors import CheckpointError, ConfigError, DataError, TrainingDiverged
from stylex.evaluation.intervals import Interval, wilson
from stylex.hardware import Hardware, place
from stylex.run import read_tensors, write_tensors

if TYPE_CHECKING:
    from stylex.data.images import Dataset, ImageSet

KIND = "factor-detector"
"""What a file of ours says that it holds."""

WIDTHS = (24, 64, 96, 128)
"""Channels of the blocks, finest first; blocks of larger images than 64 px have the last width."""

PLACES = 4
"""The heads see the last map averaged over PLACES × PLACES regions: where a thing is helps to tell what it is."""

MOST_VALUES = 64
"""A column with more distinct values is taken for an identifier or a measurement, and left out."""

EPOCHS, BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY = 15, 64, 0.003, 0.05

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


@dataclass(frozen=True)
class DetectorProgress:
    """Where training stands; `loss` is the mean cross-entropy over the factors."""

    step: int
    steps: int
    loss: float
    images_per_second: float


def train_detector(
    dataset: Dataset,
    hardware: Hardware | None = None,
    epochs: int = EPOCHS,
    seed: int = 0,
    *,
    on_progress: Callable[[DetectorProgress], None] | None = None,
) -> FactorDetector:
    """Train on the factor columns of a data set's training images; its report holds the scores on test images.

    The loss is the mean over factors of the cross-entropy; AdamW, the rate rising over the first tenth and
    falling by a cosine to 0. Images are shifted by up to a 32nd of their side, blurred, tinted and given
    noise, each by itself, because reconstructions are: a detector of clean images alone would call a slightly
    blurred moustache a shaved lip. Nothing is chosen on held-out images, so their scores are unbiased.

    Args:
        dataset: its sets need factor columns. A column with one value, or with more than MOST_VALUES, is left
            out; an empty cell leaves its image out for that factor.
        hardware: device and number format; by default the CPU in float32.
        epochs: passes over the training images.
        seed: same seed, threads and machine give the same weights on the CPU.

    Returns:
        The detector, frozen, on the CPU in float32. `report` holds `factors` (name → FactorScore as JSON, on
        the test images, or on the discovery images where there are none), `held_out`, `skipped` (column →
        why), `epochs`, `seed`, `training_images`, `seconds` and `data_fingerprint`.

    Raises:
        DataError: no factor columns that vary, or no images held out.
        ConfigError: epochs below 1. TrainingDiverged: the loss became NaN or infinite.
    """
    if epochs < 1:
        raise ConfigError(f"epochs is {epochs}; give 1 or more")
    factors, skipped = factor_columns(dataset)
    held_out = dataset.test if len(dataset.test) else dataset.discovery
    if not len(held_out):
        raise DataError(f"{dataset.name}: no images are held out to measure the detector on; add images")
    begin = time.monotonic()
    device = hardware.device if hardware else torch.device("cpu")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        detector = FactorDetector(factors, dataset.size)
        if hardware is not None:
            place(detector, hardware)
        _fit(detector, dataset.training, epochs, np.random.default_rng(seed), on_progress)
    detector.eval().requires_grad_(False)
    scores = score_factors(detector, held_out)
    place(detector, Hardware(torch.device("cpu"), torch.float32, torch.get_num_threads(), "at rest"))
    detector.report = {
        "factors": {name: score.to_json() for name, score in scores.items()},
        "held_out": "test" if len(dataset.test) else "discovery",
        "skipped": skipped,
        "epochs": epochs,
        "seed": seed,
        "training_images": len(dataset.training),
        "seconds": round(time.monotonic() - begin, 1),
        "data_fingerprint": dataset.fingerprint,
    }
    return detector


def factor_columns(dataset: Dataset) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """The columns that can be read, with their values sorted, and the others with the reason: column → why.

    Raises:
        DataError: there is nothing to read.
    """
    sets = (dataset.training, dataset.discovery, dataset.test)
    factors: dict[str, tuple[str, ...]] = {}
    skipped: dict[str, str] = {}
    for name, trained in dataset.training.factors.items():
        values = sorted({value for part in sets for value in part.factors.get(name, ()) if value})
        if len(set(trained) - {""}) < 2:
            skipped[name] = "the training images have one value only"
        elif len(values) > MOST_VALUES:
            skipped[name] = f"{len(values)} different values are no factor"
        else:
            factors[name] = tuple(values)
    if not factors:
        reasons = "; ".join(f"{name}: {why}" for name, why in skipped.items())
        raise DataError(f"{dataset.name}: no factor column to read ({reasons or 'there is no factor table'})")
    return factors, skipped


def score_factors(
    detector: FactorDetector, images: ImageSet, batch_size: int = 256
) -> dict[str, FactorScore]:
    """Accuracy on labelled images, as they are and blurred (see FactorScore).

    Raises:
        DataError: no images, a factor without a column, or a value that the detector does not know.
    """
    truth = {name: _indices(images, name, values) for name, values in detector.factors.items()}
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


def agreement(detector: FactorDetector, images: Tensor, reconstructions: Tensor) -> dict[str, Interval]:
    """For each factor, the share of images whose reconstruction reads the same, with Wilson's interval.

    Both are read by the detector, so that its errors on images do not count against a reconstruction that
    repeats them; what it is worth is its own accuracy, in its report.

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
    return {name: wilson(int((before[name] == after[name]).sum()), len(images)) for name in detector.factors}


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


def degrade(images: Tensor, random: np.random.Generator) -> Tensor:
    """What reconstruction does to an image, roughly: [N, 3, H, W] → the same shape, each image by itself.

    A shift by up to a 32nd of the side; half of the images mixed with their blurred copy (a Gaussian of 0.6
    to 1.8 pixels at 64 px) by a random share; contrast and tint of each channel by up to 4 %; noise of
    standard deviation up to 0.04.
    """
    count, _, height, width = images.shape
    draw = lambda *shape: torch.from_numpy(random.random(shape, np.float32)).to(images)  # noqa: E731
    reach = max(1, height // 32)
    down, right = (torch.from_numpy(random.integers(-reach, reach + 1, count)) for _ in range(2))
    rows = (torch.arange(height) + down[:, None]).clamp(0, height - 1).to(images.device)
    columns = (torch.arange(width) + right[:, None]).clamp(0, width - 1).to(images.device)
    every = torch.arange(count, device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    softness = draw(count, 1, 1, 1) * (draw(count, 1, 1, 1) < 0.5)
    soft = blur(moved, float(random.uniform(0.6, 1.8)) * height / 64)
    mixed = moved + softness * (soft - moved)
    tinted = mixed * (0.96 + 0.08 * draw(count, 3, 1, 1)) + 0.08 * (draw(count, 3, 1, 1) - 0.5)
    noise = torch.from_numpy(random.standard_normal((count, height, width, 3), np.float32))
    return tinted + 0.04 * draw(count, 1, 1, 1) * noise.permute(0, 3, 1, 2).to(images)


def _fit(
    detector: FactorDetector,
    training: ImageSet,
    epochs: int,
    random: np.random.Generator,
    on_progress: Callable[[DetectorProgress], None] | None,
) -> None:
    device = detector.heads.weight.device
    targets = {
        name: torch.from_numpy(_indices(training, name, values)) for name, values in detector.factors.items()
    }
    batch = min(BATCH_SIZE, len(training))
    steps = len(training) // batch * epochs
    decayed = [weight for weight in detector.parameters() if weight.ndim > 1]
    free = [weight for weight in detector.parameters() if weight.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": free, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=steps + 1, pct_start=0.1, cycle_momentum=False
    )
    detector.train()
    begin, step = time.monotonic(), 0
    for _ in range(epochs):
        order = random.permutation(len(training))
        for first in range(0, len(training) - batch + 1, batch):
            indices = order[first : first + batch]
            logits = detector(degrade(training.batch(indices).to(device), random))
            losses = [
                F.cross_entropy(logits[name], target[indices].to(device), ignore_index=UNKNOWN)
                for name, target in targets.items()
                if bool((target[indices] != UNKNOWN).any())
            ]
            if not losses:
                continue
            loss = torch.stack(losses).mean()
            value = float(loss.detach())
            if not math.isfinite(value):
                raise TrainingDiverged(f"the factor detector's loss became {value} in step {step + 1}")
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward((loss,))
            optimiser.step()
            schedule.step()
            step += 1
            if on_progress is not None:
                speed = step * batch / max(time.monotonic() - begin, 1e-9)
                on_progress(DetectorProgress(step, steps, value, speed))


def _indices(images: ImageSet, name: str, values: Sequence[str]) -> Values:
    """The column as indices into `values`, UNKNOWN where the cell is empty."""
    if name not in images.factors:
        raise DataError(f"the images have no column {name!r}; there are {', '.join(images.factors) or 'none'}")
    places = {value: index for index, value in enumerate(values)} | {"": UNKNOWN}
    for file, value in zip(images.names, images.factors[name], strict=True):
        if value not in places:
            raise DataError(f"{file}: {name} is {value!r}, which the detector does not know")
    found: Values = np.array([places[value] for value in images.factors[name]], dtype=np.int64)
    if not (found != UNKNOWN).any():
        raise DataError(f"no image says what its {name} is; fill in the column, or leave it out")
    return found
