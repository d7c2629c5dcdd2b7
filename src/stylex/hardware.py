"""What the machine offers: device, precision, threads and memory, chosen once and said out loud."""

from __future__ import annotations

import ctypes
import math
import os
import resource
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from stylex.errors import ConfigError

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Hardware:
    """Where and in what number format networks run; `reason` says why, for people."""

    device: torch.device
    dtype: torch.dtype
    threads: int
    reason: str

    @property
    def precision(self) -> str:
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"

    def __str__(self) -> str:
        where = str(self.device) if self.device.type != "cpu" else f"CPU, {self.threads} threads"
        return f"{where}, {self.precision} ({self.reason})"


def choose(device: str = "auto", precision: Precision = "auto", threads: int | None = None) -> Hardware:
    """Pick device and number format.

    Args:
        device: "auto" (CUDA, then Apple's MPS, then the CPU) or a torch device name.
        precision: "auto" measures whether bf16 is faster on this device; "fp32" and "bf16" insist.
        threads: CPU threads; by default what OMP_NUM_THREADS says, else the cores that this process may use.

    Raises:
        ConfigError: the device does not exist here, or the precision is unknown.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"precision is '{precision}'; choose auto, fp32 or bf16")
    if threads is not None and threads < 1:
        raise ConfigError(f"threads is {threads}; give at least 1, or nothing for all cores")
    if device == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    else:
        name = device
    try:
        where = torch.device(name)
        float(torch.zeros(1, device=where))
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ConfigError(f"device '{name}' is not to be had on this machine; try --device auto") from None
    count = threads or asked_threads() or usable_cores()
    if where.type == "cpu":
        torch.set_num_threads(count)
        keep_freed_memory()
    if precision != "auto":
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        return Hardware(where, dtype, count, "asked for")
    if where.type == "cuda":
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
        return Hardware(where, dtype, count, torch.cuda.get_device_name(where))
    if where.type != "cpu":
        return Hardware(where, torch.float32, count, f"bf16 is untested on {where.type}")
    ratio = bf16_speedup()
    reason = f"a bf16 convolution runs {ratio:.1f}× as fast as fp32 here"
    return Hardware(where, torch.bfloat16 if ratio > 1.3 else torch.float32, count, reason)


def asked_threads() -> int | None:
    """What OMP_NUM_THREADS asks for: whoever runs several programs on one machine divides its cores so."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdigit() and int(said) > 0 else None


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may run on: its affinity, and the quota of its container where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cgroup.read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no container, or no limit ("max")
        return cores


def processor() -> dict[str, str]:
    """What /proc/cpuinfo says of the first core; nothing where there is no such file."""
    information = Path("/proc/cpuinfo")
    lines: dict[str, str] = {}
    for line in information.read_text().splitlines() if information.exists() else ():
        key, _, value = line.partition(":")
        lines.setdefault(key.strip(), value.strip())
    return lines


@cache
def has_amx() -> bool:
    """Whether the CPU multiplies matrices of bf16 in units of its own (Intel's AMX)."""
    return "amx_bf16" in processor().get("flags", "").split()


@cache
def bf16_speedup(rounds: int = 12) -> float:
    """fp32 time over bf16 time of one 3 × 3 convolution on this CPU; takes about 30 ms, 0 without oneDNN.

    Other work on the machine must not decide: one thread (several would wait for each other), a convolution
    of less than a millisecond, the two formats in turn, and of each the best time.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return 0.0
    inputs = {}
    for dtype in (torch.float32, torch.bfloat16):
        images = torch.ones(2, 64, 32, 32, dtype=dtype).contiguous(memory_format=torch.channels_last)
        inputs[dtype] = (images, torch.ones(64, 64, 3, 3, dtype=dtype))
    best = dict.fromkeys(inputs, float("inf"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for number in range(rounds + 1):
                for dtype, (images, weight) in inputs.items():
                    begin = time.perf_counter()
                    F.conv2d(images, weight, padding=1)
                    if number > 0:  # the first round builds the kernels
                        best[dtype] = min(best[dtype], time.perf_counter() - begin)
    finally:
        torch.set_num_threads(threads)
    return best[torch.float32] / best[torch.bfloat16]


@cache
def keep_freed_memory() -> bool:
    """Tell glibc to keep freed buffers in place of returning them to the kernel after every operation.

    Without this, up to two fifths of a sweep's time on a CPU are page faults. Does nothing where the C
    library is another one. Returns whether it took effect.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # Without mmap altogether: its threshold cannot exceed 32 MiB, and larger buffers would go back at once.
    trim_threshold, mmap_max = -1, -4
    return bool(mallopt(mmap_max, 0)) and bool(mallopt(trim_threshold, -1))


def release_freed_memory() -> None:
    """Give freed buffers back to the system: measuring memory begins at what is in use."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform.startswith("linux"):
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):
            return


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice: PyTorch has a type for GPUs, and words for CPUs."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and ("allocate memory" in words or "out of memory" in words)


def available_memory(device: torch.device) -> int | None:
    """Bytes that this process may still take, of the GPU or of machine and container; None: unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (OSError, ValueError):
            return None
    cgroup = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((cgroup / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no container, or no limit ("max")
        return free
    return max(0, min(free, limit - used))


def used_memory(device: torch.device) -> int:
    """Bytes in use now: tensors on the GPU, or what the process holds in main memory; 0 where unknown."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS")


def start_peak_memory(device: torch.device) -> None:
    """Begin to watch for the highest use; where the system cannot, it counts from the process's start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory(device: torch.device) -> int:
    """Bytes at the highest use since `start_peak_memory`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(key: str) -> int:
    """A size in /proc/self/status, in bytes; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:")), 0)


def place(network: nn.Module, hardware: Hardware) -> None:
    """Move a network to the device, convolution weights channels_last, and set its parts' number format."""
    network.to(hardware.device)
    network.to(memory_format=torch.channels_last)
    for module in network.modules():
        if hasattr(module, "compute_dtype"):
            setattr(module, "compute_dtype", hardware.dtype)  # noqa: B010 - modules type their attributes
