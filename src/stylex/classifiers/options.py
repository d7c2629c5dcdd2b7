"""What a user says of a classifier beside its source: `SOURCE#size=64,order=bgr`, or a YAML file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from stylex.classifiers.classifier import Activation, Order
from stylex.config import Settings, read_yaml, validate
from stylex.errors import ClassifierError, ConfigError

Outputs = Literal["logits", "probabilities"]
Layout = Literal["nchw", "nhwc"]
Backend = Literal["torch", "onnxruntime"]

SEPARATOR = "#"
"""Between a source and its options."""

LISTS = ("class_names", "mean", "std", "range")
"""Options that hold several values, separated by ':'."""

SHORT = {"size": "input_size", "classes": "class_names"}
"""Short names of options."""


class Options(Settings):
    """Everything that can be said of a classifier; what is left out is taken from the source itself.

    Unknown keys are errors. In `SOURCE#key=value,key=value` the values of a list are separated by ':'.
    """

    source: str | None = Field(None, description="in a YAML file: what the options are about")
    class_names: tuple[str, ...] | None = Field(None, min_length=1)
    input_size: int | None = Field(None, ge=1, le=4096, description="pixels along a side")
    channels: Literal[1, 3] | None = Field(None, description="1: the network takes greyscale images")
    order: Order | None = Field(None, description="of the channels, rgb or bgr")
    range: tuple[float, float] | None = Field(
        None, description="values of black and white, before mean and std"
    )
    mean: tuple[float, ...] | None = Field(None, description="of each channel, on the scale of `range` (0:1)")
    std: tuple[float, ...] | None = None
    activation: Activation | None = Field(None, description="softmax: one class an image; sigmoid: labels")
    outputs: Outputs | None = Field(None, description="what the network returns")
    layout: Layout | None = Field(None, description="axes of the images that the network takes")
    weights: Path | None = Field(None, description="file of weights, for torchvision: and timm:")
    backend: Backend | None = Field(None, description="what runs an ONNX file")
    batch: int | None = Field(None, ge=1, description="endpoint: images a request")
    rate: float | None = Field(None, gt=0, description="endpoint: most requests a second")
    timeout: float | None = Field(None, gt=0, description="endpoint: seconds to wait for an answer")
    retries: int | None = Field(None, ge=0, description="endpoint: how often a failed request is repeated")
    cache: bool | None = Field(None, description="endpoint: keep answers on disk")
    token: str | None = Field(None, description="endpoint: environment variable that holds a bearer token")

    @model_validator(mode="after")
    def _consistent(self) -> Options:
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError("range must rise, such as 0:255")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std must be greater than 0")
        return self


@dataclass(frozen=True)
class Hints:
    """What the caller says of a classifier; None leaves it to the source. What is said wins."""

    class_names: tuple[str, ...] | None = None
    input_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    activation: Activation | None = None
    outputs: Outputs | None = None
    weights: Path | None = None
    channels: Literal[1, 3] | None = None
    order: Order | None = None
    range: tuple[float, float] | None = None
    layout: Layout | None = None
    backend: Backend | None = None
    batch: int | None = None
    rate: float | None = None
    timeout: float | None = None
    retries: int | None = None
    cache: bool | None = None
    token: str | None = None

    def given(self) -> dict[str, Any]:
        """The constructor's arguments among the hints that are not None; the range goes into mean and std.

        A network that wants values v = low + (high − low) · p for pixels p in [0, 1], and then
        (v − mean) / std, is one that wants (p − (mean − low) / (high − low)) / (std / (high − low)).
        """
        names = ("class_names", "input_size", "channels", "order", "activation")
        found = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.range is None:
            found |= {
                name: value for name, value in (("mean", self.mean), ("std", self.std)) if value is not None
            }
            return found
        low, high = self.range
        width = high - low
        count = len(self.mean or self.std or (0.0,))
        mean, std = self.mean or (0.0,) * count, self.std or (1.0,) * count
        found["mean"] = tuple((value - low) / width for value in mean)
        found["std"] = tuple(value / width for value in std)
        return found

    def only(self, *names: str) -> list[str]:
        """Options that were given although the kind of source takes only `names` of the special ones."""
        special = ("weights", "outputs", "layout", "backend", "batch", "rate", "timeout", "retries", "cache")
        return [name for name in (*special, "token") if getattr(self, name) is not None and name not in names]


def split(source: str) -> tuple[str, Options]:
    """A source as the command line names it → the source itself and its options.

    `SOURCE#key=value,…`, or a YAML file with a key `source` (a relative path in it is relative to the file)
    and the options. A path that exists as it stands is never split.

    Raises:
        ClassifierError: an unknown option, or a value out of range.
    """
    plain, separator, text = source.partition(SEPARATOR)
    try:
        if separator and not Path(source).exists():
            inner, options = _from_yaml(plain)
            said = validate(Options, _pairs(text, source), source)
            return inner, options.model_copy(update=said.model_dump(exclude_none=True))
        return _from_yaml(source)
    except ConfigError as error:
        raise ClassifierError(str(error)) from None


def _from_yaml(source: str) -> tuple[str, Options]:
    path = Path(source)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return source, Options()
    options = validate(Options, read_yaml(path), source)
    if options.source is None:
        raise ConfigError(f"{source}: names no classifier; add a line such as 'source: model.onnx'")
    inner = path.parent / options.source
    weights = None if options.weights is None else path.parent / options.weights
    if ":" not in options.source or inner.exists():
        return str(inner), options.model_copy(update={"weights": weights})
    kind, at, file = options.source.partition("@")
    if at and (path.parent / file).exists():
        return f"{kind}@{path.parent / file}", options.model_copy(update={"weights": weights})
    return options.source, options.model_copy(update={"weights": weights})


def _pairs(text: str, source: str) -> dict[str, Any]:
    """`size=64,mean=0.5:0.5:0.5` as a mapping."""
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        name = SHORT.get(key, key)
        if not equals or not value:
            raise ConfigError(f"{source}: '{part}' is no option; write key=value, such as size=224")
        if name == "source" or name not in Options.model_fields:
            known = ", ".join(sorted({*SHORT, *Options.model_fields} - {*SHORT.values(), "source"}))
            raise ConfigError(f"{source}: no option '{key}'; there are {known}")
        if name == "channels":
            found[name] = int(value) if value.isdigit() else value
        else:
            found[name] = value.split(":") if name in LISTS else value
    for name in ("mean", "std"):
        if name in found and not all(_is_number(value) for value in found[name]):
            raise ConfigError(
                f"{source}: {name} is {':'.join(found[name])}; give numbers, such as 0.5:0.5:0.5"
            )
    return found


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def as_hints(options: Options, given: Mapping[str, Any]) -> Hints:
    """Options of the source under those that the caller gave (which win)."""
    said = options.model_dump(exclude_none=True, exclude={"source"})
    return Hints(**{**said, **{key: value for key, value in given.items() if value is not None}})
