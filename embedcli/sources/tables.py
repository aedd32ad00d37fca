"""Arrow tables into records, and what can be checked of their schemas: what Parquet and Arrow IPC
have in common.
"""

import contextlib
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedcli.config import InputOptions
from embedcli.errors import DataError, RowFault
from embedcli.records import InputFile, Places, Records, Reject, Segment
from embedcli.sources.cuts import MAX_WIDTH, Rows, hash_texts
from embedcli.sources.units import ScannedRows


def columns_to_read(schema: pa.Schema, options: InputOptions) -> list[str]:
    """Return the columns that are carried, embedded, or named by the template."""
    return list(dict.fromkeys([*schema.names, options.text_column, *options.fields]))


@contextlib.contextmanager
def names_in_utf8(file: InputFile) -> Iterator[None]:
    """Raise DataError where a column's name turns out to be damaged: Arrow believes them all."""
    try:
        yield
    except UnicodeDecodeError:
        raise DataError(
            f"{file.name}: a column's name is not UTF-8", "the file is damaged"
        ) from None


def carried_schema(file: InputFile, schema: pa.Schema, options: InputOptions) -> pa.Schema:
    """Return the schema of the carried columns; check all that can be checked of a file's schema.

    Raises DataError.
    """
    # Names inside structs and lists are looked at here, and nowhere else before the end.
    schema.to_string(show_field_metadata=False, show_schema_metadata=False)
    names = schema.names
    duplicates = [name for name in names if names.count(name) > 1]
    if duplicates:
        raise DataError(f"{file.name}: duplicate column {duplicates[0]!r}")
    _check_text_type(file, _find_type(file, schema, options.text_column, "--text-column"), options)
    for name in options.fields:
        _find_type(file, schema, name, "the template")
    carried = names if options.columns is None else options.columns
    fields = []
    for name in carried:
        if name not in names:
            raise no_column(file.name, names, name, "--columns")
        field = _carried_field(schema.field(name))
        # However the file stores its texts, the output holds plain strings.
        fields.append(field.with_type(pa.string()) if name == options.text_column else field)
    return pa.schema(fields)


def _carried_field(field: pa.Field) -> pa.Field:
    """Return a field with its metadata, but what pyarrow's reader adds to it."""
    metadata = {
        key: value
        for key, value in (field.metadata or {}).items()
        if not key.startswith(b"PARQUET:")
    }
    return field.with_metadata(metadata or None)


def _find_type(file: InputFile, schema: pa.Schema, name: str, option: str) -> pa.DataType:
    """Return the type of a column, or of what a dotted path of struct fields leads to."""
    if name in schema.names:
        return schema.field(name).type
    kind = pa.struct(list(schema))
    for part in name.split("."):
        if not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
            raise no_column(file.name, schema.names, name, option)
        kind = kind.field(part).type
    return kind


def no_column(file: str, names: Sequence[str], name: str, option: str) -> DataError:
    """Return what is wrong with a column that a file of others doesn't have."""
    folded = {candidate.lower(): candidate for candidate in names}
    close = get_close_matches(name.lower(), folded, 1)
    hint = "columns of a struct are named by a path: doc.text"
    if close:
        hint = f"did you mean {folded[close[0]]!r}?"
    columns = ", ".join(names)
    return DataError(f"{file}: no column {name!r} for {option} (columns: {columns})", hint)


def _check_text_type(file: InputFile, column_type: pa.DataType, options: InputOptions) -> None:
    kind = column_type.value_type if pa.types.is_dictionary(column_type) else column_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return
    binary = (
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )
    if binary and options.binary_as_utf8:
        return
    hint = "--text-column names another column"
    if binary:
        hint = "--binary-as-utf8 reads its bytes as UTF-8"
    elif pa.types.is_struct(kind):
        hint = f"name a column inside it: --text-column {options.text_column}.{kind.field(0).name}"
    raise DataError(
        f"{file.name}: column {options.text_column!r} has type {column_type}, not string", hint
    )


def check_same_schema(
    first: InputFile, first_schema: pa.Schema, file: InputFile, schema: pa.Schema
) -> None:
    """See that two files carry the same columns. Raises DataError that names the first difference."""
    if first_schema == schema:
        return
    expected = {field.name: f"{field.name}: {field.type}" for field in first_schema}
    actual = {field.name: f"{field.name}: {field.type}" for field in schema}
    difference = "the order of columns"
    for name in dict.fromkeys([*expected, *actual]):
        if expected.get(name) != actual.get(name):
            difference = f"{expected.get(name, 'absent')!r} against {actual.get(name, 'absent')!r}"
            break
    raise DataError(
        f"{first.name} and {file.name} differ in their schema: {difference}",
        "carry fewer columns: --columns id",
    )


