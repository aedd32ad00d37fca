"""The Parquet files that we write: their columns, their provenance, and how they are written, checked and read.

Every page has a checksum: without it one flipped bit reads back as another vector, without an error. The whole file has
a seal, which covers the rest.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from embedcli.config import OutputOptions
from embedcli.errors import ConfigurationError, DataError, StorageError, from_os_error
from embedcli.store import seal

FORMAT_VERSION = 1
METADATA_KEY = b"embedcli"
# The mark of a table of results, which holds no vectors.
RESULTS_KEY = b"embedcli.results"
# A dataset directory's own file, and what stands in it before its seal.
MANIFEST = "_embedcli.json"
MANIFEST_MARK = b'"sha256": "'
_SEAL_KEY = "embedcli.sha256"
# What stands before a file's seal: its key, then Thrift's type and length of a string of 64.
SEAL_MARK = _SEAL_KEY.encode() + b"\x18\x40"
_VECTOR_TYPES = {"float32": pa.float32(), "float16": pa.float16()}
_HASH_TYPE = pa.binary(16)


def part_name(index: int, version: str) -> str:
    """The file name of a unit's part.

    Parts of different versions of a directory have different names: a reader that has listed one version and opens the
    parts of the next would otherwise read a mixture, without an error.
    """
    return f"part-{index:06d}-{version}.parquet"


def part_index(name: str) -> int:
    """The unit that a part's file name tells."""
    return int(name.split("-")[1])


def own_columns(name: str) -> tuple[str, str, str, str]:
    """The names of the four columns that we add: vector, hash, tokens, truncated."""
    return name, f"{name}_hash", f"{name}_tokens", f"{name}_truncated"


def output_schema(carried: pa.Schema, dim: int, options: OutputOptions) -> pa.Schema:
    """The carried columns, then ours.

    Raises ConfigurationError where the input has a column by one of our names.
    """
    names = own_columns(options.embedding_column)
    for name in names:
        if name in carried.names:
            raise ConfigurationError(
                f"the input has a column {name!r} already",
                "--embedding-column names ours differently; --columns chooses which of the input's are carried",
            )
    types = (pa.list_(_VECTOR_TYPES[options.vector_type], dim), _HASH_TYPE, pa.int32(), pa.bool_())
    return pa.schema([*carried, *(pa.field(name, kind) for name, kind in zip(names, types, strict=True))])


@dataclass(frozen=True)
class Own:
    """The values of our columns for n rows.

    vectors: float32 [n, dim]; hashes: 16-byte voids [n]; tokens: int32 [n]; truncated: bool [n].
    """

    vectors: npt.NDArray[np.float32]
    hashes: npt.NDArray[Any]
    tokens: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.bool_]


def nothing(hashes: npt.NDArray[Any], dim: int) -> Own:
    """Room for the values of n rows: zeros."""
    count = len(hashes)
    return Own(np.zeros((count, dim), np.float32), hashes, np.zeros(count, np.int32), np.zeros(count, np.bool_))


def assemble(carried: pa.Table, schema: pa.Schema, own: Own) -> pa.Table:
    """A table of the carried columns and ours."""
    vector_type = schema.field(len(schema) - 4).type
    numbers = np.float16 if pa.types.is_float16(vector_type.value_type) else np.float32
    ours = [
        pa.FixedSizeListArray.from_arrays(
            pa.array(own.vectors.reshape(-1).astype(numbers, copy=False)), vector_type.list_size
        ),
        pa.FixedSizeBinaryArray.from_buffers(
            _HASH_TYPE, len(own.hashes), [None, pa.py_buffer(np.ascontiguousarray(own.hashes))]
        ),
        pa.array(own.tokens),
        pa.array(own.truncated),
    ]
    return pa.table([*carried.columns, *ours], schema=schema)


def write(
    path: Path, schema: pa.Schema, provenance: dict[str, Any], tables: Iterable[pa.Table], durable: bool = True
) -> int:
    """Write a new Parquet file, durably and read back unless that isn't wanted; gives its rows.

    Raises StorageError where the disk is full, or what is read differs in rows or checksums.
    `path` must be a name nobody reads: on an exception pyarrow writes a valid footer over half a file.
    """
    try:
        rows = _write(path, schema, provenance, tables, durable)
    except OSError as error:
        raise from_os_error(error, str(path)) from None  # pyarrow's own doesn't say where
    if not durable:
        return rows
    try:
        found = sum(len(table) for table in read_tables(path))
    except DataError as error:  # our own file, not the user's data
        raise StorageError(error.message, "is the disk failing?") from None
    if found != rows:
        raise StorageError(f"{path}: what was written can't be read back whole", "is the disk failing?")
    return rows


