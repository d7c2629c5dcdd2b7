"""A screened search, whole: what it spares beside an exact one."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stylex.attfind.discovery import Discovery
from stylex.attfind.first_order import has_gradients
from stylex.attfind.measuring import measure
from stylex.attfind.screened_sweep import screened_sweep
from stylex.config import AttFindSettings
from stylex.hardware import peak_memory, release_freed_memory, start_peak_memory, used_memory
from stylex.model import Model
from stylex.parallel import ALONE


@dataclass(frozen=True)
class ScreenedResult:
    """A screened search in figures; `changes` are what an exact one measures, `measured` what this one did.

    `evaluations_per_second` are the exact one's changes over the seconds of this one, which has the batch
    probe, the gradients of first order, the resampled selections and the files in it. `flops` is the
    arithmetic of the changes measured, counted as for the other ways, and of the gradients;
    `convolution_peak_flops` what convolutions alone reach in a second. Memory is what it took at most, but
    for batches that were only tried.
    """

    images: int
    changes: int
    measured: int
    seconds: float
    flops: float
    convolution_peak_flops: float
    peak_memory_bytes: int

    @property
    def evaluations_per_second(self) -> float:
        return self.changes / self.seconds

    @property
    def flops_per_second(self) -> float:
        return self.flops / self.seconds

    @property
    def share_of_convolution_peak(self) -> float:
        return self.flops_per_second / self.convolution_peak_flops

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "changes": self.changes,
            "measured": self.measured,
            "seconds": self.seconds,
            "evaluations_per_second": self.evaluations_per_second,
            "tflops": self.flops_per_second / 1e12,
            "share_of_convolution_peak": self.share_of_convolution_peak,
            "peak_memory_bytes": self.peak_memory_bytes,
        }


def bench_screened(
    model: Model,
    found: Discovery,
    settings: AttFindSettings,
    seed: int,
    *,
    image_flops: float,
    change_flops: npt.NDArray[np.float64],
    convolution_peak_flops: float,
    on_progress: Callable[[int, int], None] | None = None,
) -> ScreenedResult:
    """Search once, screened, into a folder that is removed.

    Args:
        image_flops: arithmetic of synthesising and classifying one image; a gradient for its styles, the
            weights being fixed, takes as much again.
        change_flops: arithmetic of one change of each coordinate, [S].
        convolution_peak_flops: what convolutions alone reach in a second on this machine.
        on_progress: told the images done and the images in all.
    """
    device = model.hardware.device
    highest = 0

    def measured(*shards: Any, **more: Any) -> None:
        nonlocal highest
        highest = max(highest, peak_memory(device))  # of the gradients: the batch probe begins to watch anew
        measured_once(*shards, **more)
        highest = max(highest, peak_memory(device))

    measured_once = partial(
        measure,
        model=model,
        space=found.space,
        styles=found.styles,
        shift=settings.shift,
        batch_size=settings.batch_size,
        on_progress=on_progress,
    )
    release_freed_memory()
    held = used_memory(device)
    start_peak_memory(device)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        screened = settings.model_copy(update={"sweep": "screened"})
        shards = screened_sweep(Path(folder), "bench", found, model, screened, seed, ALONE, measured)
        seconds = time.perf_counter() - begin
    counts = np.zeros((2, found.space.size))
    for stage in range(len(shards.plan.ends)):
        counts += len(shards.plan.images(stage)) * shards.open_changes(stage)
    if shards.more is not None:
        counts += len(found.styles) * shards.more.open_changes(0)
    passes = 1 + len(model.class_names) if has_gradients(model) else 0
    gradients = len(found.styles) * passes * image_flops
    return ScreenedResult(
        len(found.styles),
        2 * found.space.size * len(found.styles),
        int(counts.sum()),
        seconds,
        float((counts * change_flops).sum()) + gradients,
        convolution_peak_flops,
        max(0, highest - held),
    )
