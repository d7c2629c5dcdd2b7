"""The run directory: an experiment's config, metrics, checkpoints and results, written to survive crashes."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from stylex.config import RunConfig, dump_yaml, read_yaml, validate
from stylex.errors import CheckpointError, RunError
from stylex.version import __version__

FORMAT = 1
"""Version of the run directory; a reader refuses others."""

HEADER = "stylex"
"""Key of our JSON in a safetensors header."""


LOCK = ".lock"
"""The file that who writes into a run holds."""

PARTIAL = ".partial"
"""How the name of a file that is still being written ends."""

CREATING = ".creating"
"""In a directory that was free and in which a run is being created: all that lies beside it is the run's."""

OF_A_NEW_RUN = (
    "config.yaml",
    "classifier.safetensors",
    "student.safetensors",
    "evidence.json",
    "model.safetensors",
    "metrics.jsonl",
    "checkpoints",
    "samples",
    "tensorboard",
    CREATING,
)
"""What there can be of a run before it is created, when run.json is written."""


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that a reader sees the old content or the whole new one, even after power loss.

    Raises:
        RunError: the disk is full or the directory cannot be written; the old file is untouched.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"{path}: could not be written ({reason}); nothing was overwritten") from None
    finally:
        if temporary is not None:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
    with suppress(OSError):  # some network file systems cannot sync a directory; the file itself is whole
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def check_writable(path: Path) -> None:
    """See that a file of 1 MiB can be written there, before time is spent on what it is to hold.

    Raises:
        RunError: as for `write_atomically`.
    """
    probe = path.with_name(f".{path.name}.probe{PARTIAL}")
    write_atomically(probe, lambda file: file.write(bytes(1 << 20)))
    probe.unlink(missing_ok=True)


def remove_partial_files(folder: Path) -> None:
    """Delete what a killed process left behind; only for who holds the run's lock and alone writes there."""
    for leftover in folder.glob(f".*{PARTIAL}"):
        leftover.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, indented, keys in the order given."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> Any:
    """Read JSON. Raises RunError when the file is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: damaged ({error})") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header as safetensors, atomically; the header gets the tensors' checksum."""
    flat = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    full = {**header, "format": FORMAT, "sha256": checksum(flat)}
    content = serialise(flat, metadata={HEADER: json.dumps(full, sort_keys=True)})
    write_atomically(path, lambda file: file.write(content))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises:
        CheckpointError: missing, truncated, changed since written, not safetensors, of another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError):
        raise CheckpointError(
            f"{path}: not a whole safetensors file; files with pickled code are refused"
        ) from None
    if HEADER not in metadata:
        raise CheckpointError(f"{path}: a safetensors file, but not one that stylex wrote")
    try:
        header = json.loads(metadata[HEADER])
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header is damaged; take another copy of the file")
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path}: of format {header.get('format')}, this stylex reads format {FORMAT}")
    if header.get("sha256") != checksum(tensors):
        raise CheckpointError(f"{path}: its checksum does not match its content; the file was damaged")
    return tensors, header


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, in order of name."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run directory for writing; the lock goes when the process ends.

    Raises:
        RunError: another process holds it, or the directory cannot be written.
    """
    import fcntl

    try:
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror})") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{folder}: another process is working in this run") from None
        except OSError as error:
            raise RunError(f"{folder}: cannot be locked ({error.strerror}); use a local disk") from None
        yield


def _begin(path: Path) -> None:
    try:
        (path / CREATING).touch()
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror})") from None


def _clear_unfinished(path: Path) -> None:
    """Remove what a creation of a run that did not end has written; only for who holds the run's lock."""
    if not Run.unfinished(path):
        return
    for name in OF_A_NEW_RUN:
        entry = path / name
        if entry.is_dir():
            shutil.rmtree(entry)
        elif name != CREATING:
            entry.unlink(missing_ok=True)
    remove_partial_files(path)
    (path / CREATING).unlink()  # last: until then the rest is known to be ours


