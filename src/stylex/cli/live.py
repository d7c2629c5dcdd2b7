"""The terminal while a model trains: a panel that stays in place, or plain lines without a terminal."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from itertools import zip_longest
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stylex.cli.output import errors
from stylex.run import Run
from stylex.training.loop import Progress

BARS = "▁▂▃▄▅▆▇█"
HISTORY = 20
"""Log entries that a sparkline shows where there is room."""

WIDEST, NARROWEST_PAIR = 100, 80
"""Columns of the panel at most, and at least for two groups beside each other."""

LABEL, FIGURE = 17, 7
"""Characters of a name and of a number."""

PLAIN_SECONDS = 10.0
"""Least time between two plain lines."""

GROUPS: Mapping[str, Mapping[str, str]] = {
    "keeps the class": {
        "encode/agreement": "encode",
        "swap/agreement": "swap",
        "encode/kl": "KL encode",
        "swap/kl": "KL swap",
        "class_free_styles": "class-free styles",
    },
    "keeps the image": {
        "l1": "L1",
        "perceptual": "perceptual",
        "encode/latent_l1": "latent, encode",
        "swap/latent_l1": "latent, swap",
    },
    "looks real": {
        "adversarial": "generator",
        "discriminator": "discriminator",
        "score/real": "score, real",
        "score/fake": "score, generated",
    },
    "regularisers": {"r1": "R1", "path_length": "path length"},
}
"""What is shown where, and its name; a statistic that stands nowhere here goes to "other"."""

HEADLINE = ("encode/agreement", "swap/agreement")
"""What to look at first."""

SHORT = ("l1", "encode/agreement", "swap/agreement", "adversarial", "class_free_styles")
"""What plain lines show."""


def sparkline(values: Sequence[float]) -> str:
    """One character a value, the lowest and highest of them at the ends of the scale.

    >>> sparkline([0, 1, 2, 3])
    '▁▃▆█'
    """
    if not values:
        return ""
    low, high = min(values), max(values)
    if high == low:
        return BARS[0] * len(values)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] for value in values)


class TrainingView:
    """Shows progress; a context manager whose `update` is what `train` calls after every log interval.

    Args:
        run: whose checkpoints and samples are named; its metrics so far begin the sparklines.
        about: a few words for the frame, such as recipe and hardware.
        console: where to; a terminal gets the panel, anything else plain lines.
        clock: seconds, from any zero.
    """

    def __init__(
        self,
        run: Run,
        about: str,
        *,
        console: Console = errors,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run, self._about, self._console, self._clock = run, about, console, clock
        self._begin = clock()
        self._now: Progress | None = None
        self._updated = self._begin
        self._said: float | None = None
        self._history: dict[str, deque[float]] = {}
        self._checkpoint = self._samples = ""
        self._live: Live | None = None
        for entry in _entries(run):
            self._note(entry)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self.render, console=self._console, refresh_per_second=1, transient=False
            )
            self._live.start()
        return self

    def __exit__(self, *failure: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, now: Progress) -> None:
        """Show where training stands."""
        self._now, self._updated = now, self._clock()
        self._note(now.statistics)
        checkpoints = self._run.checkpoint_files()
        self._checkpoint = checkpoints[-1].name.removesuffix(".safetensors") if checkpoints else ""
        samples = sorted((self._run.path / "samples").glob("*.png"))
        self._samples = str(samples[-1]) if samples else ""
        if self._live is not None:
            self._live.refresh()
        elif (
            self._said is None
            or now.images >= now.total_images
            or (self._updated - self._said >= PLAIN_SECONDS)
        ):
            self._said = self._updated
            self._console.print(self._line(now), soft_wrap=True, markup=False)

    def render(self) -> RenderableType:
        """The panel as it stands now."""
        now = self._now
        if now is None:
            return self._framed(Text("the first steps are under way …", "dim"))
        parts: list[RenderableType] = [self._progress(now), Text()]
        parts.append(self._figures(now.statistics))
        where = Table.grid(padding=(0, 2))
        where.add_row(Text("checkpoint", "dim"), self._checkpoint or Text("none yet", "dim"))
        where.add_row(Text("samples", "dim"), Text(self._samples or "none yet", overflow="fold"))
        return self._framed(Group(*parts, where))

    def _framed(self, inside: RenderableType) -> Panel:
        title = Text.assemble(("stylex train", "bold"), "  ", str(self._run.path))
        return Panel(
            Padding(inside, (0, 1)),
            title=title,
            title_align="left",
            subtitle=Text(self._about, "dim"),
            subtitle_align="right",
            border_style="dim",
            width=min(self._console.width, WIDEST),
        )

    def _progress(self, now: Progress) -> RenderableType:
        share = now.images / now.total_images
        left = max(0.0, now.seconds_left - (self._clock() - self._updated))
        facts = Text.assemble(
            (f"{100 * share:.0f} %", "bold"),
            f"  {now.images / 1000:.1f} of {now.total_images / 1000:g} kimg",
            ("   ·   ", "dim"),
            (f"{now.images_per_second:.0f}", "bold"),
            " images/s",
            ("   ·   ", "dim"),
            (_clock_time(left), "bold"),
            " left",
            (f", {_clock_time(self._clock() - self._begin)} so far", "dim"),
        )
        bar = ProgressBar(total=now.total_images, completed=now.images, complete_style="cyan")
        both = Table.grid(expand=True)  # a bar ends no line by itself
        both.add_row(bar)
        both.add_row(facts)
        return both

    def _figures(self, statistics: Mapping[str, float]) -> RenderableType:
        tables = [
            _table(
                name, [(label, key) for key, label in group.items() if key in statistics], statistics, self
            )
            for name, group in _groups(statistics).items()
        ]
        if self._console.width < NARROWEST_PAIR:
            return Group(*tables)
        grid = Table.grid(expand=True, padding=(0, 2))
        grid.add_column(ratio=1)
        grid.add_column(ratio=1)
        for pair in zip_longest(tables[::2], tables[1::2], fillvalue=Text()):
            grid.add_row(*pair)
        return grid

    def trend(self, key: str) -> str:
        """The sparkline of a statistic, as long as the panel's width allows."""
        width = min(self._console.width, WIDEST) - 6  # frame and its padding
        if self._console.width >= NARROWEST_PAIR:
            width = (width - 2) // 2
        room = max(1, min(HISTORY, width - LABEL - FIGURE - 2))
        return sparkline(list(self._history.get(key, ()))[-room:])

    def _note(self, statistics: Mapping[str, float]) -> None:
        for key, value in statistics.items():
            self._history.setdefault(key, deque(maxlen=HISTORY)).append(value)

    def _line(self, now: Progress) -> str:
        figures = ", ".join(f"{key} {now.statistics[key]:.3f}" for key in SHORT if key in now.statistics)
        return (
            f"{now.images / 1000:.1f} of {now.total_images / 1000:g} kimg, "
            f"{now.images_per_second:.0f} images/s, {_clock_time(now.seconds_left)} left"
            + (f": {figures}" if figures else "")
        )


