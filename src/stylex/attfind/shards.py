"""Logits after every change, kept in the run a few images a file, and read back block by block."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stylex.attfind.screening import Stages
from stylex.errors import CheckpointError, RunError
from stylex.run import read_json, read_tensors, remove_partial_files, write_json, write_tensors

log = logging.getLogger("stylex")

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
        self._begun = False

    def __len__(self) -> int:
        """The number of files."""
        return -(-self.shape[0] // SHARD_IMAGES)

    def images(self, number: int) -> Sequence[int]:
        """The images of one file."""
        return range(number * SHARD_IMAGES, min(self.shape[0], (number + 1) * SHARD_IMAGES))

    def file(self, number: int) -> Path:
        return self.folder / f"shard-{number * SHARD_IMAGES:06d}.safetensors"

    def write(self, number: int, logits: Tensor) -> None:
        """Keep the logits [n, 2, S, K] of one file's images.

        Raises:
            RunError: they cannot be written, or an effect is too large for fp16.
        """
        write_tensors(self.file(number), self._stored(number, logits), self._header(number))

    def _header(self, number: int) -> dict[str, Any]:
        return {"key": self.key, "first": number * SHARD_IMAGES}

    def _before(self, number: int) -> Tensor:
        """Logits of the images of one file, [n, 1, 1, K]."""
        return self.before[list(self.images(number)), None, None]

    def _stored(self, number: int, logits: Tensor) -> dict[str, Tensor]:
        if self.stored == "fp16":
            changes = (logits - self._before(number)).half()
            if bool(changes.isinf().any()):
                raise RunError(
                    f"{self.file(number)}: an effect is larger than fp16 can hold; search with "
                    "--set stored=fp32"
                )
            return {"changes": changes}
        return {"logits": logits}

    def read(self, number: int) -> Tensor | None:
        """The logits of one file, [n, 2, S, K]; None: missing, damaged, or of another sweep."""
        return self._read(number, self.shape[1:])

    def _read(self, number: int, shape: tuple[int, ...]) -> Tensor | None:
        images = self.images(number)
        try:
            tensors, header = read_tensors(self.file(number))
        except CheckpointError:
            return None
        found = tensors.get("changes" if self.stored == "fp16" else "logits")
        expected = self._header(number)
        if found is None or found.shape != (len(images), *shape):
            return None
        if any(header.get(key) != value for key, value in expected.items()):
            return None
        if self.stored == "fp16":
            found = found.float() + self._before(number).reshape(len(images), *[1] * (len(shape) - 1), -1)
        return found

    def missing(self, numbers: Sequence[int] | None = None) -> list[int]:
        """Numbers of the files that are still to be measured; reads those that there are."""
        asked = range(len(self)) if numbers is None else numbers
        return [number for number in asked if self.read(number) is None]

    def __getitem__(self, block: slice) -> npt.NDArray[np.float32]:
        """Logits of consecutive images, `shards[start:stop]`.

        Raises:
            RunError: a file is missing or was damaged since it was written.
        """
        start, stop, _ = block.indices(self.shape[0])
        found = np.empty((max(0, stop - start), *self.shape[1:]), np.float32)
        for number in range(start // SHARD_IMAGES, -(-stop // SHARD_IMAGES) if stop > start else 0):
            begin = number * SHARD_IMAGES
            first, last = max(start, begin), min(stop, begin + SHARD_IMAGES)
            found[first - start : last - start] = self._there(number)[first - begin : last - begin]
        return found

    def _there(self, number: int) -> Tensor:
        logits = self.read(number)
        if logits is None:
            raise self._gone(number)
        return logits

    def _gone(self, number: int) -> RunError:
        return RunError(f"{self.file(number)}: missing or damaged; the same search measures it again")

    def begin(self) -> None:
        """Remove what another sweep left, the first time; what its record calls this one's stays."""
        if not self._begun and Record(self.folder).read().get("key") != self.key and self.folder.exists():
            if any(self.folder.glob("*.safetensors")):
                log.warning("%s: of another search (other images, weights or settings), removed", self.folder)
            shutil.rmtree(self.folder)
        self._begun = True


