"""Records of CSV and TSV into strict rows, by RFC 4180: a first record of names, quotes only around
whole fields, a quote within them doubled, newlines allowed in quotes. All values are strings.
"""

import csv
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from embedcli.errors import DataError
from embedcli.sources.json_rows import BOM, BadRowError, Line, Row, not_utf8, too_long

csv.field_size_limit(sys.maxsize)  # --max-row-bytes limits records


@cache
def _record(delimiter: str) -> re.Pattern[bytes]:
    """Return what matches a record with its newline; one whose quotes aren't closed doesn't match."""
    mark = re.escape(delimiter)
    one = rf'(?:"(?:[^"]|"")*+"[^{mark}\n]*+|[^"{mark}\n][^{mark}\n]*+|)'
    return re.compile(rf"{one}(?:{mark}{one})*+\n".encode())


def split(content: bytes, delimiter: str, is_end: bool) -> tuple[list[bytes], int]:
    """Cut into records; return them, and how many bytes they are.

    The rest is the beginning of a record; at the end of the file the last one needs no newline.
    """
    if is_end and not content.endswith(b"\n"):
        records, length = split(content + b"\n", delimiter, False)
        if length > len(content):
            records[-1] = records[-1].removesuffix(b"\n")
        return records, min(length, len(content))
    records, start = [], 0
    matches = _record(delimiter)
    while match := matches.match(content, start):
        records.append(match[0])
        start = match.end()
    return records, start


@dataclass(frozen=True)
class Names:
    """The first record of a file: its columns. size: of the record, in bytes, 0 in an empty file."""

    columns: Sequence[str]
    size: int
    content: bytes


def read_names(content: bytes, delimiter: str, name: str) -> Names:
    """Read the columns from the first record of a file's beginning. Raises DataError."""
    records, _ = split(content, delimiter, True)
    if not content.strip():
        return Names((), 0, b"")
    if not records:
        raise DataError(f"{name}:1: a quote isn't closed in the names of the columns")
    try:
        (fields,) = _fields([records[0].removeprefix(BOM)], delimiter)
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise DataError(f"{name}:1: the names of the columns can't be read: {error}") from None
    for number, field in enumerate(fields):
        if not field or field in fields[:number]:
            fault = f"column {number + 1} has no name" if not field else f"two columns {field!r}"
            raise DataError(f"{name}:1: {fault}: the first line must name the columns")
    return Names(fields, len(records[0]), records[0])


def parse_all(records: Sequence[bytes], columns: Sequence[str], delimiter: str) -> list[Row] | None:
    """Parse records; None where one of them is bad: `parse` tells which, and why."""
    try:
        rows = list(_fields(records, delimiter))
    except (UnicodeDecodeError, csv.Error):
        return None
    if len(rows) != len(records) or set(map(len, rows)) - {len(columns)}:
        return None
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _fields(records: Sequence[bytes], delimiter: str) -> Iterator[list[str]]:
    lines = [record.decode().removesuffix("\n").removesuffix("\r") for record in records]
    return csv.reader(lines, delimiter=delimiter, strict=True)


def parse(line: Line, limit: int, columns: Sequence[str], delimiter: str) -> Row:
    """Parse a record. Raises BadRowError."""
    if line.content is None:
        raise too_long(limit)
    try:
        rows = list(_fields([line.content], delimiter))
    except UnicodeDecodeError as error:
        raise not_utf8(line.content[error.start], line.offset + error.start) from None
    except csv.Error as error:
        hint = "a quote in a field is doubled, and the field is quoted"
        raise BadRowError("not-csv", f"not valid CSV: {error}", hint) from None
    if len(rows) != 1 or len(rows[0]) != len(columns):
        count = len(rows[0]) if rows else 0
        raise BadRowError(
            "fields", f"{count} fields, where the first line names {len(columns)} columns"
        )
    return dict(zip(columns, rows[0], strict=True))
