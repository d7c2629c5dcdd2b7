"""The study's data sets in the layouts in which they are distributed: AFHQ, FFHQ and CelebA."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stylex.data.decode import open_image, to_square, upright_size
from stylex.data.files import list_files
from stylex.data.folder import list_folder
from stylex.data.listing import Entry, Listing, file_stamp
from stylex.data.splits import Split, split_of
from stylex.errors import DataError

FFHQ_TRAINING = 60_000
"""Images 00000 to 59999 are for training, the rest for validation (FFHQ's own division)."""

CELEBA_SIZE = (178, 218)
CELEBA_BOX = (12, 39, 165, 192)
"""The square of an aligned CelebA image that frames the face as FFHQ does: left, top, right, bottom.

FFHQ cuts a square around the point a tenth of the way from the eyes to the mouth, whose side is four times
the distance of the eyes (or 3.6 times that from eyes to mouth, if it is larger; Karras et al. 2019, appendix
C). In aligned CelebA the eyes lie at (69, 111) and (108, 111) and the mouth's centre at y = 152 on average:
a square of 153 pixels around (88, 115). Without it faces would be smaller and lower than in FFHQ, and a
classifier of CelebA would be asked about images unlike its own.
"""

_AFHQ_HELP = "get AFHQ from github.com/clovaai/stargan-v2 (bash download.sh afhq-dataset)"
_FFHQ_HELP = "get thumbnails128x128 or images1024x1024 from github.com/NVlabs/ffhq-dataset"
_CELEBA_HELP = "get img_align_celeba.zip, list_attr_celeba.txt and list_eval_partition.txt from " + (
    "mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
)
_PARTITIONS: dict[str, Split] = {"0": "training", "1": "discovery", "2": "test"}


def list_afhq(folder: Path, option: str = "") -> Listing:
    """AFHQ: FOLDER (or FOLDER/afhq) with train/ and val/ (version 2: test/), in each cat, dog and wild.

    Args:
        option: classes to keep, "cat,dog"; all by default.

    Raises:
        DataError: another layout (says where to get it and what is expected), or an unknown class.
    """
    root = _first(folder, ("", "afhq", "afhq_v2"), lambda place: (place / "train").is_dir())
    if root is None:
        raise DataError(
            f"{folder}: not AFHQ: it, or afhq in it, must hold train and val (or test) with a folder for "
            f"each of cat, dog and wild; {_AFHQ_HELP}"
        )
    return only_classes(replace(list_folder(root), name="afhq"), option, str(folder))


def list_ffhq(folder: Path, option: str = "") -> Listing:
    """FFHQ: FOLDER with thumbnails128x128 or images1024x1024, whose images are numbered NNNNN.png.

    The first 60,000 are for training (a share of them is discovery), the others for testing. There are no
    classes: FFHQ knows no ages.

    Raises:
        DataError: another layout; an option, as there is none.
    """
    if option:
        raise DataError(f"ffhq has no classes to choose from; leave '#{option}' out")
    names = ("thumbnails128x128", "images1024x1024", "ffhq/thumbnails128x128", "ffhq/images1024x1024", "")
    root = _first(folder, names, lambda place: place.is_dir() and any(_numbered(place)))
    if root is None:
        raise DataError(
            f"{folder}: not FFHQ: it must hold thumbnails128x128 or images1024x1024 with images NNNNN.png, "
            f"in folders of a thousand or not; {_FFHQ_HELP}"
        )
    entries = []
    for path in sorted(_numbered(root)):
        name = path.relative_to(root).as_posix()
        held_out = int(path.stem) >= FFHQ_TRAINING
        split: Split = "test" if held_out else split_of(name, ("test",))
        entries.append(Entry(name, split, file_stamp(path)))
    return list_files("ffhq", root, root, entries)


def list_celeba(folder: Path, option: str = "") -> Listing:
    """CelebA: FOLDER with img_align_celeba, list_attr_celeba.txt and list_eval_partition.txt.

    The tables may also lie in Anno and Eval, the images in Img, as the archive has them. Partition 0 is
    training, 1 discovery, 2 test. Faces are cut out as FFHQ's are (CELEBA_BOX).

    Args:
        option: the attribute whose two values are the classes, Young by default (classes "old" and "young";
            of others "not X" and "X"); ",balanced" after it keeps, in every set, of the larger class only the
            first images in order of number, as many as the smaller one has.

    Raises:
        DataError: another layout, an attribute that is not there, a row that is damaged (by number).
    """
    attribute, *rest = [part.strip() for part in (option or "Young").split(",")]
    if rest not in ([], ["balanced"]):
        raise DataError(f"celeba#{option}: give an attribute, and 'balanced' after it or nothing")
    images = _first(
        folder, ("img_align_celeba", "Img/img_align_celeba", "celeba/img_align_celeba"), Path.is_dir
    )
    tables = [
        _first(folder, (name, f"{below}/{name}", f"celeba/{name}"), Path.is_file)
        for name, below in (("list_attr_celeba.txt", "Anno"), ("list_eval_partition.txt", "Eval"))
    ]
    if images is None or tables[0] is None or tables[1] is None:
        raise DataError(
            f"{folder}: not CelebA: it must hold img_align_celeba, list_attr_celeba.txt and "
            f"list_eval_partition.txt; {_CELEBA_HELP}"
        )
    nested = images / "img_align_celeba"
    images = nested if nested.is_dir() else images
    values = _attribute(tables[0], attribute)
    parts = _partitions(tables[1])
    classes = ("old", "young") if attribute == "Young" else (f"not {attribute}", attribute)
    missing = next((name for name in parts if name not in values), None)
    if missing is not None:
        raise DataError(
            f"{tables[0]}: no row for {missing}, which {tables[1].name} names; get the file again"
        )
    entries = [
        Entry(name, parts[name], file_stamp(images / name), classes[values[name]]) for name in sorted(parts)
    ]
    if rest:
        entries = _balanced(entries)
    listing = list_files("celeba", images, images, entries)

    def read(entry: Entry, size: int) -> npt.NDArray[np.uint8]:
        picture = open_image(images / entry.name)
        scale = (picture.width / CELEBA_SIZE[0], picture.height / CELEBA_SIZE[1]) * 2
        box = [round(edge * by) for edge, by in zip(CELEBA_BOX, scale, strict=True)]
        return to_square(picture.crop((box[0], box[1], box[2], box[3])), size)

    def side(entry: Entry) -> int:
        width, _ = upright_size(images / entry.name)
        return round((CELEBA_BOX[2] - CELEBA_BOX[0]) * width / CELEBA_SIZE[0])

    def native_size() -> int:
        raise DataError(f"{folder}: CelebA's faces are 153 pixels wide: say which size to use, such as 64")

    home = f"{images.resolve()}#as-ffhq"  # decoded images are kept apart from the uncropped ones
    return replace(listing, home=home, read=read, side=side, native_size=native_size, class_names=classes)


PUBLISHED: dict[str, Callable[[Path, str], Listing]] = {
    "afhq": list_afhq,
    "ffhq": list_ffhq,
    "celeba": list_celeba,
}


def only_classes(listing: Listing, option: str, where: str) -> Listing:
    """The entries of some classes, "shirt,coat"; all where the option is empty.

    Raises:
        DataError: fewer than two classes, or one that is not there.
    """
    if not option:
        return listing
    wanted = [part.strip() for part in option.split(",")]
    known = listing.class_names or ()
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise DataError(f"{where}: no class '{unknown[0]}'; there are {', '.join(known) or 'none'}")
    if len(set(wanted)) < 2:
        raise DataError(f"{where}: '#{option}' leaves fewer than two classes; name two or more")
    entries = tuple(entry for entry in listing.entries if entry.label in wanted)
    return replace(listing, entries=entries, class_names=tuple(name for name in known if name in wanted))


def _first(folder: Path, names: Sequence[str], fits: Callable[[Path], bool]) -> Path | None:
    return next((folder / name for name in names if fits(folder / name)), None)


def _numbered(root: Path) -> list[Path]:
    found = list(root.glob("*.png")) + list(root.glob("*/*.png"))
    return [path for path in found if re.fullmatch(r"\d{5}", path.stem)]


def _attribute(table: Path, attribute: str) -> dict[str, int]:
    """File → 1 where the attribute is there, else 0."""
    lines = _lines(table)
    names = lines[1].split() if len(lines) > 1 else []
    if attribute not in names:
        raise DataError(f"{table}: no attribute '{attribute}'; there are {', '.join(names) or 'none'}")
    column = names.index(attribute)
    found: dict[str, int] = {}
    for number, line in enumerate(lines[2:], start=3):
        name, *cells = line.split()
        if len(cells) != len(names) or cells[column] not in ("1", "-1"):
            raise DataError(f"{table}, line {number}: not a file and {len(names)} times 1 or -1")
        found[name] = int(cells[column] == "1")
    return found


def _partitions(table: Path) -> dict[str, Split]:
    found: dict[str, Split] = {}
    for number, line in enumerate(_lines(table), start=1):
        cells = line.split()
        if len(cells) != 2 or cells[1] not in _PARTITIONS:
            raise DataError(f"{table}, line {number}: not a file and 0, 1 or 2")
        found[cells[0]] = _PARTITIONS[cells[1]]
    if not found:
        raise DataError(f"{table}: holds no row; get the file again")
    return found


def _lines(table: Path) -> list[str]:
    try:
        return [line for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table}: cannot be read ({error}); get the file again") from None


def _balanced(entries: Sequence[Entry]) -> list[Entry]:
    """In every set as many of one class as of the other, the first in order of name."""
    groups: dict[Split, dict[str, list[Entry]]] = {}
    for entry in entries:
        groups.setdefault(entry.split, {}).setdefault(entry.label or "", []).append(entry)
    kept = []
    for by_label in groups.values():
        least = min(len(members) for members in by_label.values()) if len(by_label) > 1 else 0
        kept += [entry for members in by_label.values() for entry in members[:least]]
    return kept
