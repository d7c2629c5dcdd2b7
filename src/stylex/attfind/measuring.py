"""A sweep over all images of a search: by one process or many, into shards, going on where it was stopped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from stylex.attfind.batches import BatchChoice, choose_batch
from stylex.attfind.shards import Record, Shards
from stylex.attfind.sweep import OnChanges, sweep
from stylex.model import Model
from stylex.parallel import ALONE, World
from stylex.stylespace import StyleSpace

log = logging.getLogger("stylex")

OnProgress = Callable[[int, int], None]
"""Called with images done and images in all."""


def measure(
    shards: Shards,
    model: Model,
    space: StyleSpace,
    styles: Tensor,
    *,
    shift: float,
    batch_size: int | None,
    memory: int | None = None,
    world: World = ALONE,
    on_progress: OnProgress | None = None,
    on_changes: OnChanges | None = None,
    numbers: Sequence[int] | None = None,
    wanted: Tensor | None = None,
) -> None:
    """Measure all images whose logits the shards lack.

    Images go round the processes; the first one gathers what they find, one image from each, and writes. So
    the files are those of one process, no directory need be shared, and a job that is killed goes on with any
    number of processes. What is recorded of the sweep (batch and threads) is kept to.

    Args:
        batch_size: changes at once; None for what was recorded, or else a probe within `memory` bytes.
        on_progress, on_changes: called in the first process, with its own images done by all, and changes
            measured by this one times the processes.
        numbers: the files to see to; by default all. Earlier ones are then all there.
        wanted: mask [2, S] of the changes to measure; by default all.

    Raises:
        ConfigError: `memory` is too small.
        RunError: the shards cannot be written, or another process has ended.
    """
    total = len(styles)
    numbers = range(len(shards)) if numbers is None else numbers
    missing = world.from_first(partial(_begin, shards, numbers))
    later = sum(len(shards.images(number)) for number in range(max(numbers) + 1, len(shards)))
    there = total - later - sum(len(shards.images(number)) for number in missing)
    if there and on_progress is not None and world.first:
        on_progress(there, total)
    if not missing:
        return
    batch = world.from_first(
        partial(_batch, shards, model, space, styles, shift, batch_size, memory, world.size, world.local_size)
    )
    pending = [image for number in missing for image in shards.images(number)]
    done = there
    arrived: dict[int, Tensor] = {}

    def count(changes: int) -> None:
        if on_changes is not None and world.first:
            on_changes(changes * world.size)

    def own(turn: Sequence[int]) -> Tensor | None:
        if world.rank >= len(turn):
            return None
        image = turn[world.rank]
        style = styles[image : image + 1]
        return sweep(model, space, style, shift=shift, batch_size=batch, on_changes=count, wanted=wanted)

    for first in range(0, len(pending), world.size):
        turn = pending[first : first + world.size]
        found = world.together(partial(own, turn))
        if not world.first:
            continue
        for image, logits in zip(turn, found, strict=False):
            assert logits is not None
            arrived[image] = logits
            done += 1
            if on_progress is not None:
                on_progress(done, total)
        while missing and all(image in arrived for image in shards.images(missing[0])):
            number = missing.pop(0)
            shards.write(number, torch.cat([arrived.pop(image) for image in shards.images(number)]))


def _begin(shards: Shards, numbers: Sequence[int]) -> list[int]:
    """The shards that are missing; an earlier sweep's are removed if it was another."""
    shards.begin()
    return shards.missing(numbers)


def _batch(
    shards: Shards,
    model: Model,
    space: StyleSpace,
    styles: Tensor,
    shift: float,
    asked: int | None,
    memory: int | None,
    processes: int,
    processes_here: int,
) -> int:
    """The batch size of all processes, recorded: as asked for, as recorded, or as a probe finds it."""
    record = Record(shards.folder)
    known = record.read().get("batch_size")
    if asked is not None:
        choice = BatchChoice(asked, "asked for")
    elif isinstance(known, int) and known > 0:
        choice = BatchChoice(known, "recorded")
        if memory is not None:
            log.warning("going on with batches of %d, as this sweep began: --memory chooses none", known)
    else:
        choice = choose_batch(model, space, styles, shift, memory=memory, processes=processes_here)
    if choice.reason != "recorded":
        threads = torch.get_num_threads() if model.hardware.device.type == "cpu" else None
        record.write(
            {
                "key": shards.key,
                **choice.to_json(),
                "precision": model.hardware.precision,
                "device": str(model.hardware.device),
                "threads": threads,
                "processes": processes,
            }
        )
    return choice.batch_size
