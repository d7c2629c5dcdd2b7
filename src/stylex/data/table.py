"""Images that a table (CSV or Parquet) names, with what it says of them."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from stylex.data.files import DEFAULT, list_files
from stylex.data.listing import Entry, Listing, assign_splits, file_stamp
from stylex.data.options import DataOptions, split_source
from stylex.data.splits import official_splits
from stylex.errors import DataError, reason_of
from stylex.extras import import_extra

_FILE_COLUMNS = ("file", "filename", "path", "image")
_LABEL_COLUMNS = ("label", "class")
_SPLIT_COLUMN = "split"
GROUP_COLUMN = "group"

PARQUET = (".parquet", ".pq")
"""Endings of Parquet files."""


def list_table(
    table: Path,
    *,
    group: str | None = None,
    labelled: bool = True,
    name: str | None = None,
    options: DataOptions = DEFAULT,
) -> Listing:
    """List the images of a CSV with a header row, or of a Parquet file.

    Columns: `file` (or filename, path, image), relative to the table's folder; where they exist, `label` (or
    class) and `split` (training, discovery or val, test); all others are factors, except the one
    called `group`. Rows with equal values in the group column (`group`, or the one that the argument names)
    stay in one set; rows without a value stand alone. The options may name the columns otherwise.

    Raises:
        DataError: an unreadable table, a missing column, a bad row (by number), a file named twice.
    """
    rows = _parquet_rows(table) if table.suffix.lower() in PARQUET else _rows(table)
    columns = tuple(rows[0]) if rows else ()
    named = options.columns
    strange = [value for key, value in named.items() if value not in columns and key != "image"]
    if strange:
        raise DataError(f"{table}: no column is called {strange[0]!r}; there are {', '.join(columns)}")
    group = group or named.get("group")
    split_column = named.get("split", _SPLIT_COLUMN)
    file_column = named.get("file") or _column(table, columns, _FILE_COLUMNS)
    if file_column is None:
        raise DataError(f"{table}: no column says which file a row is about; call one of them 'file'")
    label_column = (named.get("label") or _column(table, columns, _LABEL_COLUMNS)) if labelled else None
    if group is not None and group not in columns:
        raise DataError(f"{table}: no column is called {group!r} to group by; there are {', '.join(columns)}")
    if group is None and GROUP_COLUMN in columns:
        group = GROUP_COLUMN
    _check_rows(table, rows, [c for c in (file_column, label_column) if c is not None])
    names = [row[file_column] for row in rows]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            f"{table}: {twice[0]} is named {names.count(twice[0])} times; keep one row for each file"
        )
    keys = [row[group] or row[file_column] for row in rows] if group is not None else names
    parts = [row[split_column] for row in rows] if split_column in columns else None
    if parts is not None and official_splits(parts, str(table)) is None:
        raise DataError(
            f"{table}: the column {split_column!r} never says training (or train); rename it, or do"
        )
    splits = assign_splits(names, keys, parts, str(table))
    known = {file_column, label_column, split_column, GROUP_COLUMN}
    entries = [
        Entry(
            name=row[file_column],
            split=split,
            stamp=file_stamp(table.parent / row[file_column]),
            label=row[label_column] if label_column is not None else None,
            factors={column: value for column, value in row.items() if column not in known},
        )
        for row, split in zip(rows, splits, strict=True)
    ]
    return list_files(name or table.stem, table.parent, table, entries, options)


def place_of(source: str | Path | None, name: str) -> str:
    """Where an image stands, for messages: `faces/factors.csv, row 12: old/000011.png`, as far as is known.

    Args:
        source: a table, or a folder with a factors.csv.
        name: of the image.
    """
    if source is None:
        return name
    path = Path(split_source(source)[0]).expanduser()
    table = path / "factors.csv" if path.is_dir() else path
    try:
        rows = _parquet_rows(table) if table.suffix.lower() in PARQUET else _rows(table)
    except DataError:
        return f"{source}: {name}"
    row = next((number for number, row in enumerate(rows, start=1) if name in row.values()), None)
    return f"{table}: {name}" if row is None else f"{table}, row {row}: {name}"


def _parquet_rows(table: Path) -> list[Mapping[str, str]]:
    """The rows as text; what is missing is empty."""
    pyarrow = import_extra("pyarrow", str(table), DataError)
    parquet = import_extra("pyarrow.parquet", str(table), DataError)
    try:
        content = parquet.read_table(table).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{table}: not a readable Parquet file: {reason_of(error)}") from error
    if not content:
        raise DataError(f"{table} has no row: name at least one image")
    return [{key: "" if value is None else str(value) for key, value in row.items()} for row in content]


def _rows(table: Path) -> list[Mapping[str, str]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, [])
            if len(set(header)) != len(header):
                raise DataError(f"{table}: two columns have the same name in {', '.join(header)}")
            rows: list[Mapping[str, str]] = []
            for values in reader:
                if not values:
                    continue
                if len(values) != len(header):
                    raise DataError(
                        f"{table}, line {reader.line_num}: {len(values)} values under {len(header)} columns"
                    )
                rows.append(dict(zip(header, values, strict=True)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: not a readable CSV file in UTF-8: {error}") from error
    if not rows:
        raise DataError(f"{table} has no row below its header: name at least one image")
    return rows


def _column(table: Path, columns: Sequence[str], wanted: Sequence[str]) -> str | None:
    found = [column for column in wanted if column in columns]
    if len(found) > 1:
        raise DataError(f"{table}: the columns {' and '.join(found)} mean the same; rename all but one")
    return found[0] if found else None


def _check_rows(table: Path, rows: Sequence[Mapping[str, str]], needed: Sequence[str]) -> None:
    for number, row in enumerate(rows, start=1):
        for column in needed:
            if not row[column]:
                raise DataError(f"{table}, row {number}: nothing stands under {column!r}; fill it in")
