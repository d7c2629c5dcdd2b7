"""Protocol buffers without their schema: fields by number, as TensorFlow's files hold them."""

from __future__ import annotations

from collections.abc import Iterator

Fields = list[tuple[int, int | bytes]]
"""Number and value of each field, in order: varints as int, everything else as its bytes."""


def parse(message: bytes) -> Fields:
    """The fields of a message.

    Raises:
        ValueError: a field ends outside the message, or is of an unknown kind. IndexError: it breaks off.
    """
    found: Fields = []
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        field, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = varint(message, at)
            found.append((field, value))
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            found.append((field, message[at : at + width]))
            at += width
        elif kind == 2:
            length, at = varint(message, at)
            if at + length > len(message):
                raise ValueError("a field ends outside its message")
            found.append((field, message[at : at + length]))
            at += length
        else:
            raise ValueError(f"a field of kind {kind}")
    return found


def last_number(fields: Fields, wanted: int, default: int = 0) -> int:
    """The last number in a field; the default where there is none."""
    return next((value for value in _last(fields, wanted) if isinstance(value, int)), default)


def last_bytes(fields: Fields, wanted: int) -> bytes:
    """The last bytes in a field; empty where there are none."""
    return next((value for value in _last(fields, wanted) if isinstance(value, bytes)), b"")


def _last(fields: Fields, wanted: int) -> Iterator[int | bytes]:
    return (value for field, value in reversed(fields) if field == wanted)


def varint(content: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and the place behind it.

    Raises:
        ValueError: more than 64 bits. IndexError: the content ends before it.
    """
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
