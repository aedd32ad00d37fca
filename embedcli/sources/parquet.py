"""Parquet into units of records: row ranges of one schema, read forwards, page checksums verified."""

import bisect
import hashlib
import itertools
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedcli.config import InputOptions
from embedcli.errors import DataError, RowFault
from embedcli.records import Corpus, InputFile, Records, Reject, Unit
from embedcli.sources.files import changed, identity_of
from embedcli.sources.sizes import MAX_UNIT_ROWS

_BATCH_ROWS = 4096
_READ_BYTES = 2**20
# Carried columns may be far wider than the text: a unit holds at most this many times its share of all columns.
_WIDTH = 8


def plan(files: Sequence[InputFile], options: InputOptions, unit_bytes: int) -> Corpus:
    """Cut files into row ranges by their footers; of the rows one a file is read.

    Raises DataError where a file is damaged or encrypted, the text column is missing or of another type, or the
    files' schemas differ.
    """
    units: list[Unit] = []
    planned: list[InputFile] = []
    schema: pa.Schema | None = None
    for index, file in enumerate(files):
        with open(file.path, "rb", buffering=0) as stream, _open(file, stream.fileno()) as opened:
            _check_counts(file, opened.metadata)
            own = _carried(file, opened.schema_arrow, options)
            if schema is not None and own != schema:
                raise _drift(files[0], schema, file, own)
            schema = own
            names = _columns_to_read(schema, options)
            _probe(file, opened, names)
            for start, stop in _ranges(opened.metadata, options.text_column, unit_bytes):
                units.append(Unit(index, start, stop, start + 1, stop - start))
            planned.append(replace(file, digest=_digest(stream.fileno(), opened.metadata, names)))
            if file.identity and identity_of(os.fstat(stream.fileno())) != file.identity:
                raise changed(file, "while it was planned")
    digest = hashlib.blake2b("".join(file.digest for file in planned).encode(), digest_size=16).hexdigest()
    return Corpus(tuple(planned), tuple(units), schema, digest=digest)


def _digest(descriptor: int, metadata: pq.FileMetaData, columns: Sequence[str]) -> str:
    """32 hex digits over the footer and the bytes of the columns that are read."""
    size = os.fstat(descriptor).st_size
    footer = int.from_bytes(os.pread(descriptor, 4, size - 8), "little")
    spans = [*_spans(metadata, columns), (size - 8 - footer, footer)]
    if sum(length for _, length in spans) > size:  # a footer that lies
        spans = [(0, size)]
    hashing = hashlib.blake2b(digest_size=16)
    for start, length in spans:
        offset, stop = max(0, start), min(size, start + length)
        while offset < stop and (content := os.pread(descriptor, min(_READ_BYTES, stop - offset), offset)):
            hashing.update(content)
            offset += len(content)
    return hashing.hexdigest()


def _spans(metadata: pq.FileMetaData, columns: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where the chunks of some columns, or of what is inside them, lie in a file: offsets and lengths."""
    paths = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
    read = [any(path == name or path.startswith(f"{name}.") for name in columns) for path in paths]
    for group in range(metadata.num_row_groups):
        for index in itertools.compress(range(metadata.num_columns), read):
            chunk = metadata.row_group(group).column(index)
            dictionary = chunk.dictionary_page_offset if chunk.has_dictionary_page else None
            start = min(dictionary, chunk.data_page_offset) if dictionary else chunk.data_page_offset
            yield start, max(0, chunk.total_compressed_size)


def _open(file: InputFile, descriptor: int) -> pq.ParquetFile:
    """Open what a descriptor leads to, whatever the file's name leads to by now."""
    by_descriptor = f"/proc/self/fd/{descriptor}"
    try:
        # pre_buffer would hold a whole row group; streaming its pages keeps memory independent of the file.
        # bytes: a file name need not be UTF-8
        source = pa.OSFile(by_descriptor if os.path.exists(by_descriptor) else os.fsencode(file.path))
        return pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False, buffer_size=2**20)
    except (pa.ArrowException, OSError, ValueError, RuntimeError) as error:
        raise _damaged(file, error) from None


def _check_counts(file: InputFile, metadata: pq.FileMetaData) -> None:
    rows = sum(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
    if rows != metadata.num_rows:
        raise DataError(f"{file.name}: the footer counts {metadata.num_rows} rows, its row groups hold {rows}")


def _probe(file: InputFile, opened: pq.ParquetFile, columns: list[str]) -> None:
    """Read one row: asking an encrypted column for its sizes would end the process, reading it is an error."""
    try:
        next(opened.iter_batches(1, columns=columns), None)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(file, error) from None


def _damaged(file: InputFile, error: Exception) -> DataError:
    message = " ".join(str(error).split())
    if "ncrypt" in message or "rypto" in message:
        return DataError(f"{file.name}: the Parquet file is encrypted", "decrypt it first")
    return DataError(f"{file.name}: not a readable Parquet file: {message}", "the file is damaged or cut off")


def _carried(file: InputFile, schema: pa.Schema, options: InputOptions) -> pa.Schema:
    """The schema of the carried columns; checks all that can be checked of the file's schema."""
    names = schema.names
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"{file.name}: column {twice[0]!r} stands twice")
    _check_text_type(file, _find_type(file, schema, options.text_column, "--text-column"), options)
    for name in options.fields:
        _find_type(file, schema, name, "the template")
    wanted = names if options.columns is None else options.columns
    for name in wanted:
        if name not in names:
            raise _no_column(file, schema, name, "--columns")
    fields = [schema.field(name).with_metadata(None) for name in wanted]
    # However the file stores its texts, the output holds plain strings.
    return pa.schema([f.with_type(pa.string()) if f.name == options.text_column else f for f in fields])


