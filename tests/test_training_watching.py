"""Metrics that can be rewound, TensorBoard included, statistics that find the first NaN, and sample grids."""

from __future__ import annotations

import errno
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils import tensorboard

import training_problems as problems
from stylex.errors import RunError
from stylex.networks import Encoder
from stylex.run import Run
from stylex.training.watching import MetricsLog, RecentStatistics, save_samples, to_grid


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return problems.make_run(tmp_path / "run", "fast")


def state(step: int) -> Any:
    class State:
        images = step * 4
        seconds = step / 3

    State.step = step  # type: ignore[attr-defined]
    return State()


def lines(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


def curve(run: Run, key: str) -> list[tuple[int, float]]:
    """What TensorBoard would draw."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(key)]


def write(run: Run, steps: range, value: float, rewind: int) -> dict[str, float]:
    # TensorBoard orders its files by name: the second, then a number without leading zeros.
    if (run.path / "tensorboard").exists():
        time.sleep(1.1)
    with MetricsLog(run) as log:
        last = log.rewind(rewind)
        for step in steps:
            log.write(state(step), {"l1": value + step, "images_per_second": 9.0})
    return last


def test_metrics_are_lines_of_json(run: Run) -> None:
    assert write(run, range(1, 4), 0.123456789, 0) == {}
    assert lines(run)[1] == {
        "step": 2,
        "images": 8,
        "seconds": 0.67,
        "l1": 2.12346,
        "images_per_second": 9.0,
    }


def test_work_after_the_checkpoint_is_dropped_from_metrics_and_curves(run: Run) -> None:
    write(run, range(1, 6), 0, 0)
    assert write(run, range(4, 7), 100, 3) == {"l1": 3.0}
    expected = [(1, 1), (2, 2), (3, 3), (4, 104), (5, 105), (6, 106)]
    assert [(line["step"], line["l1"]) for line in lines(run)] == expected
    assert curve(run, "l1") == expected


def test_a_run_that_starts_again_from_nothing_drops_everything(run: Run) -> None:
    write(run, range(1, 6), 0, 0)
    assert write(run, range(1, 3), 100, 0) == {}
    assert [line["step"] for line in lines(run)] == [1, 2]
    assert curve(run, "l1") == [(1, 101), (2, 102)]


@pytest.mark.parametrize("tail", ['{"step": 3, "l', "null\n", '{"step": "x"}\n', "\x00\x00\x00", "[]\n"])
def test_lines_cut_short_by_a_crash_are_dropped(run: Run, tail: str) -> None:
    write(run, range(1, 3), 0, 0)
    with run.metrics_file.open("a") as file:
        file.write(tail)
    assert MetricsLog(run).rewind(10) == {"l1": 2.0}
    assert [line["step"] for line in lines(run)] == [1, 2]


def test_rewinding_what_is_whole_writes_nothing(run: Run) -> None:
    write(run, range(1, 3), 0, 0)
    before = run.metrics_file.stat().st_mtime_ns
    MetricsLog(run).rewind(2)
    assert run.metrics_file.stat().st_mtime_ns == before
    assert {entry.name for entry in (run.path / "tensorboard").iterdir()} == {
        next((run.path / "tensorboard").iterdir()).name
    }


def test_a_full_disk_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, *arguments: Any, **more: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensorboard, "SummaryWriter", Full)
    with pytest.raises(RunError, match=r"metrics\.jsonl: could not be written \(No space left on device\)"):
        write(run, range(1, 2), 0, 0)


def test_closing_on_a_full_disk_is_no_error(run: Run) -> None:
    class Full:
        def add_scalar(self, *arguments: Any) -> None:
            pass

        def close(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    log = MetricsLog(run)
    log._board = Full()
    log.write(state(1), {"l1": 1.0})
    log.close()
    log.close()
    assert [line["step"] for line in lines(run)] == [1]


def test_recent_statistics_average_over_the_steps_that_gave_them() -> None:
    recent = RecentStatistics()
    recent.add(1, {"a": torch.tensor(1.0), "b": torch.tensor(5.0)})
    recent.add(2, {"a": torch.tensor(4.0)})
    assert recent.means() == {"a": 2.5, "b": 5.0}
    assert recent.first_broken() is None
    recent.clear()
    assert recent.means() == {}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_step_that_is_not_finite_is_named(value: float) -> None:
    recent = RecentStatistics()
    for step in range(1, 9):
        recent.add(
            step,
            {
                "a": torch.tensor(value if step in (5, 6) else 1.0),
                "b": torch.tensor(value if step >= 5 else 1.0),
                "c": torch.tensor(-value if step == 7 else 1.0),
            },
        )
    assert recent.first_broken() == (5, ["a", "b"])


def test_infinities_of_both_signs_do_not_hide_each_other() -> None:
    recent = RecentStatistics()
    recent.add(1, {"a": torch.tensor(math.inf)})
    recent.add(2, {"a": torch.tensor(-math.inf)})
    assert recent.first_broken() == (1, ["a"])


def test_a_grid_puts_rows_below_each_other() -> None:
    one = torch.full((3, 3, 4, 5), -1.0)
    other = torch.full((3, 3, 4, 5), 3.0)  # beyond the range: clipped
    other[1] = 0.0
    grid = to_grid([one, other])
    assert grid.shape == (8, 15, 3)
    assert grid.dtype == np.uint8
    assert (grid[:4] == 0).all()
    assert (grid[4:, :5] == 255).all()
    assert (grid[4:, 5:10] == 128).all()


@pytest.mark.parametrize(
    ("name", "rows"),
    [("fast", 4), ("evidence", 3), ("study", 4), ("stylex", 5), ("vdv", 5), ("stylegan2", 2)],
)
def test_a_sample_grid_shows_what_the_recipe_has(tmp_path: Path, name: str, rows: int) -> None:
    """Images, reconstructions and, with an encoder, one row a class, or a component of evidence in use.

    One row more with a mapping network.
    """
    trainer = problems.make_trainer(tmp_path / "run", name)
    if name == "evidence":
        evidence: Any = trainer.state.averages["encoder"].evidence
        evidence.unmixing[:1] = 1.0  # one component in use
    trainer.state.images = 12_345
    save_samples(trainer.run, trainer.watch, trainer.classifier, trainer.state, problems.HARDWARE)
    with Image.open(trainer.run.path / "samples" / "000012.png") as picture:
        assert picture.size == (3 * 16, rows * 16)
        shown = np.asarray(picture)[:16]
    assert (shown == np.concatenate(list(trainer.watch.images), axis=1)).all()


def test_rows_of_classes_differ_in_the_condition_alone(tmp_path: Path) -> None:
    trainer = problems.make_trainer(tmp_path / "run", "fast")
    generator = trainer.state.averages["generator"]
    generator.affine_weight.data[:, -2:] = 0.0  # type: ignore[union-attr, operator]
    save_samples(trainer.run, trainer.watch, trainer.classifier, trainer.state, problems.HARDWARE)
    with Image.open(trainer.run.path / "samples" / "000000.png") as picture:
        rows = np.asarray(picture).reshape(4, 16, -1)
    assert (rows[2] == rows[3]).all()
    assert (rows[1] == rows[2]).all()
    assert (rows[0] != rows[1]).any()


def test_rows_of_evidence_turn_one_component_each(tmp_path: Path) -> None:
    trainer = problems.make_trainer(tmp_path / "run", "evidence", ["network.evidence_components=3"])
    generator, encoder = trainer.state.averages["generator"], trainer.state.averages["encoder"]
    assert isinstance(encoder, Encoder)
    problems.some_evidence(encoder)
    assert encoder.evidence is not None
    encoder.evidence.below[0], encoder.evidence.above[0] = 5.0, 8.0  # the first comes in two kinds
    images = trainer.watch.batch(range(3))
    before = encoder.told(images)
    generator.affine_weight.data[:, -2] = 0.0  # type: ignore[union-attr, operator]
    save_samples(trainer.run, trainer.watch, trainer.classifier, trainer.state, problems.HARDWARE)
    with Image.open(trainer.run.path / "samples" / "000000.png") as picture:
        rows = np.asarray(picture).reshape(5, 16, -1)
    assert (rows[3] == rows[1]).all()  # what the generator does not read does not show
    assert (rows[2] != rows[1]).any()
    assert (rows[4] != rows[1]).any()
    turned = before.clone()
    turned[:, 0] = torch.where(before[:, 0] > 0, -1.0, 1.0)  # the kinds are ± 1
    with torch.no_grad():
        fake = generator(torch.cat([encoder(images), turned], dim=1))
    assert (rows[2] == to_grid([fake]).reshape(16, -1)).all()
