"""The terminal while a model trains: a panel that stays in place, or plain lines without a terminal."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stylex.cli.output import errors
from stylex.run import Run
from stylex.training.progress import Progress

BARS = "▁▂▃▄▅▆▇█"
HISTORY = 20
"""Log entries that a sparkline shows where there is room."""

WIDEST, NARROWEST_PAIR = 100, 80
"""Columns of the panel at most, and at least for two groups beside each other."""

LABEL, FIGURE, GAP = 17, 7, 3
"""Characters of a name, of a number, and between two groups beside each other."""

FRAME = 6
"""Characters that the frame and the space within it take of the width."""

SEPARATOR = Text("  ·  ", "dim")

ABOUT = ("step", "images", "seconds", "images_per_second")
"""Keys of a line in metrics.jsonl that are no statistics."""

PLAIN_SECONDS = 10.0
"""Least time between two plain lines."""

GROUPS: Mapping[str, Mapping[str, str]] = {
    "keeps the class": {
        "encode/agreement": "encode",
        "swap/agreement": "swap",
        "encode/kl": "KL encode",
        "swap/kl": "KL swap",
        "class_free_styles": "class-free styles",
        "unused_latents": "unused latents",
    },
    "keeps the image": {
        "l1": "L1",
        "perceptual": "perceptual",
        "encode/latent_l1": "latent, encode",
        "swap/latent_l1": "latent, swap",
        "swap/proximity": "L1, swapped",
        "swap/area": "area, swapped",
        "swap/cycle": "L1, swapped back",
    },
    "watched images": {
        "health/agreement": "class kept",
        "health/agreement_over_chance": "over chance",
        "health/l1": "L1",
        "health/l1_share": "L1 ÷ constant",
        "health/encoder_variance": "encoder variance",
        "health/learning_rate_share": "learning rate, ×",
    },
    "looks real": {
        "adversarial": "generator",
        "discriminator": "discriminator",
        "score/real": "score, real",
        "score/fake": "score, generated",
    },
    "regularisers": {"r1": "R1", "path_length": "path length"},
    "augmentation": {"augmentation/p": "probability p", "augmentation/r": "overfitting r"},
}
"""What is shown where, and its name; a statistic that stands nowhere here goes to "other".

