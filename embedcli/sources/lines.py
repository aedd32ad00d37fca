"""Files of lines, which are JSONL, CSV, TSV or plain text, into units of records: a strict reader of
our own, on bytes.

Every bad row is found in the planning pass, before anything is encoded. (pyarrow.json turns date-like
strings into timestamps and long ids into floats, and one bad line ends the file.)
"""

import functools
import hashlib
import io
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedcli.config import InputOptions
from embedcli.errors import DataError
from embedcli.records import Corpus, InputFile, Places, Records, Reject, Segment
from embedcli.sources import csv_rows, json_types
from embedcli.sources.cuts import MAX_WIDTH, NO_CUT, Grain, Rows, hash_texts
from embedcli.sources.identity import changed, combine_digests
from embedcli.sources.json_rows import (
    BOM,
    MISSING,
    BadRowError,
    Line,
    Row,
    lookup,
    not_utf8,
    parse,
    parse_all,
    text_of,
    too_long,
)
from embedcli.sources.scanning import for_children, map_in_order
from embedcli.sources.tables import no_column
from embedcli.sources.units import ScannedRows, UnitBuilder

_MAX_COLUMNS = 1000
_EXCERPT = 200
# What is planned at once, and how much of it is parsed at once.
_RANGE_BYTES = 2**24
_BATCH_BYTES = 2**18


@dataclass
class _Batch:
    """Lines that follow one another, parsed.

    offset: of the first byte; sizes, lines, digests: of each line, or of several empty ones: bytes,
    how many, 8 bytes; rows, texts: of those that give a row; good, bad: the numbers, from 0, of
    those that do and those that don't, blank ones are neither; first: the number of the first line
    as people count; late_marks: lines within the file that start with a byte order mark.
    """

    offset: int
    first: int
    sizes: list[int]
    lines: list[int]
    digests: list[bytes]
    rows: list[Row]
    texts: list[str]
    good: Sequence[int]
    bad: list[int] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    late_marks: int = 0

    def row_digests(self) -> list[bytes]:
        """Return the digests of all lines but blank ones."""
        return [self.digests[index] for index in sorted([*self.good, *self.bad])]

    def numbers(self) -> list[int]:
        """Return the line of each row, from 1."""
        starts = list(itertools.accumulate(self.lines, initial=self.first))
        return [starts[index] for index in self.good]


def _open(file: InputFile) -> io.BufferedReader:
    return io.BufferedReader(io.FileIO(file.path), 2**16)


class _JsonLines:
    """The syntax of JSONL: lines end at \\n and nowhere else."""

    # How many lines at a file's beginning are no rows.
    names = 0
    # Can lines be found from any place of a file on?
    is_splittable = True
    digest = hashlib.blake2b(digest_size=8)

    def __init__(self, file: InputFile, options: InputOptions) -> None:
        self.file = file
        self.options = options

    def read(self, stream: io.BufferedReader, size: int, end: int) -> bytes:
        """Read so many bytes and to the end of their last line, if that is not too long."""
        content = stream.read(size)
        if not content.endswith(b"\n"):
            content += stream.readline(min(self.options.max_row_bytes, end - stream.tell()))
        return content

    def split(self, content: bytes) -> list[bytes]:
        """Cut what `read` gave into lines, without their ends."""
        return content.removesuffix(b"\n").split(b"\n")

    def parse_all(self, lines: Sequence[bytes], content: bytes) -> list[Row] | None:
        """Parse lines, all of `content`; None where one of them is bad."""
        return parse_all(lines, content)

    def parse(self, line: Line) -> Row:
        """Parse a line. Raises BadRowError."""
        return parse(line, self.options.max_row_bytes)

    def lines(self, stream: io.BufferedReader, content: bytes, offset: int, end: int) -> list[Line]:
        """Return the lines of `content` one by one, read again where one may be too long."""
        stream.seek(offset)
        return list(_lines(stream, offset + len(content), end, self.options.max_row_bytes))

    def check(self, lines: Sequence[Line]) -> None:
        """Look at the first lines of a file. Raises DataError where it is of another kind."""
        _refuse_other_shapes(lines, self.file, self.options)


