"""How many bytes the rows of a Parquet file take in memory: what its footer states, or what they are measured to take.

Equal values may be stored once (a dictionary, shared prefixes): 16,384 texts of 40 kB fit into a
file of 0.3 MB. Units are cut by the size of what is decoded, so that one fits into memory.
"""

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from embedcli.config import InputOptions
from embedcli.files import open_parquet, unreadable_parquet
from embedcli.records import InputFile

# Rows may take this many times what the footer states, or this many bytes, before they are measured.
_TRUSTED_GROWTH, _TRUSTED_BYTES = 4, 2**24
# Measured in batches of about this many bytes, however long the rows.
_BATCH_BYTES, _BATCH_ROWS = 2**26, 4096
# Rows a batch where nothing says how long a value can be.
_FEW_ROWS = 64


class Decoding(NamedTuple):
    """How planning decodes a row group: which columns, and how many rows at once.

    row_bytes: what a row takes by the footer, all columns; None where all are decoded to see.
    """

    columns: Sequence[str]
    batch_rows: int
    row_bytes: float | None


def decoding_of(
    file: InputFile,
    path: str,
    metadata: pq.RowGroupMetaData,
    group: int,
    columns: Sequence[str],
    options: InputOptions,
) -> Decoding:
    """Choose how the rows of a group are measured. Raises DataError where it can't be read."""
    rows, stated = max(1, metadata.num_rows), max(1, metadata.total_byte_size)
    chunks = [metadata.column(column) for column in range(metadata.num_columns)]
    shared = [
        chunk for chunk in chunks if is_inside(chunk.path_in_schema, columns) and _is_shared(chunk)
    ]
    batch_rows = _batch_rows(path, file, group, shared, stated) if shared else None
    if batch_rows is not None:
        return Decoding(columns, batch_rows, None)
    by_footer = max(1, min(_BATCH_ROWS, _BATCH_BYTES * rows // (_TRUSTED_GROWTH * stated)))
    return Decoding([options.text_column], by_footer, stated / rows)


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
