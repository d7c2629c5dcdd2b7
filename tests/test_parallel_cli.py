"""`torchrun … -m stylex train` on two real processes: the same run as by one, also when one is hit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import training_problems as problems
from stylex.classifiers import Classifier
from stylex.classifiers.architectures import SmallCNN
from stylex.run import Run, read_tensors

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in a folder and a classifier."""
    path = tmp_path_factory.mktemp("home")
    (path / "images").mkdir()
    images = problems.images(24)
    for name, pixels in zip(images.names, images.images, strict=True):
        Image.fromarray(pixels).save(path / "images" / name)
    torch.manual_seed(0)  # of the widths that a file's architecture stands for, unlike problems.classifier()
    explained = Classifier(
        SmallCNN(2).eval(), architecture="small_cnn", class_names=("a", "b"), input_size=problems.RESOLUTION
    )
    explained.save(path / "classifier.safetensors")
    return path


def arguments(home: Path, out: str, *settings: str) -> list[str]:
    given = ["train", "--data", str(home / "images"), "--classifier", str(home / "classifier.safetensors")]
    given += ["--out", str(home / out), "--size", "16", "--device", "cpu", "--precision", "fp32", "--json"]
    for setting in (*problems.TINY, "loss.perceptual_network=classifier", *settings):
        given += ["--set", setting]
    return given


def start(home: Path, out: str, *settings: str, processes: int = 2) -> subprocess.Popen[str]:
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    command = [sys.executable, "-m", *(launcher if processes > 1 else []), "stylex"]
    return subprocess.Popen(
        command + arguments(home, out, *settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def workers(launcher: int) -> list[int]:
    """Process ids of the launcher's children by rank, as the kernel lists them."""
    found = {}
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks = [entry for entry in variables if entry.startswith(b"RANK=")]
        if ranks:
            found[int(ranks[0].removeprefix(b"RANK="))] = int(child)
    return [found[rank] for rank in sorted(found)]


def has_checkpoint(home: Path, out: str, process: subprocess.Popen[str]) -> Run:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if list((home / out / "checkpoints").glob("step-*.safetensors")):
            return Run.open(home / out)
        time.sleep(0.01)
    process.kill()
    pytest.fail(f"no checkpoint: {process.communicate()[1][-2000:]}")


def test_a_training_by_two_processes_equals_one_by_one(home: Path) -> None:
    """Told the class: ten steps of Adam show what rounding does to evidence (see `parallel_process`)."""
    outcomes = []
    for out, processes in (("one", 1), ("two", 2)):
        process = start(home, out, *problems.BY_CLASS, processes=processes)
        shown, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
        assert json.loads(shown)["images"] == 40  # printed once, by one process
        outcomes.append(read_tensors(home / out / "model.safetensors")[0])
    one, two = outcomes
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(
            two[key], value, rtol=1e-3, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
        )
    lines = [(home / out / "metrics.jsonl").read_text().splitlines() for out in ("one", "two")]
    assert len(lines[0]) == len(lines[1])
    last = [json.loads(found[-1]) for found in lines]
    assert last[1]["encode/kl"] == pytest.approx(last[0]["encode/kl"], rel=1e-2)


def test_a_worker_that_is_asked_to_stop_stops_all_with_a_checkpoint(home: Path) -> None:
    process = start(home, "stopped", "training.total_kimg=100")
    run = has_checkpoint(home, "stopped", process)
    os.kill(workers(process.pid)[1], signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    said = [line for line in errors.splitlines() if "stopped at step " in line]
    assert len(said) == 1, errors[-2000:]
    step = int(said[0].split("stopped at step ")[1].split()[0])
    assert "exitcode  : 143" in errors
    found = run.newest_checkpoint()
    assert found is not None
    assert found[1]["step"] == step


def test_a_killed_worker_ends_the_job_and_the_same_command_continues(home: Path) -> None:
    process = start(home, "killed", "training.total_kimg=0.4")
    run = has_checkpoint(home, "killed", process)
    os.kill(workers(process.pid)[1], signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0
    found = run.newest_checkpoint()
    assert found is not None
    again = start(home, "killed", "training.total_kimg=0.4")
    shown, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors[-3000:]
    assert json.loads(shown)["images"] == 400
