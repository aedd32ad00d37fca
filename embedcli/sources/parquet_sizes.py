"""How many bytes the rows of a Parquet file take in memory: what its footer states, or what they are measured to take.

Equal values may be stored once (a dictionary, shared prefixes): 16,384 texts of 40 kB fit into a
file of 0.3 MB. Units are cut by the size of what is decoded, so that one fits into memory.
"""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from embedcli.files import open_parquet, unreadable_parquet
from embedcli.records import InputFile
from embedcli.sources.sizes import MAX_WIDTH

# Rows may take this many times what the footer states, or this many bytes, before they are measured.
_TRUSTED_GROWTH, _TRUSTED_BYTES = 4, 2**24
# Measured in batches of about this many bytes, however long the rows.
_BATCH_BYTES, _BATCH_ROWS = 2**26, 4096
# Rows a batch where nothing says how long a value can be.
_FEW_ROWS = 64


def measure(
    file: InputFile, path: str, opened: pq.ParquetFile, columns: Sequence[str], text_column: str
) -> Iterator[tuple[int, float]]:
    """Yield rows and the bytes that count towards a unit, a row, for row groups or parts of them.

    `path` leads to what is opened. What counts is the text, or all columns divided by `MAX_WIDTH`.
    Raises DataError where rows that have to be decoded can't be.
    """
    metadata = opened.metadata
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        rows, stated = group.num_rows, group.total_byte_size
        chunks = [group.column(column) for column in range(group.num_columns)]
        text_bytes = sum(
            chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == text_column
        )
        shared = [
            chunk
            for chunk in chunks
            if is_inside(chunk.path_in_schema, columns) and _is_shared(chunk)
        ]
        batch_rows = _batch_rows(path, file, index, shared, max(stated, 1)) if shared else None
        if batch_rows is None:
            yield rows, max(text_bytes, stated / MAX_WIDTH) / max(1, rows)
        else:
            yield from _decode(file, opened, index, batch_rows, columns, text_column)


def is_inside(path: str, columns: Sequence[str]) -> bool:
    """Tell whether the path of a leaf is one of the columns, or leads into one."""
    return any(path == name or path.startswith(f"{name}.") for name in columns)


def _is_shared(chunk: pq.ColumnChunkMetaData) -> bool:
    """Return whether values of any length may be stored once and meant many times."""
    if chunk.physical_type not in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"):
        return False
    return chunk.has_dictionary_page or "DELTA_BYTE_ARRAY" in chunk.encodings


def _batch_rows(
    path: str,
    file: InputFile,
    group: int,
    chunks: Sequence[pq.ColumnChunkMetaData],
    stated: int,
) -> int | None:
    """Return how many rows of a group are to be decoded at once, None where the footer will do.

    The bound: every value is as long as the longest of its column's dictionary.
    """
    longest_possible = sum(chunk.num_values * chunk.total_uncompressed_size for chunk in chunks)
    if longest_possible <= _TRUSTED_BYTES:
        return None
    if any(not chunk.has_dictionary_page for chunk in chunks):
        return _FEW_ROWS
    longest = _longest_values(path, file, group, [chunk.path_in_schema for chunk in chunks])
    bound = sum(
        chunk.num_values * longest.get(chunk.path_in_schema, chunk.total_uncompressed_size)
        for chunk in chunks
    )
    if stated + bound <= max(_TRUSTED_BYTES, _TRUSTED_GROWTH * stated):
        return None
    rows = max(1, max(chunk.num_values for chunk in chunks))
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * rows // max(1, bound)))


def _longest_values(
    path: str, file: InputFile, group: int, leaves: Sequence[str]
) -> dict[str, int]:
    """Return the bytes of the longest value in the dictionary of each column that has one.

    Reading one row as a dictionary gives all of its page, unless the row has no value.
    """
    longest: dict[str, int] = {}
    with open_parquet(path, file.name, dictionaries=leaves) as opened:
        for leaf in leaves:
            try:
                batch = next(opened.iter_batches(1, row_groups=[group], columns=[leaf]), None)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise unreadable_parquet(file.name, error) from None
            column = batch.column(0) if batch is not None else None
            while column is not None and not isinstance(column, pa.DictionaryArray):
                column = _inner(column)
            if column is not None and len(column.dictionary):
                lengths = [
                    len(value.as_buffer()) if value.is_valid else 0 for value in column.dictionary
                ]
                longest[leaf] = max(lengths)
    return longest


def _inner(column: pa.Array) -> pa.Array | None:
    """Return what a list or a struct of one field holds."""
    if pa.types.is_struct(column.type) and column.type.num_fields == 1:
        return column.field(0)
    if pa.types.is_nested(column.type) and hasattr(column, "values"):
        return column.values
    return None


def _decode(
    file: InputFile,
    opened: pq.ParquetFile,
    group: int,
    batch_rows: int,
    columns: Sequence[str],
    text_column: str,
) -> Iterator[tuple[int, float]]:
    """Yield the rows of each batch of a group and what they take, a row."""
    try:
        for batch in opened.iter_batches(batch_rows, row_groups=[group], columns=list(columns)):
            text_bytes = batch.column(text_column).nbytes
            yield len(batch), max(text_bytes, batch.nbytes / MAX_WIDTH) / len(batch)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise unreadable_parquet(file.name, error) from None
