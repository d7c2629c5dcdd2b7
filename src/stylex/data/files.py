"""Entries whose images are files: how they are read, and the size they share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stylex.data.decode import UnreadableImageError, decode_image, upright_size
from stylex.data.images import check_size
from stylex.data.listing import Entry, Listing, in_order
from stylex.data.options import DataOptions
from stylex.errors import DataError

DEFAULT = DataOptions()
"""Nothing said: the central square."""


def list_files(
    name: str, root: Path, home: Path, entries: Sequence[Entry], options: DataOptions = DEFAULT
) -> Listing:
    """The listing of `entries`, whose names are paths under `root`; messages name `home`."""
    ordered = in_order(entries)
    classes = sorted({entry.label for entry in ordered if entry.label is not None})

    def read(entry: Entry, size: int) -> npt.NDArray[np.uint8]:
        return decode_image(root / entry.name, size, fit=options.fit, window=options.window)

    return Listing(
        name=name,
        home=str(home.resolve()),
        entries=ordered,
        class_names=tuple(classes) if classes else None,
        read=read,
        native_size=lambda: _native_size(home, root, ordered),
        side=lambda entry: min(upright_size(root / entry.name)),
        decoding=options.decoding,
    )


def _native_size(home: Path, root: Path, entries: Sequence[Entry]) -> int:
    """The one size of all readable images of the source."""
    sizes: dict[tuple[int, int], str] = {}
    for entry in entries:
        try:
            sizes.setdefault(upright_size(root / entry.name), entry.name)
        except UnreadableImageError:
            continue
        if len(sizes) > 1:
            seen = " and ".join(f"{w}×{h} ({name})" for (w, h), name in sizes.items())
            raise DataError(f"{home}: the images differ in size, {seen}: say which size to use, such as 64")
    if not sizes:
        raise DataError(f"{home}: none of the {len(entries)} files is an image")
    ((width, height),) = sizes
    if width != height:
        raise DataError(f"{home}: the images are {width}×{height}: say which size to use, such as 64")
    check_size(width)
    return width