def _write(path: Path, schema: pa.Schema, provenance: dict[str, Any], tables: Iterable[pa.Table], durable: bool) -> int:
    rows = 0
    full = with_provenance(schema, provenance)
    vector = schema.names[-4]
    numbers = f"{vector}.list.element"
    compression = dict.fromkeys(_leaves(schema), "zstd")
    # Measured (tests.benchmarks.parquet_settings): split by bytes, float32 becomes 15 % smaller and is read faster; it
    # is written 25 % slower. float16 is read 3 times slower so, and fewer programs know it.
    split = [numbers] if schema.field(vector).type.value_type == pa.float32() else []
    if not split:
        compression[numbers] = "none"
    with open(path, "x+b") as stream:
        hashing = seal.Hashing(stream)
        with pq.ParquetWriter(
            hashing,
            full,
            compression=compression,
            use_byte_stream_split=split,
            use_dictionary=[name for name in schema.names if name not in own_columns(vector)],
            write_page_checksum=True,
            write_page_index=True,
        ) as writer:
            for table in filter(len, tables):
                writer.write_table(table, row_group_size=len(table))
                rows += len(table)
            writer.add_key_value_metadata({_SEAL_KEY: seal.EMPTY})
        seal.put(stream, hashing.hexdigest(), SEAL_MARK)
        stream.flush()
        if durable:
            os.fsync(stream.fileno())
    return rows


def with_provenance(schema: pa.Schema, provenance: dict[str, Any]) -> pa.Schema:
    """A schema whose metadata says how its vectors were made."""
    return schema.with_metadata({METADATA_KEY: json.dumps(provenance, sort_keys=True, ensure_ascii=False).encode()})


def schema_as_bytes(schema: pa.Schema) -> bytes:
    """A schema as Arrow IPC."""
    return schema.serialize().to_pybytes()


def schema_from_bytes(content: bytes) -> pa.Schema:
    """The schema that `schema_as_bytes` wrote."""
    return pa.ipc.read_schema(pa.py_buffer(content))


def _leaves(schema: pa.Schema) -> list[str]:
    """The Parquet names of the leaf columns."""

    def inside(name: str, kind: pa.DataType) -> Iterator[str]:
        if pa.types.is_struct(kind):
            for field in kind:
                yield from inside(f"{name}.{field.name}", field.type)
        elif pa.types.is_map(kind):
            yield from inside(f"{name}.key_value.key", kind.key_type)
            yield from inside(f"{name}.key_value.value", kind.item_type)
        elif hasattr(kind, "value_type") and not pa.types.is_dictionary(kind):
            yield from inside(f"{name}.list.element", kind.value_type)
        else:
            yield name

    return [leaf for field in schema for leaf in inside(field.name, field.type)]


def open_file(path: Path | str) -> pq.ParquetFile:
    """Open one of our files, or any Parquet file, with checksums verified on read.

    Raises DataError where it is no Parquet file or damaged, OSError as the system says it.
    """
    try:
        source = pa.OSFile(os.fsencode(path))  # bytes: a file name need not be UTF-8
        return pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False, buffer_size=2**20)
    except (pa.ArrowException, OSError, ValueError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"{path}: not a readable Parquet file: {' '.join(str(error).split())}") from None


def read_tables(path: Path | str, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The file's row groups as tables, in order. Raises DataError where a page is damaged."""
    with open_file(path) as file:
        for group in range(file.metadata.num_row_groups):
            yield read_group(file, path, group, columns)


def read_batches(path: Path | str, columns: list[str], rows: int) -> Iterator[pa.Table]:
    """The file in tables of at most so many rows, in order. Raises DataError where a page is damaged."""
    with open_file(path) as file:
        try:
            for batch in file.iter_batches(rows, columns=columns):
                yield pa.Table.from_batches([batch])
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{path}: damaged: {' '.join(str(error).split())}") from None


def read_group(file: pq.ParquetFile, path: Path | str, group: int, columns: list[str] | None = None) -> pa.Table:
    """One row group of an opened file. Raises DataError where a page is damaged."""
    try:
        return file.read_row_group(group, columns=columns)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: damaged: {' '.join(str(error).split())}") from None


def vectors_of(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """A vector column without missing values as float32 [n, dim]."""
    numbers = column.combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return numbers.reshape(-1, column.type.list_size)


def hashes_of(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """A column of fixed-size binary values as voids [n]."""
    array = column.combine_chunks()
    raw = np.frombuffer(array.buffers()[1] or b"", dtype=f"V{array.type.byte_width}")
    return raw[array.offset : array.offset + len(array)]


def provenance_of(file: pq.ParquetFile) -> dict[str, Any] | None:
    """What a file says of its own making; None where it isn't one of ours.

    Raises DataError where it is of a version that this embedcli doesn't know.
    """
    raw = (file.schema_arrow.metadata or {}).get(METADATA_KEY)
    if raw is None:
        return None
    return checked(json.loads(raw))


def checked(provenance: dict[str, Any]) -> dict[str, Any]:
    """Provenance of a format that this embedcli knows. Raises DataError where it is another."""
    if provenance.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"written in format version {provenance.get('format_version')}, this embedcli reads {FORMAT_VERSION}"
        )
    return provenance
