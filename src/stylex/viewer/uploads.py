"""Images that people send: small enough, still, and of a kind that is known, or refused in one line."""

from __future__ import annotations

import io
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

from stylex.data.decode import to_rgb
from stylex.errors import DataError

MAX_BYTES = 10_000_000

MAX_PIXELS = 40_000_000
"""Of an upload; read from its head, before anything is unpacked."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def read_upload(content: bytes) -> Image.Image:
    """An upright RGB image from the bytes of a file.

    Raises:
        DataError: too many bytes or pixels, several frames, no image, damaged, or of another kind.
    """
    if not content:
        raise DataError("that file is empty; choose an image")
    if len(content) > MAX_BYTES:
        raise DataError(f"that file has {len(content) / 1e6:.0f} MB; send at most {MAX_BYTES / 1e6:.0f}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
                _check(picture)
                picture.load()
                return to_rgb(ImageOps.exif_transpose(picture))
    except (DataError, MemoryError):
        raise
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        bomb = isinstance(error, Image.DecompressionBombError)
        raise DataError(_too_many() if bomb else f"that is no image; send {', '.join(FORMATS)}") from None
    except Exception:  # Pillow's decoders raise nearly anything on damaged files
        raise DataError("that image is damaged; send another copy") from None


def _check(picture: Image.Image) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise DataError(_too_many())
    # Phones put a second, smaller picture into a JPEG (MPO); the first is the photograph.
    if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
        raise DataError("that image is animated; send a still one")


def _too_many() -> str:
    return f"that image has too many pixels; send at most {MAX_PIXELS // 1_000_000} million"
