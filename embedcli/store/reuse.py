"""Vectors that lie on disk already: as whole row groups that can stay as they are, and one by one by hash.

A vector is a function of the recipe and the rendered text, so the hash of that text finds it; rows and files play no
part. The index is a pair of sorted arrays on disk, mapped into memory: 16 bytes a row, shared by all processes.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from embedcli.errors import DataError
from embedcli.store import parts

_KEYS, _PLACES = "known-keys.npy", "known-places.npy"
_OPEN_FILES = 8
# Row groups kept in memory while lookups jump between them.
_CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Block:
    """A row group of one of our files: what became of a unit."""

    path: Path
    group: int
    rows: int


def blocks_of(path: Path) -> list[Block]:
    """All row groups of a file. Raises DataError where it is damaged."""
    with parts.open_file(path) as opened:
        groups = range(opened.metadata.num_row_groups)
        return [Block(path, group, opened.metadata.row_group(group).num_rows) for group in groups]


class Shelf:
    """Reads row groups; a few files stay open, a few row groups in memory."""

    def __init__(self) -> None:
        self._files: OrderedDict[Path, pq.ParquetFile] = OrderedDict()
        self._owns: OrderedDict[Block, parts.Own] = OrderedDict()

    def table(self, block: Block, columns: Sequence[str] | None = None) -> pa.Table:
        """A row group, or some columns of it. Raises DataError where it is damaged or gone."""
        return parts.read_group(self._file(block.path), block.path, block.group, list(columns) if columns else None)

    def schema(self, block: Block) -> pa.Schema:
        """The schema of a block's file, without metadata."""
        return self._file(block.path).schema_arrow.remove_metadata()

    def provenance(self, path: Path) -> dict[str, Any]:
        """What a file says of its making; nothing where it isn't ours. Raises DataError where it is gone."""
        return parts.provenance_of(self._file(path)) or {}

    def own(self, block: Block) -> parts.Own:
        """Our columns of a row group: its last four."""
        if block in self._owns:
            self._owns.move_to_end(block)
            return self._owns[block]
        own = own_of(self.table(block, self.schema(block).names[-4:]))
        self._owns[block] = own
        while len(self._owns) > 1 and sum(one.vectors.nbytes for one in self._owns.values()) > _CACHE_BYTES:
            self._owns.popitem(last=False)
        return own

    def lengths(self, block: Block) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """The tokens of a row group's texts, and which were truncated."""
        table = self.table(block, self.schema(block).names[-2:])
        return table.column(0).to_numpy(), table.column(1).to_numpy()

    def hashes(self, block: Block) -> npt.NDArray[Any]:
        """The hashes of a row group's texts, as voids [rows]."""
        name = self.schema(block).names[-3]
        return parts.hashes_of(self.table(block, [name]).column(name))

    def holds(self, block: Block, carried: pa.Table, schema: pa.Schema, hashes: npt.NDArray[Any]) -> bool:
        """Does a row group hold just these rows: the same texts, and the same carried values?"""
        if block.rows != len(hashes) or self.schema(block) != schema:
            return False
        if not np.array_equal(self.hashes(block), hashes):
            return False
        return not carried.num_columns or self.table(block, carried.column_names).equals(carried)

    def _file(self, path: Path) -> pq.ParquetFile:
        if path not in self._files:
            try:
                self._files[path] = parts.open_file(path)
            except FileNotFoundError:
                raise DataError(f"{path}: is gone") from None
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(path)
        return self._files[path]


def own_of(table: pa.Table) -> parts.Own:
    """The last four columns of a table, which are ours, as arrays."""
    vector, hashes, tokens, truncated = table.columns[-4:]
    return parts.Own(parts.vectors_of(vector), parts.hashes_of(hashes), tokens.to_numpy(), truncated.to_numpy())


def prefixes(hashes: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """The first eight bytes of each hash: enough to look it up, not to trust it."""
    return np.ascontiguousarray(hashes).view("<u8").reshape(-1, 2)[:, 0]


def build_index(blocks: Sequence[Block], directory: Path) -> None:
    """Write the index of all rows of the blocks: sorted prefixes, and where each stands, the first one first."""
    shelf = Shelf()
    keys = np.concatenate([np.empty(0, np.uint64), *(prefixes(shelf.hashes(block)) for block in blocks)])
    order = np.argsort(keys, kind="stable")
    np.save(directory / _PLACES, order)
    np.save(directory / _KEYS, keys[order])


def has_index(directory: Path) -> bool:
    """Is the index there?"""
    return (directory / _KEYS).exists()


class Known:
    """The vectors of some blocks, found by hash."""

    def __init__(self, blocks: Sequence[Block], directory: Path, shelf: Shelf) -> None:
        self.blocks, self._shelf = tuple(blocks), shelf
        self._starts = np.cumsum([0, *(block.rows for block in self.blocks)])
        self.keys = np.load(directory / _KEYS, mmap_mode="r")
        self._places = np.load(directory / _PLACES, mmap_mode="r")

    def take(self, hashes: npt.NDArray[Any], dim: int) -> tuple[parts.Own, npt.NDArray[np.int64]]:
        """For each hash its values, and the number of the block that they come from: -1, and zeros, where unknown."""
        own, source = parts.nothing(hashes, dim), np.full(len(hashes), -1, np.int64)
        places = self._find(hashes)
        numbers = np.where(places >= 0, np.searchsorted(self._starts, places, side="right") - 1, -1)
        for number in np.unique(numbers[numbers >= 0]):
            found, rows = self._shelf.own(self.blocks[number]), np.flatnonzero(numbers == number)
            at = places[rows] - self._starts[number]
            sound = found.hashes[at] == hashes[rows]  # the whole hash: its first bytes may be another text's
            rows, at = rows[sound], at[sound]
            own.vectors[rows], own.tokens[rows] = found.vectors[at], found.tokens[at]
            own.truncated[rows], source[rows] = found.truncated[at], number
        return own, source

    def _find(self, hashes: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """The row of each hash's first occurrence, counted over all blocks; -1 where there is none."""
        if not len(self.keys):
            return np.full(len(hashes), -1, np.int64)
        wanted = prefixes(hashes)
        at = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[at] == wanted, self._places[at], -1)


def removed(before: npt.NDArray[np.uint64], now: Iterable[npt.NDArray[np.uint64]]) -> int:
    """How many of the sorted keys `before` have no partner among the keys `now`; each is the partner of one."""
    keys, left = np.unique(before, return_counts=True)
    for some in now:
        found, counts = np.unique(some, return_counts=True)
        at = np.minimum(np.searchsorted(keys, found), len(keys) - 1)
        hit = keys[at] == found
        left[at[hit]] -= counts[hit]
    return int(np.maximum(left, 0).sum())
