"""The one reader of our files: a file of vectors, or a dataset directory of parts, opened once.

Columns are found by name, never by position: other programs may have put them in another order.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from embedcli import files
from embedcli.errors import DataError, InputMissingError
from embedcli.recipe import Recipe
from embedcli.store import digest, manifest, parts
from embedcli.store.parts import ColumnNames, EmbeddingColumns, Hashes, Vectors
from embedcli.store.provenance import ColumnProvenance, Provenance

# Where Spark keeps its schema, and with it the metadata of columns.
_SPARK_KEY = b"org.apache.spark.sql.parquet.row.metadata"
# Of 4,096 dimensions in float32 these are 128 MiB.
ROWS_PER_BLOCK = 8192


class _SparkField(msgspec.Struct):
    metadata: dict[str, Any] = {}


class _SparkSchema(msgspec.Struct):
    fields: list[_SparkField]


@dataclass(frozen=True)
class RowGroup:
    """A row group of one of our files: what became of a unit."""

    path: Path
    group: int
    rows: int


@dataclass(frozen=True)
class VectorBlock:
    """Some consecutive rows of a file, from row `first` on.

    vectors: float32 [n, dim] without missing ones; rows: int64 [n], their numbers among all of the
    file's; missing: how many rows have no vector. hashes: 16-byte voids; they, tokens and truncated
    are None where not in the file. table: the further columns that were asked for.
    """

    first: int
    rows: npt.NDArray[np.int64]
    vectors: Vectors
    missing: int
    table: pa.Table
    hashes: Hashes | None
    tokens: npt.NDArray[np.int32] | None
    truncated: npt.NDArray[np.bool_] | None


class VectorFile:
    """A file of vectors or a dataset directory: its columns, its provenance, and ways to read it.

    path: as it was given; files: the file itself, or the parts in order; rows: of all of them;
    schema: without metadata; provenance: None where another program wrote the file; names: our
    columns, as the vector column calls for them.
    """

    def __init__(
        self,
        path: str,
        embedding_column: str | None = None,
        made: ColumnProvenance | None = None,
    ) -> None:
        """Open a file and read its footer; `made` is how its vectors were made, where the file doesn't
        say it.

        Raises InputMissingError; DataError where it has no column of vectors, or none of the name
        asked for.
        """
        if not Path(path).exists():
            raise InputMissingError(f"{path}: no such file or folder")
        self.path = path
        self.files: list[Path]
        self.provenance: Provenance | None
        if Path(path).is_dir() and not manifest.exists(Path(path)):
            engine_parts = _engine_parts(Path(path))
            if not engine_parts:
                manifest.read(Path(path))  # says that there is none
            self.files = [file for part in engine_parts for file in part.files]
            self.provenance, self.rows, self.schema = _as_one(engine_parts)
        elif Path(path).is_dir():
            listed = manifest.read(Path(path))
            self.files = [Path(path) / part.file for part in listed.parts]
            if not self.files:
                raise DataError(f"{path}: the folder holds no part files")
            self.provenance = listed.provenance
            self.rows = listed.rows
            with _open(self.files[0]) as part:
                self.schema = part.schema_arrow.remove_metadata()
        else:
            self.files = [Path(path)]
            with _open(Path(path)) as file:
                self.provenance = read_provenance(file, path)
                self.rows = file.metadata.num_rows
                self.schema = file.schema_arrow.remove_metadata()
        if self.provenance is None and made is not None:
            self.provenance = Provenance({embedding_column or "embedding": made}, "", {})
        self.names = ColumnNames.of(self._vector_column(embedding_column))

    @property
    def columns(self) -> dict[str, str]:
        """The columns' types by name, as Arrow writes them."""
        return {field.name: str(field.type) for field in self.schema}

    @property
    def dim(self) -> int:
        """Numbers of a vector. Raises DataError where neither the type nor the provenance says it."""
        return _dim_of(self.schema.field(self.names.vector).type, self.provenance, self.names)

    @property
    def lost(self) -> list[str]:
        """What the program that wrote the file has dropped of what we give it."""
        lost = {
            "the seal over all bytes": not all(map(is_sealed, self.files)),
            "the length of the vectors' lists": not is_vector(
                self.schema.field(self.names.vector).type
            ),
        }
        return [name for name, is_lost in lost.items() if is_lost]

    @property
    def vector_type(self) -> str:
        """The type of a vector's numbers, as Arrow writes it: `float`, `halffloat`."""
        return str(self.schema.field(self.names.vector).type.value_type)

    @property
    def made(self) -> ColumnProvenance:
        """How the vectors were made. Raises DataError where the file doesn't say it."""
        if self.provenance is None or self.names.vector not in self.provenance.columns:
            raise DataError(f"{self.path}: was not written by embedcli")
        return self.provenance.columns[self.names.vector]

    @property
    def recipe(self) -> Recipe:
        """The recipe of the vectors. Raises DataError where the file doesn't say it."""
        return self.made.recipe

    @property
    def role(self) -> str:
        """What the texts are. Raises DataError where the file doesn't say it."""
        return self.made.recipe.role

    @property
    def carried(self) -> list[str]:
        """The columns but those of vectors and what we say of them."""
        return [
            field.name
            for field in self.schema
            if field.name not in self.names and not str(field.type).startswith("fixed_size_")
        ]

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.stat().st_size for file in self.files)

    def row_groups(self) -> list[RowGroup]:
        """Return all row groups, in order. Raises DataError where a file is damaged or gone."""
        groups = []
        for path in self.files:
            with _open(path) as file:
                for group in range(file.metadata.num_row_groups):
                    groups.append(RowGroup(path, group, file.metadata.row_group(group).num_rows))
        return groups

    def blocks(self, columns: Sequence[str] = ()) -> Iterator[VectorBlock]:
        """Yield all rows as arrays, in order and in bounded memory.

        Raises DataError where a page is damaged.
        """
        own_columns = [name for name in self.names if name in self.schema.names]
        first = 0
        for table in self._batches([*own_columns, *columns]):
            yield self._block(table, first, columns)
            first += len(table)

    def _batches(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        names = list(dict.fromkeys(columns))
        for path in self.files:
            with _open(path) as file:
                try:
                    for batch in file.iter_batches(ROWS_PER_BLOCK, columns=names):
                        yield pa.Table.from_batches([batch])
                except (pa.ArrowException, OSError, ValueError) as error:
                    raise parts.damaged(path, error) from None

    def _block(self, table: pa.Table, first: int, columns: Sequence[str]) -> VectorBlock:
        vectors = table.column(self.names.vector)
        return VectorBlock(
            first=first,
            rows=first + np.flatnonzero(vectors.is_valid().to_numpy()),
            vectors=parts.vectors_of(vectors.drop_null(), self.dim),
            missing=vectors.null_count,
            table=table.select(list(columns)),
            hashes=_hashes(table, self.names.hash),
            tokens=_values(table, self.names.tokens),
            truncated=_values(table, self.names.truncated),
        )

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> Mapping[int, dict[str, Any]]:
        """Return the values of some rows by their number. Raises DataError where a page is damaged."""
        numbers = np.unique(np.asarray(rows, np.int64))
        values: dict[int, dict[str, Any]] = {}
        first = 0
        for path in self.files:
            with _open(path) as file:
                for group in range(file.metadata.num_row_groups):
                    size = file.metadata.row_group(group).num_rows
                    in_block = numbers[(numbers >= first) & (numbers < first + size)]
                    if len(in_block):
                        table = parts.read_row_group(file, path, group, list(columns)).take(
                            in_block - first
                        )
                        records = table.to_pylist() if columns else [{} for _ in in_block]
                        values.update(zip(in_block.tolist(), records, strict=True))
                    first += size
        return values

    def column(self, name: str) -> Iterator[Any]:
        """Yield a column's values, in order. Raises DataError where a page is damaged."""
        for path in self.files:
            for table in parts.read_row_groups(path, [name]):
                yield from table.column(name).to_pylist()

    def hashes(self) -> Hashes:
        """Return all rows' hashes as voids [rows].

        Raises DataError where there are none, or a page is damaged.
        """
        name = self.names.hash
        if name not in self.schema.names:
            raise DataError(
                f"{self.path}: no column {name!r}", f"its columns: {', '.join(self.schema.names)}"
            )
        tables = (table for path in self.files for table in parts.read_row_groups(path, [name]))
        return np.concatenate(
            [np.empty(0, "V16"), *(parts.hashes_of(table.column(name)) for table in tables)]
        )

    def vectors(self, rows: Sequence[int]) -> Vectors:
        """Return the vectors of some rows, float32 [n, dim]; zero where one is missing.

        Reads the file through.
        """
        numbers = np.asarray(rows, np.int64)
        vectors = np.zeros((len(numbers), self.dim), np.float32)
        order = np.argsort(numbers)
        for block in self.blocks():
            start, stop = np.searchsorted(
                numbers[order], [block.first, block.first + len(block.table)]
            )
            chosen = order[start:stop]
            position = np.searchsorted(block.rows, numbers[chosen])
            present = position < len(block.rows)
            present[present] = block.rows[position[present]] == numbers[chosen[present]]
            vectors[chosen[present]] = block.vectors[position[present]]
        return vectors

    def all_vectors(self) -> tuple[Vectors, npt.NDArray[np.int64]]:
        """Return all vectors [n, dim] but missing ones, and the numbers of their rows."""
        blocks = list(self.blocks())
        if not blocks:
            return np.empty((0, self.dim), np.float32), np.empty(0, np.int64)
        vectors = np.concatenate([block.vectors for block in blocks])
        return vectors, np.concatenate([block.rows for block in blocks])

    def _vector_column(self, requested: str | None) -> str:
        """Choose the vector column: the one asked for, one of ours, the one named `embedding`, the
        first.
        """
        known = self.provenance.columns if self.provenance is not None else {}
        vectors = [
            field.name
            for field in self.schema
            if is_vector(field.type) or (field.name in known and _is_list(field.type))
        ]
        if requested is not None:
            vectors = [name for name in vectors if name == requested]
        if not vectors:
            description = f"{requested!r}" if requested else "fixed-size lists of floats"
            raise DataError(
                f"{self.path}: no column of vectors: {description}",
                f"its columns: {', '.join(self.schema.names)}",
            )
        candidates = [name for name in vectors if name in known] or vectors
        return "embedding" if "embedding" in candidates else candidates[0]


def is_ours(path: str) -> bool:
    """Tell whether a file or folder says how its vectors were made, in a format version that we read."""
    try:
        return VectorFile(path).provenance is not None
    except (DataError, InputMissingError):
        return False


def holds_provenance(path: str) -> bool:
    """Tell whether a Parquet file says how vectors were made, in whatever format version."""
    try:
        with files.open_parquet(path) as file:
            return _content(file) is not None
    except (DataError, OSError):
        return False


def open_ours(path: str, embedding_column: str | None = None) -> VectorFile:
    """Open a file that says how its vectors were made.

    Raises InputMissingError; DataError where it doesn't.
    """
    if Path(path).is_file():
        with _open(Path(path)) as parquet:
            if read_provenance(parquet, path) is None:
                raise DataError(
                    f"{path}: was not written by embedcli, or lost its metadata",
                    "search finds in it nevertheless if you say what made its vectors: --like FILE or --model NAME",
                )
    file = VectorFile(path, embedding_column)
    _ = file.made
    return file


def engine_files(folder: Path) -> list[Path]:
    """Return the files that an engine wrote into a folder, in the order of their names; none where one
    of them doesn't carry our provenance, or is ours: then the folder has lost its manifest.
    """
    return [file for part in _engine_parts(folder) for file in part.files]


def _engine_parts(folder: Path) -> list[VectorFile]:
    """Open each of the `engine_files` of a folder, once."""
    opened = []
    for path in sorted(folder.glob("*.parquet")):
        if path.name.startswith((".", "_")):
            continue
        try:
            file = VectorFile(str(path))
        except (DataError, InputMissingError):
            return []
        if file.provenance is None or is_sealed(path):
            return []
        opened.append(file)
    return opened


def _as_one(engine_parts: Sequence[VectorFile]) -> tuple[Provenance | None, int, pa.Schema]:
    """Return the provenance, the rows and the schema of files that an engine wrote.

    Raises DataError where they are of several recipes, or of several schemas.
    """
    first = engine_parts[0]
    for file in engine_parts[1:]:
        if file.recipe.id != first.recipe.id:
            raise DataError(f"{first.path} and {file.path} are of different recipes")
        if file.schema != first.schema:
            raise DataError(f"{first.path} and {file.path} have different columns")
    return first.provenance, sum(file.rows for file in engine_parts), first.schema


def is_sealed(path: Path) -> bool:
    """Tell whether a file carries a seal, whole or not: other programs write none."""
    try:
        return digest.read(path, parts.DIGEST_MARK) is not None
    except FileNotFoundError:
        return False


def part_files(path: str) -> list[str]:
    """Return the file itself, or what lies in a dataset directory as parts, whether or not the
    manifest lists it.
    """
    return sorted(map(str, Path(path).glob("part-*.parquet"))) if Path(path).is_dir() else [path]


def read_provenance(file: pq.ParquetFile, path: Path | str) -> Provenance | None:
    """Read what an opened file says of its making; None where it says nothing. Raises DataError."""
    content = _content(file)
    if content is None:
        return None
    try:
        return Provenance.from_bytes(content)
    except DataError as error:
        raise DataError(f"{path}: {error.message}", error.hint) from None


def _content(file: pq.ParquetFile) -> bytes | None:
    """Return the provenance as it stands in a file: in the schema's metadata, in the file's own (as
    Polars writes it), or with the vector column (Spark).
    """
    for metadata in (file.schema_arrow.metadata, file.metadata.metadata):
        if metadata and parts.METADATA_KEY in metadata:
            return bytes(metadata[parts.METADATA_KEY])
    columns = (file.metadata.metadata or {}).get(_SPARK_KEY)
    if columns is None:
        return None
    try:
        listed = msgspec.json.decode(columns, type=_SparkSchema).fields
    except msgspec.DecodeError:
        return None
    name = parts.METADATA_KEY.decode()
    contents = [field.metadata[name] for field in listed if name in field.metadata]
    return contents[0].encode() if contents and isinstance(contents[0], str) else None


def _is_list(kind: pa.DataType) -> bool:
    return hasattr(kind, "value_type") and pa.types.is_floating(kind.value_type)


def _dim_of(kind: pa.DataType, provenance: Provenance | None, names: ColumnNames) -> int:
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    assert provenance is not None
    return provenance.columns[names.vector].recipe.space.dim


def is_vector(kind: pa.DataType) -> bool:
    """Tell whether a column of this type holds vectors."""
    return pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type)


