"""JSONL into units of records: a strict reader of our own, on bytes.

Lines end at \\n and nowhere else; every bad row is found in the planning pass, before anything is
encoded. (pyarrow.json turns date-like strings into timestamps and long ids into floats, and one bad
line ends the file.)
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import pyarrow as pa

from embedcli.config import InputOptions
from embedcli.errors import DataError
from embedcli.records import Corpus, InputFile, Records, Reject, Unit, stop_at_first
from embedcli.sources import json_types as columns
from embedcli.sources.identity import changed, combine_digests
from embedcli.sources.json_rows import BOM, MISSING, BadRowError, Line, Row, lookup, parse, text_of
from embedcli.sources.sizes import MAX_UNIT_ROWS

_MAX_COLUMNS = 1000
_EXCERPT = 200


def _lines(
    stream: BinaryIO, start: int, stop: int | None, first: int, limit: int
) -> Iterator[Line]:
    """The lines in [start, stop). A line over `limit` bytes is passed over in bounded memory.

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
        yield Line(number, offset, offset + size, content, digest)
        offset += size
        number += 1


def _at_most(limit: int, offset: int, stop: int | None) -> int:
    return limit if stop is None else min(limit, stop - offset)


def _digest(lines: Iterable[Line]) -> str:
    """Of the bytes of some lines; 32 hex digits."""
    hashing = hashlib.blake2b(digest_size=16)
    for line in lines:
        hashing.update(line.digest if line.content is None else line.content)
    return hashing.hexdigest()


def _units_of_lines(stream: BinaryIO, unit_bytes: int, limit: int) -> Iterator[list[Line]]:
    """Lines in groups: a group ends where a line starts beyond the next multiple of `unit_bytes`,
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
            excerpt = (
                (line.content or b"").decode("utf-8", "backslashreplace")[:_EXCERPT].rstrip("\r\n")
            )
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
    units: list[Unit] = []
    kinds: dict[str, columns.Kind] = {}
    fields_seen: set[str] = set()
    late_marks = 0
    for index, file in enumerate(files):
        with open(file.path, "rb", buffering=2**20) as stream:
            for lines in _units_of_lines(stream, unit_bytes, options.max_row_bytes):
                if lines[0].offset == 0:
                    _refuse_other_shapes(lines, file, options)
                parsed = _parse_lines(lines, file, options)
                stop_at_first(parsed.rejects, options.on_error)
                kinds = columns.join_columns(kinds, _kinds(parsed.rows, options))
                if len(kinds) > _MAX_COLUMNS:
                    raise DataError(
                        f"{file.name}: more than {_MAX_COLUMNS} columns",
                        "choose some: --columns id,title",
                    )
                fields_seen |= {name for name in options.fields if _seen(parsed.rows, name)}
                late_marks += sum(
                    line.offset > 0 and (line.content or b"").startswith(BOM) for line in lines
                )
                rows = len(parsed.rows) + len(parsed.rejects)
                units.append(
                    Unit(
                        index,
                        lines[0].offset,
                        lines[-1].stop,
                        lines[0].number,
                        rows,
                        _digest(lines),
                    )
                )
    _check_columns(kinds, fields_seen, options, rows=sum(unit.rows for unit in units))
    schema, json_columns, notes = columns.schema_of(kinds)
    if late_marks:
        notes += (
            f"{late_marks} lines start with a byte order mark (files joined by cat?): the mark was dropped",
        )
    digest = combine_digests(unit.digest for unit in units)
    return Corpus(tuple(files), tuple(units), schema, json_columns, notes, digest)


def _kinds(rows: Sequence[Row], options: InputOptions) -> dict[str, columns.Kind]:
    names = dict.fromkeys(name for row in rows for name in row)
    shown_columns = (
        names if options.columns is None else [name for name in options.columns if name in names]
    )
    return {name: columns.kind_of([row.get(name) for row in rows]) for name in shown_columns}


def _seen(rows: Sequence[Row], name: str) -> bool:
    return any(lookup(row, name) is not MISSING for row in rows)


def _check_columns(
    kinds: dict[str, columns.Kind], fields: set[str], options: InputOptions, rows: int
) -> None:
    if not rows:
        return
    for wanted, found, option in (
        (options.columns or (), set(kinds), "--columns"),
        (options.fields, fields, "the template"),
    ):
        for name in wanted:
            if name not in found:
                raise DataError(f"no row has the column {name!r} that {option} names")


def open_reader() -> Callable[[Corpus, Unit, InputOptions], Records]:
    """A function that reads a unit's records again, as the plan's schema wants them."""
    return _read


def _read(corpus: Corpus, unit: Unit, options: InputOptions) -> Records:
    file = corpus.files[unit.file]
    try:
        with open(file.path, "rb", buffering=2**20) as stream:
            lines = list(_lines(stream, unit.start, unit.stop, unit.first, options.max_row_bytes))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise changed(file, "it is gone") from None
    if _digest(lines) != unit.digest:
        raise changed(file, f"from line {unit.first}")
    parsed = _parse_lines(lines, file, options)
    arrays = [
        columns.to_arrow(
            [row.get(column.name) for row in parsed.rows],
            column.type,
            column.name in corpus.json_columns,
        )
        for column in corpus.schema
    ]
    values = {name: [lookup(row, name) for row in parsed.rows] for name in options.fields}
    fields = {
        name: [None if value is MISSING else value for value in column]
        for name, column in values.items()
    }
    return Records(
        _table(arrays, corpus.schema, len(parsed.rows)),
        parsed.texts,
        fields,
        parsed.places,
        parsed.rejects,
    )


def _table(arrays: list[pa.Array], schema: pa.Schema, rows: int) -> pa.Table:
    if arrays:
        return pa.table(arrays, schema=schema)
    return pa.table({"": pa.nulls(rows)}).select(
        []
    )  # a table of no columns keeps its number of rows
