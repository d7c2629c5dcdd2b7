"""What the verbs print: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from stylex import hardware
from stylex.data import check_size
from stylex.errors import ConfigError, DataError, RunError
from stylex.hardware import Hardware
from stylex.parallel import World
from stylex.run import check_writable

if TYPE_CHECKING:
    from stylex.evaluation.coverage import Coverage

errors = Console(stderr=True, highlight=False)
results = Console(highlight=False)


def _power_of_two(size: int | None) -> int | None:
    if size is not None:
        try:
            check_size(size)
        except DataError as error:
            raise typer.BadParameter(str(error)) from None
    return size


RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")]
OtherImages = Annotated[str | None, typer.Option("--data", help="Images in place of the run's.")]
Size = Annotated[
    int | None,
    typer.Option("--size", callback=_power_of_two, help="Pixels along a side, a power of two."),
]
Group = Annotated[str | None, typer.Option("--group", help="Column whose rows stay together in one set.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps …")]
PrecisionName = Annotated[str, typer.Option("--precision", help="auto, fp32 or bf16.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads; by default all usable cores.")
]


def error_line(message: str) -> None:
    """One line on standard error."""
    errors.print(Text("stylex: ", "bold red").append(" ".join(message.split()), ""), soft_wrap=True)


def note(message: str) -> None:
    """A line for people, on standard error."""
    errors.print(message, soft_wrap=True, markup=False)


def note_coverage(found: Iterable[Coverage]) -> None:
    """Name the groups of images of which explanations should not be trusted."""
    for entry in found:
        if entry.warning is not None:
            note(f"warning: {entry.warning}")


class _Warnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(f"warning: {record.getMessage()}")


def show_warnings() -> None:
    """Show what the library warns of, such as files that were skipped, as lines on standard error."""
    logger = logging.getLogger("stylex")
    if not any(isinstance(handler, _Warnings) for handler in logger.handlers):
        logger.addHandler(_Warnings(logging.WARNING))


def result(as_json: bool, content: Any, text: str) -> None:
    """The result: JSON, or text for people."""
    if as_json:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        print(text, file=sys.__stdout__, flush=True)  # sys.stdout is where others may print, see `app.main`
    else:
        results.print(text, soft_wrap=True, markup=False)


def check_new_file(out: Path) -> None:
    """See that weights can be written to `out` at the end, before time is spent on making them.

    Raises:
        RunError: the file exists, or could not be written.
        ConfigError: its name does not end in .safetensors; others are read as other kinds of file.
    """
    if out.exists():
        raise RunError(f"{out}: exists; nothing was overwritten, choose another name")
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out {out}: the file's name must end in .safetensors")
    check_writable(out)


def choose_hardware(device: str, precision: str, threads: int | None) -> Hardware:
    """Choose hardware and say what was chosen."""
    chosen = hardware.choose(device, precision, threads)  # type: ignore[arg-type]
    note(f"computing on {chosen}")
    return chosen


def hardware_of_all(device: str, precision: str, threads: int | None, world: World) -> Hardware:
    """What this process computes on; number format and threads of all processes are those of the first."""
    if world.size == 1:
        return choose_hardware(device, precision, threads)
    threads = threads or max(1, hardware.usable_cores() // world.local_size)
    device = str(world.device)
    if world.first:
        chosen = choose_hardware(device, precision, threads)
        note(f"{world.size} processes")
    format_, threads = world.share((chosen.precision, threads) if world.first else ("", 0))[0]
    return chosen if world.first else hardware.choose(device, format_, threads)  # type: ignore[arg-type]


@contextmanager
def progress() -> Iterator[Progress]:
    """A progress display on standard error: bar, count, time left."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("[dim]time left[/]"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors) as display:
        yield display
