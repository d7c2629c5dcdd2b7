"""Pictures as a report shows them: enlarged well, overlaid with heat, and packed into data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from stylex.errors import DataError
from stylex.report.content import Picture

SHOWN_SIDE = 256
"""Longest side, in pixels, of a picture in a report: sharp at 128 CSS pixels on a dense screen."""

_WEBP_QUALITY = 88
# Amber to dark red: lightness falls all the way, as in greyscale. `.heat-key` in style.css repeats them.
_HEAT_STOPS = np.array([0.0, 0.35, 0.7, 1.0])
_HEAT_COLORS = np.array([[255, 214, 90], [250, 150, 40], [214, 50, 35], [110, 0, 40]], np.float64)
_HEAT_FULLY_OPAQUE_AT = 0.45


def as_image(picture: Picture) -> Image.Image:
    """A picture, uint8 [H, W, 3], as a Pillow image.

    Raises:
        DataError: another shape or type.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise DataError(
            f"a picture for the report must be uint8 [H, W, 3], not {picture.dtype} {list(picture.shape)}"
        )
    return Image.fromarray(np.ascontiguousarray(picture))


def enlarge(image: Image.Image, side: int = SHOWN_SIDE) -> Image.Image:
    """Scale an image so that its longest side comes close to `side` pixels.

    Small images grow by a whole factor with Lanczos' filter: 64 pixels drawn as squares hide a face, and a
    browser's bilinear filter blurs it. Larger images shrink.
    """
    longest = max(image.size)
    if longest > side:
        size = (max(1, round(image.width * side / longest)), max(1, round(image.height * side / longest)))
    else:
        factor = side // longest
        size = (image.width * factor, image.height * factor)
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def data_uri(image: Image.Image) -> str:
    """The image as a WebP `data:` URI; equal images give equal text."""
    packed = io.BytesIO()
    image.save(packed, "WEBP", quality=_WEBP_QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(packed.getvalue()).decode("ascii")


def heat_map(where: npt.NDArray[np.float32], pictures: Sequence[Picture]) -> Image.Image:
    """Heat over the grey average of some pictures: where an attribute acts.

    Args:
        where: [H, W] in [0, 1]; values outside are clipped.
        pictures: of the same size; without any, the ground is an even grey.

    Raises:
        DataError: sizes differ.
    """
    if where.ndim != 2 or any(picture.shape[:2] != where.shape for picture in pictures):
        raise DataError(f"a heat map must be [H, W] and as large as the pictures, not {list(where.shape)}")
    ground = np.full(where.shape, 200.0)
    if pictures:
        ground = np.mean(
            [np.asarray(as_image(picture).convert("L"), np.float64) for picture in pictures], axis=0
        )
    grey = enlarge(Image.fromarray((90 + 0.6 * ground).clip(0, 255).astype(np.uint8)))
    heat = enlarge(Image.fromarray((where.clip(0, 1) * 255).astype(np.uint8)))
    strength = np.asarray(heat, np.float64) / 255
    opacity = (strength / _HEAT_FULLY_OPAQUE_AT).clip(0, 1)[..., None]
    mixed = heat_colors(strength) * opacity + np.asarray(grey, np.float64)[..., None] * (1 - opacity)
    return Image.fromarray(mixed.round().astype(np.uint8))


def heat_colors(strength: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Colours [..., 3] in [0, 255] for strengths [...] in [0, 1]."""
    return np.stack([np.interp(strength, _HEAT_STOPS, _HEAT_COLORS[:, i]) for i in range(3)], axis=-1)
