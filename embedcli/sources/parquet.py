"""Parquet into units of records: row ranges of one schema, read forwards, page checksums verified."""

import bisect
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from embedcli.config import InputOptions
from embedcli.errors import DataError
from embedcli.files import open_parquet, parquet_footer, unreadable_parquet
from embedcli.records import Corpus, InputFile, Records, Segment, Unit
from embedcli.sources.cuts import Grain
from embedcli.sources.identity import PlannedFile, check_listed, combine_digests, path_of
from embedcli.sources.parquet_sizes import Decoding, decoding_of, is_inside
from embedcli.sources.scanning import for_children, map_in_order
from embedcli.sources.tables import (
    TableRows,
    carried_schema,
    check_same_schema,
    columns_to_read,
    names_in_utf8,
    records_of,
)
from embedcli.sources.units import ScannedRows, UnitBuilder

_BATCH_ROWS = 4096
_READ_BYTES = 2**20
# Row groups are planned together up to this many bytes.
_RANGE_BYTES = 2**25


@dataclass(frozen=True)
class _Range:
    """Row groups [start, stop) of a file, all of them where `stop` is None; `first` is its first row."""

    file: InputFile
    index: int
    start: int = 0
    stop: int | None = None
    first: int = 0


@dataclass
class _Scanned:
    """What planning learned of a range: its rows, its carried columns, and the digests of its row
    groups and, with the first, of the footer.
    """

    rows: ScannedRows
    schema: pa.Schema
    digests: list[str]


def plan(files: Sequence[InputFile], options: InputOptions, grain: Grain) -> Corpus:
    """Cut files into units, in one pass that decodes their texts.

    Raises DataError where a file is damaged or encrypted, the text column is missing or of another
    type, or the files' schemas differ.
    """
    ranges = list(itertools.chain.from_iterable(map(_ranges, files, itertools.count())))
    total = sum(os.stat(file.path).st_size for file in files)
    builder = UnitBuilder(grain)
    schema: pa.Schema | None = None
    digests: list[list[str]] = [[] for _ in files]
    with map_in_order(functools.partial(_scan, options=options), ranges, total) as scans:
        for scanned in scans:
            index = scanned.rows.file
            if schema is not None:
                check_same_schema(files[0], schema, files[index], scanned.schema)
            schema = scanned.schema
            digests[index] += scanned.digests
            builder.add(scanned.rows)
    planned = [
        replace(file, digest=combine_digests(parts))
        for file, parts in zip(files, digests, strict=True)
    ]
    digest = combine_digests(file.digest for file in planned)
    return Corpus(tuple(planned), builder.units(), schema, digest=digest)


def _ranges(file: InputFile, index: int) -> Iterator[_Range]:
    """Yield the row groups of a file, some at a time. Raises DataError."""
    file = for_children(file)
    if os.stat(file.path).st_size <= _RANGE_BYTES:
        yield _Range(file, index)
        return
    with open(file.path, "rb", buffering=0) as stream, _open(file, stream.fileno()) as opened:
        metadata = opened.metadata
        start = first = size = rows = 0
        for group in range(metadata.num_row_groups):
            size += metadata.row_group(group).total_byte_size
            rows += metadata.row_group(group).num_rows
            if size >= _RANGE_BYTES:
                yield _Range(file, index, start, group + 1, first)
                start, first, size = group + 1, rows, 0
        if start < metadata.num_row_groups or not start:
            yield _Range(file, index, start, metadata.num_row_groups, first)


def _scan(scanned: _Range, options: InputOptions) -> _Scanned:
    """Decode the texts of a range, and forget them. Raises DataError, InputChangedError."""
    file = scanned.file
    with (
        names_in_utf8(file),
        open(file.path, "rb", buffering=0) as stream,
        _open(file, stream.fileno()) as opened,
    ):
        metadata = opened.metadata
        if not scanned.start:
            _check_counts(file, metadata)
        schema = carried_schema(file, opened.schema_arrow, options)
        columns = columns_to_read(schema, options)
        _read_first_row(file, opened, columns)
        stop = metadata.num_row_groups if scanned.stop is None else scanned.stop
        rows = TableRows(options.text_column)
        digests = [] if scanned.start else [_footer_digest(stream.fileno())]
        for group in range(scanned.start, stop):
            path = path_of(stream.fileno(), file)
            decoding = decoding_of(file, path, metadata.row_group(group), group, columns, options)
            for batch in _decode(file, opened, group, decoding):
                rows.add(batch, decoding.row_bytes)
            digests.append(_group_digest(stream.fileno(), metadata, group, columns))
        check_listed(file, stream.fileno())
    return _Scanned(rows.scanned(scanned.index, scanned.first), schema, digests)


def _decode(
    file: InputFile, opened: pq.ParquetFile, group: int, decoding: Decoding
) -> Iterator[pa.RecordBatch]:
    try:
        yield from opened.iter_batches(
            decoding.batch_rows,
            row_groups=[group],
            columns=list(decoding.columns),
            use_threads=False,
        )
    except (pa.ArrowException, OSError, ValueError) as error:
        raise unreadable_parquet(file.name, error) from None


def _open(file: InputFile, descriptor: int) -> pq.ParquetFile:
    return open_parquet(path_of(descriptor, file), file.name)


def _footer_digest(descriptor: int) -> str:
    """Return 32 hex digits over the footer, or over the whole file where there is none."""
    whole = (0, os.fstat(descriptor).st_size)
    return _digest_spans(descriptor, [parquet_footer(descriptor) or whole])


def _group_digest(
    descriptor: int, metadata: pq.FileMetaData, group: int, columns: Sequence[str]
) -> str:
    """Return 32 hex digits over the bytes of the columns that are read of a row group."""
    return _digest_spans(descriptor, _spans(metadata, group, columns))


