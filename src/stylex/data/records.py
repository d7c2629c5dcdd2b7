"""Data sets of other packages: those of torchvision, and Hugging Face data sets that were saved to disk."""

from __future__ import annotations

import inspect
import io
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from stylex.data.decode import UnreadableImageError, to_rgb, to_square
from stylex.data.images import check_size
from stylex.data.listing import Entry, Listing, assign_splits, in_order
from stylex.data.options import DataOptions
from stylex.errors import DataError, reason_of
from stylex.extras import import_extra

TORCHVISION = "torchvision:"

PARTS = ("train", "training", "trainval", "val", "valid", "validation", "test")
"""Names of sets, for data sets that take one as `split`; trainval is the training set where train is none."""


@dataclass(frozen=True)
class Record:
    """One image of a data set that is no file: what it is called, its set, label and other columns."""

    name: str
    part: str
    label: str | None
    group: str
    factors: dict[str, str]
    fetch: Callable[[], Image.Image]


def list_torchvision(source: str, options: DataOptions, labelled: bool) -> Listing:
    """List `torchvision:NAME@FOLDER`, where the files of that data set lie in FOLDER already.

    Its own sets are kept; nothing is downloaded.

    Raises:
        DataError: no such data set, its files are not there, it has no sets such as train and test, or it
            holds no images with labels.
    """
    import torchvision.datasets

    name, _, root = source.removeprefix(TORCHVISION).partition("@")
    kind = getattr(torchvision.datasets, name, None)
    if not inspect.isclass(kind) or not root:
        raise DataError(
            f"{source}: write {TORCHVISION}NAME@FOLDER, with the name of a data set of torchvision"
        )
    folder = Path(root).expanduser()
    records: list[Record] = []
    lock = threading.Lock()
    parts = _torchvision_parts(kind, folder, source)
    classes: Sequence[str] | None = None
    for part, dataset in parts.items():
        names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
        classes = [str(entry) for entry in names] if names else classes
        targets = _targets(dataset)
        for number in range(len(dataset)):
            label = None
            if labelled and targets is not None:
                label = _label(targets[number], classes)
            text = f"{part}/{number:06d}"
            records.append(Record(text, part, label, text, {}, _Fetch(dataset, number, lock)))
    stamp = ", ".join(f"{part} {len(dataset)}" for part, dataset in parts.items())
    return _listing(name, f"{folder.resolve()}/{name}", stamp, records, options)


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder is what `save_to_disk` of the package datasets wrote."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def list_saved_dataset(folder: Path, options: DataOptions, group: str | None, labelled: bool) -> Listing:
    """List a Hugging Face data set that `save_to_disk` wrote, with its own sets where it has some.

    The first image column and the first class column count, unless the options name others; all other plain
    columns are factors.

    Raises:
        DataError: the package datasets is missing, the folder is damaged, or a column is not there.
    """
    datasets = import_extra("datasets", str(folder), DataError)
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # a damaged folder can fail in any way
        raise DataError(f"{folder}: no whole Hugging Face data set ({reason_of(error)})") from None
    parts = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
    features = next(iter(parts.values())).features
    image = _column(folder, features, options.image, lambda kind: isinstance(kind, datasets.Image), "image")
    assert image is not None
    label = None
    if labelled:
        label = _column(
            folder, features, options.label, lambda kind: isinstance(kind, datasets.ClassLabel), "label"
        )
    group = group or options.group or ("group" if "group" in features else None)
    if group is not None and group not in features:
        raise DataError(
            f"{folder}: no column is called {group!r} to group by; there are {', '.join(features)}"
        )
    plain = [name for name, kind in features.items() if name not in (image, label, group) and _is_plain(kind)]
    records: list[Record] = []
    lock = threading.Lock()
    for part, dataset in parts.items():
        raw = dataset.cast_column(image, datasets.Image(decode=False))
        table = dataset.select_columns([name for name in (*plain, label, group) if name is not None])
        columns = table.to_dict() if table.num_columns else {}
        for number in range(len(dataset)):
            value = None if label is None else columns[label][number]
            names = getattr(features[label], "names", None) if label is not None else None
            text = f"{part}/{number:06d}" if part else f"{number:06d}"
            held = None if group is None else columns[group][number]
            records.append(
                Record(
                    text,
                    part,
                    None if value is None else _label(value, names),
                    text if held in (None, "") else str(held),
                    {name: str(columns[name][number]) for name in plain},
                    _FetchBytes(raw, number, image, lock),
                )
            )
    stamp = "; ".join(str(dataset._fingerprint) for dataset in parts.values())
    return _listing(folder.name, str(folder.resolve()), stamp, records, options)


