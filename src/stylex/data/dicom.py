"""DICOM files: stored values through slope and intercept and a window of level and width, as 8-bit images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from stylex.errors import DataError
from stylex.extras import import_extra

Window = tuple[float, float]
"""Level and width, in the file's own units (Hounsfield units of a CT)."""

SUFFIXES = (".dcm", ".dicom")


def is_dicom(path: str | Path) -> bool:
    """Whether a file is a DICOM file, by its ending or the mark behind its preamble."""
    if Path(path).suffix.lower() in SUFFIXES:
        return True
    try:
        with Path(path).open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def open_dicom(path: str | Path, window: Window | None = None) -> Image.Image:
    """The first frame of a DICOM file as an RGB image.

    Grey values go through the file's rescale slope and intercept, then through `window`: level − width / 2
    becomes black, level + width / 2 white. Without one the file's own first window counts, else the smallest
    and largest value of the image. MONOCHROME1, where small values are white, is turned over.

    Raises:
        DataError: pydicom is missing. ValueError and others: the file cannot be read.
    """
    pydicom = require_pydicom()
    dataset = pydicom.dcmread(str(path))
    values = np.asarray(dataset.pixel_array)
    samples = int(getattr(dataset, "SamplesPerPixel", 1))
    values = values[0] if values.ndim == (4 if samples > 1 else 3) else values
    if samples > 1:
        colours = str(dataset.PhotometricInterpretation)
        if colours.startswith("YBR"):
            values = pydicom.pixels.convert_color_space(values, colours, "RGB")
        return Image.fromarray(values.astype(np.uint8), "RGB")
    scaled = values * float(getattr(dataset, "RescaleSlope", 1)) + float(
        getattr(dataset, "RescaleIntercept", 0)
    )
    level, width = window or _own_window(dataset) or _whole_range(scaled)
    shares = ((scaled - level) / width + 0.5).clip(0, 1)
    if str(getattr(dataset, "PhotometricInterpretation", "")) == "MONOCHROME1":
        shares = 1 - shares
    return Image.fromarray(np.rint(shares * 255).astype(np.uint8)).convert("RGB")


def dicom_size(path: str | Path) -> tuple[int, int]:
    """Width and height, from the head of the file alone."""
    dataset = require_pydicom().dcmread(str(path), stop_before_pixels=True)
    return int(dataset.Columns), int(dataset.Rows)


def _own_window(dataset: Any) -> Window | None:
    level, width = (_first(getattr(dataset, name, None)) for name in ("WindowCenter", "WindowWidth"))
    return None if level is None or width is None or width <= 0 else (level, width)


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)


def _whole_range(values: npt.NDArray[np.floating]) -> Window:
    low, high = float(values.min()), float(values.max())
    return (low + high) / 2, max(high - low, 1e-9)


def require_pydicom() -> Any:
    """The package. Raises DataError where it is not installed."""
    import_extra("pydicom.pixels", "reading DICOM files", DataError)
    return import_extra("pydicom", "reading DICOM files", DataError)
