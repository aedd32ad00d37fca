"""Reading a file of vectors back: its head, then its blocks as plain arrays."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedcli.errors import DataError
from embedcli.store import parts


@dataclass(frozen=True)
class Head:
    """What a file's footer says: its columns by type, its vectors, its provenance."""

    rows: int
    columns: dict[str, str]
    embedding_column: str
    dim: int
    vector_type: str
    provenance: dict[str, Any] | None

    def has(self, what: str) -> bool:
        """Is our column of hashes, tokens or truncations there?"""
        return f"{self.embedding_column}_{what}" in self.columns


@dataclass(frozen=True)
class Block:
    """Some rows: vectors float32 [n, dim] without missing ones; hashes as 16-byte voids; None where not in the file."""

    vectors: npt.NDArray[np.float32]
    missing: int
    hashes: npt.NDArray[Any] | None
    tokens: npt.NDArray[np.int32] | None
    truncated: npt.NDArray[np.bool_] | None


def head(path: str, embedding_column: str | None = None) -> Head:
    """Read a file's footer. Raises DataError where it has no column of vectors, or none of that name."""
    with parts.open_file(path) as file:
        schema = file.schema_arrow
        provenance = parts.provenance_of(file)
        rows = file.metadata.num_rows
    found = [field for field in schema if _is_vector(field.type)]
    if embedding_column is not None:
        found = [field for field in found if field.name == embedding_column]
    if not found:
        wanted = f"{embedding_column!r}" if embedding_column else "fixed-size lists of floats"
        raise DataError(f"{path}: no column of vectors: {wanted}", f"its columns: {', '.join(schema.names)}")
    field = next((field for field in found if field.name == "embedding"), found[0])
    return Head(
        rows=rows,
        columns={column.name: str(column.type) for column in schema},
        embedding_column=field.name,
        dim=field.type.list_size,
        vector_type=str(field.type.value_type),
        provenance=provenance,
    )


def _is_vector(kind: pa.DataType) -> bool:
    return pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type)


def blocks(path: str, head: Head) -> Iterator[Block]:
    """The file's rows as arrays, a row group at a time. Raises DataError where a page is damaged."""
    names = [name for name in parts.own_columns(head.embedding_column) if name in head.columns]
    for table in parts.read_tables(path, names):
        column = table.column(head.embedding_column)
        present = column.drop_null().combine_chunks()
        vectors = present.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        yield Block(
            vectors=vectors.reshape(-1, head.dim),
            missing=column.null_count,
            hashes=_hashes(table, f"{head.embedding_column}_hash"),
            tokens=_values(table, f"{head.embedding_column}_tokens"),
            truncated=_values(table, f"{head.embedding_column}_truncated"),
        )


def _values(table: pa.Table, name: str) -> Any:
    return table.column(name).to_numpy() if name in table.column_names else None


def _hashes(table: pa.Table, name: str) -> npt.NDArray[Any] | None:
    if name not in table.column_names or not pa.types.is_fixed_size_binary(table.column(name).type):
        return None
    return parts.hashes_of(table.column(name))
