"""Reading a file of vectors back: its head, then its blocks as plain arrays."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedcli.errors import DataError, InputMissingError
from embedcli.store import parts, publish

# Of 4,096 dimensions in float32 these are 128 MiB.
ROWS_AT_ONCE = 8192


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
    """Some of a file's rows, from number `first` on.

    vectors: float32 [n, dim] without missing ones; rows: int64 [n], their numbers among all of the file's; missing: how
    many have none. hashes: 16-byte voids; they, tokens and truncated are None where not in the file. table: the
    further columns that were asked for.
    """

    first: int
    rows: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]
    missing: int
    table: pa.Table
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


def provenance_of(path: str) -> dict[str, Any]:
    """What a file or folder of vectors says of its making. Raises InputMissingError, DataError if it says nothing."""
    if not Path(path).exists():
        raise InputMissingError(f"{path}: no such file or folder")
    if Path(path).is_dir():
        return publish.manifest_of(Path(path))
    with parts.open_file(path) as file:
        said = parts.provenance_of(file)
    if said is None:
        raise DataError(f"{path}: was not written by embedcli")
    return said


def _is_vector(kind: pa.DataType) -> bool:
    return pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type)


def files_of(path: str) -> list[str]:
    """The file itself, or the parts of a dataset directory in order."""
    return sorted(map(str, Path(path).glob("part-*.parquet"))) if Path(path).is_dir() else [path]


def blocks(path: str, head: Head, columns: Sequence[str] = ()) -> Iterator[Block]:
    """The file's rows as arrays, in order and in bounded memory. Raises DataError where a page is damaged."""
    own = [name for name in parts.own_columns(head.embedding_column) if name in head.columns]
    names, first = list(dict.fromkeys([*own, *columns])), 0
    for table in (table for file in files_of(path) for table in parts.read_batches(file, names, ROWS_AT_ONCE)):
        column, start = table.column(head.embedding_column), first
        first += len(table)
        yield Block(
            first=start,
            rows=start + np.flatnonzero(column.is_valid().to_numpy()),
            vectors=parts.vectors_of(column.drop_null()),
            missing=column.null_count,
            table=table.select(list(columns)),
            hashes=_hashes(table, f"{head.embedding_column}_hash"),
            tokens=_values(table, f"{head.embedding_column}_tokens"),
            truncated=_values(table, f"{head.embedding_column}_truncated"),
        )


def take(path: str, rows: Sequence[int], columns: Sequence[str]) -> Mapping[int, dict[str, Any]]:
    """The values of some rows, by their number among all of the file's. Raises DataError where a page is damaged."""
    wanted, first = np.unique(np.asarray(rows, np.int64)), 0
    found: dict[int, dict[str, Any]] = {}
    for name in files_of(path):
        with parts.open_file(name) as file:
            for group in range(file.metadata.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                here = wanted[(wanted >= first) & (wanted < first + size)]
                if len(here):
                    table = parts.read_group(file, name, group, list(columns)).take(here - first)
                    values = table.to_pylist() if columns else [{} for _ in here]
                    found |= dict(zip(here.tolist(), values, strict=True))
                first += size
    return found


def column(path: str, name: str) -> Iterator[Any]:
    """A column's values, in order. Raises DataError where a page is damaged."""
    for table in (table for file in files_of(path) for table in parts.read_tables(file, [name])):
        yield from table.column(name).to_pylist()


def hashes(path: str, head: Head) -> npt.NDArray[Any]:
    """All rows' hashes as 16-byte voids. Raises DataError where there are none, or a page is damaged."""
    name = f"{head.embedding_column}_hash"
    if not head.has("hash"):
        raise DataError(f"{path}: no column {name!r}", f"its columns: {', '.join(head.columns)}")
    tables = (table for file in files_of(path) for table in parts.read_tables(file, [name]))
    return np.concatenate([np.empty(0, "V16"), *(parts.hashes_of(table.column(name)) for table in tables)])


def vectors(path: str, head: Head, rows: Sequence[int]) -> npt.NDArray[np.float32]:
    """The vectors of some rows, by number, float32 [n, dim]; zero where one is missing. Reads the file through."""
    wanted = np.asarray(rows, np.int64)
    found = np.zeros((len(wanted), head.dim), np.float32)
    order = np.argsort(wanted)
    for block in blocks(path, head):
        asked = order[slice(*np.searchsorted(wanted[order], [block.first, block.first + len(block.table)]))]
        at = np.searchsorted(block.rows, wanted[asked])
        there = at < len(block.rows)
        there[there] = block.rows[at[there]] == wanted[asked[there]]
        found[asked[there]] = block.vectors[at[there]]
    return found


def _values(table: pa.Table, name: str) -> Any:
    return table.column(name).to_numpy() if name in table.column_names else None


def _hashes(table: pa.Table, name: str) -> npt.NDArray[Any] | None:
    if name not in table.column_names or not pa.types.is_fixed_size_binary(table.column(name).type):
        return None
    return parts.hashes_of(table.column(name))