class TableRows:
    """What decides over the cuts in the rows of tables, batch by batch."""

    def __init__(self, text_column: str) -> None:
        self._text_column = text_column
        self._hashes: list[npt.NDArray[np.uint32]] = []
        self._sizes: list[npt.NDArray[np.int64]] = []

    def add(self, batch: pa.RecordBatch, row_bytes: float | None) -> None:
        """Take some rows, of which each takes so many bytes; None: as many as the batch has."""
        text = as_strings(_column(pa.Table.from_batches([batch]), self._text_column))
        binary = pa.chunked_array([chunk.view(pa.binary()) for chunk in text.chunks], pa.binary())
        if row_bytes is None:
            row_bytes = batch.nbytes / max(1, len(batch))
        contents = [content or b"" for content in binary.to_pylist()]
        # A row counts with its text, and one with wide other columns with a share of all.
        sizes = np.maximum(np.fromiter(map(len, contents), np.int64), int(row_bytes / MAX_WIDTH))
        self._hashes.append(hash_texts(contents))
        self._sizes.append(sizes)

    def scanned(self, file: int, first: int) -> ScannedRows:
        """Return all of it; the first row has a number, from 0."""
        hashes = np.concatenate([np.zeros(0, np.uint32), *self._hashes])
        sizes = np.concatenate([np.zeros(0, np.int64), *self._sizes])
        count = len(hashes)
        return ScannedRows(
            file=file,
            start=first,
            stops=first + np.arange(1, count + 1),
            cutting=Rows(hashes, sizes, np.ones(count, np.bool_)),
            lines=np.ones(count, np.int64),
        )


def records_of(
    table: pa.Table, file: InputFile, segment: Segment, schema: pa.Schema, options: InputOptions
) -> Records:
    """Return a segment's rows as records; rows whose text is null or not UTF-8 are rejects."""
    text = as_strings(_column(table, options.text_column))
    faults = _text_faults(text, options.text_column)
    for name in schema.names:
        if name != options.text_column:
            # The fault found first is told: the text's before those of other columns.
            faults = {**_utf8_faults(table.column(name), name), **faults}
    rejects = [
        Reject(
            *(file.name, file.place, segment.first + row, None, fault),
            id=id_of(table, row, options),
        )
        for row, fault in sorted(faults.items())
    ]
    places = Places.of(segment.file, range(segment.first, segment.first + len(table)))
    if faults:
        good = [row for row in range(len(table)) if row not in faults]
        rows = pa.array(good, pa.int64())  # with its type: there may be none
        table, text = table.take(rows), text.take(rows)
        places = places.select(good)
    if options.text_column in schema.names:
        table = table.set_column(
            table.schema.get_field_index(options.text_column), options.text_column, text
        )
    fields = {name: _column(table, name).to_pylist() for name in options.fields}
    return Records(
        table.select(schema.names).cast(schema), text.to_pylist(), fields, places, rejects
    )


def id_of(table: pa.Table, row: int, options: InputOptions) -> str:
    """Return a row's id; empty where it has none that can be read."""
    names = [name for name in options.input_id_columns if name in table.column_names]
    try:
        return options.id_of({name: table.column(name)[row].as_py() for name in names})
    except UnicodeDecodeError:
        return ""


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name in table.column_names:
        return table.column(name)
    first, *path = name.split(".")
    return pc.struct_field(table.column(first), path)


def as_strings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the text column as plain strings, not yet checked."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type):
        return column
    # Arrow checks UTF-8 when it turns binary into string, for all rows at once; _text_faults checks each.
    return pa.chunked_array([_reinterpret(chunk) for chunk in column.chunks], pa.string())


def _reinterpret(chunk: pa.Array) -> pa.Array:
    # The same buffers, called strings: a cast would check them, and fail for all rows at once.
    binary = chunk.cast(pa.binary())
    return pa.Array.from_buffers(
        pa.string(), len(binary), binary.buffers(), binary.null_count, binary.offset
    )


def _text_faults(text: pa.ChunkedArray, name: str) -> dict[int, RowFault]:
    faults = _utf8_faults(text, name)
    if text.null_count:
        for row in pc.indices_nonzero(pc.is_null(text)).to_pylist():
            faults[row] = RowFault("text-null", f"column {name!r} is null")
    return faults


def _utf8_faults(column: pa.ChunkedArray, name: str) -> dict[int, RowFault]:
    """Return the rows whose strings are not UTF-8: pyarrow reads them without a word."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        rows = [row for row in range(len(column)) if not _is_valid(column, row)]
        if not rows:
            raise DataError(f"column {name!r}: {error}") from None
        return {row: RowFault("not-utf8", f"column {name!r} is not UTF-8") for row in rows}
    return {}


def _is_valid(column: pa.ChunkedArray, row: int) -> bool:
    try:
        column.slice(row, 1).combine_chunks().validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def top_level(names: Sequence[str], schema: pa.Schema) -> list[str]:
    """Return the columns of a schema that hold what some names or paths lead to."""
    return list(
        dict.fromkeys(name if name in schema.names else name.partition(".")[0] for name in names)
    )
