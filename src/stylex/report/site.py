"""The report as a static site that any web host can serve: an overview, a page for each attribute."""

from __future__ import annotations

import hashlib
import io
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from stylex.errors import RunError
from stylex.report.content import AttributeSection, Picture, ReportContent
from stylex.report.html import asset, render_page, report_targets
from stylex.report.pictures import as_image, enlarge, heat_map
from stylex.run import write_atomically

MARK = ".stylex-site"
"""Lies in folders that hold a site, and so may be replaced."""

PAIRS_ON_OVERVIEW = 6

_WEBP_QUALITY = 88


@dataclass(frozen=True)
class _Site:
    """What the templates ask of a site."""

    pairs: int

    def page(self, target: Any, number: int) -> str:
        return f"{target.anchor}-attribute-{number}.html"


def without_images(content: ReportContent) -> ReportContent:
    """A report that shows no image and names no file, neither of the data nor generated from it.

    Figures, curves and names stay, and where each attribute acts, on an even ground.
    """
    targets = tuple(
        replace(
            section,
            attributes=tuple(replace(entry, pairs=()) for entry in section.attributes),
            counterfactuals=(),
        )
        for section in content.targets
    )
    return replace(content, targets=targets, reconstructions=())


def check_site_folder(folder: Path) -> None:
    """Raises RunError unless a site can be written there: a new or empty folder, or an earlier site."""
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / MARK).exists())):
        raise RunError(f"{folder}: exists and is no earlier site; nothing was overwritten, choose another")


def write_site(content: ReportContent, folder: Path) -> list[Path]:
    """Write a report as index.html, a page for each attribute, style, script and images; return the pages.

    Every link is relative, and nothing is loaded from elsewhere.

    Raises:
        RunError: the folder holds something else, or cannot be written.
    """
    check_site_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).touch()  # first: a site that was cut off can be replaced
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != MARK:
                entry.unlink()
    except OSError as error:
        raise RunError(f"{folder}: could not be written ({error.strerror})") from None
    images = _Images(folder)
    for name in ("style.css", "report.js"):
        _write(folder / name, asset(name).encode())
    site = _Site(PAIRS_ON_OVERVIEW)
    common = {"shown": images.shown, "heat": images.heat}
    pages = []
    targets = report_targets(content)
    every = [
        (target, number, entry)
        for target in targets
        for number, entry in enumerate(target.section.attributes, 1)
    ]
    names = [site.page(target, number) for target, number, _ in every]
    for place, (target, number, entry) in enumerate(every):
        text = render_page(
            content,
            "attribute_page.html",
            target=target,
            number=number,
            attribute=entry,
            site=None,
            earlier=names[place - 1] if place else None,
            later=names[place + 1] if place + 1 < len(names) else None,
            **common,
        )
        pages.append(folder / names[place])
        _write(pages[-1], text.encode())
    # Last: a site with it is whole.
    text = render_page(content, "report.html", site=site, **common)
    _write(folder / "index.html", text.encode())
    return [folder / "index.html", *pages]


class _File(str):
    """Where a picture lies, and its size in pixels: nothing on a page moves when it arrives."""

    def __new__(cls, name: str, width: int, height: int) -> _File:
        return super().__new__(cls, name)

    def __init__(self, name: str, width: int, height: int) -> None:
        self.width, self.height = width, height


class _Images:
    """Pictures as files, each once, named by what is in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def shown(self, picture: Picture) -> str:
        return self._kept(enlarge(as_image(picture)))

    def heat(self, attribute: AttributeSection) -> str:
        return self._kept(heat_map(attribute.where, [pair.before for pair in attribute.pairs]))

    def _kept(self, image: Image.Image) -> _File:
        name = f"images/{hashlib.sha256(image.tobytes()).hexdigest()[:20]}.webp"
        if not (self.folder / name).exists():
            packed = io.BytesIO()
            image.save(packed, "WEBP", quality=_WEBP_QUALITY, method=4)
            _write(self.folder / name, packed.getvalue())
        return _File(name, *image.size)


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))
