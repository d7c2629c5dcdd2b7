"""Effects of many images, class after class: in memory, or in a file as long as they are needed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stylex.attfind.effects import Activation, log_odds_effects, raw_effects
from stylex.attfind.selection import EffectsArray
from stylex.config import AttFindSettings
from stylex.errors import RunError

MEMORY_BYTES = 512 << 20
"""Effects up to this size stay in memory; more lie in a file, mapped, of which the system keeps what fits."""

BLOCK_ENTRIES = 1 << 22
"""Logits that are turned into effects at once."""


class ClassEffects:
    """Effects [N, 2, S, K], finite, stored as [K, N, 2, S]: one class can be read without the others."""

    finite = True

    def __init__(self, stored: npt.NDArray[np.float32]) -> None:
        self._view = stored.transpose(1, 2, 3, 0)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._view.shape

    def __getitem__(self, key: Any) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = self._view[key]
        return found


@contextmanager
def class_effects(
    before: npt.NDArray[np.float32],
    after: EffectsArray,
    settings: AttFindSettings,
    activation: Activation,
    folder: Path | None = None,
) -> Iterator[ClassEffects]:
    """Effects of the kind that settings name, from logits [N, K] and [N, 2, S, K], until the block ends.

    `after` is read block by block; what is held besides is as `room_for` has it.

    Raises:
        ClassifierError: logits that are not finite.
        RunError: there is no room for the file.
    """
    number, ends, coordinates, classes = after.shape
    with room_for((classes, number, ends, coordinates), folder) as stored:
        _fill(stored, before, after, settings, activation)
        yield ClassEffects(stored)


@contextmanager
def room_for(shape: tuple[int, ...], folder: Path | None = None) -> Iterator[npt.NDArray[np.float32]]:
    """An array to be filled, until the block ends: in memory up to MEMORY_BYTES, else in a mapped file.

    The file lies in `folder` (by default where the system keeps temporary files) and is deleted afterwards,
    also when the program is killed: it has no name once it is open.

    Raises:
        RunError: there is no room for the file.
    """
    size = 4 * int(np.prod(shape))
    if size <= MEMORY_BYTES:
        yield np.empty(shape, np.float32)
        return
    try:
        file = tempfile.TemporaryFile(dir=folder, prefix=".effects-")  # noqa: SIM115
        file.truncate(size)
    except OSError as error:
        where = folder or tempfile.gettempdir()
        raise RunError(f"{where}: no room for {size >> 20} MiB of effects ({error.strerror})") from None
    with file:
        yield np.memmap(file, np.float32, "r+", shape=shape)


def effects_of(
    before: npt.NDArray[np.float32],
    after: npt.NDArray[np.float32],
    settings: AttFindSettings,
    activation: Activation,
) -> npt.NDArray[Any]:
    """Effects [N, 2, S, K] of the kind that settings name, from logits [N, K] and [N, 2, S, K]."""
    if settings.effect == "logits":
        return raw_effects(before, after)
    return log_odds_effects(before, after, activation)


def blocks(shape: Sequence[int]) -> Iterator[slice]:
    """Consecutive images, as many at once as make up BLOCK_ENTRIES."""
    rows = max(1, BLOCK_ENTRIES // max(1, int(np.prod(shape[1:]))))
    for start in range(0, shape[0], rows):
        yield slice(start, min(shape[0], start + rows))


def _fill(
    stored: npt.NDArray[np.float32],
    before: npt.NDArray[np.float32],
    after: EffectsArray,
    settings: AttFindSettings,
    activation: Activation,
) -> None:
    for block in blocks(after.shape):
        found = effects_of(before[block], after[block], settings, activation)
        stored[:, block] = found.transpose(3, 0, 1, 2)
