"""StyleSpace: which coordinate is which channel of which layer, how far each goes, and pure shifts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stylex.errors import ConfigError, DataError
from stylex.networks import StyleLayer

DirectedCoordinate = tuple[int, int]
"""(direction, coordinate): direction 0 is the low end of the coordinate's range, 1 the high end."""

DIRECTIONS = ("lower", "raise")
"""What direction 0 and 1 do to a coordinate, in words."""


@dataclass(frozen=True, eq=False)
class StyleSpace:
    """The searchable coordinates of a generator and the range that each was seen in.

    Args:
        layout: the generator's style layers, in order.
        low, high: [S], ends of the range of each searchable coordinate: the smallest and largest value in
            discovery, or quantiles. Searchable are the styles of the 3 × 3 convolutions (Lang et al. 2021
            perturb no toRGB style).
    """

    layout: tuple[StyleLayer, ...]
    low: Tensor
    high: Tensor
    positions: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", searchable_positions(self.layout).to(self.low.device))
        if self.low.shape != self.positions.shape or self.high.shape != self.positions.shape:
            raise DataError(
                f"ranges of {self.low.shape[0]} coordinates do not fit a generator of {len(self.positions)}"
            )

    @classmethod
    def from_styles(cls, layout: Sequence[StyleLayer], styles: Tensor, quantile: float = 0.0) -> StyleSpace:
        """Ranges from styles [N, T] of the discovery images: their minimum and maximum (notebook).

        With `quantile` q, below 0.5, from the q-quantile to the (1 − q)-quantile, interpolated (ours): then
        no end is what a single strange image has.
        """
        found = styles[:, searchable_positions(layout).to(styles.device)]
        if quantile == 0:
            return cls(tuple(layout), found.amin(dim=0), found.amax(dim=0))
        ordered = found.sort(dim=0).values
        place = quantile * (len(found) - 1)
        first, share = int(place), place % 1
        low = torch.lerp(ordered[first], ordered[min(first + 1, len(found) - 1)], share)
        high = torch.lerp(ordered[-1 - first], ordered[max(-2 - first, -len(found))], share)
        return cls(tuple(layout), low, high)

    @property
    def size(self) -> int:
        """S, the number of searchable coordinates."""
        return len(self.positions)

    def layer(self, coordinate: int) -> tuple[StyleLayer, int]:
        """The layer of a coordinate, and its channel there.

        Raises:
            ConfigError: no such coordinate.
        """
        if not 0 <= coordinate < self.size:
            raise ConfigError(f"coordinate {coordinate} does not exist; there are {self.size}")
        position = int(self.positions[coordinate])
        for place in self.layout:
            if place.offset <= position < place.offset + place.channels:
                return place, position - place.offset
        raise AssertionError("searchable positions lie in layers")

    def searchable(self, styles: Tensor) -> Tensor:
        """Styles [N, T] → values of the searchable coordinates [N, S]."""
        return styles[:, self.positions]

    def end(self, direction: int) -> Tensor:
        """The end of every range [S] that a direction leads to."""
        return self.high if direction else self.low

    def shift(
        self,
        styles: Tensor,
        changes: Iterable[DirectedCoordinate] | Mapping[DirectedCoordinate, float],
        by: float = 1.0,
    ) -> Tensor:
        """Styles with coordinates moved towards the ends of their ranges; a new tensor [N, T].

        s + amount · (end − s) (notebook). With a mapping, each change has its own amount; otherwise `by`.
        Amount 0 leaves a coordinate where it is, 1 moves it to the end of its range. Where a coordinate
        occurs in both directions, the later change counts.
        """
        moved = styles.clone()
        amounts = changes if isinstance(changes, Mapping) else dict.fromkeys(changes, by)
        for (direction, coordinate), amount in amounts.items():
            column = self.positions[coordinate]
            end = self.end(direction)[coordinate]
            moved[:, column] = styles[:, column] + amount * (end - styles[:, column])
        return moved

    def tensors(self) -> dict[str, Tensor]:
        """What a file must hold to make this again, beside the generator."""
        return {"low": self.low, "high": self.high}

    def describe(self, change: DirectedCoordinate) -> dict[str, Any]:
        """Direction, coordinate, layer and channel as plain values."""
        direction, coordinate = change
        place, channel = self.layer(coordinate)
        return {
            "coordinate": coordinate,
            "direction": direction,
            "layer": place.name,
            "resolution": place.resolution,
            "channel": channel,
        }


def searchable_positions(layout: Sequence[StyleLayer]) -> Tensor:
    """Positions in the style vector [T] of the searchable coordinates, in order: [S]."""
    return torch.cat(
        [
            torch.arange(place.offset, place.offset + place.channels)
            for place in layout
            if place.kind == "conv"
        ]
    )
