"""Parquet into units of records: row ranges of one schema, read forwards, page checksums verified."""

import bisect
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from embedcli.config import InputOptions
from embedcli.errors import DataError
from embedcli.files import open_parquet, unreadable_parquet
from embedcli.records import Corpus, InputFile, Records, Unit
from embedcli.sources.identity import PlannedFile, check_listed, combine_digests, path_of
from embedcli.sources.parquet_sizes import is_inside, measure
from embedcli.sources.sizes import row_ranges
from embedcli.sources.tables import (
    carried_schema,
    check_same_schema,
    columns_to_read,
    names_in_utf8,
    records_of,
)

_BATCH_ROWS = 4096
_READ_BYTES = 2**20


def plan(files: Sequence[InputFile], options: InputOptions, unit_bytes: int) -> Corpus:
    """Cut files into row ranges by their footers; of the rows one a file is decoded.

    Raises DataError where a file is damaged or encrypted, the text column is missing or of another
    type, or the files' schemas differ.
    """
    units: list[Unit] = []
    planned: list[InputFile] = []
    schema: pa.Schema | None = None
    for index, file in enumerate(files):
        with (
            names_in_utf8(file),
            open(file.path, "rb", buffering=0) as stream,
            _open(file, stream.fileno()) as opened,
        ):
            _check_counts(file, opened.metadata)
            file_schema = carried_schema(file, opened.schema_arrow, options)
            if schema is not None:
                check_same_schema(files[0], schema, file, file_schema)
            schema = file_schema
            columns = columns_to_read(schema, options)
            _read_first_row(file, opened, columns)
            path = path_of(stream.fileno(), file)
            sizes = measure(file, path, opened, columns, options.text_column)
            for start, stop in row_ranges(sizes, unit_bytes):
                units.append(Unit(index, start, stop, start + 1, stop - start))
            planned.append(replace(file, digest=_digest(stream.fileno(), opened.metadata, columns)))
            check_listed(file, stream.fileno())
    digest = combine_digests(file.digest for file in planned)
    return Corpus(tuple(planned), tuple(units), schema, digest=digest)


def _open(file: InputFile, descriptor: int) -> pq.ParquetFile:
    return open_parquet(path_of(descriptor, file), file.name)


def _digest(descriptor: int, metadata: pq.FileMetaData, columns: Sequence[str]) -> str:
    """Return 32 hex digits over the footer and the bytes of the columns that are read."""
    # A Parquet file ends in its footer, the footer's length (4 bytes), and "PAR1".
    size = os.fstat(descriptor).st_size
    footer = int.from_bytes(os.pread(descriptor, 4, size - 8), "little")
    spans = [*_spans(metadata, columns), (size - 8 - footer, footer)]
    if sum(length for _, length in spans) > size:  # a footer that lies
        spans = [(0, size)]
    hashing = hashlib.blake2b(digest_size=16)
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
    with _open(file, descriptor) as opened:
        return _digest(descriptor, opened.metadata, columns)


def _spans(metadata: pq.FileMetaData, columns: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield where the chunks of some columns, or of what is inside them, lie in a file: offsets and
    lengths.
    """
    paths = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
    is_read = [is_inside(path, columns) for path in paths]
    for group in range(metadata.num_row_groups):
        for index in itertools.compress(range(metadata.num_columns), is_read):
            chunk = metadata.row_group(group).column(index)
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
        next(opened.iter_batches(1, columns=columns), None)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise unreadable_parquet(file.name, error) from None


def open_reader() -> Callable[[Corpus, Unit, InputOptions], Records]:
    """Return a function that reads units; those that follow one another continue where the last one
    ended.
    """
    cursor: _Cursor | None = None
    batch_rows: dict[int, int] | None = None

    def read(corpus: Corpus, unit: Unit, options: InputOptions) -> Records:
        nonlocal cursor, batch_rows
        file = corpus.files[unit.file]
        if batch_rows is None:
            batch_rows = _batch_rows(corpus.units)
        if cursor is None or cursor.file != file or cursor.row > unit.start:
            columns = columns_to_read(corpus.schema, options)
            cursor = _Cursor(file, columns, batch_rows.get(unit.file, _BATCH_ROWS))
        with cursor.planned.checked():
            table = cursor.read(unit.start, unit.stop)
        return records_of(table, file, unit, corpus.schema, options)

    return read


def _batch_rows(units: Sequence[Unit]) -> dict[int, int]:
    """Return, for each file, how many rows are decoded at once: no more than its smallest unit has.

    Units are small where rows are long. The last unit of a file is small because the file ends.
    """
    rows: dict[int, int] = {}
    for unit, following in itertools.pairwise(units):
        if following.file == unit.file:
            smallest = rows.get(unit.file, _BATCH_ROWS)
            rows[unit.file] = min(smallest, unit.stop - unit.start)
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
            self._batch_rows, row_groups=groups, columns=self._columns, use_threads=True
        )
        return batches

    def _next(self) -> pa.RecordBatch | None:
        assert self._batches is not None
        try:
            return next(self._batches, None)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise unreadable_parquet(self.file.name, error) from None
