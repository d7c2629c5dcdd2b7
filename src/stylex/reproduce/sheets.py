"""Sheets of captioned pictures, and items as files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stylex.run import write_atomically

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Item:
    """What one item of the study came to: the files written, the figures, and a page's text (Markdown)."""

    name: str
    experiment: str
    text: str
    content: dict[str, Any]
    files: list[Path] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "item": self.name,
            "experiment": self.experiment,
            "files": [str(file) for file in self.files],
            "content": self.content,
        }


@dataclass(frozen=True)
class Cell:
    """One picture of a sheet, uint8 [H, W, 3], and what stands above it."""

    picture: Picture
    caption: str = ""


def draw_sheet(path: Path, title: str, rows: Sequence[tuple[str, Sequence[Cell]]]) -> None:
    """Write a PNG: one row of pictures a name, captions above each; written whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(1, max(len(cells) for _, cells in rows))
    figure = Figure(figsize=(1.2 * columns + 1.4, 1.45 * len(rows) + 0.6), dpi=130)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=9)
    for number, (name, cells) in enumerate(rows):
        for place in range(columns):
            axes = figure.add_subplot(len(rows), columns, number * columns + place + 1)
            axes.set_xticks([])
            axes.set_yticks([])
            if place == 0:
                axes.set_ylabel(name, fontsize=7)
            if place < len(cells):
                axes.imshow(cells[place].picture, interpolation="lanczos")
                axes.set_title(cells[place].caption, fontsize=6, pad=2)
            else:
                axes.set_frame_on(False)
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    packed = io.BytesIO()
    figure.savefig(packed, format="png")
    write_atomically(path, lambda file: file.write(packed.getvalue()))
