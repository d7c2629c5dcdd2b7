"""The authors' published effects: a file of TensorFlow records, one tf.train.Example an image.

Read without TensorFlow. A record is its length (8 bytes), a checksum of that (4), its bytes, and a checksum
of those (4); checksums are not verified, lengths are.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stylex.errors import CheckpointError
from stylex.interop.protobuf import last_bytes, parse

Floats = npt.NDArray[np.float32]

PUBLISHED = "examples_1.tfrecord"
"""Name of the file beside the released model."""


@dataclass(frozen=True, eq=False)
class PublishedEffects:
    """What the authors measured on N images.

    latents [N, W] (w ⊕ probabilities), logits [N, K] of the unchanged images, and effects [N, 2, S, K]: the
    change of the logits when a coordinate goes to the low or high end of its range.
    """

    latents: Floats
    logits: Floats
    effects: Floats


def read_published(path: Path) -> PublishedEffects:
    """The latents, logits and effects in a file such as the authors' `examples_1.tfrecord`.

    Raises:
        CheckpointError: missing, damaged, without such entries, or images of different sizes in one file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        examples = [_floats(record) for record in _records(content)]
        latents, logits, effects = (
            np.stack([example[key] for example in examples]) for key in ("dlatent", "base_prob", "result")
        )
        shape = (len(examples), -1, 2, logits.shape[1])
        turned = np.ascontiguousarray(effects.reshape(shape).transpose(0, 2, 1, 3))
    except KeyError as error:
        raise CheckpointError(f"{path}: a record lacks {error}; is this the authors' {PUBLISHED}?") from None
    except (ValueError, IndexError, struct.error, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: no whole file of records ({error}); download it again") from None
    return PublishedEffects(latents, logits, turned)


def _records(content: bytes) -> list[bytes]:
    found: list[bytes] = []
    at = 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        end = at + 12 + length
        if end + 4 > len(content):
            raise ValueError(f"it ends within record {len(found)}")
        found.append(content[at + 12 : end])
        at = end + 4
    return found


def _floats(record: bytes) -> dict[str, Floats]:
    """The lists of numbers of an Example {features {feature: map of name → float_list}} by name."""
    found = {}
    for field, entry in parse(last_bytes(parse(record), 1)):
        if field == 1 and isinstance(entry, bytes):
            named = parse(entry)
            values = parse(last_bytes(parse(last_bytes(named, 2)), 2))
            packed = b"".join(value for inner, value in values if inner == 1 and isinstance(value, bytes))
            found[last_bytes(named, 1).decode()] = np.frombuffer(packed, "<f4").astype(np.float32)
    return found
