"""Drawing one cartoon face from its nine factors (python-avatars makes the SVG, resvg the pixels)."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from stylex.errors import DataError

if TYPE_CHECKING:
    from enum import Enum

BACKGROUND = "#a9cfe0"
"""Light, but dark enough for grey hair and white clothes to stand out."""

STANDARD_VALUES: dict[str, tuple[str, ...]] = {
    "hair_style": ("short", "shaggy", "pixie", "bob", "curly", "long"),
    "hair_color": ("black", "brown", "red", "blonde", "grey"),
    "glasses": ("none", "glasses"),
    "mouth": ("smile", "serious", "grimace", "disbelief"),
    "facial_hair": ("none", "beard", "moustache"),
    "skin": ("pale", "light", "tan", "dark"),
    "clothing": ("crew_neck", "v_neck", "collar", "overall"),
    "clothing_color": ("navy", "blue", "red", "green", "yellow", "white"),
    "eyebrows": ("flat", "angry", "raised", "sad"),
}
"""The factors, in the order of the table, and for each the values that are told apart at 64 pixels."""

FACTORS: tuple[str, ...] = tuple(STANDARD_VALUES)

# factor -> (enumeration of python_avatars, our names for some of its members)
_PARTS: dict[str, tuple[str, dict[str, str]]] = {
    "hair_style": ("HairType", {"short": "SHORT_FLAT", "long": "STRAIGHT_1"}),
    "hair_color": ("HairColor", {"grey": "SILVER_GRAY", "blonde": "BLONDE_GOLDEN"}),
    "glasses": ("AccessoryType", {"glasses": "PRESCRIPTION_2"}),
    "mouth": ("MouthType", {}),
    "facial_hair": ("FacialHairType", {"beard": "BEARD_MEDIUM", "moustache": "MOUSTACHE_MAGNUM"}),
    "skin": ("SkinColor", {"tan": "BROWN", "dark": "DARK_BROWN"}),
    "clothing": (
        "ClothingType",
        {"crew_neck": "SHIRT_CREW_NECK", "v_neck": "SHIRT_V_NECK", "collar": "COLLAR_SWEATER"},
    ),
    "clothing_color": (
        "ClothingColor",
        {"navy": "HEATHER", "blue": "BLUE_02", "green": "PASTEL_GREEN", "yellow": "PASTEL_YELLOW"},
    ),
    "eyebrows": (
        "EyebrowType",
        {
            "flat": "FLAT_NATURAL",
            "angry": "ANGRY_NATURAL",
            "raised": "RAISED_EXCITED",
            "sad": "SAD_CONCERNED_NATURAL",
        },
    ),
}
_COLORS = ("hair_color", "skin", "clothing_color")
# The square of the 264 x 280 drawing that is shown: head, hair and the upper half of the clothes.
_VIEW_BOX = "18 12 228 228"
_SVG_FRAME = re.compile(r'width="264px" height="280px" viewBox="0 0 264 280"')


def allowed_values(factor: str) -> tuple[str, ...]:
    """Every value that `factor` may take: the standard ones, then python-avatars' own, in lower case.

    Raises:
        DataError: `factor` is unknown, or python-avatars is not installed.
    """
    return tuple(_looks(factor))


def check_values(factor: str, values: Mapping[str, object] | tuple[str, ...]) -> None:
    """Raise DataError where `factor` or one of its `values` cannot be drawn."""
    looks = _looks(factor)
    for value in values:
        if value not in looks:
            raise DataError(
                f"avatars: {factor} cannot be {value!r}; standard values: "
                f"{', '.join(STANDARD_VALUES[factor])}; also allowed: "
                f"{', '.join(v for v in looks if v not in STANDARD_VALUES[factor])}"
            )


def render_face(
    factors: Mapping[str, str], size: int = 64, background: str = BACKGROUND
) -> npt.NDArray[np.uint8]:
    """Draw the face that `factors` (one value for each name in FACTORS) describes.

    Facial hair takes the colour of the hair; eyes and nose are the same in all faces.

    Returns:
        uint8 [size, size, 3], RGB.

    Raises:
        DataError: a factor is missing or unknown, or a value cannot be drawn.
    """
    if set(factors) != set(FACTORS):
        wrong = sorted(set(factors) ^ set(FACTORS))
        raise DataError(f"avatars: a face needs exactly the factors {', '.join(FACTORS)}; look at {wrong}")
    for name, value in factors.items():
        check_values(name, (value,))
    shapes = tuple(factors[name] for name in FACTORS if name not in _COLORS)
    svg = _template(shapes)
    for name in _COLORS:
        svg = svg.replace(_placeholder(name), str(_looks(name)[factors[name]].value))
    return _rasterise(svg, size, background)


def _rasterise(svg: str, size: int, background: str) -> npt.NDArray[np.uint8]:
    resvg = _require("resvg_py")
    png = resvg.svg_to_bytes(
        svg_string=svg, width=size, height=size, background=background, skip_system_fonts=True
    )
    with Image.open(io.BytesIO(bytes(png))) as picture:
        return np.asarray(picture.convert("RGB"))


@lru_cache(maxsize=4096)
def _template(shapes: tuple[str, ...]) -> str:
    """The SVG of a face with placeholders for its colours: shapes cost 1 ms, colours none."""
    names = [name for name in FACTORS if name not in _COLORS]
    looks: dict[str, Any] = {n: _looks(n)[value] for n, value in zip(names, shapes, strict=True)}
    return _svg(looks | {name: _placeholder(name) for name in _COLORS})


def _placeholder(color: str) -> str:
    return f"@{color}@"


def _svg(looks: Mapping[str, Any]) -> str:
    """The SVG text of a face: `looks` holds python-avatars members, or any text for a colour."""
    avatars = _require("python_avatars")
    avatar = avatars.Avatar(
        style=avatars.AvatarStyle.TRANSPARENT,
        eyes=avatars.EyeType.DEFAULT,
        nose=avatars.NoseType.DEFAULT,
        top=looks["hair_style"],
        hair_color=looks["hair_color"],
        accessory=looks["glasses"],
        mouth=looks["mouth"],
        facial_hair=looks["facial_hair"],
        facial_hair_color=looks["hair_color"],
        skin_color=looks["skin"],
        clothing=looks["clothing"],
        clothing_color=looks["clothing_color"],
        eyebrows=looks["eyebrows"],
        title="",
    )
    svg, found = _SVG_FRAME.subn(f'width="228px" height="228px" viewBox="{_VIEW_BOX}"', avatar.render())
    if found != 1:
        raise DataError("avatars: this version of python-avatars draws another frame; install 1.4")
    return svg


@cache
def _looks(factor: str) -> dict[str, Enum]:
    """Value -> member of python-avatars' enumeration."""
    if factor not in _PARTS:
        raise DataError(f"avatars: no factor is called {factor!r}; there are {', '.join(FACTORS)}")
    enumeration, ours = _PARTS[factor]
    members = getattr(_require("python_avatars"), enumeration)
    standard = {v: members[ours.get(v, v.upper())] for v in STANDARD_VALUES[factor]}
    rest = {m.name.lower(): m for m in members if m.name.lower() not in standard}
    return standard | rest


def _require(module: str) -> Any:
    try:
        return __import__(module)
    except ImportError as error:
        raise DataError(
            f"rendering avatars needs the Python package {module}: pip install 'stylex[avatars]'"
        ) from error