def _find_type(file: InputFile, schema: pa.Schema, name: str, option: str) -> pa.DataType:
    """The type of a column, or of what a dotted path of struct fields leads to."""
    if name in schema.names:
        return schema.field(name).type
    kind = pa.struct(list(schema))
    for part in name.split("."):
        if not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
            raise _no_column(file, schema, name, option)
        kind = kind.field(part).type
    return kind


def _no_column(file: InputFile, schema: pa.Schema, name: str, option: str) -> DataError:
    close = [other for other in schema.names if other.lower() == name.lower()]
    hint = f"did you mean {close[0]!r}?" if close else "columns of a struct are named by a path: doc.text"
    return DataError(f"{file.name}: no column {name!r} for {option} (columns: {', '.join(schema.names)})", hint)


def _check_text_type(file: InputFile, column_type: pa.DataType, options: InputOptions) -> None:
    kind = column_type.value_type if pa.types.is_dictionary(column_type) else column_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    if binary and options.binary_as_utf8:
        return
    hint = "--text-column names another column"
    if binary:
        hint = "--binary-as-utf8 reads its bytes as UTF-8"
    elif pa.types.is_struct(kind):
        hint = f"name a column inside it: --text-column {options.text_column}.{kind.field(0).name}"
    raise DataError(f"{file.name}: column {options.text_column!r} has type {column_type}, not string", hint)


def _drift(first: InputFile, schema: pa.Schema, file: InputFile, own: pa.Schema) -> DataError:
    ours, theirs = ({field.name: f"{field.name}: {field.type}" for field in one} for one in (schema, own))
    name = next((n for n in dict.fromkeys([*ours, *theirs]) if ours.get(n) != theirs.get(n)), "")
    what = f"{ours.get(name, 'absent')!r} against {theirs.get(name, 'absent')!r}" if name else "the order of columns"
    return DataError(
        f"{first.name} and {file.name} differ in their schema: {what}", "carry fewer columns: --columns id"
    )


def _ranges(metadata: pq.FileMetaData, text_column: str, unit_bytes: int) -> Iterator[tuple[int, int]]:
    """Row ranges of about `unit_bytes` of text, by the footer's sizes."""
    leaf = next((i for i in range(metadata.num_columns) if metadata.schema.column(i).path == text_column), None)
    start = row = 0
    filled = 0.0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        left = group.num_rows
        text = 0 if leaf is None else group.column(leaf).total_uncompressed_size
        per_row = max(text, group.total_byte_size / _WIDTH) / max(1, group.num_rows)
        while left:
            space = max(1, int((unit_bytes - filled) / per_row)) if per_row else left
            taken = min(left, space, start + MAX_UNIT_ROWS - row)
            row, left, filled = row + taken, left - taken, filled + taken * per_row
            if filled + per_row > unit_bytes or row - start == MAX_UNIT_ROWS:
                yield start, row
                start, filled = row, 0.0
    if row > start:
        yield start, row


def open_reader() -> Callable[[Corpus, Unit, InputOptions], Records]:
    """A function that reads units; those that follow one another continue where the last one ended."""
    cursor: _Cursor | None = None

    def read(corpus: Corpus, unit: Unit, options: InputOptions) -> Records:
        nonlocal cursor
        file = corpus.files[unit.file]
        if cursor is None or cursor.file != file or cursor.row > unit.start:
            cursor = _Cursor(file, _columns_to_read(corpus.schema, options))
        try:
            table = cursor.read(unit.start, unit.stop)
        except DataError:
            cursor.check()
            raise
        cursor.check()
        return _records(table, file, unit, corpus.schema, options)

    return read


def _columns_to_read(schema: pa.Schema, options: InputOptions) -> list[str]:
    return list(dict.fromkeys([*schema.names, options.text_column, *options.fields]))


