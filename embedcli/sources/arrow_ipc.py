"""Arrow IPC files (also called Feather) into units of records: row ranges of one schema, read batch
by batch.
"""

import bisect
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pyarrow as pa

from embedcli.config import InputOptions
from embedcli.errors import DataError
from embedcli.records import Corpus, InputFile, Records, Segment
from embedcli.sources.cuts import Grain
from embedcli.sources.identity import PlannedFile, check_listed, combine_digests, path_of
from embedcli.sources.tables import (
    TableRows,
    carried_schema,
    check_same_schema,
    columns_to_read,
    names_in_utf8,
    records_of,
    top_level,
)
from embedcli.sources.units import UnitBuilder


def plan(files: Sequence[InputFile], options: InputOptions, grain: Grain) -> Corpus:
    """Cut files into units, in one pass over their batches.

    Raises DataError where a file is damaged, the text column is missing or of another type, or
    schemas differ.
    """
    builder = UnitBuilder(grain)
    planned: list[InputFile] = []
    schema: pa.Schema | None = None
    for index, file in enumerate(files):
        with names_in_utf8(file), open(file.path, "rb", buffering=0) as stream:
            reader = _open(file, stream.fileno())
            file_schema = carried_schema(file, reader.schema, options)
            if schema is not None:
                check_same_schema(files[0], schema, file, file_schema)
            schema = file_schema
            rows = TableRows(options.text_column)
            batch_rows = []
            for batch in _batches(file, reader):
                rows.add(batch, None)
                batch_rows.append(len(batch))
            builder.add(rows.scanned(index, 0))
            digest = _digest(stream.fileno())
            check_listed(file, stream.fileno())
        planned.append(replace(file, digest=digest, batch_rows=tuple(batch_rows)))
    digest = combine_digests(file.digest for file in planned)
    return Corpus(tuple(planned), builder.units(), schema, digest=digest)


def _open(file: InputFile, descriptor: int) -> pa.ipc.RecordBatchFileReader:
    """Open what a descriptor leads to. Raises DataError.

    Not by a memory map: a mapped file that is truncated meanwhile would end the process.
    """
    try:
        return pa.ipc.open_file(pa.OSFile(os.fsencode(path_of(descriptor, file))))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: InputFile, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(
        f"{file.name}: not a readable Arrow IPC file: {reason}", "the file is damaged or truncated"
    )


def _batches(file: InputFile, reader: pa.ipc.RecordBatchFileReader) -> Iterator[pa.RecordBatch]:
    for index in range(reader.num_record_batches):
        yield _read_batch(file, reader, index)


def _read_batch(
    file: InputFile, reader: pa.ipc.RecordBatchFileReader, index: int
) -> pa.RecordBatch:
    """Read a batch and see that no value lies outside it: Arrow believes the offsets of a damaged
    file.

    Raises DataError. Whether strings are UTF-8 is checked row by row, later.
    """
    try:
        batch = reader.get_batch(index)
        for column in batch.columns:
            plain = column.view(pa.binary()) if pa.types.is_string(column.type) else column
            plain.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(file, error) from None
    return batch


def _digest(descriptor: int) -> str:
    """Return 32 hex digits over a file's bytes."""
    with open(os.dup(descriptor), "rb") as stream:
        stream.seek(0)
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def open_reader() -> Callable[[Corpus, Segment, InputOptions], Records]:
    """Return a function that reads segments; a file stays open until one of another comes."""
    opened: _OpenFile | None = None

    def read(corpus: Corpus, segment: Segment, options: InputOptions) -> Records:
        nonlocal opened
        file = corpus.files[segment.file]
        if opened is None or opened.file != file:
            opened = _OpenFile(file, columns_to_read(corpus.schema, options))
        with opened.planned.checked():
            table = opened.read(segment.start, segment.stop)
        return records_of(table, file, segment, corpus.schema, options)

    return read


class _OpenFile:
    """Reads row ranges of one file; the batch that was read last stays in memory."""

    def __init__(self, file: InputFile, columns: Sequence[str]) -> None:
        self.file = file
        self.planned = PlannedFile(file, _digest)
        self._reader = _open(file, self.planned.descriptor)
        self._columns = top_level(columns, self._reader.schema)
        # The first row of each batch.
        self._starts = [0]
        for rows in file.batch_rows:
            self._starts.append(self._starts[-1] + rows)
        self._last: tuple[int, pa.RecordBatch] | None = None

    def read(self, start: int, stop: int) -> pa.Table:
        """Return the rows [start, stop) as a table. Raises DataError."""
        slices = []
        index = max(0, bisect.bisect_right(self._starts, start) - 1)
        while start < stop and index < len(self._starts) - 1:
            offset = start - self._starts[index]
            part = self._batch(index).select(self._columns).slice(offset, stop - start)
            slices.append(part)
            start += len(part)
            index += 1
        schema = pa.schema([self._reader.schema.field(name) for name in self._columns])
        return pa.Table.from_batches(slices, schema)

    def _batch(self, index: int) -> pa.RecordBatch:
        if self._last is None or self._last[0] != index:
            self._last = (index, _read_batch(self.file, self._reader, index))
        return self._last[1]
