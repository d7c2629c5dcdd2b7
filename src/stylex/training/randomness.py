"""Random numbers of a training step, a function of seed and step: nothing to store, nothing to restore."""

from __future__ import annotations

import hashlib
import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from stylex.parallel import ALONE, World


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any parts, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


LARGE = 1 << 16
"""Numbers an image from which on every image's are drawn by themselves: noise maps from 256 px on."""


class Draws(Protocol):
    """Where a batch's random numbers come from; counts and first dimensions are those of its images."""

    def normal(self, count: int, *shape: int) -> Tensor: ...

    def uniform(self, count: int, *shape: int) -> Tensor: ...

    def permutation(self, count: int) -> Tensor: ...


class StepRandom:
    """Draws for one batch of one step. Drawn on the CPU, so that every device sees the same numbers.

    Where several processes share the batch, what an image gets does not depend on their number: each process
    draws for the whole batch and keeps its own images' rows or, of normal numbers from `LARGE` an image on,
    draws its own rows alone, each from a generator that hangs on the image's place in the batch. Counts and
    first dimensions are the process's own.
    """

    def __init__(self, seed: int, step: int, part: int, device: torch.device, world: World = ALONE) -> None:
        self._world = world
        self._seed = derive_seed(seed, "step", step, part)
        self._large_draws = 0
        self._generator = torch.Generator().manual_seed(self._seed)
        self._device = device

    def normal(self, count: int, *shape: int) -> Tensor:
        """Standard normal numbers [count, …]."""
        if math.prod(shape) >= LARGE:
            return self._rows(torch.empty(count, *shape)).to(self._device)
        whole = torch.randn(count * self._world.size, *shape, generator=self._generator)
        return self._world.own(whole).to(self._device)

    def _rows(self, rows: Tensor) -> Tensor:
        """Fill this process's rows [count, …] of a large draw; row j of process r is image j · R + r."""
        for number, row in enumerate(rows):
            image = number * self._world.size + self._world.rank
            seed = derive_seed(self._seed, "large", self._large_draws, image)
            row.normal_(generator=torch.Generator().manual_seed(seed))
        self._large_draws += 1
        return rows

    def uniform(self, count: int, *shape: int) -> Tensor:
        """Numbers from 0 to 1 [count, …]."""
        whole = torch.rand(count * self._world.size, *shape, generator=self._generator)
        return self._world.own(whole).to(self._device)

    def permutation(self, count: int) -> Tensor:
        """Another image of the whole batch for each of this process's, as its number there: int64 [count]."""
        whole = torch.randperm(count * self._world.size, generator=self._generator)
        return self._world.own(whole).to(self._device)


class DataOrder:
    """Which images a batch holds: every epoch a fresh permutation that depends on seed and epoch alone.

    Batches run on across epochs, so none is cut short; the place in the data is only a number of images.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count = count
        self._seed = seed
        self._cached: tuple[int, np.ndarray[tuple[int], np.dtype[np.int64]]] | None = None

    def _epoch(self, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        if self._cached is None or self._cached[0] != epoch:
            generator = np.random.default_rng(derive_seed(self._seed, "epoch", epoch))
            self._cached = (epoch, generator.permutation(self._count).astype(np.int64))
        return self._cached[1]

    def indices(self, first: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Indices of images number `first` to `first + count − 1` of the endless sequence."""
        numbers = np.arange(first, first + count)
        result = np.empty(count, np.int64)
        for epoch in range(int(numbers[0] // self._count), int(numbers[-1] // self._count) + 1):
            inside = numbers // self._count == epoch
            result[inside] = self._epoch(epoch)[numbers[inside] % self._count]
        return result

    def mirrored(self, first: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which of those images are flipped left to right: a fair coin for each image and epoch."""
        generator = np.random.default_rng(derive_seed(self._seed, "mirror", first))
        return generator.random(count) < 0.5
