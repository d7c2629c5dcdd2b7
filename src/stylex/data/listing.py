"""What a source holds before a single pixel is decoded: names, sets, labels and factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stylex.data.splits import SPLITS, Split, official_splits, split_of
from stylex.errors import DataError

Reader = Callable[["Entry", int], npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Entry:
    """One image of a source. `stamp` changes when the file does (its size and time)."""

    name: str
    split: Split
    stamp: str
    label: str | None = None
    factors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """A source: its entries, set after set and by name within a set, and how to read one of them.

    `read(entry, size)` gives uint8 [size, size, 3] or raises UnreadableImageError. `native_size` looks up the
    size that all images share, a power of two, or raises DataError. `side(entry)` is the shorter side of one
    image in pixels, or raises UnreadableImageError. `home` tells this source from others; `decoding` is
    what was asked for that changes the pixels.
    """

    name: str
    home: str
    entries: tuple[Entry, ...]
    class_names: tuple[str, ...] | None
    read: Reader
    native_size: Callable[[], int]
    side: Callable[[Entry], int]
    decoding: str = ""


def assign_splits(
    names: Sequence[str], keys: Sequence[str], parts: Sequence[str] | None, where: str
) -> list[Split]:
    """The set of each image: by the source's own `parts`, else by the hash of its key.

    Args:
        names: of the images, for messages.
        keys: what is hashed; images that share a key (a group) share a set.
        parts: the value of the split column, or the top-level folder, of each image.

    Raises:
        DataError: a group stands in two of the source's own sets.
    """
    official = None if parts is None else official_splits(parts, where)
    if official is None or parts is None:
        return [split_of(key) for key in keys]
    own = frozenset(official.values()) - {"training"}
    splits: list[Split] = []
    first: dict[str, tuple[Split, str]] = {}
    for name, key, part in zip(names, keys, parts, strict=True):
        split = official[part]
        other, other_name = first.setdefault(key, (split, name))
        if other != split:
            raise DataError(
                f"{where}: the group {key!r} is in two sets ({other_name}: {other}, {name}: {split}); "
                "put all its images into one, or leave out the group column"
            )
        splits.append(split_of(key, own) if split == "training" else split)
    return splits


def in_order(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Set after set, by name within a set: a set is then one slice of the decoded images."""
    return tuple(sorted(entries, key=lambda entry: (SPLITS.index(entry.split), entry.name)))


def file_stamp(path: Path) -> str:
    """Size and time of a file, or "missing": what changes when the file is written anew."""
    try:
        status = path.stat()
    except OSError:
        return "missing"
    return f"{status.st_size}/{status.st_mtime_ns}"
