"""Fashion-MNIST, from Debian's package dataset-fashion-mnist or from torchvision's raw files.

Xiao, Rasul, Vollgraf (2017), "Fashion-MNIST: a novel image dataset for benchmarking machine learning
algorithms". 28 × 28 pixels; here with a black border of two pixels, so that the sides are powers of two.
"""

from __future__ import annotations

import gzip
import math
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from stylex.data.listing import Entry, Listing, file_stamp, in_order
from stylex.data.splits import split_of
from stylex.errors import DataError

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
NATIVE_SIZE = 32

_PARTS = {"train": "train", "test": "t10k"}
_BELOW = ("", "FashionMNIST/raw", "raw")  # where torchvision puts them under its `root`


def list_fashion_mnist(folder: Path | None = None) -> Listing:
    """List Fashion-MNIST: its official test set; training and discovery by hash from its training set.

    Args:
        folder: holds the four idx files, compressed (.gz) or not, or torchvision's FashionMNIST/raw with
            them. None means where Debian's package dataset-fashion-mnist puts them.

    Raises:
        DataError: a file is missing, damaged, or of another kind.
    """
    files = {part: _find(folder, part) for part in _PARTS}
    labels = {part: _labels(files[part][1]) for part in _PARTS}
    entries = [
        Entry(
            name=f"{part}/{number:05d}",
            split="test" if part == "test" else split_of(f"{part}/{number:05d}", official=("test",)),
            stamp=file_stamp(files[part][0]),
            label=CLASS_NAMES[label],
        )
        for part in _PARTS
        for number, label in enumerate(labels[part])
    ]

    @cache
    def images(part: str) -> npt.NDArray[np.uint8]:
        pixels = read_idx(files[part][0], dimensions=3)
        if len(pixels) != len(labels[part]):
            raise DataError(
                f"{files[part][0]} holds {len(pixels)} images, but there are {len(labels[part])} labels"
            )
        return pixels

    def read(entry: Entry, size: int) -> npt.NDArray[np.uint8]:
        part, number = entry.name.split("/")
        return _squared(images(part)[int(number)], size)

    return Listing(
        name="fashion-mnist",
        home=str(files["train"][0].parent.resolve()),
        entries=in_order(entries),
        class_names=CLASS_NAMES,
        read=read,
        native_size=lambda: NATIVE_SIZE,
        side=lambda entry: NATIVE_SIZE,
    )


def read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """Read an idx file of unsigned bytes, gzip-compressed if its name ends in .gz.

    The format: two zero bytes, 8 for the type, the number of dimensions, each length as a big-endian 32-bit
    integer, the values.

    Raises:
        DataError: the file is not such a file, has other dimensions, or its length is not what its head says.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); get the file again") from error
    head = 4 + 4 * dimensions
    if raw[:4] != bytes([0, 0, 8, dimensions]) or len(raw) < head:
        raise DataError(f"{path}: not an idx file of {dimensions}-dimensional bytes; get the file again")
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", count=dimensions, offset=4))
    if len(raw) - head != math.prod(shape):
        raise DataError(
            f"{path}: truncated ({len(raw) - head} values, {math.prod(shape)} expected); get it again"
        )
    return np.frombuffer(raw, np.uint8, offset=head).reshape(shape)


def _find(folder: Path | None, part: str) -> tuple[Path, Path]:
    places = [DEBIAN_FOLDER] if folder is None else [folder / below for below in _BELOW]
    prefix = _PARTS[part]
    for place in places:
        found: list[Path] = []
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
            candidates = [place / f"{prefix}-{kind}{end}" for end in ("", ".gz")]
            found += [path for path in candidates if path.is_file()][:1]
        if len(found) == 2:
            return found[0], found[1]
    raise DataError(
        f"Fashion-MNIST: no {prefix}-images-idx3-ubyte and {prefix}-labels-idx1-ubyte (.gz or not) in "
        f"{places[0]}: install Debian's package dataset-fashion-mnist, or say where: fashion-mnist:FOLDER"
    )


def _labels(path: Path) -> npt.NDArray[np.uint8]:
    labels = read_idx(path, dimensions=1)
    if labels.size and labels.max() >= len(CLASS_NAMES):
        raise DataError(f"{path}: label {labels.max()}, but Fashion-MNIST has {len(CLASS_NAMES)} classes")
    return labels


def _squared(grey: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    if grey.shape != (28, 28):
        raise DataError(
            f"Fashion-MNIST: images of {grey.shape} pixels, 28 × 28 expected; these are other files"
        )
    padded = np.pad(grey, 2)
    if size != NATIVE_SIZE:
        padded = np.asarray(Image.fromarray(padded).resize((size, size), Image.Resampling.LANCZOS))
    return np.repeat(padded[:, :, None], 3, axis=2)
