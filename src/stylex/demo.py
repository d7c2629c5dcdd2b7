"""The shipped model as a run of its own that a demo can write into."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stylex.errors import RunError
from stylex.explainer import demo_folder
from stylex.run import LOCK, Run, locked

MARK = ".stylex-demo"
"""Lies in folders that a demo made, and so may replace."""

FINDINGS = ("styles.safetensors", "attributes.json")
"""What a search found. A demo finds it anew; names that people gave stay in an earlier demo's."""

ANSWERS = Path("study", "answers.sqlite")
"""What people said cannot be made again."""


def prepare_demo(out: Path) -> Run:
    """Copy the shipped model, classifiers and faces into a new run directory; its findings stay behind.

    Raises:
        RunError: `out` exists, is not empty, and was not made by a demo; it holds answers to a study; another
            process works in it; or it cannot be written.
    """
    with held_demo(out) as run:
        return run


@contextmanager
def held_demo(out: Path) -> Iterator[Run]:
    """As `prepare_demo`, and the run stays locked: no other demo can replace one that is at work."""
    source = demo_folder()
    if not (source / "run.json").exists():
        raise RunError(f"{source}: the shipped model is missing; install stylex again")
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / MARK).exists())):
        raise RunError(
            f"{out}: exists and is no earlier demo; nothing was overwritten, choose another with --out"
        )
    if (out / ANSWERS).exists():
        raise RunError(
            f"{out / ANSWERS}: answers to a study; nothing was overwritten, choose another with --out"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / MARK).touch()  # first, and never deleted: a demo that was killed can be replaced
    except OSError as error:
        raise _unwritable(out, error) from None
    with locked(out):
        _replace(source, out)
        yield Run.open(out)


def _replace(source: Path, out: Path) -> None:
    """Empty the folder, but for mark, lock and findings, and copy the shipped run into it."""
    try:
        for entry in out.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name not in (MARK, LOCK, *FINDINGS):
                entry.unlink()
        for entry in source.iterdir():
            if entry.name in (*FINDINGS, MARK, LOCK):
                continue
            if entry.is_dir():
                shutil.copytree(entry, out / entry.name)
            else:
                shutil.copy2(entry, out / entry.name)
    except (OSError, shutil.Error) as error:
        raise _unwritable(out, error) from None


def _unwritable(out: Path, error: OSError | shutil.Error) -> RunError:
    # copytree gathers a line for each file; the first says enough
    reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror or str(error)
    return RunError(f"{out}: could not be written ({reason}); choose another with --out")
