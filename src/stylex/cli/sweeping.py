"""The display of a search: images done, coordinates a second, time left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from stylex.cli.output import errors

RECENT_IMAGES = 9
"""Of which the display takes what an image is."""


class SweepView:
    """What `search` calls while it measures; `coordinates` of an image, each counted once for both ends.

    Images that an earlier search left are no work of this one: rate and time left hang on what it measures.
    A screened search measures fewer changes of later images: the last few say what one takes.
    """

    def __init__(self, display: Progress, coordinates: int) -> None:
        self._display, self._coordinates = display, coordinates
        self._begin = time.monotonic()
        self._measured = 0  # changes, two a coordinate
        self._done = self._at = 0
        self._total: int | None = None
        self._marks: deque[tuple[int, int]] = deque(maxlen=RECENT_IMAGES)  # images done, changes measured
        self._task = display.add_task("measuring effects", total=None, about="")

    def on_progress(self, done: int, total: int) -> None:
        """After every image."""
        if self._total is None:
            self._begin = self._begin if self._measured else time.monotonic()
        self._done, self._total, self._at = done, total, self._measured
        self._marks.append((done, self._measured))
        self._show()

    def on_changes(self, count: int) -> None:
        """After every batch."""
        self._measured += count
        self._show()

    @property
    def rate(self) -> float:
        """Coordinates a second since this search began to measure."""
        return self._measured / 2 / max(1e-9, time.monotonic() - self._begin)

    def about(self) -> str:
        """The figures in words."""
        parts = [] if self._total is None else [f"image {self._done}/{self._total}"]
        if self._measured:
            parts.append(f"{self.rate:,.0f} coordinates/s")
            if self._total is not None:
                left = (self._total - self._done) * self._each / 2 - (self._measured - self._at) / 2
                parts.append(f"time left {timedelta(seconds=round(max(0.0, left) / self.rate))}")
        return ", ".join(parts)

    @property
    def _each(self) -> float:
        """Changes that are measured of an image, by the last ones."""
        (images, before), (now, after) = (
            (self._marks[0], self._marks[-1]) if self._marks else ((0, 0), (0, 0))
        )
        return (after - before) / (now - images) if after > before else 2.0 * self._coordinates

    def _show(self) -> None:
        completed = self._done + min(1.0, (self._measured - self._at) / self._each)
        self._display.update(self._task, completed=completed, total=self._total, about=self.about())


@contextmanager
def sweep_view(coordinates: int) -> Iterator[SweepView]:
    """The display, on standard error."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[about]}"),
    )
    with Progress(*columns, console=errors) as display:
        yield SweepView(display, coordinates)
