"""What a user says of images beside their source: `SOURCE#fit=pad,window=40:400`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from stylex.config import Settings, validate
from stylex.errors import ConfigError, DataError

SEPARATOR = "#"
"""Between a source and its options."""

Fit = Literal["crop", "pad"]


class DataOptions(Settings):
    """How images are made square, what of a DICOM file's values is seen, and what a table's columns mean."""

    fit: Fit = Field("crop", description="crop: the central square; pad: the whole image, on black")
    window: tuple[float, float] | None = Field(None, description="DICOM: level and width, such as 40:400")
    file: str | None = Field(None, description="column with the path of the image")
    label: str | None = Field(None, description="column with the class")
    group: str | None = Field(None, description="column whose rows stay together in one set")
    split: str | None = Field(None, description="column with the set")
    image: str | None = Field(None, description="column with the image, of a Hugging Face data set")

    @model_validator(mode="after")
    def _consistent(self) -> DataOptions:
        if self.window is not None and self.window[1] <= 0:
            raise ValueError("the width of a window must be greater than 0")
        return self

    @property
    def decoding(self) -> str:
        """What decoded pixels depend on; "" for the defaults."""
        parts: list[str] = [] if self.fit == "crop" else [self.fit]
        parts += [] if self.window is None else [f"window {self.window[0]:g} {self.window[1]:g}"]
        return ", ".join(parts)

    @property
    def columns(self) -> dict[str, str]:
        """The columns that were named, by what they hold."""
        found = {name: getattr(self, name) for name in ("file", "label", "group", "split", "image")}
        return {name: value for name, value in found.items() if value is not None}


def split_source(source: str | Path) -> tuple[str, DataOptions]:
    """`SOURCE#key=value,…` as the source and its options; a path that exists as it stands is never split.

    What stands behind the '#' of a named set (Fashion-MNIST, CelebA …) is its own affair, and stays there.

    Raises:
        DataError: an unknown option, or a value out of range.
    """
    from stylex.data.published import PUBLISHED

    plain, separator, text = str(source).partition(SEPARATOR)
    if plain.partition(":")[0] in ("fashion-mnist", *PUBLISHED):
        return str(source), DataOptions()
    if not separator or Path(source).expanduser().exists():
        return str(source), DataOptions()
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise DataError(f"{source}: '{part}' is no option; write key=value, such as fit=pad")
        if key not in DataOptions.model_fields:
            known = ", ".join(DataOptions.model_fields)
            raise DataError(f"{source}: no option '{key}' of images; there are {known}")
        found[key] = value.split(":") if key == "window" else value
    try:
        return plain, validate(DataOptions, found, str(source))
    except ConfigError as error:
        raise DataError(str(error)) from None