def _digest_spans(descriptor: int, spans: Iterable[tuple[int, int]]) -> str:
    hashing = hashlib.blake2b(digest_size=16)
    size = os.fstat(descriptor).st_size
    for start, length in spans:
        offset, stop = max(0, start), min(size, start + length)
        while offset < stop:
            content = os.pread(descriptor, min(_READ_BYTES, stop - offset), offset)
            if not content:
                break
            hashing.update(content)
            offset += len(content)
    return hashing.hexdigest()


def _planned_digest(file: InputFile, descriptor: int, columns: Sequence[str]) -> str:
    """Return what the plan records of a file."""
    with _open(file, descriptor) as opened:
        groups = range(opened.metadata.num_row_groups)
        digests = [_group_digest(descriptor, opened.metadata, group, columns) for group in groups]
    return combine_digests([_footer_digest(descriptor), *digests])


def _spans(
    metadata: pq.FileMetaData, group: int, columns: Sequence[str]
) -> Iterator[tuple[int, int]]:
    """Yield where the chunks of some columns, or of what is inside them, lie in a file: offsets and
    lengths.
    """
    for index in range(metadata.num_columns):
        chunk = metadata.row_group(group).column(index)
        if not is_inside(chunk.path_in_schema, columns):
            continue
        # A chunk begins with its dictionary page, where it has one.
        start = chunk.data_page_offset
        if chunk.has_dictionary_page and chunk.dictionary_page_offset:
            start = min(start, chunk.dictionary_page_offset)
        yield start, max(0, chunk.total_compressed_size)


def _check_counts(file: InputFile, metadata: pq.FileMetaData) -> None:
    rows = sum(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
    if rows != metadata.num_rows:
        raise DataError(
            f"{file.name}: the footer counts {metadata.num_rows} rows, its row groups hold {rows}"
        )


def _read_first_row(file: InputFile, opened: pq.ParquetFile, columns: list[str]) -> None:
    """Read one row: asking an encrypted column for its sizes would end the process, reading it is
    an error.
    """
    try:
        next(opened.iter_batches(1, columns=columns, use_threads=False), None)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise unreadable_parquet(file.name, error) from None


def open_reader() -> Callable[[Corpus, Segment, InputOptions], Records]:
    """Return a function that reads segments; those that follow one another continue where the last
    one ended.
    """
    cursor: _Cursor | None = None
    batch_rows: dict[int, int] | None = None

    def read(corpus: Corpus, segment: Segment, options: InputOptions) -> Records:
        nonlocal cursor, batch_rows
        file = corpus.files[segment.file]
        if batch_rows is None:
            batch_rows = _batch_rows(corpus.units)
        if cursor is None or cursor.file != file or cursor.row > segment.start:
            columns = columns_to_read(corpus.schema, options)
            cursor = _Cursor(file, columns, batch_rows.get(segment.file, _BATCH_ROWS))
        with cursor.planned.checked():
            table = cursor.read(segment.start, segment.stop)
        return records_of(table, file, segment, corpus.schema, options)

    return read


def _batch_rows(units: Sequence[Unit]) -> dict[int, int]:
    """Return, for each file, how many rows are decoded at once: no more than its smallest unit has.

    Units are small where rows are long. The last unit of a file is small because the file ends.
    """
    rows: dict[int, int] = {}
    segments = [segment for unit in units for segment in unit.segments]
    for segment, following in itertools.pairwise(segments):
        if following.file == segment.file:
            smallest = rows.get(segment.file, _BATCH_ROWS)
            rows[segment.file] = min(smallest, segment.rows)
    return rows


class _Cursor:
    """Reads row ranges of one file forwards; row groups in between are jumped over, rows in between
    passed over.
    """

    def __init__(self, file: InputFile, columns: list[str], batch_rows: int) -> None:
        self.file = file
        self.row = 0
        self._columns = columns
        self._batch_rows = batch_rows
        self.planned = PlannedFile(
            file, lambda descriptor: _planned_digest(file, descriptor, columns)
        )
        self._opened = _open(file, self.planned.descriptor)
        metadata = self._opened.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        # The first row of each row group.
        self._starts = list(itertools.accumulate(sizes, initial=0))[:-1]
        self._batches: Iterator[pa.RecordBatch] | None = None
        # What was read of a batch beyond the last range.
        self._rest: pa.RecordBatch | None = None

    def read(self, start: int, stop: int) -> pa.Table:
        """Return the rows [start, stop) as a table, fewer where the file ends early. Raises DataError."""
        group = max(0, bisect.bisect_right(self._starts, start) - 1)
        if self._batches is None or self._starts[group] > self.row:
            self._batches = self._batches_from(group)
            self._rest = None
            self.row = self._starts[group]
        batches: list[pa.RecordBatch] = []
        while self.row < stop:
            batch = self._rest if self._rest is not None else self._next()
            if batch is None:
                break
            skipped = max(0, start - self.row)
            used = min(len(batch), stop - self.row)
            if used > skipped:
                batches.append(batch.slice(skipped, used - skipped))
            self._rest = batch.slice(used) if used < len(batch) else None
            self.row += used
        return (
            pa.Table.from_batches(batches) if batches else self._opened.schema_arrow.empty_table()
        )

    def _batches_from(self, group: int) -> Iterator[pa.RecordBatch]:
        groups = list(range(group, self._opened.metadata.num_row_groups))
        batches: Iterator[pa.RecordBatch] = self._opened.iter_batches(
            self._batch_rows, row_groups=groups, columns=self._columns, use_threads=False
        )
        return batches

    def _next(self) -> pa.RecordBatch | None:
        assert self._batches is not None
        try:
            return next(self._batches, None)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise unreadable_parquet(self.file.name, error) from None
