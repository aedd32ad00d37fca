"""JSONL into units of records: a strict reader of our own, on bytes.

Lines end at \\n and nowhere else; every bad row is found in the planning pass, before anything is
encoded. (pyarrow.json turns date-like strings into timestamps and long ids into floats, and one bad
line ends the file.)
"""

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from embedcli.config import InputOptions
from embedcli.errors import DataError
from embedcli.records import Corpus, InputFile, Records, Reject, Unit, stop_at_first
from embedcli.sources import json_types
from embedcli.sources.identity import changed, combine_digests
from embedcli.sources.json_rows import BOM, MISSING, BadRowError, Line, Row, lookup, parse, text_of
from embedcli.sources.sizes import MAX_UNIT_ROWS

_MAX_COLUMNS = 1000
_EXCERPT = 200


def _open(file: InputFile) -> io.BufferedReader:
    return io.BufferedReader(io.FileIO(file.path), 2**20)


def _lines(
    stream: io.BufferedReader, start: int, stop: int | None, first: int, limit: int
) -> Iterator[Line]:
    """Yield the lines in [start, stop). A line over `limit` bytes is passed over in bounded memory.

    Nothing behind `stop` is read: what is appended to a last line without an end belongs to the
    next run.
    """
    stream.seek(start)
    offset, number = start, first
    while stop is None or offset < stop:
        content: bytes | None = stream.readline(_at_most(limit + 1, offset, stop))
        if not content:
            return
        size, ends = len(content), content.endswith(b"\n")
        digest = b""
        if size > limit and not ends:
            hashing, content = hashlib.blake2b(content, digest_size=16), None
            while chunk := stream.readline(_at_most(2**20, offset + size, stop)):
                size += len(chunk)
                hashing.update(chunk)
                if chunk.endswith(b"\n"):
                    break
            digest = hashing.digest()
        count = 1
        if content == b"\n":
            # Millions of empty lines are read as a few lines.
            more = _empty_lines(stream, _at_most(2**20, offset + size, stop))
            content += more
            size += len(more)
            count += len(more)
        yield Line(number, offset, offset + size, content, digest)
        offset += size
        number += count


def _empty_lines(stream: io.BufferedReader, most: int) -> bytes:
    """Read the empty lines that follow, `most` at most, as far as they are in the buffer."""
    ahead = stream.peek()[:most]
    return stream.read(len(ahead) - len(ahead.lstrip(b"\n")))


def _at_most(limit: int, offset: int, stop: int | None) -> int:
    return limit if stop is None else min(limit, stop - offset)


def _digest(lines: Iterable[Line]) -> str:
    """Return 32 hex digits over the bytes of some lines."""
    hashing = hashlib.blake2b(digest_size=16)
    for line in lines:
        hashing.update(line.digest if line.content is None else line.content)
    return hashing.hexdigest()


def _units_of_lines(stream: io.BufferedReader, unit_bytes: int, limit: int) -> Iterator[list[Line]]:
    """Yield lines in groups: a group ends where a line starts beyond the next multiple of `unit_bytes`,
    or is full.
    """
    group: list[Line] = []
    for line in _lines(stream, 0, None, 1, limit):
        if group and (
            line.offset // unit_bytes > group[0].offset // unit_bytes or len(group) == MAX_UNIT_ROWS
        ):
            yield group
            group = []
        group.append(line)
    if group:
        yield group


@dataclass
class _Parsed:
    rows: list[Row] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)


def _parse_lines(lines: Iterable[Line], file: InputFile, options: InputOptions) -> _Parsed:
    parsed = _Parsed()
    for line in lines:
        if line.content is not None and not line.content.removeprefix(BOM).strip():
            continue
        try:
            row = parse(line, options.max_row_bytes)
            text = text_of(row, options.text_column)
        except BadRowError as bad:
            content = (line.content or b"").decode("utf-8", "backslashreplace")
            excerpt = content[:_EXCERPT].rstrip("\r\n")
            parsed.rejects.append(
                Reject(file.name, file.place, line.number, line.offset, bad.fault, excerpt)
            )
        else:
            parsed.rows.append(row)
            parsed.texts.append(text)
            parsed.places.append(line.number)
    return parsed


def _refuse_other_shapes(lines: Sequence[Line], file: InputFile, options: InputOptions) -> None:
    """Say plainly what is wrong with a file as a whole, rather than with its first line."""
    limit = options.max_row_bytes
    line = next(
        (line for line in lines if line.content and line.content.removeprefix(BOM).strip()), None
    )
    if line is None or line.content is None:
        return
    content = line.content.removeprefix(BOM).strip()
    try:
        parse(line, limit)
    except BadRowError as bad:
        for shape, looks_so, hint in _SHAPES:
            if looks_so(content, bad.fault.code):
                raise DataError(f"{file.name}: {shape}, not one JSON object a line", hint) from None
        if options.on_error == "fail" and bad.fault.code == "not-json" and content[:1] != b"{":
            # Every line is likely to be so: to set them all aside helps nobody.
            reason = f"{file.name}:{line.number}: {bad.fault.reason}"
            raise DataError(f"{reason}: the file isn't one JSON object a line", _CONVERT) from None


_CONVERT = "lines of text: jq -cR '{text: .}' FILE; CSV: duckdb -c \"copy (from 'FILE.csv') to 'FILE.parquet'\""
_SHAPES: tuple[tuple[str, Callable[[bytes, str], bool], str], ...] = (
    (
        "a JSON array",
        lambda content, code: content[:1] == b"[" and (code != "not-object" or b"{" in content),
        "convert it: jq -c '.[]'",
    ),
    (
        "pretty-printed JSON",
        lambda content, code: code == "not-json" and content[:1] == b"{" and content[-1:] in b"{[,",
        "convert it: jq -c .",
    ),
    (
        "lines that end in a lone CR",
        lambda content, code: code == "not-json" and re.search(rb"}\s*\r\s*{", content) is not None,
        "convert it: tr '\\r' '\\n'",
    ),
)


