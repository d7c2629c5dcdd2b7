"""Phases of a step as CUDA graphs: thousands of small kernels start as one.

A phase's forward and backward take milliseconds on a GPU, but longer to be put into its queue, operation by
operation. A graph is recorded once and then replayed on the same memory. What changes from step to step is
copied there first: images, random numbers, the adversarial weight. Optimiser steps stay outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from stylex.training.losses import Batch, Phase
from stylex.training.randomness import Draws

WARM_UP = 3
"""Steps of a kind that run as they are before they are recorded: libraries choose their kernels then."""

Key = tuple[str, str, bool, tuple[str, ...]]
"""A kind of step: its latents and those of path length, whether it is judged, and the phases that are due."""


class Graph(Protocol):
    """Work that has been recorded and can be done again on the same memory."""

    def replay(self) -> None: ...


Capture = Callable[[Callable[[], None]], Graph]
"""Records what a function does, which it may or may not do by that."""


class _Reserved:
    """Draws while recording: each is a tensor that is filled before each replay."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._drawn: list[tuple[str, tuple[int, ...], Tensor]] = []

    def _reserve(self, kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        place = torch.empty(shape, dtype=dtype, device=self._device)
        self._drawn.append((kind, shape, place))
        return place

    def normal(self, count: int, *shape: int) -> Tensor:
        return self._reserve("normal", (count, *shape), torch.float32)

    def uniform(self, count: int, *shape: int) -> Tensor:
        return self._reserve("uniform", (count, *shape), torch.float32)

    def permutation(self, count: int) -> Tensor:
        return self._reserve("permutation", (count,), torch.int64)

    def fill(self, first: int, random: Draws) -> int:
        """Draw what was reserved from number `first` on; returns how many there are now."""
        for kind, shape, place in self._drawn[first:]:
            place.copy_(getattr(random, kind)(*shape))
        return len(self._drawn)


@dataclass
class _Recorded:
    """A phase's graph, and where it leaves its gradients."""

    graph: Graph
    gradients: list[tuple[nn.Parameter, Tensor]]


@dataclass
class Program:
    """The phases of one kind of step, recorded on one batch whose tensors stay where they are."""

    batch: Batch
    draws: _Reserved
    capture: Capture
    recorded: dict[str, _Recorded] = field(default_factory=dict)
    filled: int = 0
    random: Draws | None = None

    def load(self, images: Tensor, random: Draws, adversarial_share: float) -> None:
        """Take the next step's images, random numbers and adversarial weight."""
        self.batch.images.copy_(images)
        assert isinstance(self.batch.adversarial_share, Tensor)
        self.batch.adversarial_share.fill_(adversarial_share)
        self.random = random
        self.filled = self.draws.fill(0, random)

    def run(self, phase: Phase, work: Callable[[], None], parameters: Iterable[nn.Parameter]) -> None:
        """Do `work`, the phase's forward and backward on this batch, recording it if that was not done yet.

        Afterwards the gradients of `parameters`, which were None before, are what a run of `work` leaves.
        """
        found = self.recorded.get(phase.name)
        if found is None:
            graph = self.capture(work)
            gradients = [(each, each.grad) for each in parameters if each.grad is not None]
            found = self.recorded[phase.name] = _Recorded(graph, gradients)
            assert self.random is not None
            self.filled = self.draws.fill(self.filled, self.random)
        found.graph.replay()
        for parameter, gradient in found.gradients:
            parameter.grad = gradient

    def statistics(self) -> dict[str, Tensor]:
        """Copies of the statistics of the last run: the next one overwrites them."""
        names = list(self.batch.statistics)
        if not names:
            return {}
        return dict(
            zip(names, torch.stack([self.batch.statistics[name].float() for name in names]), strict=True)
        )


class Programs:
    """The programs of a training: a kind of step is recorded when it has come `WARM_UP` times.

    Args:
        device: where tensors lie.
        capture: by default that of CUDA graphs, all in one pool of memory.
    """

    def __init__(self, device: torch.device, capture: Capture | None = None) -> None:
        self._device = device
        self._capture = capture or CudaCapture()
        self._seen: dict[Key, int] = {}
        self._programs: dict[Key, Program] = {}

    def program(self, batch: Batch, due: Iterable[Phase], path_length_kind: str) -> Program | None:
        """The program for a step, loaded with its batch; None while the step is still run as it is."""
        assert not isinstance(batch.adversarial_share, Tensor)
        key = (batch.kind, path_length_kind, batch.judged, tuple(phase.name for phase in due))
        seen = self._seen[key] = self._seen.get(key, 0) + 1
        if seen <= WARM_UP:
            return None
        if key not in self._programs:
            draws = _Reserved(self._device)
            share = torch.zeros((), device=self._device)
            fixed = Batch(torch.empty_like(batch.images), batch.kind, draws, batch.step, share, batch.judged)
            self._programs[key] = Program(fixed, draws, self._capture)
        program = self._programs[key]
        program.load(batch.images, batch.random, batch.adversarial_share)
        return program


class CudaCapture:
    """Records CUDA graphs that share memory: they run one after the other, in any order."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], None]) -> Graph:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            work()
        return graph
