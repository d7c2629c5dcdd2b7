"""Answers of a study as people keep them: a CSV with a row for each participant, and the key to it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stylex.errors import DataError

CHOICES = ("A", "B")

TIMESTAMP = "Timestamp"

Key = Mapping[int, str] | Mapping[str, str] | str | Path
"""Question → "A" or "B"; questions are numbers, or names such as "Question 1". Or a file, "1: A" a line.

A file may say which attribute a question is about, "1: A, grey hair", as the exported keys do.
"""

_QUESTION = re.compile(r"\s*(?:question|q)?[\s_.#-]*(\d+)\b", re.IGNORECASE)
_LINE = re.compile(
    r"\s*(?:question|q)?[\s_.#-]*(\d+)\s*[:=,;\t ]\s*(\S+?)\s*(?:[,;\t]\s*(\S.*?)\s*)?", re.IGNORECASE
)


@dataclass(frozen=True)
class Answers:
    """What participants chose: `chosen[p]` are "A" or "B", in the order of `questions`."""

    questions: tuple[int, ...]
    chosen: tuple[tuple[str, ...], ...]


def question_name(number: int) -> str:
    """The heading of a question's column."""
    return f"Question {number}"


def read_key(key: Key) -> dict[int, str]:
    """The right choice of every question, in order of their numbers.

    Raises:
        DataError: no such file, no question, a question twice, or a choice that is neither A nor B.
    """
    if isinstance(key, str | Path):
        pairs = [(number, choice, where) for number, choice, _, where in _key_lines(Path(key))]
    else:
        pairs = [(_number(name), str(choice), f"key of {name!r}") for name, choice in key.items()]
    found: dict[int, str] = {}
    for number, choice, where in pairs:
        if number in found:
            raise DataError(f"{where}: question {number} has two keys")
        found[number] = _choice(choice, where)
    if not found:
        raise DataError(f"{key if isinstance(key, str | Path) else 'the key'}: names no question")
    return dict(sorted(found.items()))


def read_attributes(key: Key) -> dict[int, str]:
    """Question → attribute, where the key is a file that says so; else nothing.

    Raises:
        DataError: no such file, or one that names the attributes of some questions only; names the row.
    """
    if not isinstance(key, str | Path):
        return {}
    lines = list(_key_lines(Path(key)))
    found = {number: attribute for number, _, attribute, _ in lines if attribute is not None}
    missing = next((where for _, _, attribute, where in lines if attribute is None), None)
    if found and missing is not None:
        raise DataError(f"{missing}: names no attribute, as other rows do; name it in each or in none")
    return found


def read_answers(file: str | Path, questions: Iterable[int]) -> Answers:
    """Read a CSV of answers: a heading, then a row for each participant.

    Columns of questions are headed by their number ("Question 1", "Q1", "1"); other columns, such as
    Timestamp, are passed over. Comma or semicolon separate; rows count as in a spreadsheet, the heading is
    row 1.

    Args:
        questions: the numbers that the key knows; the file must have exactly these.

    Raises:
        DataError: no such file, questions that are missing, twice or without a key, no participant, or a
            choice that is missing or neither A nor B; the message names the row.
    """
    path, wanted = Path(file), tuple(questions)
    rows = csv.reader(io.StringIO(text := _text(path)), delimiter=_delimiter(text))
    try:
        heading = next((row for row in rows if row), None)
        if heading is None:
            raise DataError(f"{path}: is empty; it needs a heading and a row for each participant")
        columns = _columns(path, heading, wanted)
        chosen: list[tuple[str, ...]] = []
        before = rows.line_num
        for row in rows:
            first, before = before + 1, rows.line_num
            if not any(cell.strip() for cell in row):
                continue
            where = f"{path}, row {first}"
            chosen.append(tuple(_cell(row, columns[number], number, where) for number in wanted))
    except csv.Error as error:
        raise DataError(f"{path}, row {rows.line_num}: no CSV ({error})") from None
    if not chosen:
        raise DataError(f"{path}: has a heading but no participant")
    return Answers(wanted, tuple(chosen))


def answers_csv(questions: Sequence[int], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """The CSV that `read_answers` reads: Timestamp, Question 1 …; a row is a time and its choices."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([TIMESTAMP, *map(question_name, questions)])
    writer.writerows([time, *choices] for time, choices in rows)
    return text.getvalue()


def key_text(key: Mapping[int, str], attributes: Mapping[int, str] | None = None) -> str:
    """The key as a file: "1: A" a line; with the questions' attributes, "1: A, grey hair"."""
    about = {} if attributes is None else {number: f", {name}" for number, name in attributes.items()}
    return "".join(f"{number}: {choice}{about.get(number, '')}\n" for number, choice in sorted(key.items()))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is no text in UTF-8; save it as CSV UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _delimiter(text: str) -> str:
    heading = next((line for line in text.splitlines() if line.strip()), "")
    return max(",;\t", key=heading.count)


def _columns(path: Path, heading: list[str], wanted: Sequence[int]) -> dict[int, int]:
    found: dict[int, int] = {}
    for place, name in enumerate(heading):
        matched = _QUESTION.match(name)
        if matched is None:
            continue
        number = int(matched[1])
        if number in found:
            raise DataError(f"{path}, row 1: question {number} has two columns")
        found[number] = place
    missing = [number for number in wanted if number not in found]
    if missing:
        raise DataError(f"{path}, row 1: no column for question {_listed(missing)}, which the key has")
    unknown = sorted(set(found) - set(wanted))
    if unknown:
        raise DataError(f"{path}, row 1: question {_listed(unknown)} is not in the key")
    return found


def _cell(row: list[str], place: int, number: int, where: str) -> str:
    text = row[place].strip() if place < len(row) else ""
    if not text:
        raise DataError(
            f"{where}: the answer to question {number} is missing; take the row out or fill it in"
        )
    return _choice(text, f"{where}, question {number}")


def _choice(text: str, where: str) -> str:
    choice = text.strip().upper()
    if choice not in CHOICES:
        raise DataError(f"{where}: {text.strip()[:40]!r} is neither A nor B")
    return choice


def _key_lines(path: Path) -> Iterable[tuple[int, str, str | None, str]]:
    """Question, choice, attribute, and where that stands."""
    for place, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        matched = _LINE.fullmatch(line)
        if matched is None:
            raise DataError(f"{path}, row {place}: {line.strip()[:40]!r} is no key; write '1: A'")
        yield int(matched[1]), matched[2], matched[3], f"{path}, row {place}"


def _number(name: object) -> int:
    matched = _QUESTION.fullmatch(str(name))
    if matched is None:
        raise DataError(f"the key names {name!r}; questions are numbers, or 'Question 1'")
    return int(matched[1])


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    return shown if len(numbers) <= 5 else f"{shown} and {len(numbers) - 5} more"
