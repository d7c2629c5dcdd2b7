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

from stylex.config import Recipe
from stylex.hardware import Hardware
from stylex.parallel import World
from stylex.training.losses import Batch
from stylex.training.randomness import Draws
from stylex.training.schedule import Phase

WARM_UP = 3
"""Steps of a kind that run as they are before they are recorded: libraries choose their kernels then."""


class RecordingError(Exception):
    """A phase does something that no graph can hold, such as a classifier that waits for its own numbers."""


Key = tuple[str, str, bool, tuple[str, ...]]
"""A kind of step: its latents and those of path length, whether it is judged, and the phases that are due."""


class Graph(Protocol):
    """Work that has been recorded and can be done again on the same memory."""

    def replay(self) -> None: ...


Capture = Callable[[Callable[[], None]], Graph]
"""Records what a function does, which it may or may not do by that."""


@dataclass
class Noted:
    """Passes a step's draws on, and notes which they are."""

    random: Draws
    kinds: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    def normal(self, count: int, *shape: int) -> Tensor:
        self.kinds.append(("normal", (count, *shape)))
        return self.random.normal(count, *shape)

    def uniform(self, count: int, *shape: int) -> Tensor:
        self.kinds.append(("uniform", (count, *shape)))
        return self.random.uniform(count, *shape)

    def permutation(self, count: int) -> Tensor:
        self.kinds.append(("permutation", (count,)))
        return self.random.permutation(count)


class Places:
    """Gives out fixed tensors in place of a step's draws, in their order; they are filled before each replay.

    They exist before anything is recorded: memory that is taken while recording may have served an earlier
    operation of the same graph, which then writes there again in every replay.
    """

    def __init__(self, noted: Noted, device: torch.device) -> None:
        self._kinds = list(noted.kinds)
        self._places = [
            torch.zeros(shape, dtype=torch.int64 if kind == "permutation" else torch.float32, device=device)
            for kind, shape in self._kinds
        ]
        self._next = 0

    def _give(self, kind: str, *shape: int) -> Tensor:
        if self._next == len(self._kinds) or self._kinds[self._next] != (kind, shape):
            raise RuntimeError(f"draw {self._next} of a recorded step is {kind}{shape}, as it was not before")
        self._next += 1
        return self._places[self._next - 1]

    def normal(self, count: int, *shape: int) -> Tensor:
        return self._give("normal", count, *shape)

    def uniform(self, count: int, *shape: int) -> Tensor:
        return self._give("uniform", count, *shape)

    def permutation(self, count: int) -> Tensor:
        return self._give("permutation", count)

    def fill(self, random: Draws) -> None:
        """Draw all of them."""
        for (kind, shape), place in zip(self._kinds, self._places, strict=True):
            place.copy_(getattr(random, kind)(*shape))


@dataclass
class _Recorded:
    """A phase's graph, and where it leaves its gradients."""

    graph: Graph
    gradients: list[tuple[nn.Parameter, Tensor]]


@dataclass
class Program:
    """The phases of one kind of step, recorded on one batch whose tensors stay where they are."""

    batch: Batch
    draws: Places
    capture: Capture
    recorded: dict[str, _Recorded] = field(default_factory=dict)

    def load(self, images: Tensor, random: Draws, adversarial_share: float) -> None:
        """Take the next step's images, random numbers and adversarial weight."""
        self.batch.images.copy_(images)
        assert isinstance(self.batch.adversarial_share, Tensor)
        self.batch.adversarial_share.fill_(adversarial_share)
        self.draws.fill(random)

    def run(self, phase: Phase, work: Callable[[], None], parameters: Iterable[nn.Parameter]) -> None:
        """Do `work`, the phase's forward and backward on this batch, recording it if that was not done yet.

        Afterwards the gradients of `parameters`, which were None before, are what a run of `work` leaves.

        Raises:
            RecordingError: nothing has been computed then.
        """
        found = self.recorded.get(phase.name)
        if found is None:
            try:
                graph = self.capture(work)
            except RuntimeError as error:
                for parameter in parameters:
                    parameter.grad = None
                raise RecordingError(str(error)) from error
            gradients = [(each, each.grad) for each in parameters if each.grad is not None]
            found = self.recorded[phase.name] = _Recorded(graph, gradients)
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


def can_record(recipe: Recipe, hardware: Hardware, world: World) -> bool:
    """Whether steps can be replayed as CUDA graphs: each update from one phase of one batch, on one GPU.

    Augmentation chooses its transformations from step to step.
    """
    settings = recipe.training
    plain = settings.accumulate == 1 and settings.lazy_adam and settings.augmentation == "none"
    return hardware.device.type == "cuda" and world.size == 1 and plain


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
        self._noted: dict[Key, Noted] = {}
        self._programs: dict[Key, Program] = {}

    def program(self, batch: Batch, due: Iterable[Phase], path_length_kind: str) -> Program | None:
        """The program for a step, loaded with its batch; None while the step is still run as it is."""
        assert not isinstance(batch.adversarial_share, Tensor)
        names = tuple(phase.name for phase in due)
        key = (batch.kind, path_length_kind if "path_length" in names else "", batch.judged, names)
        seen = self._seen[key] = self._seen.get(key, 0) + 1
        if seen <= WARM_UP:
            batch.random = self._noted[key] = Noted(batch.random)
            return None
        if key not in self._programs:
            draws = Places(self._noted[key], self._device)
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
