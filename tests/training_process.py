"""A training in a process of its own, to be killed: python training_process.py RUN."""

from __future__ import annotations

import sys
from pathlib import Path

import training_problems as problems
from stylex.run import Run
from stylex.training.loop import train

if __name__ == "__main__":
    train(
        Run.open(Path(sys.argv[1])),
        problems.images(),
        problems.classifier(),
        problems.HARDWARE,
        watch=problems.images(3),
    )
