"""One door for all images: a folder, a table, or a named set, cut into training, discovery and test."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from stylex.data.cache import Decoded, decode_all
from stylex.data.fashion_mnist import list_fashion_mnist
from stylex.data.folder import list_folder
from stylex.data.images import Dataset, ImageSet, check_size
from stylex.data.listing import Entry, Listing
from stylex.data.options import split_source
from stylex.data.published import PUBLISHED, only_classes
from stylex.data.records import TORCHVISION, is_saved_dataset, list_saved_dataset, list_torchvision
from stylex.data.splits import SPLITS, Split
from stylex.data.table import PARQUET, list_table
from stylex.errors import DataError

log = logging.getLogger(__name__)

_NAMED = "fashion-mnist"
_MAX_SKIPPED_SHARE = 0.1
_MAX_NAMED = 5


def load_dataset(
    source: str | Path,
    *,
    size: int | None = None,
    group: str | None = None,
    labelled: bool = True,
    use_cache: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Load all images of a source, decoded and cut into three sets.

    Args:
        source: a folder (see `folder.list_folder`), a CSV or Parquet file (see `table.list_table`), a data
            set that Hugging Face's `save_to_disk` wrote, `torchvision:NAME@FOLDER`; behind a '#' options (see
            `options.DataOptions`). Or `fashion-mnist`, `fashion-mnist:FOLDER`, `afhq:FOLDER`, `ffhq:FOLDER`,
            `celeba:FOLDER` (see `published`); after `#` classes to keep (`fashion-mnist#Shirt,Coat`) or, of
            CelebA, the attribute.
        size: pixels along a side, a power of two. None takes the size that all images have.
        group: the table's column whose equal values stay in one set, such as a patient.
        labelled: whether sub-folders or the label column are classes.
        use_cache: whether to keep the decoded images under $XDG_CACHE_HOME/stylex for the next time.
        on_progress: called with (images decoded, images in all).

    Returns:
        The sets are those the source defines, else 80 : 10 : 10 by the hash of each name. A small source can
        leave the discovery or the test set empty: a warning says so.

    Raises:
        DataError: no images, a size that is no power of two, more than a tenth of the files unreadable.
    """
    if size is not None:
        check_size(size)
    listing = list_source(source, group, labelled)
    pixels = listing.native_size() if size is None else size
    decoded = decode_all(listing, pixels, use_cache=use_cache, on_progress=on_progress)
    _check_skipped(source, listing, decoded)
    entries = [listing.entries[i] for i in decoded.kept]
    sets = {split: _image_set(listing, decoded, entries, split) for split in SPLITS}
    for split, images in sets.items():
        if not len(images):
            log.warning("%s: %d images leave the %s set empty; add images", source, len(entries), split)
    return Dataset(
        name=listing.name,
        training=sets["training"],
        discovery=sets["discovery"],
        test=sets["test"],
        fingerprint=_fingerprint(entries, decoded.digests),
        skipped=tuple(decoded.skipped),
    )


def list_source(source: str | Path, group: str | None, labelled: bool) -> Listing:
    """What a source holds, nothing decoded yet. Raises DataError as `load_dataset` does."""
    place, _, option = str(source).partition("#")
    name, _, folder = place.partition(":")
    if isinstance(source, str) and name in (_NAMED, *PUBLISHED):
        if group is not None:
            raise DataError(f"{source} has no column {group!r} to group by; leave the group out")
        if name == _NAMED:
            listing = list_fashion_mnist(Path(folder).expanduser() if folder else None)
            return only_classes(listing, option, str(source))
        if not folder:
            raise DataError(f"{source}: say where it is: {name}:FOLDER")
        return PUBLISHED[name](Path(folder).expanduser(), option)
    plain, options = split_source(source)
    if plain.startswith(TORCHVISION):
        if group is not None or options.group is not None:
            raise DataError(f"{source} has no columns to group by; leave the group out")
        return list_torchvision(plain, options, labelled)
    path = Path(plain).expanduser()
    if path.is_dir() and is_saved_dataset(path):
        return list_saved_dataset(path, options, group, labelled)
    if path.is_dir():
        return list_folder(path, group=group, labelled=labelled, options=options)
    if path.suffix.lower() in (".csv", *PARQUET):
        return list_table(path, group=group, labelled=labelled, options=options)
    if path.exists():
        raise DataError(f"{path}: give a folder of images or a .csv or .parquet table, not a single file")
    named = ", ".join(
        [_NAMED, *(f"{each}:FOLDER" for each in (_NAMED, *PUBLISHED)), f"{TORCHVISION}NAME@FOLDER"]
    )
    raise DataError(f"{path}: no such folder or table; named sets: {named}")


def _check_skipped(source: str | Path, listing: Listing, decoded: Decoded) -> None:
    if not decoded.skipped:
        return
    reasons = list(decoded.skipped.values())
    more = len(reasons) - _MAX_NAMED
    named = "; ".join(reasons[:_MAX_NAMED]) + (f"; and {more} more" if more > 0 else "")
    message = f"{source}: {len(reasons)} of {len(listing.entries)} files cannot be read"
    if len(reasons) > _MAX_SKIPPED_SHARE * len(listing.entries):
        raise DataError(f"{message}, more than a tenth; remove or replace them: {named}")
    log.warning("%s and are skipped: %s", message, named)


def _image_set(listing: Listing, decoded: Decoded, entries: list[Entry], split: Split) -> ImageSet:
    """One slice of the decoded images: the listing holds set after set."""
    before = SPLITS[: SPLITS.index(split)]
    start = sum(entry.split in before for entry in entries)
    own = [entry for entry in entries if entry.split == split]
    classes = listing.class_names
    columns = list(entries[0].factors) if entries else []
    return ImageSet(
        images=decoded.images[start : start + len(own)],
        names=tuple(entry.name for entry in own),
        labels=None
        if classes is None
        else np.array([classes.index(entry.label or "") for entry in own], dtype=np.int64),
        class_names=classes,
        factors={column: tuple(entry.factors[column] for entry in own) for column in columns},
    )


def _fingerprint(entries: list[Entry], digests: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for entry, pixels in zip(entries, digests, strict=True):
        row = "\0".join([entry.split, entry.name, entry.label or "", pixels]) + "\n"
        digest.update(row.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
