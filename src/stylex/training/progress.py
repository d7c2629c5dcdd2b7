"""How far a training is, for displays and for those who may ask it to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from stylex.errors import Stopped
from stylex.training.stopping import StopRequest

PREPARING_STOPPED = "stopped before the first step; the same command begins again"


@dataclass(frozen=True)
class Progress:
    """Where training stands, for displays.

    Before the first step, while the classifier's evidence is looked for, `prepared` is how much of that is
    done, and the seconds are left of it.
    """

    images: int
    total_images: int
    images_per_second: float
    seconds_left: float
    statistics: dict[str, float]
    prepared: float | None = None


class Preparation:
    """What is asked for and told while evidence is looked for, before the first step."""

    def __init__(
        self, stop: StopRequest, total_images: int, on_progress: Callable[[Progress], None] | None = None
    ) -> None:
        self._stop, self._total_images, self._on_progress = stop, total_images, on_progress
        self._begin = time.perf_counter()
        self._said: float | None = None

    def __call__(self, done: int, total: int) -> None:
        """Raises Stopped where somebody asked for it; tells how far things are, once a second at most."""
        if self._stop.asked():
            raise Stopped(PREPARING_STOPPED)
        now = time.perf_counter()
        if self._on_progress is None or (self._said is not None and now - self._said < 1 and done < total):
            return
        self._said = now
        seconds = (now - self._begin) * (total - done) / max(1, done)
        self._on_progress(Progress(0, self._total_images, 0.0, seconds, {}, prepared=done / total))
