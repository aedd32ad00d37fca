"""The Parquet files that we write: their four columns, their metadata, and how they are written and
checked.

Every page has a checksum: without it one flipped bit reads back as another vector, without an
error. The whole file has a digest, which covers the rest.
"""

import contextlib
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedcli import files
from embedcli.config import OutputOptions
from embedcli.errors import ConfigurationError, DataError, StorageError, from_os_error
from embedcli.store import digest
from embedcli.store.provenance import Provenance

METADATA_KEY = b"embedcli"
# The mark of a table of results, which holds no vectors.
RESULTS_KEY = b"embedcli.results"
_DIGEST_KEY = "embedcli.sha256"
# What stands before a file's digest: its key, then Thrift's type and length of a string of 64.
DIGEST_MARK = _DIGEST_KEY.encode() + b"\x18\x40"
_VECTOR_TYPES = {"float32": pa.float32(), "float16": pa.float16()}
_HASH_TYPE = pa.binary(16)
_HASH_TYPES = {"binary": _HASH_TYPE, "hex": pa.string()}
# Why a row has no vector, of those that `rows_too_large` gives.
TOO_LARGE = "its vector has numbers too large for float16: use --vector-type float32"

Vectors = npt.NDArray[np.float32]
# 16-byte voids
Hashes = npt.NDArray[Any]


class Written(NamedTuple):
    """What became of a file: its number of rows, and the digest that it carries."""

    rows: int
    sha256: str


class ColumnNames(NamedTuple):
    """The names of the four columns that we add."""

    vector: str
    hash: str
    tokens: str
    truncated: str

    @classmethod
    def of(cls, vector: str) -> "ColumnNames":
        """Return the names that go with a vector column."""
        return cls(vector, f"{vector}_hash", f"{vector}_tokens", f"{vector}_truncated")


@dataclass(frozen=True)
class EmbeddingColumns:
    """The values of our columns for n rows.

    vectors: float32 [n, dim]; hashes: 16-byte voids [n]; tokens: int32 [n]; truncated: bool [n].
    """

    vectors: Vectors
    hashes: Hashes
    tokens: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.bool_]

    @classmethod
    def zeros(cls, hashes: Hashes, dim: int) -> "EmbeddingColumns":
        """Return room for the values of as many rows as there are hashes."""
        count = len(hashes)
        return cls(
            vectors=np.zeros((count, dim), np.float32),
            hashes=hashes,
            tokens=np.zeros(count, np.int32),
            truncated=np.zeros(count, np.bool_),
        )

    @classmethod
    def from_table(cls, table: pa.Table, names: ColumnNames, dim: int) -> "EmbeddingColumns":
        """Take our columns out of a table, by name. Raises DataError where they aren't ours."""
        hashes = hashes_of(table.column(names.hash))
        columns = cls.zeros(hashes, dim)
        present = table.column(names.vector).is_valid().to_numpy()  # an encoder may have left nulls
        columns.vectors[present] = vectors_of(table.column(names.vector).drop_null(), dim)
        columns.tokens[:] = table.column(names.tokens).fill_null(0).to_numpy()
        columns.truncated[:] = table.column(names.truncated).fill_null(False).to_numpy()
        return columns

    def select(self, rows: npt.NDArray[np.intp]) -> "EmbeddingColumns":
        """Return the values of some rows; the same where these are all, in order."""
        if np.array_equal(rows, np.arange(len(self.hashes))):
            return self
        return EmbeddingColumns(
            self.vectors[rows], self.hashes[rows], self.tokens[rows], self.truncated[rows]
        )

    def to_arrays(self, vector_type: pa.DataType) -> list[pa.Array]:
        """Return the four columns as Arrow arrays, the vectors as fixed-size lists of `vector_type`."""
        dtype = np.float16 if pa.types.is_float16(vector_type.value_type) else np.float32
        numbers = pa.array(self.vectors.reshape(-1).astype(dtype, copy=False))
        hashes = pa.py_buffer(np.ascontiguousarray(self.hashes))
        return [
            pa.FixedSizeListArray.from_arrays(numbers, vector_type.list_size),
            pa.FixedSizeBinaryArray.from_buffers(_HASH_TYPE, len(self.hashes), [None, hashes]),
            pa.array(self.tokens),
            pa.array(self.truncated),
        ]


def rows_too_large(vectors: Vectors, vector_type: str) -> list[int]:
    """Return the rows that have a number too large for the stored type: it would become infinite.

    Of float16 the largest is 65,504, so normalized vectors always fit.
    """
    if vector_type != "float16":
        return []
    largest = np.finfo(np.float16).max
    return np.flatnonzero((np.abs(vectors) > largest).any(axis=1)).tolist()


