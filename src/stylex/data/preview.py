"""A look at a source before it is decoded: how large its images are, and a few of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stylex.data.decode import UnreadableImageError
from stylex.data.images import ImageSet, check_size
from stylex.data.listing import Entry, Listing
from stylex.data.sources import list_source
from stylex.errors import DataError

_MEASURED = 200
_SMALL_SHARE = 0.1


@dataclass(frozen=True)
class Preview:
    """What can be known of a source in a moment.

    `side`: the shorter side in pixels that nine of ten images reach; `training`: files of the training set,
    unreadable ones counted.
    """

    listing: Listing
    side: int
    training: int

    def sample(self, size: int, count: int) -> ImageSet:
        """`count` training images (fewer if there are no more), decoded to size × size and kept in memory.

        Raises:
            DataError: size is no power of two, or none of them can be read.
        """
        check_size(size)
        pixels, names = [], []
        labels: list[int] = []
        classes = self.listing.class_names
        for entry in _spread(_training(self.listing), count):
            try:
                pixels.append(self.listing.read(entry, size))
            except UnreadableImageError:
                continue
            names.append(entry.name)
            labels.append(-1 if classes is None else classes.index(entry.label or ""))
        if not pixels:
            raise DataError(f"{self.listing.home}: none of the images that were tried can be read")
        known = None if classes is None else np.array(labels, dtype=np.int64)
        return ImageSet(np.stack(pixels), tuple(names), labels=known, class_names=classes, factors={})


def preview(source: str | Path, *, group: str | None = None, labelled: bool = False) -> Preview:
    """Look at a source (as for `load_dataset`) without decoding or writing anything.

    Raises:
        DataError: no images, or none that can be read.
    """
    listing = list_source(source, group, labelled)
    sides = []
    for entry in _spread(listing.entries, _MEASURED):
        try:
            sides.append(listing.side(entry))
        except UnreadableImageError:
            continue
    if not sides:
        raise DataError(f"{source}: none of the images that were tried can be read")
    side = sorted(sides)[int(_SMALL_SHARE * len(sides))]
    return Preview(listing, side, len(_training(listing)))


def _training(listing: Listing) -> list[Entry]:
    return [entry for entry in listing.entries if entry.split == "training"]


def _spread(entries: list[Entry] | tuple[Entry, ...], count: int) -> list[Entry]:
    """Up to `count` entries, evenly over all."""
    step = max(1.0, len(entries) / count)
    return [entries[int(number * step)] for number in range(min(count, len(entries)))]
