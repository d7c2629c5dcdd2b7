"""Several processes that train as one: who they are, and what they exchange.

Lightning Fabric starts the processes, picks each one's device and joins them; the exchanges are
torch.distributed's. Image i of a batch of N belongs to process i mod R, so the first images of a batch are
spread evenly as well. Every exchange here is the identity where there is one process.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stylex.config import Recipe
from stylex.errors import ConfigError, RunError, reason_of

log = logging.getLogger("stylex")

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others in one exchange: longer than writing a checkpoint takes."""

BEAT_SECONDS = 60.0
"""Between two signs of life while one process works and the others wait."""

BUCKET_BYTES = 128 << 20
"""Gradients travel in buckets of about this size: few messages, and no second copy of all gradients."""


@dataclass(frozen=True)
class World:
    """The processes of one training. The default is a process by itself.

    Args:
        rank: this process's number, 0 to size − 1; process 0 alone writes.
        size: R, the number of processes, on all machines together.
        local_size: processes on this machine.
        device: where this process computes; None leaves the choice to `hardware.choose`.
        control: the group (on the CPU) for flags and statistics; None for the default group.
        launched: whether process 0 of this machine started the others, and watches them.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    device: torch.device | None = None
    control: Any = None
    launched: bool = False

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def own(self, whole: Tensor) -> Tensor:
        """This process's rows of a tensor of the whole batch: [N, …] → [N / R, …]."""
        return whole if self.size == 1 else whole[self.rank :: self.size]

    def gather(self, local: Tensor) -> Tensor:
        """The rows of all processes, in the order of the whole batch: [n, …] → [n · R, …]. Differentiable.

        The loss that is differentiated is the sum of all processes' losses: the backward sums the gradients
        that each has for a row and gives them to the row's owner. That sum's own backward is again a gather,
        so gradients of gradients (R1) are right too. All processes must call it, in the same order.
        """
        if self.size == 1:
            return local
        whole: Tensor = _Gather.apply(local, self)
        return whole

    @torch.no_grad()
    def mean(self, local: Tensor) -> Tensor:
        """The mean over processes of a tensor of any shape; not differentiable."""
        if self.size == 1:
            return local
        total = local.detach().clone(memory_format=torch.contiguous_format)
        self._sum(total)
        return total / self.size

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over processes; those that are None are so in every process."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for bucket in buckets(gradients, BUCKET_BYTES):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            self._sum(flat)
            flat /= self.size
            parts = torch.split(flat, [gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view(gradient.shape))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all get the same answer."""
        if self.size == 1:
            return flag
        import torch.distributed as distributed

        found = torch.tensor(int(flag))
        with _others_needed():
            distributed.all_reduce(found, op=distributed.ReduceOp.MAX, group=self.control)
        return bool(found)

    def share(self, value: T) -> list[T]:
        """Each process's value (small, picklable), in order of rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as distributed

        values: list[Any] = [None] * self.size
        with _others_needed():
            distributed.all_gather_object(values, value, group=self.control)
        return values

    def from_first(self, work: Callable[[], T]) -> T:
        """What `work` returns in the first process, in all of several as a pickled copy; it runs there alone.

        The others wait for as long as it takes, not just for TIMEOUT: they hear of the first meanwhile. They
        must be here at most TIMEOUT after its first sign of life. `work` must not exchange anything itself.
        What it raises, it raises in the first process, and the others take that one for ended.
        """
        if self.size == 1:
            return work()
        found: list[T] = []
        if self.first:
            with self._alive():
                found.append(work())
            self.any(True)
        else:
            while not self.any(False):
                pass
        return self.share(found)[0][0]

    def together(self, work: Callable[[], T]) -> list[T]:
        """Do `work` in every process, each its own; what each returned, as `share` gives it.

        Those that are done sooner wait for as long as the others take, not just for TIMEOUT. `work` must not
        exchange anything itself. Where it raises, the others take that process for ended.
        """
        if self.size == 1:
            return [work()]
        done = threading.Event()
        failed: list[RunError] = []

        def beat() -> None:
            try:
                while self.any(not done.wait(BEAT_SECONDS)):  # until no process is at work
                    pass
            except RunError as error:
                failed.append(error)

        thread = threading.Thread(target=beat, name="stylex-together", daemon=True)
        thread.start()
        found = work()
        done.set()
        thread.join()
        if failed:
            raise failed[0]
        return self.share(found)

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Signs of life for those who wait in `from_first`, by a thread: the work need not think of them."""
        done = threading.Event()

        def beat() -> None:
            try:
                while not done.wait(BEAT_SECONDS):
                    self.any(False)
            except RunError as error:
                log.warning("%s; this process goes on to the end of what it is doing", error)

        thread = threading.Thread(target=beat, name="stylex-alive", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def share_means(self, values: dict[str, float]) -> dict[str, float]:
        """The mean over processes of each value; every process has the same keys."""
        if self.size == 1:
            return values
        found = self.share(values)
        return {key: sum(each[key] for each in found) / self.size for key in values}

    def wait(self) -> None:
        """Go on once all processes are here."""
        self.any(False)

    def _sum(self, tensor: Tensor) -> None:
        import torch.distributed as distributed

        with _others_needed():
            distributed.all_reduce(tensor)


ALONE = World()
"""One process, as without this module."""


class _Gather(torch.autograd.Function):
    """Rows of all processes; backward: `_ScatterSum`."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, world: World) -> Tensor:
        import torch.distributed as distributed

        ctx.world = world
        local = local.contiguous()
        parts = [torch.empty_like(local) for _ in range(world.size)]
        with _others_needed():
            distributed.all_gather(parts, local)
        return torch.stack(parts, dim=1).flatten(0, 1)  # row j of process r is row j · R + r of the whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        local: Tensor = _ScatterSum.apply(gradients[0], ctx.world)
        return local, None


class _ScatterSum(torch.autograd.Function):
    """The sum over processes of a tensor of the whole batch, each getting its own rows; backward: `_Gather`.

    An all-reduce of which each keeps a part, since not every backend can reduce and scatter; what passes here
    is small (latents, and features at 4 × 4).
    """

    @staticmethod
    def forward(ctx: Any, whole: Tensor, world: World) -> Tensor:
        ctx.world = world
        total = whole.clone(memory_format=torch.contiguous_format)
        world._sum(total)
        return world.own(total).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        whole: Tensor = _Gather.apply(gradients[0], ctx.world)
        return whole, None


def buckets(tensors: Sequence[Tensor], limit: int) -> Iterator[list[Tensor]]:
    """Consecutive tensors of one type, together at most `limit` bytes; a larger one goes by itself."""
    found: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if found and (size + tensor.nbytes > limit or tensor.dtype != found[0].dtype):
            yield found
            found, size = [], 0
        found.append(tensor)
        size += tensor.nbytes
    if found:
        yield found


@contextmanager
def _others_needed() -> Iterator[None]:
    """An exchange fails when a process has ended or hangs: that is no bug of this one."""
    try:
        yield
    except RuntimeError as error:
        reason = reason_of(error)
        raise RunError(
            "another process of this job ended, or did not answer for "
            f"{TIMEOUT.total_seconds() / 60:.0f} min ({reason}); the same command continues from what "
            "was last written"
        ) from None


def check_shares(recipe: Recipe, size: int) -> None:
    """Refuse batches that do not divide evenly among `size` processes.

    Raises:
        ConfigError: the batch, or path length's part of it, is no multiple of the number of processes.
    """
    batch = recipe.training.batch_size
    if batch % size:
        raise ConfigError(
            f"training.batch_size is {batch}, the batch of all processes together; it must be a multiple of "
            f"the {size} processes, such as {-(-batch // size) * size}"
        )
    part = path_length_images(batch, recipe.loss.path_length_batch_shrink)
    if recipe.loss.path_length > 0 and part % size:
        raise ConfigError(
            f"path length takes {part} of {batch} images (loss.path_length_batch_shrink is "
            f"{recipe.loss.path_length_batch_shrink}), which must be a multiple of the {size} processes; "
            "shrink less, or take a larger training.batch_size"
        )


def path_length_images(batch: int, shrink: int) -> int:
    """Images of a whole batch on which path length is measured, the first ones."""
    return max(1, batch // shrink)


def world_size(devices: int | None, nodes: int) -> int:
    """Processes of this job: as the launcher (torchrun) says, or as asked for.

    Raises:
        ConfigError: a launcher started another number than asked for.
    """
    asked = (devices or 1) * nodes
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return asked
    size = int(os.environ["WORLD_SIZE"])
    if devices is not None and asked != size:
        raise ConfigError(
            f"torchrun started {size} processes, --devices and --nodes ask for {asked}; leave the two out"
        )
    return size


@contextmanager
def joined(devices: int | None = None, nodes: int = 1, device: str = "auto") -> Iterator[World]:
    """Join the processes of this job; ALONE where it has one.

    Under torchrun its processes meet; else process 0 starts `devices` − 1 more of its own command line.

    Args:
        devices: processes on this machine; None for one, or what torchrun started.
        nodes: machines; without torchrun MASTER_ADDR, MASTER_PORT and NODE_RANK say who they are.
        device: "auto", "cpu" or "cuda".

    Raises:
        ConfigError: a device for one process only, or more devices than the machine has.
        RunError: from any exchange, when a process of the job has ended.
    """
    size = world_size(devices, nodes)
    if size == 1:
        yield ALONE
        return
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device is '{device}'; with {size} processes choose auto, cpu or cuda")
    world = _join(size, devices, nodes, device)
    import torch.distributed as distributed

    from stylex.errors import Stopped

    try:
        yield world
    except Stopped:  # by all of them together
        distributed.destroy_process_group()
        raise
    world.wait()
    distributed.destroy_process_group()


def _join(size: int, devices: int | None, nodes: int, device: str) -> World:
    import torch.distributed as distributed
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy

    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    local = int(os.environ["LOCAL_WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else devices or 1
    present = torch.cuda.device_count()
    if cuda and present < local:
        raise ConfigError(f"{local} processes on this machine, but {present} GPUs; start one a GPU at most")
    strategy = DDPStrategy(process_group_backend="nccl" if cuda else "gloo", timeout=TIMEOUT)
    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu", devices=local, num_nodes=size // local, strategy=strategy
    )
    with _others_needed():
        fabric.launch()
        control = distributed.new_group(backend="gloo", timeout=TIMEOUT)
    return World(
        rank=fabric.global_rank,
        size=fabric.world_size,
        local_size=local,
        device=fabric.device,
        control=control,
        launched=isinstance(strategy.cluster_environment, LightningEnvironment),
    )


@contextmanager
def one_at_a_time(world: World) -> Iterator[None]:
    """Let the processes of a machine do something one after the other, such as filling a cache.

    The first one decodes or downloads; the others find what it left. Released when a process ends.
    """
    if world.size == 1:
        yield
        return
    import fcntl

    name = f"stylex-{os.getuid()}-{os.environ.get('MASTER_PORT', '0')}.lock"
    with (Path(tempfile.gettempdir()) / name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
