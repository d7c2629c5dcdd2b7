"""One image file of any size and mode → one square uint8 RGB array."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from stylex.data.dicom import Window, dicom_size, is_dicom, open_dicom, require_pydicom
from stylex.data.options import Fit
from stylex.errors import REASON_LENGTH, DataError


class UnreadableImageError(DataError):
    """One file that is missing, truncated, or no image: a caller with many others may go on without it."""


_DEEP_GREY = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def decode_image(
    path: str | Path, size: int, *, fit: Fit = "crop", window: Window | None = None
) -> npt.NDArray[np.uint8]:
    """Read an image file: turned as its EXIF data say, on white, the central square, Lanczos to `size`.

    With `fit` "pad" the whole image on black. DICOM files go through `window`, see `dicom.open_dicom`.

    Greyscale, palette, CMYK and 16-bit images become 8-bit RGB; of several frames the first counts.

    Returns:
        uint8 [size, size, 3], RGB.

    Raises:
        UnreadableImageError: the file is missing, truncated, or no image; the message names it.
    """
    return to_square(open_image(path, window), size, fit)


def open_image(path: str | Path, window: Window | None = None) -> Image.Image:
    """Read an image file as an upright RGB image at its own size.

    Raises:
        UnreadableImageError: as for `decode_image`.
    """
    dicom = is_dicom(path)
    if dicom:
        require_pydicom()
    try:
        if dicom:
            return open_dicom(path, window)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                picture.load()
                return to_rgb(ImageOps.exif_transpose(picture))
    except FileNotFoundError as error:
        raise UnreadableImageError(f"{path}: no such file") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else _reason(error)
        raise UnreadableImageError(f"{path}: cannot be read as an image ({reason})") from error


def upright_size(path: str | Path) -> tuple[int, int]:
    """Width and height as the image is seen (EXIF rotation counted), from the head of the file alone."""
    try:
        if is_dicom(path):
            return dicom_size(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                width, height = picture.size
                turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    except Exception as error:
        raise UnreadableImageError(f"{path}: cannot be read as an image ({_reason(error)})") from error
    return (height, width) if turned else (width, height)


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any Pillow image as 8-bit RGB; what is transparent becomes white.

    Raises:
        DataError: floating-point values outside [0, 1], or integers outside 16 bits.
    """
    if picture.mode in _DEEP_GREY or picture.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(picture), picture.mode)).convert("RGB")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def to_square(picture: Image.Image, size: int, fit: Fit = "crop") -> npt.NDArray[np.uint8]:
    """The central square of an RGB image ("pad": the whole, on black), by Lanczos: uint8 [size, size, 3]."""
    width, height = picture.size
    if fit == "pad" and width != height:
        scale = size / max(width, height)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        square = Image.new("RGB", (size, size))
        place = ((size - inner[0]) // 2, (size - inner[1]) // 2)
        square.paste(picture.resize(inner, Image.Resampling.LANCZOS), place)
        return np.asarray(square)
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return np.asarray(square if side == size else square.resize((size, size), Image.Resampling.LANCZOS))


def _reason(error: Exception) -> str:
    """All that an error says, in one line: pydicom names the packages that it lacks in further lines."""
    return " ".join(str(error).split())[:REASON_LENGTH] or type(error).__name__


def _eight_bits(values: npt.NDArray[np.generic], mode: str) -> npt.NDArray[np.uint8]:
    numbers = values.astype(np.float64)
    highest = 1.0 if mode == "F" else 65535.0
    if not np.isfinite(numbers).all() or numbers.min() < 0 or numbers.max() > highest:
        raise DataError(f"grey values outside 0 to {highest:g}; save it as an 8- or 16-bit image")
    return np.rint(numbers * (255.0 / highest)).astype(np.uint8)