class _Fetch:
    """An image of a torchvision data set; those are not made for several threads."""

    def __init__(self, dataset: Any, number: int, lock: threading.Lock) -> None:
        self.dataset, self.number, self.lock = dataset, number, lock

    def __call__(self) -> Image.Image:
        with self.lock:
            found = self.dataset[self.number]
        picture = found[0] if isinstance(found, tuple | list) else found
        if not isinstance(picture, Image.Image):
            raise TypeError(f"holds {type(picture).__name__}, no image")
        return picture


class _FetchBytes:
    """An image of a Hugging Face data set, decoded outside its lock."""

    def __init__(self, dataset: Any, number: int, column: str, lock: threading.Lock) -> None:
        self.dataset, self.number, self.column, self.lock = dataset, number, column, lock

    def __call__(self) -> Image.Image:
        with self.lock:
            value = self.dataset[self.number][self.column]
        content = value["bytes"]
        with Image.open(io.BytesIO(content) if content is not None else value["path"]) as picture:
            picture.load()
            return picture


def _listing(name: str, home: str, stamp: str, records: list[Record], options: DataOptions) -> Listing:
    if not records:
        raise DataError(f"{home}: holds no image")
    parts = [record.part for record in records] if any(record.part for record in records) else None
    splits = assign_splits([r.name for r in records], [r.group for r in records], parts, home)
    by_name = {record.name: record for record in records}
    entries = in_order(
        [
            Entry(name=record.name, split=split, stamp=stamp, label=record.label, factors=record.factors)
            for record, split in zip(records, splits, strict=True)
        ]
    )
    classes = sorted({entry.label for entry in entries if entry.label is not None})

    def picture(entry: Entry) -> Image.Image:
        try:
            return to_rgb(ImageOps.exif_transpose(by_name[entry.name].fetch()))
        except MemoryError:
            raise
        except Exception as error:  # decoders and data sets raise nearly anything on damaged files
            raise UnreadableImageError(
                f"{home}, {entry.name}: cannot be read ({reason_of(error)})"
            ) from error

    def read(entry: Entry, size: int) -> npt.NDArray[np.uint8]:
        return to_square(picture(entry), size, options.fit)

    def native_size() -> int:
        sizes = {picture(entry).size for entry in entries[:: max(1, len(entries) // 50)]}
        if len(sizes) > 1 or len(set(*sizes)) > 1:
            raise DataError(
                f"{home}: the images are not all square and of one size: say which to use, such as 64"
            )
        ((width, _),) = sizes
        check_size(width)
        return int(width)

    return Listing(
        name=name,
        home=home,
        entries=entries,
        class_names=tuple(classes) if classes else None,
        read=read,
        native_size=native_size,
        side=lambda entry: min(picture(entry).size),
        decoding=options.decoding,
    )


def _torchvision_parts(kind: Any, folder: Path, source: str) -> dict[str, Any]:
    """The sets of a data set of torchvision, by the names it has for them."""
    parameters = inspect.signature(kind.__init__).parameters
    choices: list[tuple[str, dict[str, Any]]] = [("", {})]
    if "train" in parameters:
        choices = [("train", {"train": True}), ("test", {"train": False})]
    elif "split" in parameters:
        choices = [("train" if part == "trainval" else part, {"split": part}) for part in PARTS]
    found, missing, refused = {}, "", ""
    for part, arguments in choices:
        if part in found:
            continue
        try:
            found[part] = kind(str(folder), **arguments)
        except (RuntimeError, FileNotFoundError) as error:
            missing = reason_of(error)
        except (TypeError, ValueError) as error:  # a set that it does not have
            refused = refused or reason_of(error)
    if not found and not missing:
        raise DataError(
            f"{source}: cannot be opened as sets such as train and test ({refused}); write its images into "
            "folders, one a class, and give the folder around them"
        )
    if not found:
        raise DataError(f"{source}: its files are not there ({missing}); download it with torchvision first")
    return found


def _targets(dataset: Any) -> Sequence[Any] | None:
    for name in ("targets", "labels", "_labels"):
        found = getattr(dataset, name, None)
        if found is not None and len(found) == len(dataset):
            return found.tolist() if hasattr(found, "tolist") else list(found)
    return None


def _label(value: Any, classes: Sequence[str] | None) -> str:
    number = value if isinstance(value, int) else None
    return (
        classes[number]
        if classes is not None and number is not None and number < len(classes)
        else str(value)
    )


def _column(
    folder: Path, features: Any, wanted: str | None, suits: Callable[[Any], bool], what: str
) -> str | None:
    if wanted is not None:
        if wanted not in features:
            raise DataError(f"{folder}: no column is called {wanted!r}; there are {', '.join(features)}")
        return wanted
    found = [name for name, kind in features.items() if suits(kind)]
    if not found and what == "image":
        raise DataError(f"{folder}: no column holds images; there are {', '.join(features)}")
    if not found and what in features:
        return what
    return found[0] if found else None


def _is_plain(kind: Any) -> bool:
    return getattr(kind, "dtype", None) in (
        "string",
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "float32",
        "float64",
    )
