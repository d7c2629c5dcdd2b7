"""A study's answers as files: the published layout, the key, every answer in full, names that people gave."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stylex.run import write_atomically
from stylex.study.analysis import Analysis, analyse_right
from stylex.study.answers import answers_csv, key_text
from stylex.study.design import Design
from stylex.study.store import Answer, Store

FILES = ("answers.csv", "key.txt", "control.csv", "control-key.txt", "details.csv", "names.csv")
"""What can be exported; control and names only where the study asks for them."""


def files(design: Design) -> tuple[str, ...]:
    """What this study exports."""
    left_out = () if design.settings.control else ("control.csv", "control-key.txt")
    if not design.settings.naming:
        left_out = (*left_out, "names.csv")
    return tuple(name for name in FILES if name not in left_out)


def content(store: Store, names: Sequence[str], file: str, *, attentive: bool = False) -> str:
    """The text of one of `files`.

    Args:
        names: of the study's attributes.
        attentive: leave out who failed an attention check, in answers.csv and control.csv.
    """
    design = store.design
    if file == "answers.csv":
        return _choices(store, design.key, "question", attentive)
    if file == "key.txt":
        return key_text(design.key, design.by_question(names))
    if file == "control.csv":
        return _choices(store, design.control_key, "control", attentive)
    if file == "control-key.txt":
        return key_text(design.control_key, design.by_question(names, control=True))
    if file == "details.csv":
        return _details(store, names)
    return _names(store, names)


def write_files(store: Store, names: Sequence[str], folder: Path, *, attentive: bool = False) -> list[Path]:
    """Write all of `files` into a folder."""
    written = []
    for name in files(store.design):
        data = content(store, names, name, attentive=attentive).encode()
        write_atomically(folder / name, lambda file, data=data: file.write(data))  # type: ignore[misc]
        written.append(folder / name)
    return written


def analysis_so_far(store: Store, names: Sequence[str]) -> Analysis | None:
    """The analysis of who answered every question; None while there is nobody."""
    design = store.design
    rows = _right(store, design.key, "question", attentive=False)
    if not rows:
        return None
    right = np.array([found for _, found in rows], np.float64)
    return analyse_right(right, tuple(design.key), attributes=design.by_question(names))


def _choices(store: Store, key: dict[int, str], kind: str, attentive: bool) -> str:
    """Who answered all, a row each. Sides were drawn for each of them; here they are those of the key."""
    other = {"A": "B", "B": "A"}
    rows = [
        (time, [side if right else other[side] for right, side in zip(found, key.values(), strict=True)])
        for time, found in _right(store, key, kind, attentive)
    ]
    return answers_csv(list(key), rows)


def _right(store: Store, key: dict[int, str], kind: str, attentive: bool) -> list[tuple[str, list[bool]]]:
    """Time of the last answer, and whether each was right, of those who answered all of a block."""
    found = []
    for given in _by_participant(store.answers()).values():
        if attentive and any(entry.kind == "attention" and not entry.correct for entry in given):
            continue
        block = [entry for entry in given if entry.kind == kind]
        numbered = {_number(entry): bool(entry.correct) for entry in block}
        if set(numbered) == set(key):
            found.append((max(entry.answered for entry in block), [numbered[number] for number in key]))
    return found


def _number(entry: Answer) -> int:
    if entry.kind == "control":
        return -1 if entry.attribute is None else entry.attribute + 1
    return entry.question or 0


def _by_participant(answers: Sequence[Answer]) -> dict[int, list[Answer]]:
    found: dict[int, list[Answer]] = {}
    for entry in answers:
        found.setdefault(entry.participant, []).append(entry)
    return found


DETAILS = (
    *("participant", "page", "kind", "question", "attribute", "choice", "right", "correct", "stills", "time"),
    *("reference 1", "reference 2", "shown as A", "shown as B"),
)
"""Columns of details.csv."""


def _details(store: Store, names: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(DETAILS)
    for entry in store.answers():
        step = store.form(entry.participant)[entry.step]
        if step.kind in ("begin", "naming"):
            continue
        attribute = "" if step.attribute is None else _cell(names[step.attribute])
        asked = (entry.participant, entry.step + 1, entry.kind, entry.question or "", attribute)
        given = (entry.choice, step.right, int(bool(entry.correct)), int(entry.stills), entry.answered)
        writer.writerow([*asked, *given, *step.references, step.a, step.b])
    return text.getvalue()


def _names(store: Store, names: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["participant", "attribute", "words"])
    for entry in store.answers():
        if entry.kind == "naming" and entry.words and entry.attribute is not None:
            writer.writerow([entry.participant, _cell(names[entry.attribute]), _cell(entry.words)])
    return text.getvalue()


def _cell(text: str) -> str:
    """Free text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