def part_name(order: int, sha256: str) -> str:
    """Return the file name of a part: its place among the others, and its content. One name, one
    content, for ever.

    A reader that has listed one version of a directory and opens the parts of the next would
    otherwise read a mixture, without an error.
    """
    return f"part-{order:012d}-{sha256[:16]}.parquet"


def order_of_part(name: str) -> int:
    """Return the place that a part's file name tells: the number of its unit, in staging."""
    return int(name.split("-")[1])


def output_schema(carried: pa.Schema, dim: int, options: OutputOptions) -> pa.Schema:
    """Return the schema of an output: the carried columns, then ours.

    Raises ConfigurationError where the input has a column by one of our names.
    """
    names = ColumnNames.of(options.embedding_column)
    for name in names:
        if name in carried.names:
            raise ConfigurationError(
                f"the input already has a column {name!r}",
                "--embedding-column names ours differently; --columns chooses which of the input's are carried",
            )
    vector_type = pa.list_(_VECTOR_TYPES[options.vector_type], dim)
    hash_type = _HASH_TYPES.get(options.hash)
    types = (vector_type, hash_type, pa.int32(), pa.bool_())
    added = [pa.field(name, kind) for name, kind in zip(names, types, strict=True) if kind]
    return pa.schema([*carried, *added])


def assemble(
    carried: pa.Table, schema: pa.Schema, names: ColumnNames, columns: EmbeddingColumns
) -> pa.Table:
    """Return a table of the carried columns and ours, as far as the schema has them."""
    arrays = dict(zip(names, columns.to_arrays(schema.field(names.vector).type), strict=True))
    if names.hash in schema.names and pa.types.is_string(schema.field(names.hash).type):
        arrays[names.hash] = hashes_as_hex(columns.hashes)
    added = [arrays[name] for name in names if name in schema.names]
    return pa.table([*carried.columns, *added], schema=schema)


def hashes_as_hex(hashes: Hashes) -> pa.Array:
    """Return 16-byte voids [n] as strings of 32 hex digits."""
    digits = np.ascontiguousarray(hashes).tobytes().hex()
    return pa.array([digits[at : at + 32] for at in range(0, len(digits), 32)], pa.string())


def with_provenance(schema: pa.Schema, provenance: Provenance) -> pa.Schema:
    """Return a schema whose metadata says how its vectors were made."""
    return schema.with_metadata({METADATA_KEY: provenance.to_bytes()})


def write(
    path: Path,
    schema: pa.Schema,
    provenance: Provenance,
    tables: Iterable[pa.Table],
    durable: bool = True,
) -> Written:
    """Write a new Parquet file, a row group for each table.

    A durable file is synced and read back. Raises StorageError where the disk is full, or what is
    read differs. `path` must be a name nobody reads: on an exception pyarrow writes a valid footer
    over half a file.
    """
    try:
        written = _write(path, schema, provenance, tables, durable)
    except OSError as error:
        raise from_os_error(error, str(path)) from None  # pyarrow's own doesn't say where
    if durable:
        check_written(path, written.rows)
    return written


def empty_file(schema: pa.Schema, provenance: Provenance) -> bytes:
    """Return a file without rows, as `write` writes it, but for the digest, which is zeros."""
    sink = io.BytesIO()
    with _writer(sink, schema, provenance):
        pass
    return sink.getvalue()


@contextlib.contextmanager
def sealed(path: Path, durable: bool = True) -> Iterator[digest.HashingStream]:
    """Give a new file to write to; when the block ends, put the digest into it, and sync it.

    The digest is of a file with zeros in its place: they are written with the footer, and replaced
    once all other bytes are hashed.
    """
    with open(path, "x+b") as stream:
        hashing = digest.HashingStream(stream)
        yield hashing
        digest.put(stream, hashing.hexdigest(), DIGEST_MARK)
        stream.flush()
        if durable:
            os.fsync(stream.fileno())


def _write(
    path: Path, schema: pa.Schema, provenance: Provenance, tables: Iterable[pa.Table], durable: bool
) -> Written:
    rows = 0
    with sealed(path, durable) as stream, _writer(stream, schema, provenance) as writer:
        for table in tables:
            if len(table):
                writer.write_table(table, row_group_size=len(table))
                rows += len(table)
    return Written(rows, stream.hexdigest())


@contextlib.contextmanager
def _writer(stream: Any, schema: pa.Schema, provenance: Provenance) -> Iterator[pq.ParquetWriter]:
    embeddings = [ColumnNames.of(name) for name in provenance.columns]
    described = with_provenance(schema, provenance)
    with pq.ParquetWriter(stream, described, **_encodings(schema, embeddings)) as writer:
        yield writer
        writer.add_key_value_metadata({_DIGEST_KEY: digest.EMPTY})


