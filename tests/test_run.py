"""The run directory: whole files or none, damage found, one writer."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from stylex import run as run_module
from stylex.config import RunConfig, load_recipe
from stylex.errors import CheckpointError, ConfigError, RunError
from stylex.run import (
    FORMAT,
    HEADER,
    Run,
    checksum,
    read_json,
    read_tensors,
    remove_partial_files,
    write_atomically,
    write_json,
    write_tensors,
)

CONFIG = RunConfig(experiment="x", data="d", classifier="c", recipe=load_recipe("fast"))

TENSORS = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "scalar": torch.tensor(3.0),
    "whole": torch.tensor([1, 2]),
    "none": torch.zeros(0),
}


def files(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def full_disk(file: IO[bytes]) -> None:
    file.write(b"half of it")
    file.flush()
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_atomically(path, lambda file: file.write(b"one"))
    write_atomically(path, lambda file: file.write(b"two"))
    assert path.read_bytes() == b"two"
    assert files(path.parent) == {"file.txt"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_atomically(path, lambda file: file.write(b"old"))
    with pytest.raises(RunError, match=r"file\.txt.*No space left on device"):
        write_atomically(path, full_disk)
    assert path.read_bytes() == b"old"
    assert files(tmp_path) == {"file.txt"}


def test_an_interruption_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_atomically(path, lambda file: file.write(b"old"))

    def interrupted(file: IO[bytes]) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, interrupted)
    assert path.read_bytes() == b"old"
    assert files(tmp_path) == {"file.txt"}


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="could not be written"):
        write_atomically(tmp_path / "file" / "below.txt", lambda file: file.write(b"x"))


def test_a_file_system_that_cannot_sync_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refuse(path: Any, *rest: Any, **more: Any) -> int:
        if Path(path).is_dir():
            raise OSError(errno.EINVAL, "not for folders")
        return opened(path, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    write_atomically(tmp_path / "file.txt", lambda file: file.write(b"whole"))
    assert (tmp_path / "file.txt").read_bytes() == b"whole"


def test_only_partial_files_are_removed(tmp_path: Path) -> None:
    for name in (".a.x1.partial", "b.partial", ".lock", "c"):
        (tmp_path / name).touch()
    remove_partial_files(tmp_path)
    remove_partial_files(tmp_path / "missing")
    assert files(tmp_path) == {"b.partial", ".lock", "c"}


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": "é"})
    assert read_json(path) == {"b": 1, "a": "é"}
    path.write_text("{")
    with pytest.raises(RunError, match=r"a\.json: damaged"):
        read_json(path)
    with pytest.raises(RunError, match="no such file"):
        read_json(tmp_path / "b.json")


def test_tensors_and_header_come_back(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    given = {**TENSORS, "turned": torch.arange(6.0).reshape(2, 3).T}
    write_tensors(path, given, {"step": 3})
    tensors, header = read_tensors(path)
    assert header["step"] == 3
    assert header["format"] == FORMAT
    assert set(tensors) == set(given)
    for key, value in given.items():
        torch.testing.assert_close(tensors[key], value, rtol=0, atol=0)
        assert tensors[key].dtype == value.dtype


def test_checksum_sees_names_types_shapes_and_values() -> None:
    base = {"a": torch.zeros(4), "b": torch.ones(2)}
    others: list[dict[str, Tensor]] = [
        {"a": torch.zeros(4), "c": torch.ones(2)},
        {"a": torch.zeros(4, dtype=torch.int32), "b": torch.ones(2)},
        {"a": torch.zeros(2, 2), "b": torch.ones(2)},
        {"a": torch.zeros(4), "b": torch.tensor([1.0, 1.0000001])},
        {"a": torch.zeros(4)},
    ]
    assert len({checksum(base), *map(checksum, others)}) == 6
    assert checksum(dict(reversed(base.items()))) == checksum(base)
    images = torch.rand(2, 3, 4, 4)
    assert checksum({"a": images}) == checksum({"a": images.to(memory_format=torch.channels_last)})


def test_every_truncation_and_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, TENSORS, {"step": 3})
    content = path.read_bytes()
    for length in (0, 1, 8, 40, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_tensors(path)
    data = len(content) - sum(value.numel() * value.element_size() for value in TENSORS.values())
    for place in range(data, len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(CheckpointError, match="checksum"):
            read_tensors(path)


@pytest.mark.parametrize(
    "header",
    ["no json", "[1]", "{}", json.dumps({"format": FORMAT}), json.dumps({"format": FORMAT, "sha256": 1})],
)
def test_a_header_that_is_none(tmp_path: Path, header: str) -> None:
    path = tmp_path / "t.safetensors"
    save_file(TENSORS, path, metadata={HEADER: header})
    with pytest.raises(CheckpointError, match=r"t\.safetensors"):
        read_tensors(path)


def test_files_of_others(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with pytest.raises(CheckpointError, match="no such file"):
        read_tensors(path)
    with pytest.raises(CheckpointError):
        read_tensors(tmp_path)
    save_file(TENSORS, path)
    with pytest.raises(CheckpointError, match="not one that stylex wrote"):
        read_tensors(path)
    save_file(TENSORS, path, metadata={HEADER: json.dumps({"format": 99, "sha256": ""})})
    with pytest.raises(CheckpointError, match="of format 99"):
        read_tensors(path)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_pickled_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(pickle.dumps(Trap(tmp_path / "trapped")))
    with pytest.raises(CheckpointError, match="pickled code"):
        read_tensors(path)
    torch.save({"a": Trap(tmp_path / "trapped")}, path)
    with pytest.raises(CheckpointError, match="pickled code"):
        read_tensors(path)
    assert not (tmp_path / "trapped").exists()


def test_a_run_is_created_once_and_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "run"
    Run.create(path, CONFIG)
    again = Run.open(path)
    assert again.config == CONFIG
    about = read_json(path / "run.json")
    assert about["torch"] == torch.__version__
    before = {name: (path / name).read_bytes() for name in files(path)}
    with pytest.raises(RunError, match="nothing was overwritten"):
        Run.create(path, CONFIG)
    assert {name: (path / name).read_bytes() for name in files(path)} == before


def test_a_disk_that_fills_up_leaves_no_half_written_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: object) -> None:
        raise RunError(f"{path}: No space left on device")

    monkeypatch.setattr("stylex.run.write_json", full)
    with pytest.raises(RunError, match="No space left"):
        Run.create(tmp_path / "run", CONFIG)
    monkeypatch.undo()
    assert Run.create(tmp_path / "run", CONFIG, {"data": "abc"}).hashes == {"data": "abc"}


KILLED_WHILE_CREATING = """
import os, signal, sys
from pathlib import Path
from stylex.config import RunConfig, load_recipe
from stylex.run import Run