In this order two columns of 80 characters hold them in the 24 lines of a common terminal.
"""

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

    What a log interval has no figure of (checks come with checkpoints only) is shown as it last was, so that
    nothing jumps.

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
        self._seconds_before = 0.0
        self._images_before = 0
        self._latest: dict[str, float] = {}
        self._now: Progress | None = None
        self._updated = self._begin
        self._said: float | None = None
        self._history: dict[str, deque[float]] = {}
        self._checkpoint = self._samples = ""
        self._live: Live | None = None
        self._look()
        for entry in _entries(run):
            self._seconds_before = entry.pop("seconds", 0.0)
            self._images_before = int(entry.pop("images", 0))
            self._note({key: value for key, value in entry.items() if key not in ABOUT})

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
        self._look()
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
        parts: list[RenderableType] = [self._progress(), Text()]
        if self._latest:
            parts.append(self._figures())
        if self._now is not None or self._checkpoint:
            where = Table.grid(padding=(0, 2))
            where.add_row(Text("checkpoint", "dim"), self._checkpoint or Text("none yet", "dim"))
            where.add_row(Text("samples", "dim"), Text(self._samples or "none yet", overflow="fold"))
            parts.append(where)
        return self._framed(Group(*(parts if len(parts) > 2 else parts[:1])))

    def _framed(self, inside: RenderableType) -> Panel:
        title = Text.assemble(("stylex train", "bold"), "  ", str(self._run.path))
        return Panel(
            Padding(inside, (0, 1)),
            title=title,
            title_align="left",
            subtitle=Text(self._about, "dim"),
            subtitle_align="right",
            border_style="dim",
            width=self._width,
        )

    @property
    def _width(self) -> int:
        return min(self._console.width, WIDEST)

    def _progress(self) -> RenderableType:
        """The bar and what there is to say of time; in two lines where one is too short."""
        total = self._run.config.recipe.training.total_kimg * 1000
        images, so_far = self._images_before, self._seconds_before + self._clock() - self._begin
        if self._now is not None:
            images, total = self._now.images, self._now.total_images
        place = Text.assemble(
            (f"{100 * images / total:.0f} %", "bold"), f"  {images / 1000:.1f} of {total / 1000:g} kimg"
        )
        if self._now is not None and self._now.prepared is not None and self._now.prepared < 1:
            facts = Text(_preparing(self._now))
            times = Text(f"{_clock_time(self._now.seconds_left)} left of this, then training begins", "dim")
        elif self._now is None or self._now.prepared is not None:
            going_on = "going on" if images else "the first steps are under way"
            facts, times = place, Text(f"{going_on} …", "dim")
        else:
            speed = (f"{self._now.images_per_second:.0f}", "bold")
            facts = Text.assemble(place, SEPARATOR, speed, " images/s")
            if images >= total:
                times = Text.assemble(("done", "bold green"), f" in {_clock_time(so_far)}")
            else:
                left = max(0.0, self._now.seconds_left - (self._clock() - self._updated))
                times = Text.assemble(
                    (_clock_time(left), "bold"), " left", (f", {_clock_time(so_far)} so far", "dim")
                )
        both = Table.grid(expand=True)  # a bar ends no line by itself
        both.add_row(ProgressBar(total=total, completed=images, complete_style="cyan"))
        one = Text.assemble(facts, SEPARATOR, times)
        for line in (one,) if one.cell_len <= self._width - FRAME else (facts, times):
            both.add_row(line)
        return both

    def _figures(self) -> RenderableType:
        """The groups one below the other, or in two columns of about the same height."""
        columns: list[list[Table]] = [[] for _ in range(2 if self._console.width >= NARROWEST_PAIR else 1)]
        for name, group in _groups(self._latest).items():
            rows = [(label, key) for key, label in group.items() if key in self._latest]
            shortest = min(columns, key=lambda column: sum(table.row_count for table in column))
            shortest.append(_table(name, rows, self._latest, self))
        if len(columns) == 1:
            return Group(*columns[0])
        grid = Table.grid(padding=0)
        for width in (self._column + GAP, self._column):
            grid.add_column(width=width)
        grid.add_row(*(Group(*column) for column in columns))
        return grid

    @property
    def _column(self) -> int:
        """Characters that a group is wide."""
        inside = self._width - FRAME
        return (inside - GAP) // 2 if self._console.width >= NARROWEST_PAIR else inside

    def trend(self, key: str) -> str:
        """The sparkline of a statistic, as long as the panel's width allows."""
        room = max(1, min(HISTORY, self._column - LABEL - FIGURE - 2))
        return sparkline(list(self._history.get(key, ()))[-room:])

    def _look(self) -> None:
        """See what the run has of checkpoints and samples."""
        checkpoints = self._run.checkpoint_files()
        self._checkpoint = checkpoints[-1].name.removesuffix(".safetensors") if checkpoints else ""
        samples = sorted((self._run.path / "samples").glob("*.png"))
        self._samples = str(samples[-1]) if samples else ""

    def _note(self, statistics: Mapping[str, float]) -> None:
        self._latest |= statistics
        for key, value in statistics.items():
            self._history.setdefault(key, deque(maxlen=HISTORY)).append(value)

    def _line(self, now: Progress) -> str:
        if now.prepared is not None:
            return f"{_preparing(now)}, {_clock_time(now.seconds_left)} left of this"
        figures = ", ".join(f"{key} {now.statistics[key]:.3f}" for key in SHORT if key in now.statistics)
        left = f"{_clock_time(now.seconds_left)} left" if now.images < now.total_images else "done"
        return (
            f"{now.images / 1000:.1f} of {now.total_images / 1000:g} kimg, "
            f"{now.images_per_second:.0f} images/s, {left}" + (f": {figures}" if figures else "")
        )


def _preparing(now: Progress) -> str:
    return f"finding the classifier's evidence: {100 * (now.prepared or 0):.0f} %"


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


def _entries(run: Run) -> list[dict[str, float]]:
    """The last lines of the run's metrics; left out are unreadable ones, and those after its checkpoint.

    What came after the newest checkpoint is trained again.
    """
    files = run.checkpoint_files()
    if not run.metrics_file.exists() or not files:
        return []
    newest = int(files[-1].stem.removeprefix("step-"))
    found = []
    for line in run.metrics_file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int) and entry["step"] <= newest:
            found.append({key: value for key, value in entry.items() if isinstance(value, int | float)})
    return found[-HISTORY:]
