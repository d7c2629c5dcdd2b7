"""Decoding a source once: all its images as one memory-mapped file under $XDG_CACHE_HOME/stylex."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from stylex.data.decode import UnreadableImageError
from stylex.data.listing import Entry, Listing

log = logging.getLogger(__name__)

_FORMAT = "1"  # goes up when decoding changes its result
_BLOCK = 512  # images that wait to be written
_STALE_S = 24 * 3600


@dataclass(frozen=True)
class Decoded:
    """The readable images of a listing, in its order.

    `kept` holds their positions in the listing, `digests` their sha256; `skipped` the names that could not be
    read, with the reason.
    """

    images: npt.NDArray[np.uint8]  # [N, size, size, 3]
    kept: tuple[int, ...]
    digests: tuple[str, ...]
    skipped: dict[str, str]


def decode_all(
    listing: Listing,
    size: int,
    *,
    use_cache: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> Decoded:
    """Decode every entry of `listing` to `size` × `size`, on all cores, or map what an earlier call decoded.

    The key of the cache is what the listing names, with sizes and times of the files. A source has one entry
    for each size: a new one takes the place of the old. Where the cache cannot be written (full disk, no
    home) the images stay in memory, with a warning.
    """
    if use_cache:
        try:
            folder = cache_folder() / f"{_hash(listing.home + listing.decoding)[:16]}-{size}"
            folder.mkdir(parents=True, exist_ok=True)
            key = _key(listing, size)
            decoded = _load(folder, key, size) or _build(folder, key, listing, size, on_progress)
            if decoded is not None:
                return decoded
        except OSError as error:
            log.warning("the decoded images cannot be kept on disk (%s); they stay in memory", error)
    pixels = bytearray()
    index = _decode(listing, size, pixels.extend, on_progress)
    images = np.frombuffer(pixels, np.uint8).reshape(-1, size, size, 3)
    images.flags.writeable = False
    return _decoded(images, index)


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/stylex/images, or ~/.cache/stylex/images.

    Raises:
        OSError: there is neither.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    except RuntimeError as error:
        raise OSError(str(error)) from error
    return root / "stylex" / "images"


_Index = dict[str, Any]


def _load(folder: Path, key: str, size: int) -> Decoded | None:
    try:
        index = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        shape = (len(index["kept"]), size, size, 3)
        images = np.memmap(folder / f"{key}.pixels", np.uint8, mode="r", shape=shape)
        if images.nbytes != (folder / f"{key}.pixels").stat().st_size:
            return None
    except (FileNotFoundError, ValueError, KeyError):  # absent, or damaged: decode again
        return None
    return _decoded(images.view(np.ndarray), index)


def _build(
    folder: Path, key: str, listing: Listing, size: int, on_progress: Callable[[int, int], None] | None
) -> Decoded | None:
    with _atomic(folder / f"{key}.pixels") as stream:
        index = _decode(listing, size, stream.write, on_progress)
    with _atomic(folder / f"{key}.json") as stream:
        stream.write(json.dumps(index).encode())
    for old in folder.iterdir():
        stale = old.suffix == ".tmp" and old.stat().st_mtime < time.time() - _STALE_S
        if stale or (old.suffix in (".pixels", ".json") and old.stem != key):
            old.unlink(missing_ok=True)  # whoever has it mapped keeps it
    return _load(folder, key, size)


def _decode(
    listing: Listing,
    size: int,
    write: Callable[[bytes], object],
    on_progress: Callable[[int, int], None] | None,
) -> _Index:
    """Decode in order, in threads (Pillow leaves the interpreter lock), and write the pixels."""
    kept: list[int] = []
    digests: list[str] = []
    skipped: dict[str, str] = {}

    def read(entry: Entry) -> tuple[bytes, str] | UnreadableImageError:
        try:
            pixels = listing.read(entry, size).tobytes()
        except UnreadableImageError as error:
            return error
        return pixels, hashlib.sha256(pixels).hexdigest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(listing.entries), _BLOCK):
            block = listing.entries[start : start + _BLOCK]
            for position, result in enumerate(pool.map(read, block), start):
                if isinstance(result, UnreadableImageError):
                    skipped[listing.entries[position].name] = str(result)
                    continue
                write(result[0])
                kept.append(position)
                digests.append(result[1])
            if on_progress is not None:
                on_progress(start + len(block), len(listing.entries))
    return {"kept": kept, "digests": digests, "skipped": skipped}


def _decoded(images: npt.NDArray[np.uint8], index: _Index) -> Decoded:
    return Decoded(images, tuple(index["kept"]), tuple(index["digests"]), dict(index["skipped"]))


def _key(listing: Listing, size: int) -> str:
    rows = [[entry.name, entry.stamp] for entry in listing.entries]
    asked = [_FORMAT, size, rows] + ([listing.decoding] if listing.decoding else [])
    return _hash(json.dumps(asked))[:32]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


@contextmanager
def _atomic(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears as `path` only once it is complete and on the disk."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