def provenance() -> dict[str, str]:
    """Versions and machine, for audits: what a figure was computed with."""
    import numpy
    import torchvision

    return {
        "stylex": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {processor_name()}",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def processor_name() -> str:
    """Model name of the CPU as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"


class Run:
    """One run directory. Create with `Run.create`, open with `Run.open`."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path = path
        self.config = config

    @classmethod
    def create(
        cls,
        path: Path,
        config: RunConfig,
        hashes: Mapping[str, str] | None = None,
        *,
        origin: Mapping[str, Any] | None = None,
        prepare: Callable[[Run], object] | None = None,
    ) -> Run:
        """Start a run in a new or empty directory.

        Args:
            hashes: of what it is made from, by what it is ("data", "classifier"); kept in run.json.
            origin: the run whose weights it starts with, kept in run.json under "from".
            prepare: writes what the run must not be without. If its process is killed, what it wrote goes
                when the run is created again.

        Raises:
            RunError: the directory exists and holds something else, which is never overwritten; or it cannot
                be written, and then no half-written run stays behind.
        """
        cls.check_free(path)
        new = not path.exists()
        run = cls(path, config)
        about = {"format": FORMAT, "experiment": config.experiment, "hashes": dict(hashes or {})}
        if origin is not None:
            about["from"] = dict(origin)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{path}: cannot be written ({error.strerror})") from None
        with locked(path):
            _clear_unfinished(path)
            try:
                _begin(path)
                write_atomically(run.config_file, lambda file: file.write(dump_yaml(config).encode()))
                if prepare is not None:
                    prepare(run)
                write_json(run.path / "run.json", about | provenance())
            except BaseException:
                _clear_unfinished(path)
                if new:
                    with suppress(OSError):
                        (path / LOCK).unlink(missing_ok=True)
                        path.rmdir()  # only goes where nothing is left
                raise
            (path / CREATING).unlink(missing_ok=True)
        return run

    @staticmethod
    def unfinished(path: Path) -> bool:
        """Whether a run was being created here and its process ended: starting it again begins afresh."""
        return (path / CREATING).exists() and not (path / "run.json").exists()

    @classmethod
    def check_free(cls, path: Path) -> None:
        """Raises RunError unless a run can be created here: it is new, empty or an unfinished run."""
        if not path.exists():
            return
        if not path.is_dir():
            raise RunError(f"{path}: is a file; choose another place for the run")
        others = {entry.name for entry in path.iterdir()} - {LOCK}
        if cls.unfinished(path):
            others -= {*OF_A_NEW_RUN, *(entry.name for entry in path.glob(f".*{PARTIAL}"))}
        if others:
            raise RunError(
                f"{path}: exists and is not an empty directory; nothing was overwritten, choose another"
            )

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open an existing run.

        Raises:
            RunError: not a run, half-written, or of another version.
        """
        if not (path / "run.json").exists():
            if not path.exists():
                raise RunError(f"{path}: no such directory")
            if cls.unfinished(path):
                raise RunError(f"{path}: no run yet, its start was cut off; the same command starts it again")
            if (path / "config.yaml").exists():
                trained = (path / "checkpoints").exists() or (path / "model.safetensors").exists()
                remedy = "take a whole copy of it" if trained else "delete it and start again"
                raise RunError(f"{path}: a half-written run (run.json is missing); {remedy}")
            raise RunError(f"{path}: no run of stylex (run.json is missing)")
        about = read_json(path / "run.json")
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            found = about.get("format") if isinstance(about, dict) else None
            raise RunError(f"{path}: a run of format {found}; this stylex reads format {FORMAT}")
        if not (path / "config.yaml").exists():
            raise RunError(f"{path}: a half-written run (config.yaml is missing); take a whole copy of it")
        config = validate(RunConfig, read_yaml(path / "config.yaml"), str(path / "config.yaml"))
        return cls(path, config)

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def hashes(self) -> dict[str, str]:
        """Of the data and the classifier that the run was started with; empty where it does not say."""
        found = read_json(self.path / "run.json").get("hashes")
        return dict(found) if isinstance(found, dict) else {}

    @property
    def origin(self) -> dict[str, Any]:
        """The run whose weights it started with, as it was then; empty where it started afresh."""
        found = read_json(self.path / "run.json").get("from")
        return dict(found) if isinstance(found, dict) else {}

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model_file(self) -> Path:
        """Weights for explanations: averaged generator, encoder and mapping, and the discriminator."""
        return self.path / "model.safetensors"

    @property
    def data_source(self) -> str:
        """Where the run's images come from: its own folder of images where it has one, else config.data."""
        return str(self.path / "images") if self.carries_images else self.config.data

    @property
    def carries_images(self) -> bool:
        """Whether the run has images of its own in images/, as a packed one has."""
        return (self.path / "images").is_dir()

    @property
    def evidence_file(self) -> Path:
        """How well local evidence accounts for the classifier, where the recipe's condition is made of it."""
        return self.path / "evidence.json"

    @property
    def judge_file(self) -> Path:
        """An independently trained classifier of the same classes, to confirm flips or not; optional."""
        return self.path / "judge.safetensors"

    @property
    def student_file(self) -> Path:
        """What the generator was trained around where the classifier itself gives no gradients."""
        return self.path / "student.safetensors"

    @property
    def classifier_file(self) -> Path:
        return self.path / "classifier.safetensors"

    def checkpoint_files(self) -> list[Path]:
        """All checkpoints, oldest first."""
        return sorted(self.checkpoints.glob("step-*.safetensors"))

    def newest_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any], Path] | None:
        """The newest checkpoint that can be read; damaged ones are passed over. None when there is none.

        Raises:
            CheckpointError: there are checkpoints and none of them can be read.
        """
        files = self.checkpoint_files()
        reason = ""
        for file in reversed(files):
            try:
                tensors, header = read_tensors(file)
            except CheckpointError as error:
                reason = reason or str(error)
                continue
            return tensors, header, file
        if files:
            raise CheckpointError(
                f"{self.checkpoints}: none of {len(files)} checkpoints can be read, the newest because "
                f"{reason}; delete the folder to start again"
            )
        return None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for writing, see `locked`."""
        with locked(self.path):
            yield
