"""Variables of a TensorFlow SavedModel or checkpoint, read without TensorFlow and without running a graph.

A checkpoint is an index, a sorted string table as LevelDB writes it, that says for each name where in the
data files its bytes are (tensorflow/core/util/tensor_bundle), and those files. The messages within are
protocol buffers, of which a few fields are needed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stylex.errors import CheckpointError
from stylex.interop.protobuf import last_bytes, last_number, parse, varint

MAGIC = 0xDB4775248B80FB57
"""Last eight bytes of a sorted string table."""

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
"""The entry that tells, for each variable, what it is called in its program."""

TYPES = {1: np.float32, 2: np.float64, 3: np.int32, 9: np.int64, 19: np.float16}
"""Numbers of TensorFlow's types that variables of networks have."""

ATTRIBUTE = "/.ATTRIBUTES/VARIABLE_VALUE"


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies: its type's number, shape, data file, and bytes there."""

    kind: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int


def is_saved_model(path: Path) -> bool:
    """Whether a folder is a SavedModel with variables."""
    return (path / "variables" / "variables.index").is_file()


def read_variables(path: Path) -> dict[str, Tensor]:
    """Every variable of a SavedModel folder, or of a checkpoint by its prefix, by the name in its program.

    Where the checkpoint tells no such name, the path of attributes that leads to it stands in.

    Raises:
        CheckpointError: missing, damaged, compressed, or with numbers of a kind that networks do not have.
    """
    prefix = path / "variables" / "variables" if path.is_dir() else path
    index = prefix.with_name(prefix.name + ".index")
    try:
        content = index.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{index}: cannot be read ({error.strerror}); expected a SavedModel's folder"
        ) from None
    try:
        rows = dict(_table(content))
        shards = last_number(parse(rows.pop(b"")), 1, 1)
        entries = {key.decode(): _entry(value) for key, value in rows.items()}
    except (KeyError, ValueError, IndexError, struct.error, UnicodeDecodeError) as error:
        raise CheckpointError(f"{index}: no whole index of TensorFlow variables ({error})") from None
    files = [prefix.with_name(f"{prefix.name}.data-{number:05d}-of-{shards:05d}") for number in range(shards)]
    names: dict[str, str] = {}
    if OBJECT_GRAPH in entries:
        try:
            names = _names(_text(_bytes(files, entries.pop(OBJECT_GRAPH))))
        except (ValueError, IndexError, struct.error, UnicodeDecodeError) as error:
            raise CheckpointError(f"{prefix}: its graph of objects is damaged ({error})") from None
    found: dict[str, Tensor] = {}
    for key, entry in entries.items():
        if entry.kind not in TYPES:
            continue  # strings and such: no weights
        plain = key.removesuffix(ATTRIBUTE)
        name = names.get(key) or plain
        values = np.frombuffer(_bytes(files, entry), np.dtype(TYPES[entry.kind]).newbyteorder("<"))
        if values.size != int(np.prod(entry.shape, dtype=np.int64)):
            raise CheckpointError(
                f"{prefix}: {name} holds {values.size} numbers, its shape is {list(entry.shape)}"
            )
        native = values.astype(TYPES[entry.kind]).reshape(entry.shape)
        found[name if name not in found else plain] = torch.from_numpy(native)
    if not found:
        raise CheckpointError(f"{prefix}: holds no variables")
    return found


def _bytes(files: list[Path], entry: _Entry) -> bytes:
    if entry.shard >= len(files):
        raise CheckpointError(
            f"{files[0]}: the index speaks of data file {entry.shard}, there are {len(files)}"
        )
    file = files[entry.shard]
    try:
        with file.open("rb") as stream:
            stream.seek(entry.offset)
            content = stream.read(entry.size)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from None
    if len(content) != entry.size:
        raise CheckpointError(
            f"{file}: ends before byte {entry.offset + entry.size}; copy or download it again"
        )
    return content


def _table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a sorted string table, in order."""
    if len(content) < 48 or struct.unpack("<Q", content[-8:])[0] != MAGIC:
        raise ValueError("its end is not that of a table")
    footer = content[-48:]
    _, at = varint(footer, 0)
    _, at = varint(footer, at)
    offset, at = varint(footer, at)
    size, _ = varint(footer, at)
    for _, handle in _block(content, offset, size):
        place, at = varint(handle, 0)
        length, _ = varint(handle, at)
        yield from _block(content, place, length)


def _block(content: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    if offset + size + 5 > len(content):
        raise ValueError("a block lies outside the file")
    if content[offset + size] != 0:
        raise ValueError("its blocks are compressed; save it with TensorFlow's own writer")
    block = content[offset : offset + size]
    end = len(block) - 4 * (struct.unpack("<I", block[-4:])[0] + 1)
    at, key = 0, b""
    while at < end:
        shared, at = varint(block, at)
        fresh, at = varint(block, at)
        length, at = varint(block, at)
        key = key[:shared] + block[at : at + fresh]
        at += fresh
        yield key, block[at : at + length]
        at += length


def _entry(message: bytes) -> _Entry:
    parts = parse(message)
    shape = tuple(
        last_number(parse(size), 1)
        for field, value in parse(last_bytes(parts, 2))
        if field == 2 and isinstance(size := value, bytes)
    )
    if any(field == 7 for field, _ in parts):
        raise ValueError("a variable is stored in slices")
    shard, offset, size = (last_number(parts, field) for field in (3, 4, 5))
    return _Entry(last_number(parts, 1), shape, shard, offset, size)


def _names(graph: bytes) -> dict[str, str]:
    """Key in the checkpoint → name in the program, from a TrackableObjectGraph."""
    found = {}
    for field, node in parse(graph):
        if field != 1 or not isinstance(node, bytes):
            continue
        for inner, attribute in parse(node):
            if inner == 2 and isinstance(attribute, bytes):
                told = parse(attribute)
                name, key = (last_bytes(told, field).decode() for field in (2, 3))
                found[key] = name.removesuffix(":0")
    return found


def _text(content: bytes) -> bytes:
    """The one string of a scalar string tensor: its length, a checksum of that, its bytes."""
    length, at = varint(content, 0)
    return content[at + 4 : at + 4 + length]
