"""The tables of a report on what leads from one class to another."""

from __future__ import annotations

from stylex.attfind import Attribute
from stylex.attfind.pairs import Pairs
from stylex.report.content import Table
from stylex.report.html import percent, signed
from stylex.stylespace import DIRECTIONS

COLUMNS = ("From → to", "Rank", "Attribute", "Images flipped", "Effect, log-odds between the two")


def pair_tables(pairs: Pairs, count: int) -> tuple[Table, ...]:
    """A table for each class that images come from: the first `count` attributes to each other class.

    Shares and effects are those of the search, on its images of the class. A class without any attribute has
    no table.
    """
    tables = []
    for source in dict.fromkeys(source for source, _ in pairs):
        found = [
            (target, entry)
            for (own, target), entries in pairs.items()
            if own == source
            for entry in entries[:count]
        ]
        if found:
            title = f"From “{source}”, {found[0][1].images} images searched"
            tables.append(Table(title, COLUMNS, tuple(_row(source, *one) for one in found)))
    return tuple(tables)


def _row(source: str, target: str, entry: Attribute) -> tuple[str, ...]:
    what = entry.name or f"{entry.layer} channel {entry.channel}"
    return (
        f"{source} → {target}",
        str(entry.rank),
        f"{DIRECTIONS[entry.direction]} {what}",
        percent(entry.flipped),
        signed(entry.effect),
    )
