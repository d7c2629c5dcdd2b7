"""A screened search, whole: what it spares beside an exact one."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stylex.attfind.discovery import Discovery
from stylex.attfind.measuring import measure
from stylex.attfind.screened_sweep import screened_sweep
from stylex.config import AttFindSettings
from stylex.model import Model
from stylex.parallel import ALONE


@dataclass(frozen=True)
class ScreenedResult:
    """A screened search in figures; `changes` are what an exact one measures, `measured` what this one did.

    `evaluations_per_second` are the exact one's changes over the seconds of this one, which has the batch
    probe, the gradients of first order, the resampled selections and the files in it.
    """

    images: int
    changes: int
    measured: int
    seconds: float

    @property
    def evaluations_per_second(self) -> float:
        return self.changes / self.seconds

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "evaluations_per_second": self.evaluations_per_second}


def bench_screened(
    model: Model,
    found: Discovery,
    settings: AttFindSettings,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> ScreenedResult:
    """Search once, screened, into a folder that is removed.

    Args:
        on_progress: told the images done and the images in all.
    """
    measured = partial(
        measure,
        model=model,
        space=found.space,
        styles=found.styles,
        shift=settings.shift,
        batch_size=settings.batch_size,
        on_progress=on_progress,
    )
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        screened = settings.model_copy(update={"sweep": "screened"})
        shards = screened_sweep(Path(folder), "bench", found, model, screened, seed, ALONE, measured)
        seconds = time.perf_counter() - begin
    stages = range(len(shards.plan.ends))
    done = sum(
        len(shards.images(number)) * int(shards.open_changes(stage).sum())
        for stage in stages
        for number in shards.numbers(stage)
    )
    if shards.more is not None:
        done += len(found.styles) * int(shards.more.open_changes(0).sum())
    return ScreenedResult(len(found.styles), 2 * found.space.size * len(found.styles), done, seconds)
