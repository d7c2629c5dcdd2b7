"""Images at rest: sets of equal, square pictures with their names, labels and factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stylex.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

Indices = Sequence[int] | npt.NDArray[np.integer] | slice


@dataclass(frozen=True)
class ImageSet:
    """N images of S × S pixels, and what is known of each.

    `names` are paths relative to the source, or stable ids. `labels` are indices into `class_names`; both are
    None where the source has no classes. `factors` maps a column (a factor of the avatars, a column of the
    CSV) to its N values.
    """

    images: npt.NDArray[np.uint8]  # [N, S, S, 3]; may be a read-only memory map
    names: tuple[str, ...]
    labels: npt.NDArray[np.int64] | None
    class_names: tuple[str, ...] | None
    factors: dict[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, indices: Indices) -> Tensor:
        """The images at `indices`, as float32 [n, 3, S, S] in [-1, 1], in channels_last memory order."""
        import torch

        # numpy, not torch: one thread does this in less time than several need to wake up.
        pixels = self.images[_positions(indices)].astype(np.float32)
        pixels /= 127.5
        pixels -= 1.0
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def select(self, indices: Indices) -> ImageSet:
        """The images at `indices`, in that order; a slice stays a view of the same memory."""
        positions = _positions(indices)
        order = np.arange(len(self))[positions]
        return ImageSet(
            images=self.images[positions],
            names=tuple(self.names[i] for i in order),
            labels=None if self.labels is None else self.labels[positions],
            class_names=self.class_names,
            factors={column: tuple(values[i] for i in order) for column, values in self.factors.items()},
        )


@dataclass(frozen=True)
class Dataset:
    """Three sets of one source: to train on, to find attributes on (discovery), and to report on (test).

    `fingerprint` is the sha256 over sets, names, labels and pixels; `skipped` names the files that could not
    be read.
    """

    name: str
    training: ImageSet
    discovery: ImageSet
    test: ImageSet
    fingerprint: str
    skipped: tuple[str, ...]

    @property
    def size(self) -> int:
        """Pixels along a side."""
        return int(self.training.images.shape[1])

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The classes, in the order of the labels; None where the source has none."""
        return self.training.class_names


def check_size(size: int) -> None:
    """Raise DataError unless `size` is a power of two from 4 to 1024."""
    if isinstance(size, bool) or not isinstance(size, int) or not 4 <= size <= 1024 or size & (size - 1):
        raise DataError(f"an image size must be a power of two from 4 to 1024, such as 64; not {size}")


def _positions(indices: Indices) -> slice | npt.NDArray[np.integer]:
    if isinstance(indices, slice):
        return indices
    positions: npt.NDArray[np.integer] = np.asarray(indices)
    return positions.astype(np.int64) if positions.size == 0 else positions