class _TextLines(_JsonLines):
    """The syntax of plain text: a line is a text, and there are no other columns."""

    def parse_all(self, lines: Sequence[bytes], content: bytes) -> list[Row] | None:
        try:
            texts = content.removesuffix(b"\n").decode().split("\n")
        except UnicodeDecodeError:
            return None
        if not all(map(str.strip, texts)):  # blank lines are no rows
            return None
        return [{self.options.text_column: text.removesuffix("\r")} for text in texts]

    def parse(self, line: Line) -> Row:
        if line.content is None:
            raise too_long(self.options.max_row_bytes)
        content = line.content.removesuffix(b"\n").removesuffix(b"\r")
        try:
            return {self.options.text_column: content.removeprefix(BOM).decode()}
        except UnicodeDecodeError as error:
            raise not_utf8(content[error.start], line.offset + error.start) from None

    def check(self, lines: Sequence[Line]) -> None:
        """Any text will do."""


class _Delimited(_JsonLines):
    """The syntax of CSV and TSV: records of fields, which may hold newlines. Where records end is
    known only from the beginning of the file on.
    """

    names = 1
    is_splittable = False
    delimiter = ","

    def __init__(self, file: InputFile, options: InputOptions) -> None:
        super().__init__(file, options)
        with _open(file) as stream:
            content = stream.read(options.max_row_bytes)
        self.header = csv_rows.read_names(content, self.delimiter, file.name)
        # The same fields under other names are other rows.
        self.digest = hashlib.blake2b(self.header.content, digest_size=8)

    def read(self, stream: io.BufferedReader, size: int, end: int) -> bytes:
        start, content = stream.tell(), b""
        while True:
            content += stream.read(min(max(size, len(content)), end - start - len(content)))
            is_end = start + len(content) >= end
            _, length = csv_rows.split(content, self.delimiter, is_end)
            if length:
                stream.seek(start + length)
                return content[:length]
            if is_end or len(content) > self.options.max_row_bytes:
                return b""

    def split(self, content: bytes) -> list[bytes]:
        records, _ = csv_rows.split(content, self.delimiter, True)
        return [record.removesuffix(b"\n") for record in records]

    def parse_all(self, lines: Sequence[bytes], content: bytes) -> list[Row] | None:
        return csv_rows.parse_all(lines, self.header.columns, self.delimiter)

    def parse(self, line: Line) -> Row:
        return csv_rows.parse(line, self.options.max_row_bytes, self.header.columns, self.delimiter)

    def lines(self, stream: io.BufferedReader, content: bytes, offset: int, end: int) -> list[Line]:
        lines = []
        records = self.split(content)
        for record, digest in zip(records, _digests(records, self.digest), strict=True):
            size = min(len(record) + 1, len(content))
            height = 1 + record.count(b"\n")
            is_short = len(record) <= self.options.max_row_bytes
            lines.append(Line(height, offset, size, record if is_short else None, digest))
            offset, content = offset + size, content[size:]
        return lines

    def check(self, lines: Sequence[Line]) -> None:
        columns = self.header.columns
        if columns and self.options.text_column not in columns:
            raise no_column(self.file.name, columns, self.options.text_column, "--text-column")


class _TabDelimited(_Delimited):
    delimiter = "\t"


_SYNTAXES = {"jsonl": _JsonLines, "csv": _Delimited, "tsv": _TabDelimited, "lines": _TextLines}


def _batches(
    file: InputFile, span: "_Span", options: InputOptions, first: int = 1
) -> Iterator[_Batch]:
    """Yield the lines that start in a span, some at a time. Raises DataError where no line ends."""
    syntax = _SYNTAXES[file.format](file, options)
    with _open(file) as stream:
        stream.seek(span.start)
        while (offset := stream.tell()) < span.stop:
            content = syntax.read(stream, min(_BATCH_BYTES, span.stop - offset), span.end)
            if not content:
                if stream.tell() > offset:
                    raise DataError(
                        f"{file.name}:{first}: a quote isn't closed within {options.max_row_bytes} bytes",
                        "--max-row-bytes raises the limit",
                    )
                return
            batch = _parse_quickly(syntax, content, offset, first)
            if batch is None:
                lines = syntax.lines(stream, content, offset, span.end)
                batch = _parse_one_by_one(syntax, lines, first)
            yield batch
            first += sum(batch.lines)


def _parse_quickly(syntax: _JsonLines, content: bytes, offset: int, first: int) -> _Batch | None:
    """Parse lines all at once; None where one of them is not an object with a text."""
    lines = syntax.split(content)
    if max(map(len, lines)) >= syntax.options.max_row_bytes:
        return None
    names = 0 if offset else syntax.names
    rows = syntax.parse_all(lines[names:], content)
    if rows is None:
        return None
    texts = [lookup(row, syntax.options.text_column) for row in rows]
    if set(map(type, texts)) - {str} or (names and not rows):
        return None
    sizes = [len(line) + 1 for line in lines]
    sizes[-1] -= not content.endswith(b"\n")
    return _Batch(
        offset=offset,
        first=first,
        sizes=sizes,
        lines=[1 + line.count(b"\n") for line in lines] if syntax.names else [1] * len(lines),
        digests=_digests(lines, syntax.digest),
        rows=rows,
        texts=texts,
        good=range(names, len(lines)),
    )


