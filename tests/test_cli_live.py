"""What is shown while training runs, on a recorded terminal and on none."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

import training_problems as problems
from stylex.cli.live import GROUPS, TrainingView, sparkline
from stylex.run import Run
from stylex.training.progress import Progress

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


def checkpoint(run: Run, step: int) -> None:
    run.checkpoints.mkdir(exist_ok=True)
    (run.checkpoints / f"step-{step:08d}.safetensors").touch()


def shown(run: Run, width: int, *updates: Progress, seconds: float = 0.0) -> str:
    """The panel after these updates, a time after it was opened."""
    console = Console(file=io.StringIO(), record=True, width=width, force_terminal=True)
    now = [0.0]
    view = TrainingView(run, "fast, 64 px", console=console, clock=lambda: now[0])
    now[0] = seconds
    for update in updates:
        view.update(update)
    console.export_text()  # before it is shown a view writes lines; what it would show comes next
    console.print(view.render())
    return console.export_text()


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_the_panel_shows_everything_at_any_width(run: Run, width: int) -> None:
    checkpoint(run, 4980)
    (run.path / "samples").mkdir()
    (run.path / "samples" / "000075.png").touch()
    text = shown(run, width, progress())
    for part in ("62 %", "79.7 of 128 kimg", "0.973", "0.951", "0.061", "123456", "1.2e-04"):
        assert part in text, part
    for part in ("step-00004980", "encoder_spread", "keeps the class", "other"):
        assert part in text, part
    assert "000075.png" in "".join(line.strip(" │") for line in text.splitlines())
    assert max(map(len, text.splitlines())) <= width


EVERYTHING = {key: 0.5 for group in GROUPS.values() for key in group}


@pytest.mark.parametrize("width", [60, 80, 100])
def test_nothing_is_cut_short_and_no_line_of_facts_is_broken(run: Run, width: int) -> None:
    updates = [progress(images, **EVERYTHING) for images in range(1000, 40_000, 1000)]
    text = shown(run, width, *updates)
    assert "…" not in text
    facts = [line.strip(" │") for line in text.splitlines() if "left" in line or "kimg" in line]
    assert len(facts) == (2 if width == 60 else 1)
    assert facts[-1].endswith("left, 0:00:00 so far")
    trends = [line for line in text.splitlines() if "▁" in line]
    assert len({len(line) for line in trends}) == 1


def test_two_columns_fit_a_common_terminal(run: Run) -> None:
    checkpoint(run, 5)
    rare = ("health/learning_rate_share", "unused_latents", "swap/proximity", "swap/area", "swap/cycle")
    everything = {key: value for key, value in EVERYTHING.items() if key not in rare}
    now = Progress(1000, 2000, 10.0, 5.0, everything)
    assert len(shown(run, 80, now).splitlines()) <= 24


def test_figures_of_rare_checks_stay(run: Run) -> None:
    text = shown(run, 80, progress(**{"health/agreement": 0.987}), progress(80_000))
    assert "watched images" in text
    assert "0.987" in text


def test_a_finished_training_says_so(run: Run) -> None:
    text = shown(run, 80, progress(128_000), seconds=90)
    assert "done in 0:01:30" in text
    assert "left" not in text


def test_a_continued_training_begins_with_what_there_is(run: Run) -> None:
    """Its place, its figures and its time; what was logged after the checkpoint is trained again."""
    rows = [{"step": n, "images": 4 * n, "seconds": 10.0 * n, "l1": 0.25 / n} for n in (1, 2, 3)]
    run.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    checkpoint(run, 2)
    text = shown(run, 80)
    assert "20 %  0.0 of 0.04 kimg  ·  going on …" in text  # 8 of 40 images
    assert "0.125" in text
    assert "0.083" not in text
    assert "step-00000002" in text
    assert "0:00:25 so far" in shown(run, 80, progress(), seconds=5)
    assert "first steps" in shown(problems.make_run(run.path / "fresh", "fast"), 80)


def test_sparklines_begin_with_what_the_run_has_logged(run: Run) -> None:
    lines = [json.dumps({"step": n, "images": 4 * n, "l1": 8.0 - n}) for n in range(1, 8)]
    run.metrics_file.write_text("\n".join([*lines, '{"step": 8, "l']))
    assert TrainingView(run, "").trend("l1") == ""  # without a checkpoint it begins again
    checkpoint(run, 7)
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
    assert "0:18:12 left" in lines[0]
    assert "done: " in lines[1]
    assert "\x1b" not in file.getvalue()


@pytest.mark.parametrize("width", [60, 100])
def test_before_the_first_step_the_search_for_evidence_is_shown(run: Run, width: int) -> None:
    searching = Progress(0, 128_000, 0.0, 72.0, {}, prepared=0.25)
    text = shown(run, width, searching)
    assert "finding the classifier's evidence: 25 %" in text
    assert "0:01:12 left of this, then training begins" in text
    assert "images/s" not in text
    found = Progress(0, 128_000, 0.0, 0.0, {}, prepared=1.0)
    assert "the first steps are under way" in shown(run, width, searching, found)
    file = io.StringIO()
    with TrainingView(run, "", console=Console(file=file, width=80)) as view:
        view.update(searching)
    assert file.getvalue() == "finding the classifier's evidence: 25 %, 0:01:12 left of this\n"


def test_sparkline_scale() -> None:
    assert sparkline([]) == ""
    assert sparkline([5, 5]) == "▁▁"
    assert sparkline([0, 7, 3.5])[:2] == "▁█"
