"""The shipped model as a run of its own that a demo can write into."""

from __future__ import annotations

import shutil
from pathlib import Path

from stylex.errors import RunError
from stylex.explainer import demo_folder
from stylex.run import Run

MARK = ".stylex-demo"
"""Lies in folders that a demo made, and so may replace."""

FINDINGS = ("styles.safetensors", "attributes.json")
"""What an earlier search found: `stylex.load("demo")` needs it, a demo finds it anew."""


def prepare_demo(out: Path) -> Run:
    """Copy the shipped model, classifiers and faces into a new run directory; its findings stay behind.

    Raises:
        RunError: `out` exists, is not empty, and was not made by a demo.
    """
    source = demo_folder()
    if not (source / "run.json").exists():
        raise RunError(f"{source}: the shipped model is missing; install stylex again")
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / MARK).exists())):
        raise RunError(
            f"{out}: exists and is no earlier demo; nothing was overwritten, choose another with --out"
        )
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARK).touch()
    for entry in source.iterdir():
        if entry.name in FINDINGS:
            continue
        if entry.is_dir():
            shutil.copytree(entry, out / entry.name)
        else:
            shutil.copy2(entry, out / entry.name)
    return Run.open(out)
