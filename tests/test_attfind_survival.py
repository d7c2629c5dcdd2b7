"""A screened search that is killed, and one by two processes, end with the bytes of an undisturbed one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import search_process
from stylex.run import read_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs that the processes left."""
    folder = tmp_path_factory.mktemp("searches")
    done = subprocess.run(
        [sys.executable, search_process.__file__, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def contents(run: Path) -> dict[str, bytes]:
    """All that a search writes but for the record of processes and threads."""
    files = [file for file in (run / "effects").iterdir() if file.name != "sweep.json"]
    return {
        file.name: file.read_bytes() for file in [*files, run / "styles.safetensors", run / "attributes.json"]
    }


def codes(folder: Path, name: str) -> Any:
    return read_json(folder / "codes.json")[name]


def test_a_screened_search_killed_in_every_stage_ends_with_the_same_bytes(folder: Path) -> None:
    assert codes(folder, "killed") == [*[-signal.SIGKILL] * len(search_process.MOMENTS), 0]
    assert contents(folder / "killed") == contents(folder / "whole")


def test_a_screened_search_by_two_processes_ends_with_the_bytes_of_one(folder: Path) -> None:
    assert codes(folder, "whole") == [0]
    assert codes(folder, "two") == [0, 0]
    assert read_json(folder / "two" / "effects" / "sweep.json")["processes"] == 2
    assert contents(folder / "two") == contents(folder / "whole")