def plan(files: Sequence[InputFile], options: InputOptions, unit_bytes: int) -> Corpus:
    """Cut files into units and settle one schema, in one pass that parses every row.

    Raises DataError at the first bad row, unless rejects are wanted.
    """
    scan = _Scan(options)
    for index, file in enumerate(files):
        with _open(file) as stream:
            for lines in _units_of_lines(stream, unit_bytes, options.max_row_bytes):
                scan.add_unit(index, file, lines)
    scan.check_columns()
    schema, json_columns, notes = json_types.schema_of(scan.kinds)
    if scan.late_marks:
        notes += (
            f"{scan.late_marks} lines start with a byte order mark (files joined by cat?): the mark was dropped",
        )
    digest = combine_digests(unit.digest for unit in scan.units)
    return Corpus(tuple(files), tuple(scan.units), schema, json_columns, notes, digest)


class _Scan:
    """What the planning pass has learned so far.

    kinds: what each column holds; fields_seen: the template's columns that some row has;
    late_marks: lines within a file that start with a byte order mark.
    """

    def __init__(self, options: InputOptions) -> None:
        self._options = options
        self.units: list[Unit] = []
        self.kinds: dict[str, json_types.Kind] = {}
        self.fields_seen: set[str] = set()
        self.late_marks = 0

    def add_unit(self, index: int, file: InputFile, lines: list[Line]) -> None:
        """Parse the lines of a unit and forget them: only counts and kinds stay.

        Raises DataError.
        """
        options = self._options
        start, stop = lines[0], lines[-1]
        if start.offset == 0:
            _refuse_other_shapes(lines, file, options)
        parsed = _parse_lines(lines, file, options)
        stop_at_first(parsed.rejects, options.on_error)
        names = _names(parsed.rows, options)
        if len(self.kinds.keys() | names) > _MAX_COLUMNS:
            raise DataError(
                f"{file.name}: more than {_MAX_COLUMNS} columns", "choose some: --columns id,title"
            )
        self.kinds = json_types.join_columns(self.kinds, _kinds(parsed.rows, names))
        self.fields_seen |= {name for name in options.fields if _seen(parsed.rows, name)}
        self.late_marks += sum(_has_late_mark(line) for line in lines)
        rows = len(parsed.rows) + len(parsed.rejects)
        self.units.append(Unit(index, start.offset, stop.stop, start.number, rows, _digest(lines)))

    def check_columns(self) -> None:
        """See that some row has each column asked for. Raises DataError."""
        if not any(unit.rows for unit in self.units):
            return
        options = self._options
        requests = (
            ("--columns", options.columns or (), set(self.kinds)),
            ("the template", options.fields, self.fields_seen),
        )
        for option, names, names_seen in requests:
            for name in names:
                if name not in names_seen:
                    raise DataError(f"no row has the column {name!r} that {option} names")


def _has_late_mark(line: Line) -> bool:
    return line.offset > 0 and line.content is not None and line.content.startswith(BOM)


def _names(rows: Sequence[Row], options: InputOptions) -> list[str]:
    """Return the columns that are to be carried of some rows, in the order of their first row."""
    names = dict.fromkeys(name for row in rows for name in row)
    if options.columns is not None:
        return [name for name in options.columns if name in names]
    return list(names)


def _kinds(rows: Sequence[Row], names: Sequence[str]) -> dict[str, json_types.Kind]:
    """Return what each column holds in some rows."""
    return {name: json_types.kind_of([row.get(name) for row in rows]) for name in names}


def _seen(rows: Sequence[Row], name: str) -> bool:
    return any(lookup(row, name) is not MISSING for row in rows)


def open_reader() -> Callable[[Corpus, Unit, InputOptions], Records]:
    """Return a function that reads a unit's records again, as the plan's schema wants them."""
    return _read


def _read(corpus: Corpus, unit: Unit, options: InputOptions) -> Records:
    file = corpus.files[unit.file]
    try:
        with _open(file) as stream:
            lines = list(_lines(stream, unit.start, unit.stop, unit.first, options.max_row_bytes))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise changed(file, "it is gone") from None
    if _digest(lines) != unit.digest:
        raise changed(file, f"from line {unit.first}")
    parsed = _parse_lines(lines, file, options)
    arrays = []
    for column in corpus.schema:
        values = [row.get(column.name) for row in parsed.rows]
        as_json = column.name in corpus.json_columns
        arrays.append(json_types.to_arrow(values, column.type, as_json))
    table = _table(arrays, corpus.schema, len(parsed.rows))
    fields = {name: _field_values(parsed.rows, name) for name in options.fields}
    return Records(table, parsed.texts, fields, parsed.places, parsed.rejects)


def _field_values(rows: Sequence[Row], name: str) -> list[Any]:
    """Return a template field's value in each row; None where the row lacks it."""
    values = [lookup(row, name) for row in rows]
    return [None if value is MISSING else value for value in values]


def _table(arrays: list[pa.Array], schema: pa.Schema, rows: int) -> pa.Table:
    if arrays:
        return pa.table(arrays, schema=schema)
    # A table of no columns keeps its number of rows only where it had a column before.
    return pa.table({"": pa.nulls(rows)}).select([])
