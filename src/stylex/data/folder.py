"""Images of a folder, with or without class sub-folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from stylex.data.files import DEFAULT, list_files
from stylex.data.listing import Entry, Listing, assign_splits, file_stamp
from stylex.data.options import DataOptions
from stylex.data.splits import official_splits
from stylex.data.table import list_table
from stylex.errors import DataError

TABLE = "factors.csv"
"""The table that, where it lies in a folder, says which files count and what is known of them."""


def list_folder(
    folder: Path, *, group: str | None = None, labelled: bool = True, options: DataOptions = DEFAULT
) -> Listing:
    """List a folder: the rows of its factors.csv, or else every file in it that is not hidden.

    Sub-folders of the first level are the classes, unless one is called `training` or `train`: then they are
    the sets (see `official_splits`) and the classes lie one level below. With `labelled` False sub-folders
    mean nothing.

    Raises:
        DataError: no such folder, no file in it, files beside class folders, `group` without a table.
    """
    if (folder / TABLE).is_file():
        return list_table(folder / TABLE, group=group, labelled=labelled, name=folder.name, options=options)
    if group is not None:
        raise DataError(f"{folder}: a group column ({group!r}) needs a table, {TABLE}, in the folder")
    names = sorted(_files(folder))
    if not names:
        raise DataError(
            f"{folder} holds no image: give a folder with images, or with one folder for each class"
        )
    split_folders = {name.split("/")[0] for name in names if "/" in name}
    official = official_splits(split_folders, str(folder)) if split_folders else None
    depth = 0 if official is None else 1
    if official is not None and any("/" not in name for name in names):
        loose = next(name for name in names if "/" not in name)
        raise DataError(f"{folder}: {loose} lies beside the folders of the sets; move it into one, or away")
    parts = [name.split("/")[0] for name in names] if official is not None else None
    labels = _folder_labels(folder, names, depth) if labelled else [None] * len(names)
    splits = assign_splits(names, names, parts, str(folder))
    entries = [
        Entry(name=name, split=split, stamp=file_stamp(folder / name), label=label)
        for name, split, label in zip(names, splits, labels, strict=True)
    ]
    return list_files(folder.name, folder, folder, entries, options)


def _files(folder: Path) -> Iterator[str]:
    """Paths, relative to `folder` and with '/', of all files that are not hidden; links are followed."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in files:
            if not file.startswith("."):
                yield Path(place, file).relative_to(folder).as_posix()


def _folder_labels(folder: Path, names: Sequence[str], depth: int) -> Sequence[str | None]:
    """The class folder of each file: path component number `depth`; None for all where there are none."""
    parts = [name.split("/") for name in names]
    loose = [name for name, part in zip(names, parts, strict=True) if len(part) == depth + 1]
    if len(loose) == len(names):
        return [None] * len(names)
    if loose:
        raise DataError(
            f"{folder}: {loose[0]} lies beside class folders; move it into one, or away, or say that "
            "the folders are no classes (labelled=False)"
        )
    return [part[depth] for part in parts]
