"""`stylex train` on two real processes: the same run as by one, also when one is hit or told to stop."""

from __future__ import annotations

import json
import os
import signal
import socket
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
from stylex.cli.app import main
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


def start(home: Path, out: str, *settings: str, launcher: str = "torchrun") -> subprocess.Popen[str]:
    """Two processes, started by torchrun or by the first of them."""
    command = [sys.executable, "-m"]
    if launcher == "torchrun":
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command += ["stylex", *arguments(home, out, *settings)]
    return subprocess.Popen(
        command + ([] if launcher == "torchrun" else ["--devices", "2"]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def alone(home: Path, out: str, *settings: str) -> None:
    """The same command for one process: this one."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(SystemExit) as ended:
        main(arguments(home, out, *settings))
    for number, handler in kept.items():
        signal.signal(number, handler)
    assert not ended.value.code


def workers(launcher: int) -> list[int]:
    """Process ids of the launcher's children by rank, as the kernel lists them."""
    found = {}
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks = [entry for entry in variables if entry.startswith(b"RANK=")]
        if ranks:
            found[int(ranks[0].removeprefix(b"RANK="))] = int(child)
    return [found[rank] for rank in sorted(found)]


def has_checkpoint(home: Path, out: str, process: subprocess.Popen[str], after: int = 0) -> Run:
    """The run, once there is a checkpoint of a later step."""
    deadline = time.monotonic() + 240
    folder = home / out / "checkpoints"
    while time.monotonic() < deadline and process.poll() is None:
        if any(int(file.stem.removeprefix("step-")) > after for file in folder.glob("step-*.safetensors")):
            return Run.open(home / out)
        time.sleep(0.01)
    process.kill()
    pytest.fail(f"no checkpoint: {process.communicate()[1][-2000:]}")


def newest(run: Run) -> int:
    """The step of the newest checkpoint that can be read."""
    found = run.newest_checkpoint()
    assert found is not None
    return int(found[1]["step"])


def stopped_at(errors: str) -> int:
    """The step that one process, and one only, says."""
    (said,) = (line for line in errors.splitlines() if "stopped at step " in line)
    return int(said.split("stopped at step ")[1].split()[0])


@pytest.fixture(scope="module")
def one(home: Path) -> Path:
    """A training by one process, told the class: of evidence, ten steps of Adam show what rounding does."""
    alone(home, "one", *problems.BY_CLASS)
    return home / "one"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def machines(home: Path, out: str, launcher: str) -> list[subprocess.Popen[str]]:
    """The command of each of two machines with one process, which meet at a port of the first one."""
    port = free_port()
    found = []
    for number in range(2):
        command, variables = [sys.executable, "-m"], {}
        if launcher == "torchrun":
            command += ["torch.distributed.run", "--nnodes=2", f"--node-rank={number}", "--nproc-per-node=1"]
            command += ["--master-addr=127.0.0.1", f"--master-port={port}", "-m"]
        else:
            variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": str(number)}
        command += ["stylex", *arguments(home, out, *problems.BY_CLASS)]
        command += [] if launcher == "torchrun" else ["--nodes", "2"]
        found.append(
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=ENVIRONMENT | variables,
            )
        )
    return found


@pytest.mark.parametrize("launcher", ["--devices", "--nodes", "torchrun"])
def test_a_training_on_two_devices_or_machines_equals_one_by_one(
    home: Path, one: Path, launcher: str
) -> None:
    out = f"two by {launcher}"
    if launcher == "--devices":
        processes = [start(home, out, *problems.BY_CLASS, launcher=launcher)]
    else:
        processes = machines(home, out, launcher)
    told = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), told[-1][1][-3000:]
    shown, errors = ("".join(parts) for parts in zip(*told, strict=True))
    assert json.loads(shown)["images"] == 40  # printed once, by one process
    assert "2 processes" in errors
    alike, two = (read_tensors(path / "model.safetensors")[0] for path in (one, home / out))
    assert alike.keys() == two.keys()
    for key, value in alike.items():
        torch.testing.assert_close(
            two[key], value, rtol=1e-3, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
        )
    lines = [(path / "metrics.jsonl").read_text().splitlines() for path in (one, home / out)]
    assert len(lines[0]) == len(lines[1])
    last = [json.loads(found[-1]) for found in lines]
    assert last[1]["encode/kl"] == pytest.approx(last[0]["encode/kl"], rel=1e-2)


@pytest.mark.parametrize("launcher", ["torchrun", "--devices"])
def test_a_process_that_is_asked_to_stop_stops_all_with_a_checkpoint(home: Path, launcher: str) -> None:
    """One of torchrun's, or the one that started the other."""
    out, endless = f"stopped by {launcher}", (*problems.BY_CLASS, "training.total_kimg=100")
    process = start(home, out, *endless, launcher=launcher)
    run = has_checkpoint(home, out, process)
    os.kill(workers(process.pid)[1] if launcher == "torchrun" else process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    if launcher == "torchrun":
        assert process.returncode != 0
        assert "exitcode  : 143" in errors
    else:
        assert process.returncode == 143, errors[-3000:]
    assert stopped_at(errors) == newest(run)


def test_torchrun_asked_to_stop_then_a_killed_worker_and_one_process_to_the_end(home: Path) -> None:
    """What a cluster does, then an accident; the same command goes on each time."""
    settings = ("training.total_kimg=0.24",)
    process = start(home, "hit", *settings)
    run = has_checkpoint(home, "hit", process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    stopped = newest(run)
    assert stopped_at(errors) == stopped > 0

    process = start(home, "hit", *settings)
    has_checkpoint(home, "hit", process, after=stopped)
    os.kill(workers(process.pid)[1], signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert stopped < newest(run) < 60

    alone(home, "hit", *settings)
    assert newest(run) == 60
    logged = [json.loads(line)["step"] for line in run.metrics_file.read_text().splitlines()]
    assert logged == sorted(set(logged))  # what was trained again is there once
    assert logged[-1] == 60
