"""What a report says, as plain values: gathered from a run elsewhere, drawn as HTML elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
"""One image, [H, W, 3]."""


@dataclass(frozen=True)
class Reconstruction:
    """An image beside what the generator makes of it; probabilities in the order of the class names."""

    name: str
    original: Picture
    reconstruction: Picture
    probabilities_original: tuple[float, ...]
    probabilities_reconstruction: tuple[float, ...]


@dataclass(frozen=True)
class Pair:
    """One image before and after one attribute is changed (both are generated images)."""

    name: str
    before: Picture
    after: Picture
    probability_before: float
    probability_after: float
    flipped: bool


def shown_title(name: str | None, rank: int) -> str:
    """What an attribute is called on a page: its name, or a neutral one."""
    return name or f"Attribute {rank}"


@dataclass(frozen=True)
class AttributeSection:
    """One attribute, ranked for one target class.

    `effect` is the mean change of the target's log-odds (or logit, see `ReportContent.effect_on`) over the
    images searched, with its 95 % interval;
    `flip_share` the share of test images of the other classes that it flips alone, with its 95 % interval.
    `where` is the mean absolute change of the pixels, [H, W] in [0, 1], largest 1. `same` are titles of the
    attributes that repeat it.
    """

    rank: int
    name: str | None
    coordinate: int
    direction: str
    layer: str
    channel: int
    effect: float
    effect_low: float
    effect_high: float
    flip_share: float
    flip_share_low: float
    flip_share_high: float
    where: npt.NDArray[np.float32]
    pairs: tuple[Pair, ...]
    same: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return shown_title(self.name, self.rank)


@dataclass(frozen=True)
class Curve:
    """Flip rate against the number of attributes changed at once, with 95 % intervals."""

    label: str
    counts: tuple[int, ...]
    rates: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    images: int


@dataclass(frozen=True)
class CounterfactualExample:
    """The smallest change found that flips one image: original, reconstruction, counterfactual."""

    name: str
    original: Picture
    reconstruction: Picture
    counterfactual: Picture
    changes: tuple[str, ...]
    probability_original: float
    probability_before: float
    probability_after: float
    flipped: bool


@dataclass(frozen=True)
class TargetSection:
    """All that is said about making images count as one target class."""

    target: str
    attributes: tuple[AttributeSection, ...]
    curves: tuple[Curve, ...]
    counterfactuals: tuple[CounterfactualExample, ...]


@dataclass(frozen=True)
class Table:
    """A small table: a heading, a row of column names, and rows as long."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class ReportContent:
    """A whole report. `facts` and `provenance` map labels to values shown in tables; `warnings` stand on top.

    `quality_tables` say what survives reconstruction and how real the images look, where it was measured;
    `pair_tables` what leads from each class to each other one, where it was searched;
    `summary` is one or two plain sentences; `command` repeats the run; `effect_on` is what effects are
    changes of, "log-odds" or "logit".
    """

    title: str
    summary: str
    class_names: tuple[str, ...]
    facts: dict[str, str]
    warnings: tuple[str, ...]
    reconstructions: tuple[Reconstruction, ...]
    reconstruction_figures: dict[str, str]
    targets: tuple[TargetSection, ...]
    coordinates: int
    effect_on: str
    command: str
    provenance: dict[str, Any]
    quality_tables: tuple[Table, ...] = ()
    pair_tables: tuple[Table, ...] = ()
