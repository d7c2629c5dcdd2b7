"""Geometry of the report's charts: positions in percent, and SVG paths; templates add colours and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stylex.report.content import AttributeSection, Curve

_MOST_TICKS = 10


@dataclass(frozen=True)
class Line:
    """One curve in a plane of 100 × 100, y downwards: its line, its band of intervals and its points."""

    curve: Curve
    path: str
    band: str
    points: str


@dataclass(frozen=True)
class CurveChart:
    """Flip-rate curves that share their axes; ticks are (position in percent, label)."""

    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Scale:
    """A horizontal axis from `low` to `high`."""

    low: float
    high: float

    def position(self, value: float) -> float:
        """Where a value lies on the axis, in percent, kept within it."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 2)


SHARES = Scale(0.0, 1.0)
"""The axis of probabilities and shares."""


def effect_scale(attributes: Sequence[AttributeSection]) -> Scale:
    """One axis that holds the effects of all attributes with their intervals, and zero."""
    low = min([0.0, *(attribute.effect_low for attribute in attributes)])
    high = max([0.0, *(attribute.effect_high for attribute in attributes)])
    return Scale(low, high if high > low else low + 1.0)


def curve_chart(curves: Sequence[Curve]) -> CurveChart:
    """Lay out flip-rate curves: x from the smallest to the largest count, y from 0 to 100 %."""
    counts = tuple(sorted({count for curve in curves for count in curve.counts}))
    if len(counts) > 1:
        axis = Scale(counts[0], counts[-1])
    else:
        middle = counts[0] if counts else 0
        axis = Scale(middle - 1, middle + 1)
    return CurveChart(
        lines=tuple(_line(curve, axis) for curve in curves),
        x_ticks=tuple((axis.position(count), str(count)) for count in _thinned(counts)),
        y_ticks=tuple((100.0 - share, f"{share} %") for share in (0, 25, 50, 75, 100)),
        counts=counts,
    )


def _line(curve: Curve, axis: Scale) -> Line:
    xs = [axis.position(count) for count in curve.counts]
    rates, lows, highs = (
        [round(100 - SHARES.position(value), 2) for value in values]
        for values in (curve.rates, curve.lows, curve.highs)
    )
    there = list(zip(xs, highs, strict=True))
    back = list(zip(xs, lows, strict=True))[::-1]
    return Line(
        curve=curve,
        path=_path(list(zip(xs, rates, strict=True))),
        band=_path(there + back) + ("Z" if there else ""),
        points="".join(f"M{x:g} {y:g}h0" for x, y in zip(xs, rates, strict=True)),
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "".join(f"{'L' if i else 'M'}{x:g} {y:g}" for i, (x, y) in enumerate(points))


def _thinned(counts: tuple[int, ...]) -> tuple[int, ...]:
    """At most `_MOST_TICKS` counts, evenly taken, the first and the last among them."""
    if len(counts) <= _MOST_TICKS:
        return counts
    last = len(counts) - 1
    return tuple(counts[round(i * last / (_MOST_TICKS - 1))] for i in range(_MOST_TICKS))
