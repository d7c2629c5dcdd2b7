"""Training the network that reads factors, on images that are spoilt as reconstruction spoils them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stylex.errors import ConfigError, DataError, TrainingDiverged
from stylex.evaluation.factors import UNKNOWN, FactorDetector, blur, score_factors, value_indices
from stylex.hardware import Hardware, place

if TYPE_CHECKING:
    from stylex.data.images import Dataset, ImageSet

EPOCHS, BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY = 12, 64, 0.003, 0.05

MOST_VALUES = 64
"""A column with more distinct values is taken for an identifier or a measurement, and left out."""


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
    """Train on the factor columns of a data set's training images, and score it on its test images.

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


def degrade(images: Tensor, random: np.random.Generator) -> Tensor:
    """What reconstruction does to an image, roughly: [N, 3, H, W] → the same shape, each image by itself.

    A shift by up to a 32nd of the side; half of the images mixed with their blurred copy (a Gaussian of 0.6
    to 1.8 pixels at 64 px) by a random share; contrast and tint of each channel by up to 4 %; noise of
    standard deviation up to 0.04.
    """
    count, _, height, width = images.shape

    def draw(*shape: int) -> Tensor:
        return torch.from_numpy(random.random(shape, np.float32)).to(images)

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
        name: torch.from_numpy(value_indices(training, name, values))
        for name, values in detector.factors.items()
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
