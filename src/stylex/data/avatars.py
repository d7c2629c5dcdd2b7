"""Rendering labelled cartoon faces, with a table of every factor beside the images."""

from __future__ import annotations

import csv
import hashlib
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from PIL import Image

from stylex.data.avatar_spec import AvatarSpec
from stylex.data.faces import FACTORS, render_face
from stylex.data.folder import TABLE
from stylex.data.images import check_size
from stylex.data.table import GROUP_COLUMN
from stylex.errors import DataError

_CHUNK = 64  # faces for one call of a worker
_INCOMPLETE = ".incomplete"


@dataclass(frozen=True)
class RenderedAvatars:
    """What `render_avatars` wrote: where, and how many faces of each class."""

    path: Path
    count: int
    size: int
    seed: int
    classes: dict[str, int]


def render_avatars(
    out: str | Path,
    *,
    count: int = 13_000,
    size: int = 64,
    seed: int = 0,
    spec: AvatarSpec | str | Path | None = None,
    processes: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> RenderedAvatars:
    """Render `count` labelled faces of `size` × `size` pixels.

    Writes `out`/<class>/<number>.png, `out`/factors.csv (file, label, every factor, and a group that faces
    share which look the same, so that no test face is also one to train on) and `out`/spec.yaml
    (the resolved spec). The bytes depend on seed, spec and size alone, not on `processes` (all cores by
    default); a larger count adds faces and changes none. All appears in `out` only once it is complete.

    Raises:
        DataError: `out` exists and is not empty, a bad spec or size, no room on the disk.
    """
    out = Path(out).expanduser()
    check_size(size)
    if count < 1:
        raise DataError(f"avatars: count must be at least 1, not {count}")
    if spec is None:
        spec = AvatarSpec.default()
    elif not isinstance(spec, AvatarSpec):
        spec = AvatarSpec.load(spec)
    render_face(spec.draw(seed, 0)[1], size)  # a missing package shows here, not in a worker
    is_new = not out.exists()
    work = out / _INCOMPLETE
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(path != work for path in out.iterdir()):
            raise DataError(
                f"{out} exists already and is not empty: choose another folder, or remove it first"
            )
        with _alone(out):
            try:
                shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
                work.mkdir()
                counts = _write(work, spec, count, size, seed, processes, on_progress)
                for path in sorted(work.iterdir(), key=lambda path: path.name == TABLE):
                    path.rename(out / path.name)  # the table last: with it the folder is complete
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{out}: the faces could not be written: {error}") from error
    except BrokenProcessPool as error:
        raise DataError(
            f"{out}: a worker process was killed; free some memory, or use fewer processes"
        ) from error
    finally:
        if is_new:
            with suppress(OSError):
                out.rmdir()  # only goes where nothing was written
    return RenderedAvatars(out, count, size, seed, counts)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder, so that a second process does not take our work for that of one that was killed."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise DataError(f"{folder}: another process is rendering into this folder") from None
    finally:
        os.close(descriptor)


def _write(
    out: Path,
    spec: AvatarSpec,
    count: int,
    size: int,
    seed: int,
    processes: int | None,
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, int]:
    for label in spec.classes:
        (out / label).mkdir()
    (out / "spec.yaml").write_text(spec.to_yaml(), encoding="utf-8")
    counts = dict.fromkeys(spec.classes, 0)
    draw = partial(_draw_chunk, out, spec, size, seed)
    chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    with (out / TABLE).open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["file", "label", *FACTORS, GROUP_COLUMN])
        done = 0
        for rows in _map(draw, chunks, processes or os.cpu_count() or 1):
            for file, label, face in rows:
                values = [face[name] for name in FACTORS]
                table.writerow([file, label, *values, _group(values)])
                counts[label] += 1
            done += len(rows)
            if on_progress is not None:
                on_progress(done, count)
    return counts


def _group(values: list[str]) -> str:
    return hashlib.sha256(",".join(values).encode()).hexdigest()[:12]


_Rows = list[tuple[str, str, Mapping[str, str]]]


def _draw_chunk(out: Path, spec: AvatarSpec, size: int, seed: int, indices: range) -> _Rows:
    rows: _Rows = []
    for index in indices:
        label, face = spec.draw(seed, index)
        file = f"{label}/{index:06d}.png"
        Image.fromarray(render_face(face, size, spec.background)).save(out / file, compress_level=6)
        rows.append((file, label, face))
    return rows


def _map(draw: Callable[[range], _Rows], chunks: list[range], processes: int) -> Iterator[_Rows]:
    """`map` in order over several processes (resvg holds the interpreter lock, so threads would not help)."""
    processes = min(processes, len(chunks))
    if processes <= 1:
        yield from map(draw, chunks)
        return
    # The workers run Python, resvg and Pillow only, so a fork of a process that has loaded torch is safe.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(processes, context, initializer=_prepare_worker) as pool:
        try:
            # Submitted a few at a time: an interrupt must not wait for thousands of faces.
            waiting = [pool.submit(draw, chunk) for chunk in chunks[: 2 * processes]]
            rest = islice(chunks, len(waiting), None)
            while waiting:
                yield waiting.pop(0).result()
                waiting += [pool.submit(draw, chunk) for chunk in islice(rest, 1)]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends the pool
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the parent's handler, whose traceback would be shown
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for faces for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
