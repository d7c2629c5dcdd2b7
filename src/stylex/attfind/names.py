"""Names that people give to attributes: kept in attributes.json, also through later searches."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import replace

from stylex.attfind.attributes import Attribute, Findings
from stylex.errors import ConfigError

LONGEST_NAME = 60
"""Characters."""


def with_name(findings: Findings, coordinate: int, name: str | None) -> Findings:
    """Findings in which a coordinate has a name, wherever it is listed; None or an empty one takes it away.

    A name says what the coordinate is about ("glasses"); which way an attribute moves it is said beside it.

    Raises:
        ConfigError: no attribute of that coordinate, or a name that is too long.
    """
    given = clean_name(name or "") or None
    if not any(entry.coordinate == coordinate for found in findings.attributes.values() for entry in found):
        raise ConfigError(f"no attribute is coordinate {coordinate}, so it cannot be named")
    return _renamed(findings, {coordinate: given})


def clean_name(text: str) -> str:
    """One line without control characters.

    Raises:
        ConfigError: longer than LONGEST_NAME characters.
    """
    shown = "".join(" " if unicodedata.category(letter) in ("Cc", "Zl", "Zp") else letter for letter in text)
    name = " ".join(shown.split())
    if len(name) > LONGEST_NAME:
        raise ConfigError(f"a name of {len(name)} characters is too long; use up to {LONGEST_NAME}")
    return name


def names_of(findings: Findings) -> dict[int, str]:
    """Coordinate → name, of those that have one."""
    return {
        entry.coordinate: entry.name
        for found in findings.attributes.values()
        for entry in found
        if entry.name is not None
    }


def with_names_of(findings: Findings, earlier: Findings) -> Findings:
    """New findings with the names that an earlier search of the same generator was given."""
    return _renamed(findings, names_of(earlier))


def named(entries: Iterable[Attribute], names: Mapping[int, str | None]) -> tuple[Attribute, ...]:
    """Attributes with the names of their coordinates; those without an entry there stay as they are."""
    return tuple(
        entry.named(names[entry.coordinate]) if entry.coordinate in names else entry for entry in entries
    )


def _renamed(findings: Findings, names: Mapping[int, str | None]) -> Findings:
    attributes = {target: named(found, names) for target, found in findings.attributes.items()}
    return replace(findings, attributes=attributes)
