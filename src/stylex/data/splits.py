"""Which set an image belongs to: decided by its name alone, so that adding images moves none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Literal

from stylex.errors import DataError

Split = Literal["training", "discovery", "test"]
SPLITS: tuple[Split, ...] = ("training", "discovery", "test")

_DISCOVERY_SHARE = 0.1
_TEST_SHARE = 0.1
_TRAINING_NAMES = ("training", "train")
_HELD_OUT_NAMES = ("val", "valid", "validation")


def split_of(key: str, official: Iterable[Split] = ()) -> Split:
    """The set of the image, or of the whole group of images, that is called `key`.

    80 : 10 : 10 by the sha256 of `key`. `official` names the sets that the source itself defines besides the
    training set: nothing is carved out for those.
    """
    given = frozenset(official)
    carved: dict[Split, float] = {
        "discovery": 0.0 if "discovery" in given else _DISCOVERY_SHARE,
        "test": 0.0 if "test" in given else _TEST_SHARE,
    }
    # The part that is split here holds whatever the source did not set aside itself; shares stay 8 : 1 : 1.
    whole = 1 - _DISCOVERY_SHARE - _TEST_SHARE + sum(carved.values())
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64 * whole
    if position < carved["test"]:
        return "test"
    if position < carved["test"] + carved["discovery"]:
        return "discovery"
    return "training"


def official_splits(names: Iterable[str], where: str) -> Mapping[str, Split] | None:
    """The sets that a source's own names (top-level folders, or values of a `split` column) stand for.

    `training` or `train` must be among them, else the names are no splits (None). `val` is the discovery set
    where there is a test set beside it, otherwise the test set.

    Raises:
        DataError: some names are splits and others are not; `where` says of what.
    """
    found = sorted(set(names))
    lowered = {name.lower() for name in found}
    if not lowered & set(_TRAINING_NAMES):
        return None
    splits: dict[str, Split] = {}
    for name in found:
        if name.lower() in _TRAINING_NAMES:
            splits[name] = "training"
        elif name.lower() in ("discovery", "test"):
            splits[name] = "discovery" if name.lower() == "discovery" else "test"
        elif name.lower() in _HELD_OUT_NAMES:
            splits[name] = "discovery" if "test" in lowered else "test"
        else:
            raise DataError(
                f"{where}: {name!r} is no set, but stands beside one; use training (or train), "
                "discovery (or val) and test only"
            )
    return splits
