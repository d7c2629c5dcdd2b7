"""How many changed images a sweep makes at once: the fastest number that memory allows, by a probe."""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from stylex.attfind.sweep import BATCH_SIZE, rows_of, sweep_image
from stylex.errors import ConfigError
from stylex.hardware import (
    available_memory,
    peak_memory,
    release_freed_memory,
    start_peak_memory,
    used_memory,
)
from stylex.model import Model
from stylex.networks import Synthesis
from stylex.stylespace import StyleSpace

CANDIDATES = (4, 8, 16, 32, 64)
"""Batch sizes that are tried."""

SAFE_SHARE = 0.5
"""Share of the available memory that a sweep may fill when nobody has said how much."""

WORTH_IT = 1.05
"""A larger batch must be this much faster: memory is not for nothing."""

KEPT_BYTES = 32 << 20
"""On a CPU no tensor of a batch should be larger: the C library maps such anew at every use."""

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class BatchChoice:
    """A batch size and why: `reason` for people, what the probe saw for the run's record.

    `bytes_per_image` is what one more changed image in a batch takes, `memory_limit` what all might take;
    None where nothing was probed.
    """

    batch_size: int
    reason: str
    bytes_per_image: int | None = None
    memory_limit: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def parse_memory(text: str) -> int:
    """Bytes of a size such as 800M, 4G, 4GB or 1.5GiB; units are powers of 1024.

    Raises:
        ConfigError: anything else, or nothing at all.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    size = int(float(found[1]) * UNITS[found[2].upper()]) if found else 0
    if size < 1:
        raise ConfigError(f"memory is '{text}'; give a size such as 800M or 4G")
    return size


def choose_batch(
    model: Model,
    space: StyleSpace,
    styles: Tensor,
    shift: float,
    *,
    memory: int | None = None,
    processes: int = 1,
) -> BatchChoice:
    """Try batch sizes on a few changes and take the smallest that is about as fast as any.

    What is timed are changes of the first layer, behind which the most work lies. Other programs on the
    machine must not decide: on a CPU one thread is timed, by its own time, and the batch is what suits one
    thread times the threads.

    Args:
        styles: [N, T]; the first one is used.
        memory: bytes that the sweeps of all `processes` on this machine may take above what they hold; by
            default half of what it has free.

    Raises:
        ConfigError: not even the smallest batch fits into `memory`.
    """
    device = model.hardware.device
    if not isinstance(model.generator.synthesis, Synthesis) or not len(styles):
        return BatchChoice(BATCH_SIZE, "not probed")
    free = available_memory(device)
    whole = memory if memory is not None else None if free is None else int(free * SAFE_SHARE)
    limit = None if whole is None else whole // processes
    style = styles[:1].to(device)
    window, moves = _first_changes(space, style, shift)
    if not bool(moves.any()):
        return BatchChoice(BATCH_SIZE, "nothing moves")
    mask = torch.zeros(2, space.size, dtype=torch.bool, device=device)
    threads = torch.get_num_threads()
    cpu = device.type == "cpu"
    kept = max(CANDIDATES[0], KEPT_BYTES // _map_bytes(model.generator.synthesis)) if cpu else None
    torch.set_num_threads(1 if cpu else threads)
    rates: dict[int, float] = {}
    each = 0
    try:
        prepare, _ = _probe(model, space, style, shift, 1, mask)  # what an image takes before any change
        for batch_size in CANDIDATES:
            rows = rows_of(len(moves), batch_size)
            if rates and (
                (limit is not None and each * rows > limit) or (kept is not None and rows * threads > kept)
            ):
                break
            tried = moves & (moves.cumsum(0) < rows)  # one row is the unchanged image's
            mask[:, window] = tried.view(-1, 2).T
            seconds, used = _probe(model, space, style, shift, batch_size, mask)
            each = max(each, used // rows, 2 * _map_bytes(model.generator.synthesis))
            if limit is not None and batch_size == CANDIDATES[0] and each * rows > limit:
                raise ConfigError(
                    f"memory is {limit >> 20} MiB, but a batch of {rows} changed images takes "
                    f"{each * rows >> 20} MiB; give more with --memory"
                )
            rates[batch_size] = (int(tried.sum()) + 1) / max(seconds - prepare, 1e-9)
            if rows > len(moves):  # all that the layer has
                break
    finally:
        torch.set_num_threads(threads)
    best = min(size for size, rate in rates.items() if rate * WORTH_IT >= max(rates.values()))
    if kept is not None:
        best = min(best * threads, kept)
    if limit is not None:
        best = min(best, max(CANDIDATES[0], limit // max(1, each)))
    return BatchChoice(best, "probed", each, limit)


def _first_changes(space: StyleSpace, style: Tensor, shift: float) -> tuple[slice, Tensor]:
    """The first layer with changes that move anything: its coordinates, and which do, bool [2·C].

    Both ends of a channel stand together, as a sweep takes them.
    """
    values = space.searchable(style)[0]
    moves = (torch.stack([space.low, space.high]) != values) & (shift != 0)
    first = 0
    for place in space.layout:
        if place.kind != "conv":
            continue
        window = slice(first, first + place.channels)
        if bool(moves[:, window].any()):
            break
        first += place.channels
    return window, moves[:, window].T.flatten()


def _probe(
    model: Model, space: StyleSpace, style: Tensor, shift: float, batch_size: int, mask: Tensor
) -> tuple[float, int]:
    """Seconds and bytes that one batch of changes takes, with all that the image needs before."""
    device = model.hardware.device
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times = []
    with torch.inference_mode():
        release_freed_memory()
        held = used_memory(device)
        start_peak_memory(device)
        for _ in range(3):  # the first one builds the kernels
            begin = clock()
            sweep_image(model, space, style, shift, batch_size, wanted=mask)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(clock() - begin)
        used = max(0, peak_memory(device) - held)
    return min(times[1:]), used


def _map_bytes(synthesis: Synthesis) -> int:
    """The largest layer's features of one image."""
    width = 2 if synthesis.compute_dtype == torch.bfloat16 else 4
    return max(width * place.channels * place.resolution**2 for place in synthesis.layout)
