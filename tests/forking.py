"""Processes that are forked from one that has read the libraries: starting is what takes time."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as distributed

from stylex.parallel import World


def forked(work: Callable[[], object]) -> int:
    """Start a process that does some work and ends; its id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def ended(child: int) -> int:
    """The exit code of a process, of a killed one the negative signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def together(meeting: Path, work: Callable[[World], object]) -> list[int]:
    """Start two processes that do the same work and meet at a new file; their ids."""

    def member(rank: int) -> None:
        distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
        world = World(rank, 2, 2, torch.device("cpu"), distributed.new_group(backend="gloo"))
        work(world)
        world.wait()
        distributed.destroy_process_group()

    return [forked(lambda rank=rank: member(rank)) for rank in (0, 1)]  # type: ignore[misc]
