"""Reading a file of vectors back: its head, then its blocks as plain arrays."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedcli.errors import DataError
from embedcli.store import parts, publish


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
    """Read the footer of a file, or of a dataset directory's parts.

    Raises DataError where there is no column of vectors, or none of that name.
    """
    rows, schema, provenance = 0, None, None
    for name in files_of(path):
        with parts.open_file(name) as file:
            schema, rows = file.schema_arrow, rows + file.metadata.num_rows
            provenance = parts.provenance_of(file)
    if schema is None:
        raise DataError(f"{path}: the folder holds no part files")
    if Path(path).is_dir():
        provenance = publish.manifest_of(Path(path))
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


def files_of(path: str) -> list[str]:
    """The file itself, or the parts of a dataset directory in order."""
    return sorted(map(str, Path(path).glob("part-*.parquet"))) if Path(path).is_dir() else [path]


def blocks(path: str, head: Head) -> Iterator[Block]:
    """The file's rows as arrays, a row group at a time. Raises DataError where a page is damaged."""
    names = [name for name in parts.own_columns(head.embedding_column) if name in head.columns]
    for table in (table for file in files_of(path) for table in parts.read_tables(file, names)):
        column = table.column(head.embedding_column)
        yield Block(
            vectors=parts.vectors_of(column.drop_null()),
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