def _open(path: Path) -> pq.ParquetFile:
    try:
        return files.open_parquet(path)
    except FileNotFoundError:
        raise DataError(f"{path}: is gone") from None


def _values(table: pa.Table, name: str) -> Any:
    return table.column(name).to_numpy() if name in table.column_names else None


def _hashes(table: pa.Table, name: str) -> Hashes | None:
    if name not in table.column_names or not _holds_bytes(table.column(name).type):
        return None
    return parts.hashes_of(table.column(name))


def _holds_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return (
        types.is_fixed_size_binary(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_string(kind)
    )


class RowGroupCache:
    """Reads row groups of our files, of which a few stay open."""

    _OPEN_FILES = 8

    def __init__(self) -> None:
        # In the order of their last use, the latest last.
        self._files: dict[Path, _OpenFile] = {}

    def table(self, group: RowGroup, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a row group, or some columns of it. Raises DataError where it is damaged or gone."""
        file = self._file(group.path)
        return parts.read_row_group(
            file.parquet, group.path, group.group, list(columns) if columns else None
        )

    def names(self, group: RowGroup) -> ColumnNames:
        """Return the names of our columns in a row group's file."""
        return self._file(group.path).names

    def carried(self, group: RowGroup) -> list[str]:
        """Return the names of the other columns in a row group's file."""
        file = self._file(group.path)
        return [name for name in file.parquet.schema_arrow.names if name not in file.names]

    def made(self, path: Path) -> ColumnProvenance:
        """Return how a file's vectors were made. Raises DataError where it is gone, or not ours."""
        return self._file(path).made

    def embedding_columns(self, group: RowGroup) -> EmbeddingColumns:
        """Read our columns of a row group. Raises DataError where it is damaged or gone."""
        names = self.names(group)
        dim = self.made(group.path).recipe.space.dim
        return EmbeddingColumns.from_table(self.table(group, names), names, dim)

    def lengths(self, group: RowGroup) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Read the tokens of a row group's texts, and which were truncated."""
        names = self.names(group)
        table = self.table(group, [names.tokens, names.truncated])
        return table.column(names.tokens).to_numpy(), table.column(names.truncated).to_numpy()

    def hashes(self, group: RowGroup) -> Hashes:
        """Read the hashes of a row group's texts, as voids [rows]."""
        name = self.names(group).hash
        return parts.hashes_of(self.table(group, [name]).column(name))

    def first_hash(self, group: RowGroup) -> bytes:
        """Read the hash of a row group's first text. Raises DataError where it is damaged or gone."""
        file = self._file(group.path)
        try:
            batch = next(
                file.parquet.iter_batches(
                    1, row_groups=[group.group], columns=[file.names.hash], use_threads=False
                )
            )
        except (pa.ArrowException, OSError, ValueError, StopIteration) as error:
            raise parts.damaged(group.path, error) from None
        first = parts.hashes_of(pa.chunked_array([batch.column(0)]))
        return bytes(first[0])

    def holds(self, group: RowGroup, carried: pa.Table, schema: pa.Schema, hashes: Hashes) -> bool:
        """Tell whether a row group holds just these rows: the same texts, and the same carried values."""
        file = self._file(group.path)
        if group.rows != len(hashes) or file.schema != schema or not file.is_sealed:
            return False
        if not np.array_equal(self.hashes(group), hashes):
            return False
        return not carried.num_columns or self.table(group, carried.column_names).equals(carried)

    def _file(self, path: Path) -> "_OpenFile":
        file = self._files.pop(path, None) or _OpenFile(path)
        self._files[path] = file
        if len(self._files) > self._OPEN_FILES:
            self._files.pop(next(iter(self._files))).close()
        return file


class _OpenFile:
    """One of our Parquet files, open."""

    def __init__(self, path: Path) -> None:
        with ExitStack() as stack:
            self.parquet = stack.enter_context(_open(path))
            self.schema = self.parquet.schema_arrow.remove_metadata()
            provenance = read_provenance(self.parquet, path)
            if provenance is None:
                raise DataError(f"{path}: was not written by embedcli")
            vector, self.made = next(iter(provenance.columns.items()))
            self.names = ColumnNames.of(vector)
            self.is_sealed = is_sealed(path)
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()
