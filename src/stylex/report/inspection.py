"""A figure of what a classifier answers on a few images."""

from __future__ import annotations

import io
from pathlib import Path

from stylex.classifiers.checking import Inspection
from stylex.errors import ConfigError
from stylex.report.pictures import as_image, enlarge
from stylex.run import write_atomically

MOST, COLUMNS = 24, 6


def save_inspection(found: Inspection, path: Path) -> None:
    """Thumbnails with answer and probability, and the label in red where it is another; a .png.

    Raises:
        ConfigError: another suffix. RunError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    if path.suffix != ".png":
        raise ConfigError(f"--out {path}: the figure's name must end in .png")
    count = min(MOST, len(found.names))
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(1.8 * columns, 2.2 * rows), layout="constrained")
    for number in range(count):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.imshow(enlarge(as_image(found.pictures[number])))
        axes.set_axis_off()
        answer, probability = found.answer(number)
        label = None if found.labels is None else found.labels[number]
        wrong = label is not None and label != answer
        said = f"{answer} {probability:.2f}" + (f"\nlabelled {label}" if wrong else "")
        axes.set_title(said, fontsize=8, color="tab:red" if wrong else "black")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, lambda file: file.write(buffer.getvalue()))