def _digests(lines: Sequence[bytes], base: "hashlib.blake2b") -> list[bytes]:
    """Return 8 bytes over each line, after what all of them begin with."""
    digests = []
    for line in lines:
        digest = base.copy()
        digest.update(line)
        digests.append(digest.digest())
    return digests


def _lines(stream: io.BufferedReader, stop: int, end: int, limit: int) -> Iterator[Line]:
    """Yield the lines that start before `stop`; of longer ones than `limit` bytes no content is kept.

    Nothing behind `end` is read: what is appended to a last line without an end belongs to the next
    run.
    """
    while (offset := stream.tell()) < stop:
        content: bytes | None = stream.readline(min(limit + 1, end - offset))
        if not content:
            return
        size, count = len(content), 1
        digest = hashlib.blake2b(content.removesuffix(b"\n"), digest_size=8)
        if size > limit and not content.endswith(b"\n"):
            content = None
            while chunk := stream.readline(min(2**20, end - offset - size)):
                size += len(chunk)
                digest.update(chunk)
                if chunk.endswith(b"\n"):
                    break
        elif content == b"\n":
            # Millions of empty lines are read as a few lines.
            more = _empty_lines(stream, min(2**20, stop - offset - 1))
            content += more
            size += len(more)
            count += len(more)
            digest.update(more)
        yield Line(count, offset, size, content, digest.digest())


def _empty_lines(stream: io.BufferedReader, most: int) -> bytes:
    """Read the empty lines that follow, `most` at most, as far as they are in the buffer."""
    ahead = stream.peek()[:most]
    return stream.read(len(ahead) - len(ahead.lstrip(b"\n")))


def _parse_one_by_one(syntax: _JsonLines, lines: Sequence[Line], first: int) -> _Batch:
    """Parse lines and say what is wrong with those that give no row; the first has a number.

    Raises DataError where the file is of another kind.
    """
    file = syntax.file
    names = 0 if lines[0].offset else syntax.names
    if lines[0].offset == 0:
        syntax.check(lines)
    batch = _Batch(
        offset=lines[0].offset,
        first=first,
        sizes=[line.size for line in lines],
        lines=[line.lines for line in lines],
        digests=[line.digest for line in lines],
        rows=[],
        texts=[],
        good=[],
        late_marks=sum(map(_has_late_mark, lines)),
    )
    good: list[int] = []
    number = first
    for index, line in enumerate(lines):
        content = line.content
        if index >= names and (content is None or content.removeprefix(BOM).strip()):
            row: Row = {}
            try:
                row = syntax.parse(line)
                batch.texts.append(text_of(row, syntax.options.text_column))
                batch.rows.append(row)
                good.append(index)
            except BadRowError as bad:
                excerpt = (content or b"").decode("utf-8", "backslashreplace")[:_EXCERPT]
                batch.rejects.append(
                    Reject(
                        file.name,
                        file.place,
                        number,
                        line.offset,
                        bad.fault,
                        excerpt.rstrip("\r\n"),
                        syntax.options.id_of(row),
                    )
                )
                batch.bad.append(index)
        number += line.lines
    batch.good = good
    return batch


def _has_late_mark(line: Line) -> bool:
    return line.offset > 0 and line.content is not None and line.content.startswith(BOM)


class _Span(NamedTuple):
    """The lines of a file that start in [start, stop); of it nothing behind `end` is read."""

    start: int
    stop: int
    end: int


class _Range(NamedTuple):
    """Lines of a file that are planned together."""

    file: InputFile
    number: int
    span: _Span


def _ranges(file: InputFile, number: int, size: int) -> Iterator[_Range]:
    file = for_children(file)
    step = _RANGE_BYTES if _SYNTAXES[file.format].is_splittable else max(1, size)
    for start in range(0, size, step):
        yield _Range(file, number, _Span(start, min(start + step, size), size))


@dataclass
class _Scanned:
    """What planning learned of a range.

    kinds: what each column holds; fields_seen: the template's columns that some row has; late_marks:
    lines within the file that start with a byte order mark; first_bad: numbered from the range's
    first line.
    """

    rows: ScannedRows
    kinds: dict[str, json_types.Kind]
    fields_seen: set[str]
    late_marks: int
    first_bad: Reject | None