class ScreenedShards(Shards):
    """The files of a screened sweep (`screening`): each stage's images with the changes that it measures.

    As an array it shows the changes of the last stage (and `more`); all others have the unchanged logits.

    Args:
        plan: which images are measured in which stage.
        name: what the files' names begin with.

    `unstable`: images [N] that selection leaves out, once that is known; it takes more than the effects that
    are measured. `more`: other changes that were measured on all
    images, and show too.
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        before: Tensor,
        coordinates: int,
        stored: Stored,
        plan: Stages,
        name: str = "stage",
    ) -> None:
        super().__init__(folder, key, before, coordinates, stored)
        self.plan, self.name = plan, name
        self.more: ScreenedShards | None = None
        self._parts: list[tuple[int, tuple[int, ...]]] = []
        for stage in range(len(plan.ends)):
            images = plan.images(stage)
            for first in range(0, len(images), SHARD_IMAGES):
                self._parts.append((stage, images[first : first + SHARD_IMAGES]))
        self._place = {
            image: (number, row)
            for number, (_, images) in enumerate(self._parts)
            for row, image in enumerate(images)
        }
        self._open: list[npt.NDArray[np.bool_]] = [np.ones((2, coordinates), bool)]
        self.unstable: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self._parts)

    def images(self, number: int) -> Sequence[int]:
        return self._parts[number][1]

    def numbers(self, stage: int) -> list[int]:
        """The files of a stage."""
        return [number for number, (found, _) in enumerate(self._parts) if found == stage]

    def open_changes(self, stage: int, mask: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.bool_]:
        """The changes [2, S] that a stage measures; with `mask`, set so: no more than the stage before.

        The first stage measures all unless it is set.
        """
        if mask is not None:
            self._open = [*self._open[:stage], mask]
        return self._open[stage]

    def file(self, number: int) -> Path:
        return self.folder / f"{self.name}-{self._parts[number][0]}-{number:06d}.safetensors"

    def _changes(self, number: int) -> npt.NDArray[np.intp]:
        """Flat numbers of the changes that a file holds."""
        return np.flatnonzero(self._open[self._parts[number][0]].ravel())

    def _header(self, number: int) -> dict[str, Any]:
        held = hashlib.sha256(self._changes(number).astype(np.int64).tobytes()).hexdigest()
        images = list(self.images(number))
        return {"key": self.key, "number": number, "images": images, "changes": held}

    def _stored(self, number: int, logits: Tensor) -> dict[str, Tensor]:
        found = super()._stored(number, logits)
        chosen = torch.from_numpy(self._changes(number))
        return {name: value.flatten(1, 2)[:, chosen].contiguous() for name, value in found.items()}

    def read(self, number: int) -> Tensor | None:
        """The logits of one file, [n, 2, S, K], unchanged ones where nothing was measured; None: missing."""
        chosen = self._changes(number)
        found = self._read(number, (len(chosen), self.shape[3]))
        if found is None:
            return None
        whole = self._before(number).repeat(1, *self.shape[1:3], 1)
        whole.flatten(1, 2)[:, torch.from_numpy(chosen)] = found
        return whole

    def held(self, number: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
        """Flat numbers of the m changes that a file holds, and their logits [n, m, K].

        Raises:
            RunError: it is missing or damaged.
        """
        chosen = self._changes(number)
        logits = self._read(number, (len(chosen), self.shape[3]))
        if logits is None:
            raise self._gone(number)
        return chosen, logits.numpy()

    def measured(self, stage: int) -> StageLogits:
        """What has been measured up to and with a stage, for the changes that it measures."""
        return StageLogits(self, stage)

    def __getitem__(self, block: slice) -> npt.NDArray[np.float32]:
        start, stop, _ = block.indices(self.shape[0])
        images = range(start, max(start, stop))
        rows: dict[int, Tensor] = {}
        for number in sorted({self._place[image][0] for image in images}):
            logits = self._there(number)
            rows |= {image: logits[row] for row, image in enumerate(self.images(number)) if image in images}
        if not rows:
            return np.empty((0, *self.shape[1:]), np.float32)
        closed = torch.from_numpy(~self._open[-1])[None, :, :, None]
        logits = torch.stack([rows[image] for image in images])
        found: npt.NDArray[np.float32] = logits.where(~closed, self.before[start:stop, None, None]).numpy()
        if self.more is not None:
            shown = self.more.open_changes(0)
            found[:, shown] = self.more[start:stop][:, shown]
        return found


class StageLogits:
    """Logits [n, 1, M, K] of the `images` up to a stage, for its M changes; read when they are sliced."""

    def __init__(self, shards: ScreenedShards, stage: int) -> None:
        self._shards = shards
        self._wanted = np.flatnonzero(shards.open_changes(stage).ravel())
        self._numbers = [number for each in range(stage + 1) for number in shards.numbers(each)]
        self.images = [image for number in self._numbers for image in shards.images(number)]
        self.shape = (len(self.images), 1, len(self._wanted), shards.shape[3])

    def __getitem__(self, block: slice) -> npt.NDArray[np.float32]:
        """Logits of consecutive ones of `images`.

        Raises:
            RunError: a file is missing or damaged.
        """
        start, stop, _ = block.indices(self.shape[0])
        found = [np.empty((0, *self.shape[2:]), np.float32)]
        first = 0
        for number in self._numbers:
            last = first + len(self._shards.images(number))
            if first < stop and last > start:
                chosen, logits = self._shards.held(number)
                rows = logits[max(start - first, 0) : stop - first]
                found.append(rows[:, np.searchsorted(chosen, self._wanted)])
            first = last
        return np.concatenate(found)[:, None]


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
        """Record more of a sweep: what is known of the same `key` stays, unless it is said anew."""
        known = self.read()
        write_json(self.file, {**known, **content} if known.get("key") == content["key"] else content)
        remove_partial_files(self.file.parent)
