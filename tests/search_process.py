"""Screened searches by processes of their own: search_process.py OUT. Whole, killed often, and by two."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import problems
import training_problems
from forking import ended, forked, together
from stylex.attfind import screened_sweep, search
from stylex.attfind.first_order import FirstOrder, first_order
from stylex.data.images import ImageSet
from stylex.model import Model
from stylex.parallel import ALONE, World
from stylex.run import Run, write_json

SETTINGS = problems.everything(images_per_class=33, sweep="screened", batch_size=8, unstable_threshold=50.0)
"""66 images: 16 in the first stage, 64 up to the second."""

MOMENTS = {"left-0": 1, "stage-0": 3, "left-1": 1, "stage-1": 5, "stage-2": 1, "opposite": 4}
"""What files' names begin with: which of them a process is killed at, when it is about to put it in place."""


def pictures(count: int = 90) -> ImageSet:
    """Random pictures of 16 px."""
    pixels = np.random.default_rng(0).integers(0, 255, (count, 16, 16, 3), dtype=np.uint8)
    return ImageSet(pixels, tuple(f"{i}.png" for i in range(count)), None, None, {})


def searched(run: Run, model: Model, world: World = ALONE) -> None:
    search(run, model, pictures() if world.first else None, SETTINGS, world=world)


def one_end(*told: Any) -> FirstOrder:
    """First-order effects by which one end of each coordinate is likely, so that others are measured last."""
    found = first_order(*told)
    assert found is not None
    ends = np.zeros_like(found.likely)
    ends[0, ::2] = ends[1, 1::2] = True
    return replace(found, likely=found.likely & ends, strongest=found.strongest & ends)


def killed(run: Run, model: Model, moment: str) -> None:
    """Search until one of MOMENTS."""
    left = MOMENTS[moment]
    put = os.replace

    def last(source: str, target: Path) -> None:
        nonlocal left
        left -= target.name.startswith(moment)
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        put(source, target)

    with mock.patch("os.replace", last):
        searched(run, model)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    model = problems.tiny_model()
    runs = {name: training_problems.make_run(folder / name, "fast") for name in ("whole", "killed", "two")}
    codes = {}
    with mock.patch.object(screened_sweep, "first_order", one_end):
        codes["whole"] = [ended(forked(lambda: searched(runs["whole"], model)))]
        codes["killed"] = [
            ended(forked(partial(killed, runs["killed"], model, moment))) for moment in MOMENTS
        ]
        codes["killed"].append(ended(forked(lambda: searched(runs["killed"], model))))
        both = together(runs["two"].path / "meeting", partial(searched, runs["two"], model))
        codes["two"] = [ended(child) for child in both]
    write_json(folder / "codes.json", codes)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
