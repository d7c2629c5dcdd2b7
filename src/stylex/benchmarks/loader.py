"""`stylex bench loader`: whether images come as fast as training wants them."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stylex.benchmarks.machine import Machine
from stylex.data.cache import decode_all
from stylex.data.images import ImageSet, check_size
from stylex.data.sources import list_source
from stylex.errors import DataError

SECONDS = 2.0
"""How long batches are drawn."""


@dataclass(frozen=True)
class LoaderBenchmark:
    """Images a second: decoded, which happens once, and in batches from the memory-mapped file."""

    machine: Machine
    images: int
    size: int
    batch_size: int
    decoded_per_second: float
    loaded_per_second: float
    megabytes: float

    def to_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine.to_json(),
            "images": self.images,
            "size": self.size,
            "batch_size": self.batch_size,
            "decoded_per_second": self.decoded_per_second,
            "loaded_per_second": self.loaded_per_second,
            "megabytes": self.megabytes,
        }


def bench_loader(
    machine: Machine, source: str, *, size: int, batch_size: int = 16, seconds: float = SECONDS
) -> LoaderBenchmark:
    """Decode a source afresh, then draw batches in random order as training does, and nothing else.

    Raises:
        DataError: the source holds no image that can be read.
    """
    check_size(size)
    listing = list_source(source, None, labelled=False)
    begin = time.perf_counter()
    decoded = decode_all(listing, size, use_cache=False)
    took = max(time.perf_counter() - begin, 1e-9)
    count = len(decoded.kept)
    if not count:
        raise DataError(f"{source}: none of its {len(listing.entries)} images can be read")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "pixels")
        file.write_bytes(decoded.images.tobytes())
        mapped = np.memmap(file, np.uint8, mode="r", shape=(count, size, size, 3))
        images = ImageSet(mapped, tuple(map(str, range(count))), None, None, {})
        rate = _drawn(images, batch_size, seconds)
        del images, mapped
    return LoaderBenchmark(machine, count, size, batch_size, count / took, rate, decoded.images.nbytes / 1e6)


def _drawn(images: ImageSet, batch_size: int, seconds: float) -> float:
    """Images a second, in batches of random images, floats in [-1, 1]."""
    random = np.random.default_rng(0)
    done, begin = 0, time.perf_counter()
    while (now := time.perf_counter()) - begin < seconds:
        done += len(images.batch(random.integers(0, len(images), batch_size)))
    return done / max(now - begin, 1e-9)