def _groups(statistics: Mapping[str, float]) -> dict[str, Mapping[str, str]]:
    """The groups that have something to show, with one more for what stands in none."""
    placed = {key for group in GROUPS.values() for key in group}
    groups = {name: group for name, group in GROUPS.items() if any(key in statistics for key in group)}
    other = {key: key for key in statistics if key not in placed}
    return groups | ({"other": other} if other else {})


def _table(
    name: str, rows: Iterable[tuple[str, str]], statistics: Mapping[str, float], view: TrainingView
) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(width=LABEL, no_wrap=True)
    table.add_column(width=FIGURE, justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_row(Text(name, "bold cyan"))
    for label, key in rows:
        style = "bold" if key in HEADLINE else ""
        table.add_row(Text(label), Text(_figure(statistics[key]), style), Text(view.trend(key), "cyan"))
    table.add_row()
    return table


def _figure(value: float) -> str:
    """Three digits that count, in at most seven characters."""
    if value == 0 or 0.001 <= abs(value) < 100:
        return f"{value:.3f}"
    return f"{value:.0f}" if 100 <= abs(value) < 1e6 else f"{value:.1e}"


def _clock_time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _entries(run: Run) -> list[dict[str, Any]]:
    """The last lines of the run's metrics, statistics alone; unreadable ones are left out."""
    if not run.metrics_file.exists():
        return []
    found = []
    about = ("step", "images", "seconds", "images_per_second")
    for line in run.metrics_file.read_text(encoding="utf-8", errors="replace").splitlines()[-HISTORY:]:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            numbers = {key: value for key, value in entry.items() if isinstance(value, int | float)}
            found.append({key: value for key, value in numbers.items() if key not in about})
    return found