def _encodings(schema: pa.Schema, embeddings: list[ColumnNames]) -> dict[str, Any]:
    """Return how each column is written.

    Measured (tests.benchmarks.parquet_settings): split by bytes, float32 becomes 15 % smaller and
    is read faster; it is written 25 % slower. float16 is read 3 times slower so, and fewer programs
    know it: it is stored as it is.
    """
    compression = dict.fromkeys(_leaves(schema), "zstd")
    split = []
    for names in embeddings:
        numbers = f"{names.vector}.list.element"
        if schema.field(names.vector).type.value_type == pa.float32():
            split.append(numbers)
        else:
            compression[numbers] = "none"
    own_columns = {name for names in embeddings for name in names}
    return {
        "compression": compression,
        "use_byte_stream_split": split,
        "use_dictionary": [name for name in schema.names if name not in own_columns],
        "write_page_checksum": True,
        "write_page_index": True,
    }


def check_written(path: Path, rows: int) -> None:
    """Read a file that was just written: each byte of it, and the rows that others see in it.

    Not decoded, which takes five times as long: the digest is of the bytes that were to be written.
    Raises StorageError.
    """
    try:
        with files.open_parquet(path) as file:
            rows_seen = file.metadata.num_rows
    except DataError as error:  # our own file, not the user's data
        raise StorageError(error.message, "is the disk failing?") from None
    if rows_seen != rows or not digest.is_whole(path, DIGEST_MARK):
        raise StorageError(
            f"{path}: what was written can't be read back whole", "is the disk failing?"
        )


def schema_as_bytes(schema: pa.Schema) -> bytes:
    """Return a schema as Arrow IPC."""
    return schema.serialize().to_pybytes()


def schema_from_bytes(content: bytes) -> pa.Schema:
    """Read the schema that `schema_as_bytes` gives."""
    return pa.ipc.read_schema(pa.py_buffer(content))


def _leaves(schema: pa.Schema) -> list[str]:
    """Return the Parquet names of the leaf columns."""
    return [leaf for field in schema for leaf in _leaves_inside(field.name, field.type)]


def _leaves_inside(name: str, kind: pa.DataType) -> Iterator[str]:
    if pa.types.is_struct(kind):
        for field in kind:
            yield from _leaves_inside(f"{name}.{field.name}", field.type)
    elif pa.types.is_map(kind):
        yield from _leaves_inside(f"{name}.key_value.key", kind.key_type)
        yield from _leaves_inside(f"{name}.key_value.value", kind.item_type)
    elif hasattr(kind, "value_type") and not pa.types.is_dictionary(kind):
        yield from _leaves_inside(f"{name}.list.element", kind.value_type)
    else:
        yield name


def read_row_groups(path: Path | str, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield a file's row groups as tables, in order. Raises DataError where a page is damaged."""
    with files.open_parquet(path) as file:
        for group in range(file.metadata.num_row_groups):
            yield read_row_group(file, path, group, columns)


def read_row_group(
    file: pq.ParquetFile, path: Path | str, group: int, columns: list[str] | None = None
) -> pa.Table:
    """Read one row group of an opened file. Raises DataError where a page is damaged."""
    try:
        return file.read_row_group(group, columns=columns, use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged(path, error) from None


def damaged(path: Path | str, error: Exception) -> DataError:
    """Return the error for a file whose pages can't be read."""
    return DataError(f"{path}: damaged: {' '.join(str(error).split())}")


def vectors_of(column: pa.ChunkedArray, dim: int) -> Vectors:
    """Return a vector column without missing values as float32 [n, dim].

    Engines may have dropped the length of the lists. Raises DataError where one has another length.
    """
    if not pa.types.is_fixed_size_list(column.type):
        lengths = pc.unique(pc.list_value_length(column)).to_pylist()
        if lengths not in ([], [dim]):
            raise DataError(f"vectors of {dim} dimensions, and of {max(set(lengths) - {dim})}")
    numbers = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return numbers.astype(np.float32, copy=False).reshape(-1, dim)


def hashes_of(column: pa.ChunkedArray) -> Hashes:
    """Return a column of 16-byte values, or of their hex digits, as voids [n].

    Raises DataError where one has another length.
    """
    array = column.combine_chunks()
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        digits = array.fill_null("00" * 16)
        try:
            contents = list(map(bytes.fromhex, digits.to_pylist()))
        except ValueError as error:
            raise DataError(f"hashes that are none: {error}") from None
        array = pa.array(contents, pa.binary())
    if not pa.types.is_fixed_size_binary(array.type):
        try:
            array = array.cast(_HASH_TYPE)
        except pa.ArrowInvalid as error:
            raise DataError(f"hashes that are none: {error}") from None
    # pyarrow gives such a column to numpy as Python objects only; its buffer is what is wanted.
    if array.null_count:
        array = array.fill_null(bytes(array.type.byte_width))
    raw = np.frombuffer(array.buffers()[1] or b"", dtype=f"V{array.type.byte_width}")
    return raw[array.offset : array.offset + len(array)]
