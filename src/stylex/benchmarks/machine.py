"""The machine that a figure belongs to, and the rates that it could reach at best."""

from __future__ import annotations

import datetime
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F

from stylex.hardware import Hardware, has_amx, processor


@dataclass(frozen=True)
class Machine:
    """Where a figure was measured, and when."""

    processor: str
    device: str
    threads: int
    precision: str
    amx: bool
    torch: str
    date: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        amx = "AMX" if self.amx else "no AMX"
        return (
            f"{self.device}, {self.threads} threads, {amx}, {self.precision}, torch {self.torch}, {self.date}"
        )


def describe(hardware: Hardware) -> Machine:
    """The machine at hand, as /proc/cpuinfo or the GPU's driver names it."""
    name = processor().get("model name") or platform.processor() or platform.machine()
    device = torch.cuda.get_device_name(hardware.device) if hardware.device.type == "cuda" else name
    return Machine(
        processor=name,
        device=device,
        threads=hardware.threads,
        precision=hardware.precision,
        amx=has_amx(),
        torch=torch.__version__,
        date=datetime.date.today().isoformat(),
    )


@dataclass(frozen=True)
class Peak:
    """3 × 3 convolutions, forward only, and how many FLOP they are: the rate that others are compared with.

    To be run in turn with what is compared with it: on a shared machine the peak changes within minutes.
    """

    work: Callable[[], object]
    flops: int


def convolution_peak(
    hardware: Hardware, channels: int = 256, size: int = 32, count: int = 8, repeats: int = 20
) -> Peak:
    """`repeats` convolutions of images [count, channels, size, size], channels_last.

    A multiplication and an addition count as two.
    """
    images = torch.ones(count, channels, size, size).to(hardware.device, hardware.dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    weight = torch.ones(channels, channels, 3, 3).to(hardware.device, hardware.dtype)

    @torch.inference_mode()
    def work() -> None:
        for _ in range(repeats):
            F.conv2d(images, weight, padding=1)

    return Peak(work, repeats * 2 * count * size**2 * channels**2 * 9)


def seconds_of(work: Callable[[], object], hardware: Hardware) -> float:
    """Wall-clock seconds of one call, the device's queue emptied."""
    begin = time.perf_counter()
    work()
    if hardware.device.type == "cuda":
        torch.cuda.synchronize(hardware.device)
    return time.perf_counter() - begin


def interleaved(
    works: Mapping[str, Callable[[], object]],
    hardware: Hardware,
    rounds: int,
    on_round: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Median seconds of each piece of work: all in turn within a round, after one round that is not counted.

    Only so are ratios fair on a machine that others use: what disturbs, disturbs all.
    """
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            seconds = seconds_of(work, hardware)
            if number:
                found[name].append(seconds)
        if on_round is not None:
            on_round(number)
    return {name: float(statistics.median(values)) for name, values in found.items()}
