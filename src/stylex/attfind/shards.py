"""Logits after every change, kept in the run a few images a file, and read back block by block."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from stylex.errors import CheckpointError, RunError
from stylex.run import read_json, read_tensors, remove_partial_files, write_json, write_tensors

SHARD_IMAGES = 4
"""Images whose effects are written at once; what a killed search loses at most."""

Stored = Literal["fp32", "fp16"]


class Shards:
    """The files of one sweep; as an array, logits [N, 2, S, K] that are read when they are sliced.

    A file is whole or absent, and carries a checksum and the key of its sweep: what is damaged or of another
    sweep counts as absent. With "fp16" the differences to the unchanged images' logits are kept, in half the
    space and to 11 bits of each effect.

    Args:
        folder: where they lie, effects/ of a run.
        key: what the logits depend on; see `search`.
        before: [N, K], logits of the unchanged images.
        coordinates: S.
        stored: number format.
    """

    def __init__(self, folder: Path, key: str, before: Tensor, coordinates: int, stored: Stored) -> None:
        self.folder, self.key, self.stored = folder, key, stored
        self.before = before.float().cpu()
        self.shape = (len(before), 2, coordinates, before.shape[1])

    def __len__(self) -> int:
        """The number of files."""
        return -(-self.shape[0] // SHARD_IMAGES)

    def images(self, number: int) -> range:
        """The images of one file."""
        return range(number * SHARD_IMAGES, min(self.shape[0], (number + 1) * SHARD_IMAGES))

    def file(self, number: int) -> Path:
        return self.folder / f"shard-{number * SHARD_IMAGES:06d}.safetensors"

    def write(self, number: int, logits: Tensor) -> None:
        """Keep the logits [n, 2, S, K] of one file's images.

        Raises:
            RunError: they cannot be written, or an effect is too large for fp16.
        """
        images = self.images(number)
        tensors = {"logits": logits}
        if self.stored == "fp16":
            changes = (logits - self.before[images.start : images.stop, None, None]).half()
            if bool(changes.isinf().any()):
                raise RunError(
                    f"{self.file(number)}: an effect is larger than fp16 can hold; search with "
                    "--set stored=fp32"
                )
            tensors = {"changes": changes}
        write_tensors(self.file(number), tensors, {"key": self.key, "first": images.start})

    def read(self, number: int) -> Tensor | None:
        """The logits of one file, [n, 2, S, K]; None: missing, damaged, or of another sweep."""
        images = self.images(number)
        try:
            tensors, header = read_tensors(self.file(number))
        except CheckpointError:
            return None
        found = tensors.get("changes" if self.stored == "fp16" else "logits")
        if header.get("key") != self.key or found is None or found.shape != (len(images), *self.shape[1:]):
            return None
        if self.stored == "fp16":
            found = found.float() + self.before[images.start : images.stop, None, None]
        return found

    def missing(self) -> list[int]:
        """Numbers of the files that are still to be measured; reads those that there are."""
        return [number for number in range(len(self)) if self.read(number) is None]

    def __getitem__(self, block: slice) -> npt.NDArray[np.float32]:
        """Logits of consecutive images, `shards[start:stop]`.

        Raises:
            RunError: a file is missing or was damaged since it was written.
        """
        start, stop, _ = block.indices(self.shape[0])
        found = np.empty((max(0, stop - start), *self.shape[1:]), np.float32)
        for number in range(start // SHARD_IMAGES, -(-stop // SHARD_IMAGES) if stop > start else 0):
            images = self.images(number)
            first, last = max(start, images.start), min(stop, images.stop)
            logits = self.read(number)
            if logits is None:
                raise RunError(f"{self.file(number)}: missing or damaged; the same search measures it again")
            found[first - start : last - start] = logits[first - images.start : last - images.start]
        return found

    def start_over(self) -> None:
        """Remove what an earlier sweep left."""
        if self.folder.exists():
            shutil.rmtree(self.folder)


class Record:
    """effects/sweep.json: how a sweep is run, so that one that was stopped goes on in the same way."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "sweep.json"

    def read(self) -> dict[str, Any]:
        """What is recorded; nothing where there is no record or it is damaged."""
        try:
            found = read_json(self.file)
        except RunError:
            return {}
        return found if isinstance(found, dict) else {}

    def write(self, content: dict[str, Any]) -> None:
        write_json(self.file, content)
        remove_partial_files(self.file.parent)