def plan(files: Sequence[InputFile], options: InputOptions, grain: Grain) -> Corpus:
    """Cut files into units and settle one schema, in one pass that parses every row.

    Raises DataError at the first bad row, unless rejects are wanted.
    """
    sizes = [os.stat(file.path).st_size for file in files]
    ranges = [
        scanned_range
        for index, (file, size) in enumerate(zip(files, sizes, strict=True))
        for scanned_range in _ranges(file, index, size)
    ]
    builder = UnitBuilder(grain)
    kinds: dict[str, json_types.Kind] = {}
    fields_seen: set[str] = set()
    late_marks = 0
    scan_range = functools.partial(_scan, options=options)
    with map_in_order(scan_range, ranges, sum(sizes)) as scans:
        for scan in scans:
            if scan.first_bad is not None:
                lines_before = builder.lines_of(scan.rows.file)
                number = lines_before + scan.first_bad.number
                raise replace(scan.first_bad, number=number).as_error()
            builder.add(scan.rows)
            kinds = json_types.join_columns(kinds, scan.kinds)
            _check_width(files[scan.rows.file], kinds)
            fields_seen |= scan.fields_seen
            late_marks += scan.late_marks
    units = builder.units()
    if any(unit.rows for unit in units):
        _check_columns(options, set(kinds), fields_seen, ranges)
    schema, json_columns, notes = json_types.schema_of(kinds)
    if late_marks:
        notes += (
            f"{late_marks} lines start with a byte order mark (files joined by cat?): the mark was dropped",
        )
    digest = combine_digests(unit.digest for unit in units)
    return Corpus(tuple(files), units, schema, json_columns, notes, digest)


def _scan(scanned: _Range, options: InputOptions) -> _Scanned:
    """Parse the lines of a range and forget them: only what decides over units and columns stays.

    Raises DataError where the file isn't one object a line at all.
    """
    span = scanned.span._replace(start=_start_of_line(scanned.file, scanned.span.start))
    columns = _LineColumns()
    kinds: dict[str, json_types.Kind] = {}
    fields_seen: set[str] = set()
    late_marks = 0
    first_bad: Reject | None = None
    for batch in _batches(scanned.file, span, options):
        if batch.rejects and options.on_error == "fail":
            first_bad = batch.rejects[0]
            break
        names = _names(batch.rows, options)
        kinds = json_types.join_columns(kinds, _kinds(batch.rows, names))
        _check_width(scanned.file, kinds)
        fields_seen |= {name for name in options.fields if _seen(batch.rows, name)}
        late_marks += batch.late_marks
        columns.add(batch)
    rows = columns.scanned(scanned.number, span.start)
    return _Scanned(rows, kinds, fields_seen, late_marks, first_bad)


def _start_of_line(file: InputFile, offset: int) -> int:
    """Return where the first line starts that doesn't start before an offset."""
    if not offset:
        return 0
    with open(file.path, "rb") as stream:
        stream.seek(offset - 1)
        while (rest := stream.readline(2**20)) and not rest.endswith(b"\n"):
            pass
        return stream.tell()


class _LineColumns:
    """What decides over the cuts, line by line, in arrays: a list of tuples would take ten times as
    much.
    """

    def __init__(self) -> None:
        self._stops: list[npt.NDArray[np.int64]] = []
        self._hashes: list[npt.NDArray[np.uint32]] = []
        self._sizes: list[npt.NDArray[np.int64]] = []
        self._are_rows: list[npt.NDArray[np.bool_]] = []
        self._counts: list[npt.NDArray[np.int64]] = []
        self._digests: list[bytes] = []

    def add(self, batch: _Batch) -> None:
        """Take some lines, parsed."""
        contents = [text.encode() for text in batch.texts]
        good = list(batch.good)
        hashes = np.full(len(batch.sizes), NO_CUT, np.uint32)
        hashes[good] = hash_texts(contents)
        line_sizes = np.array(batch.sizes, np.int64)
        # A row counts with its text, and one with wide other columns with a share of all.
        are_rows = np.zeros(len(hashes), np.bool_)
        are_rows[good + batch.bad] = True
        sizes = np.where(are_rows, line_sizes // MAX_WIDTH, 0)
        sizes[good] = np.maximum(sizes[good], np.fromiter(map(len, contents), np.int64))
        self._stops.append(batch.offset + np.cumsum(line_sizes))
        self._hashes.append(hashes)
        self._sizes.append(sizes)
        self._are_rows.append(are_rows)
        self._counts.append(np.array(batch.lines, np.int64))
        self._digests += batch.digests

    def scanned(self, file: int, start: int) -> ScannedRows:
        """Return all of it; the first line starts at an offset."""
        return ScannedRows(
            file=file,
            start=start,
            stops=_joined(self._stops, np.int64),
            cutting=Rows(
                hashes=_joined(self._hashes, np.uint32),
                sizes=_joined(self._sizes, np.int64),
                are_rows=_joined(self._are_rows, np.bool_),
            ),
            lines=_joined(self._counts, np.int64),
            digests=b"".join(self._digests),
        )


def _joined(arrays: Sequence[npt.NDArray[Any]], dtype: type) -> npt.NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype)


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
            number = 1 + sum(before.lines for before in lines[: lines.index(line)])
            reason = f"{file.name}:{number}: {bad.fault.reason}"
            raise DataError(f"{reason}: the file isn't one JSON object a line", _CONVERT) from None


