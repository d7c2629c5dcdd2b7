"""What is shown while training runs, on a recorded terminal and on none."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

import training_problems as problems
from stylex.cli.live import TrainingView, sparkline
from stylex.run import Run
from stylex.training.loop import Progress

STATISTICS = {
    "l1": 0.0612,
    "encode/agreement": 0.973,
    "swap/agreement": 0.951,
    "encode/kl": 0.04,
    "discriminator": 1.21,
    "r1": 123456.0,
    "encoder_spread": 0.00012,
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return problems.make_run(tmp_path / "run", "fast")


def progress(images: int = 79_700, **more: float) -> Progress:
    return Progress(images, 128_000, 44.2, 1092.0, STATISTICS | more)


def shown(run: Run, width: int, *, terminal: bool = True) -> str:
    console = Console(file=io.StringIO(), record=True, width=width, force_terminal=terminal)
    view = TrainingView(run, "fast, 64 px", console=console, clock=lambda: 0.0)
    view.update(progress())
    console.export_text()  # before it is shown a view writes lines; what it would show comes next
    console.print(view.render())
    return console.export_text()


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_the_panel_shows_everything_at_any_width(run: Run, width: int) -> None:
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "step-00004980.safetensors").touch()
    (run.path / "samples").mkdir()
    (run.path / "samples" / "000075.png").touch()
    text = shown(run, width)
    for part in ("62 %", "79.7 of 128 kimg", "0.973", "0.951", "0.061", "123456", "1.2e-04"):
        assert part in text, part
    for part in ("step-00004980", "encoder_spread", "keeps the class", "other"):
        assert part in text, part
    assert "000075.png" in "".join(line.strip(" │") for line in text.splitlines())
    assert max(map(len, text.splitlines())) <= width


def test_sparklines_begin_with_what_the_run_has_logged(run: Run) -> None:
    lines = [json.dumps({"step": n, "images": 4 * n, "l1": 8.0 - n}) for n in range(1, 8)]
    run.metrics_file.write_text("\n".join([*lines, '{"step": 8, "l']))
    view = TrainingView(run, "")
    assert view.trend("l1") == sparkline([7, 6, 5, 4, 3, 2, 1])
    view.update(progress(l1=0.0))
    assert len(view.trend("l1")) == 8
    assert view.trend("step") == ""


def test_without_a_terminal_there_are_lines_and_not_too_many(run: Run) -> None:
    seconds = [0.0]
    file = io.StringIO()
    console = Console(file=file, width=80)
    with TrainingView(run, "", console=console, clock=lambda: seconds[0]) as view:
        for now, images in ((1, 500), (5, 1000), (10, 1500), (10.5, 128_000)):
            seconds[0] = float(now)
            view.update(progress(images))
    lines = file.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["0.5", "128.0"]
    assert "encode/agreement 0.973" in lines[0]
    assert "\x1b" not in file.getvalue()


def test_sparkline_scale() -> None:
    assert sparkline([]) == ""
    assert sparkline([5, 5]) == "▁▁"
    assert sparkline([0, 7, 3.5])[:2] == "▁█"
