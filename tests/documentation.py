"""What docs/json.md says of results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

JSON = Path(__file__).parent.parent / "docs" / "json.md"


def names_all(content: dict[str, Any], verb: str) -> None:
    """Every key of a result stands in the section of its verb, at whatever depth; a machine's elsewhere."""
    _, _, rest = JSON.read_text(encoding="utf-8").partition(f"## `stylex {verb}`\n")
    section = rest.partition("\n## ")[0]
    missing = [key for key in _keys(content) if f"`{key}`" not in section and key not in WAYS]
    assert not missing, f"docs/json.md, stylex {verb}: {missing}"


WAYS = ("one at a time", "batches", "sweep")
"""Keys that are values, named without the marks of code."""


def _keys(content: Any) -> list[str]:
    if isinstance(content, list):
        return [key for entry in content for key in _keys(entry)]
    if not isinstance(content, dict):
        return []
    inner = [key for name, value in content.items() if name != "machine" for key in _keys(value)]
    return [*content, *inner]