_CONVERT = "--input-format csv, tsv or lines reads files of other names as such"
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


def _check_width(file: InputFile, kinds: Mapping[str, json_types.Kind]) -> None:
    if len(kinds) > _MAX_COLUMNS:
        raise DataError(
            f"{file.name}: more than {_MAX_COLUMNS} columns", "choose some: --columns id,title"
        )


def _check_columns(
    options: InputOptions, carried: set[str], fields_seen: set[str], ranges: Sequence[_Range]
) -> None:
    """See that some row has each column asked for. Raises DataError that lists those of the first rows."""
    requests = (
        ("--columns", options.columns or (), carried),
        ("the template", options.fields, fields_seen),
    )
    for option, names, seen in requests:
        for name in names:
            if name not in seen:
                columns = _first_columns(ranges, options)
                close = get_close_matches(name, columns, 1)
                raise DataError(
                    f"no row has the column {name!r} that {option} names "
                    f"(columns: {', '.join(columns)})",
                    f"did you mean {close[0]!r}?" if close else "",
                )


def _first_columns(ranges: Sequence[_Range], options: InputOptions) -> list[str]:
    """Return the columns of the first rows."""
    for scanned in ranges:
        for batch in _batches(scanned.file, scanned.span, replace(options, on_error="reject")):
            if batch.rows:
                return _names(batch.rows, replace(options, columns=None))
    return []


def _names(rows: Sequence[Row], options: InputOptions) -> list[str]:
    """Return the columns that are to be carried of some rows, in the order of their first row."""
    names = dict.fromkeys(itertools.chain.from_iterable(rows))
    if options.columns is not None:
        return [name for name in options.columns if name in names]
    return list(names)


def _kinds(rows: Sequence[Row], names: Sequence[str]) -> dict[str, json_types.Kind]:
    """Return what each column holds in some rows."""
    return {name: json_types.kind_of([row.get(name) for row in rows]) for name in names}


def _seen(rows: Sequence[Row], name: str) -> bool:
    return any(lookup(row, name) is not MISSING for row in rows)


def open_reader() -> Callable[[Corpus, Segment, InputOptions], Records]:
    """Return a function that reads a segment's records again, as the plan's schema wants them."""
    return _read


def _read(corpus: Corpus, segment: Segment, options: InputOptions) -> Records:
    file = corpus.files[segment.file]
    span = _Span(segment.start, segment.stop, segment.stop)
    try:
        batches = list(_batches(file, span, options, segment.first))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise changed(file, "it is gone") from None
    chain = itertools.chain.from_iterable
    rows = list(chain(batch.rows for batch in batches))
    arrays = []
    for column in corpus.schema:
        values = [row.get(column.name) for row in rows]
        as_json = column.name in corpus.json_columns
        arrays.append(json_types.to_arrow(values, column.type, as_json))
    return Records(
        table=_table(arrays, corpus.schema, len(rows)),
        texts=list(chain(batch.texts for batch in batches)),
        fields={name: _field_values(rows, name) for name in options.fields},
        places=Places.of(segment.file, [number for batch in batches for number in batch.numbers()]),
        rejects=list(chain(batch.rejects for batch in batches)),
        digests=b"".join(chain(batch.row_digests() for batch in batches)),
    )


def _field_values(rows: Sequence[Row], name: str) -> list[Any]:
    """Return a template field's value in each row; None where the row lacks it."""
    values = [lookup(row, name) for row in rows]
    return [None if value is MISSING else value for value in values]


def _table(arrays: list[pa.Array], schema: pa.Schema, rows: int) -> pa.Table:
    if arrays:
        return pa.table(arrays, schema=schema)
    # A table of no columns keeps its number of rows only where it had a column before.
    return pa.table({"": pa.nulls(rows)}).select([])