def prepare(run):
    run.classifier_file.write_bytes(b"half")
    (run.path / ".evidence.json.x1.partial").touch()
    run.checkpoints.mkdir()
    (run.checkpoints / "old").touch()
    os.kill(os.getpid(), signal.SIGKILL)

config = RunConfig(experiment="x", data="d", classifier="c", recipe=load_recipe("fast"))
Run.create(Path(sys.argv[1]), config, prepare=prepare)
"""


def killed_while_creating(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_CREATING, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert {"config.yaml", "classifier.safetensors", "checkpoints"} < set(files(path))


def test_a_run_whose_creation_was_killed_is_created_again(tmp_path: Path) -> None:
    path = tmp_path / "run"
    killed_while_creating(path)
    assert Run.unfinished(path)
    with pytest.raises(RunError, match="its start was cut off; the same command starts it again"):
        Run.open(path)
    Run.check_free(path)
    Run.create(path, CONFIG)
    assert not Run.unfinished(path)
    assert set(files(path)) == {"config.yaml", "run.json", ".lock"}
    assert Run.open(path).config == CONFIG


def test_what_is_not_of_a_killed_creation_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "run"
    killed_while_creating(path)
    (path / "notes.txt").write_text("mine")
    before = files(path)
    with pytest.raises(RunError, match="nothing was overwritten"):
        Run.create(path, CONFIG)
    assert files(path) == before
    assert (path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("there", [False, True])
def test_a_creation_that_is_broken_off_leaves_nothing(tmp_path: Path, there: bool) -> None:
    path = tmp_path / "run"
    if there:
        path.mkdir()

    def stopped(run: Run) -> None:
        run.classifier_file.touch()
        with pytest.raises(RunError, match="another process"):
            Run.create(path, CONFIG)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run.create(path, CONFIG, prepare=stopped)
    assert path.exists() == there
    assert not there or set(files(path)) <= {".lock"}
    Run.create(path, CONFIG)


def test_an_empty_folder_will_do_and_a_file_will_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    Run.create(tmp_path / "empty", CONFIG)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is a file"):
        Run.create(tmp_path / "file", CONFIG)


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such directory"):
        Run.open(tmp_path / "missing")
    with pytest.raises(RunError, match="no run of stylex"):
        Run.open(tmp_path)
    Run.create(tmp_path / "run", CONFIG)
    (tmp_path / "run" / "run.json").rename(tmp_path / "run.json.away")
    with pytest.raises(RunError, match="half-written"):
        Run.open(tmp_path / "run")
    write_json(tmp_path / "run" / "run.json", {"format": 99})
    with pytest.raises(RunError, match="format 99"):
        Run.open(tmp_path / "run")
    write_json(tmp_path / "run" / "run.json", [1])
    with pytest.raises(RunError, match="format None"):
        Run.open(tmp_path / "run")
    write_json(tmp_path / "run" / "run.json", {"format": FORMAT})
    with (tmp_path / "run" / "config.yaml").open("a") as file:
        file.write("speed: 3\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: speed: unknown key"):
        Run.open(tmp_path / "run")


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", CONFIG)
    assert run.newest_checkpoint() is None
    for step in (5, 100, 20):
        file = run.checkpoints / f"step-{step:08d}.safetensors"
        write_tensors(file, {"a": torch.tensor(float(step))}, {"step": step})
    found = run.newest_checkpoint()
    assert found is not None
    assert found[1]["step"] == 100
    found[2].write_bytes(found[2].read_bytes()[:-1])
    found = run.newest_checkpoint()
    assert found is not None
    assert (found[1]["step"], found[0]["a"]) == (20, torch.tensor(20.0))
    for file in run.checkpoint_files():
        file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of 3 checkpoints"):
        run.newest_checkpoint()


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", CONFIG)
    code = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1], 'w')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(run.path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="another process"), run.locked():
            pass
        other.kill()
    with run.locked():
        pass  # the lock went with the process that held it


def test_a_run_that_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def unsupported(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    run = Run.create(tmp_path / "run", CONFIG)
    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(RunError, match="cannot be locked"), run.locked():
        pass
    with pytest.raises(RunError, match="cannot be written"), Run(tmp_path / "missing", CONFIG).locked():
        pass


def test_provenance_names_versions_and_processor() -> None:
    about = run_module.provenance()
    assert {"stylex", "torch", "torchvision", "numpy", "python", "machine", "time"} == set(about)
    assert all(about.values())
