"""Real processes, really killed: what a run ends with does not depend on how often it was interrupted."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import training_problems as problems
from stylex.errors import Stopped
from stylex.run import Run, read_tensors
from stylex.training.loop import TrainingResult

SETTINGS = (
    "training.total_kimg=0.12",
    "training.checkpoint_kimg=0.02",
    "training.log_kimg=0.02",
    "training.sample_kimg=0.1",
    "loss.r1_interval=4",
    "loss.path_length_interval=4",
)
"""30 steps, a checkpoint every five."""


def go(run: Run) -> TrainingResult:
    return problems.train_on(run, 3)


def start(run: Run, checkpoints: int = 1) -> subprocess.Popen[str]:
    """The same training in a process of its own, which has just written so many checkpoints."""
    script = Path(__file__).parent / "training_process.py"
    process = subprocess.Popen(
        [sys.executable, str(script), str(run.path)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while (
        len(run.checkpoint_files()) < checkpoints and process.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.002)
    return process


def outcome(run: Run) -> tuple[list[str], str, list[dict[str, Any]]]:
    """Checksums of checkpoints and model, and the metrics without what a clock has to say."""
    checkpoints = [read_tensors(file)[1]["sha256"] for file in run.checkpoint_files()]
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    for line in lines:
        del line["seconds"], line["images_per_second"]
    return checkpoints, read_tensors(run.model_file)[1]["sha256"], lines


@pytest.mark.parametrize("name", ["fast", "stylex"])
def test_killed_at_a_random_moment_and_continued_equals_uninterrupted(tmp_path: Path, name: str) -> None:
    """SIGKILL, as power loss would; bit for bit on the CPU in fp32."""
    whole = problems.make_run(tmp_path / "whole", name, SETTINGS)
    go(whole)
    run = problems.make_run(tmp_path / "killed", name, SETTINGS)
    process = start(run)
    delay = random.uniform(0, 0.5)
    time.sleep(delay)
    process.kill()
    process.communicate()
    found = run.newest_checkpoint()
    assert found is not None
    where = f"killed {delay:.4f} s after the first checkpoint, at {found[2].name}"
    assert go(run).images == 120, where
    assert outcome(run) == outcome(whole), where


def test_sigterm_lets_a_process_write_a_checkpoint_and_end(tmp_path: Path) -> None:
    run = problems.make_run(tmp_path / "run", "fast", [*SETTINGS, "training.total_kimg=100"])
    process = start(run, checkpoints=2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    last = errors.strip().splitlines()[-1]
    assert last.startswith(f"{Stopped.__module__}.{Stopped.__qualname__}: stopped at step ")
    step = int(last.split("stopped at step ")[1].split()[0])
    found = run.newest_checkpoint()
    assert found is not None
    assert found[1]["step"] == step
    assert read_tensors(run.model_file)[1]["step"] == step