class _Cursor:
    """Reads row ranges of one file forwards; row groups in between are jumped over, rows in between passed over."""

    def __init__(self, file: InputFile, columns: list[str]) -> None:
        self.file, self.row = file, 0
        self._columns = columns
        self._identity = file.identity
        try:
            self._descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise changed(file, "it is gone") from None
        weakref.finalize(self, os.close, self._descriptor)
        self.check()
        self._opened = _open(file, self._descriptor)
        metadata = self._opened.metadata
        sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        self._firsts = list(itertools.accumulate(sizes, initial=0))[:-1]
        self._batches: Iterator[pa.RecordBatch] | None = None
        self._rest: pa.RecordBatch | None = None

    def check(self) -> None:
        """See that the opened file still is what was planned. Raises InputChangedError.

        The file that was opened counts, not what its name leads to now.
        """
        if not self.file.identity:  # a copy of this run's own
            return
        identity = identity_of(os.fstat(self._descriptor))
        if identity == self._identity:
            return
        try:
            same = self._planned_digest() == self.file.digest
        except (DataError, OSError):
            same = False
        if not same:
            raise changed(self.file, "its content is another one")
        self._identity = identity

    def _planned_digest(self) -> str:
        with _open(self.file, self._descriptor) as opened:
            return _digest(self._descriptor, opened.metadata, self._columns)

    def read(self, start: int, stop: int) -> pa.Table:
        """The rows [start, stop) as a table, fewer where the file ends early."""
        group = max(0, bisect.bisect_right(self._firsts, start) - 1)
        if self._batches is None or self._firsts[group] > self.row:
            self._batches, self._rest, self.row = self._from(group), None, self._firsts[group]
        taken: list[pa.RecordBatch] = []
        while self.row < stop:
            batch = self._rest if self._rest is not None else self._next()
            if batch is None:
                break
            skipped = max(0, start - self.row)
            used = min(len(batch), stop - self.row)
            if used > skipped:
                taken.append(batch.slice(skipped, used - skipped))
            self._rest = batch.slice(used) if used < len(batch) else None
            self.row += used
        return pa.Table.from_batches(taken) if taken else self._opened.schema_arrow.empty_table()

    def _from(self, group: int) -> Iterator[pa.RecordBatch]:
        groups = list(range(group, self._opened.metadata.num_row_groups))
        batches: Iterator[pa.RecordBatch] = self._opened.iter_batches(
            _BATCH_ROWS, row_groups=groups, columns=self._columns, use_threads=True
        )
        return batches

    def _next(self) -> pa.RecordBatch | None:
        assert self._batches is not None
        try:
            return next(self._batches, None)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _damaged(self.file, error) from None


def _records(table: pa.Table, file: InputFile, unit: Unit, schema: pa.Schema, options: InputOptions) -> Records:
    text = _strings(_column(table, options.text_column), options)
    faults = _text_faults(text, options.text_column)
    for name in schema.names:
        if name != options.text_column:
            faults = {**_utf8_faults(table.column(name), name), **faults}
    rejects = [
        Reject(file.name, file.place, unit.first + index, None, fault) for index, fault in sorted(faults.items())
    ]
    places = list(range(unit.first, unit.first + len(table)))
    if faults:
        keep = pa.array([index for index in range(len(table)) if index not in faults], pa.int64())
        table, text, places = table.take(keep), text.take(keep), [places[index] for index in keep.to_pylist()]
    if options.text_column in schema.names:
        table = table.set_column(table.schema.get_field_index(options.text_column), options.text_column, text)
    fields = {name: _column(table, name).to_pylist() for name in options.fields}
    return Records(table.select(schema.names).cast(schema), text.to_pylist(), fields, places, rejects)


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name in table.column_names:
        return table.column(name)
    first, *rest = name.split(".")
    return pc.struct_field(table.column(first), rest)


def _strings(column: pa.ChunkedArray, options: InputOptions) -> pa.ChunkedArray:
    """The text column as plain strings, not yet checked."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not pa.types.is_string(column.type):
        # Arrow checks UTF-8 when it turns binary into string, for all rows at once; _text_faults checks each.
        column = pa.chunked_array([_view(chunk) for chunk in column.chunks], pa.string())
    return column


def _view(chunk: pa.Array) -> pa.Array:
    binary = chunk.cast(pa.binary())
    return pa.Array.from_buffers(pa.string(), len(binary), binary.buffers(), binary.null_count, binary.offset)


def _text_faults(text: pa.ChunkedArray, name: str) -> dict[int, RowFault]:
    faults = _utf8_faults(text, name)
    if text.null_count:
        nulls = pc.indices_nonzero(pc.is_null(text)).to_pylist()
        faults |= {index: RowFault("text-null", f"column {name!r} is null") for index in nulls}
    return faults


def _utf8_faults(column: pa.ChunkedArray, name: str) -> dict[int, RowFault]:
    """Rows whose strings are not UTF-8: pyarrow reads them without a word."""
    try:
        column.validate(full=True)
        return {}
    except pa.ArrowInvalid as error:
        found = {index for index in range(len(column)) if not _is_valid(column, index)}
        if not found:
            raise DataError(f"column {name!r}: {error}") from None
        return {index: RowFault("not-utf8", f"column {name!r} is not UTF-8") for index in found}


def _is_valid(column: pa.ChunkedArray, index: int) -> bool:
    try:
        column.slice(index, 1).combine_chunks().validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
