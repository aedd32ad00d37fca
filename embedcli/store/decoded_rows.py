"""Rows of our files, decoded once for the whole run: whoever needs a row group first puts its rows
into files from which all processes take single rows, in any order.

Parquet has to be decoded a row group at a time. A corpus whose rows were shuffled needs rows of all
row groups for each unit: without these files each would be decoded for each unit.
"""

import itertools
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from embedcli.store.parts import EmbeddingColumns, Hashes
from embedcli.store.vector_file import RowGroup, RowGroupCache

Positions = npt.NDArray[np.int64]


# What is known of a row beside its vector.
_FACTS = np.dtype([("hash", "V16"), ("tokens", "<i4"), ("truncated", "?")])


class DecodedRows:
    """The rows of some row groups, numbered over all of them, in files of records of one size.

    Read with pread, not mapped: of a mapped file Linux loads 64 kB for a row of any size.
    """

    def __init__(
        self, groups: Sequence[RowGroup], dim: int, directory: Path, cache: RowGroupCache
    ) -> None:
        self._groups = tuple(groups)
        self._cache = cache
        # A group's rows begin at its start.
        self._starts = np.cumsum([0, *(group.rows for group in groups)])
        directory.mkdir(exist_ok=True)
        # Other processes open the same files, whoever comes first. What isn't written takes no space.
        self._vectors = self._open(directory / "vectors", 4 * dim)
        self._facts = self._open(directory / "facts", _FACTS.itemsize)
        # 1 for each group whose rows are there.
        self._decoded = self._open(directory / "groups", 1)

    def _open(self, path: Path, size: int) -> "_Records":
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        weakref.finalize(self, os.close, descriptor)
        return _Records(descriptor, size)

    def group_numbers(self, positions: Positions) -> Positions:
        """Return the number of the group of each row."""
        return np.searchsorted(self._starts, positions, side="right") - 1

    def read(self, positions: Positions, columns: EmbeddingColumns, rows: Positions) -> Hashes:
        """Read as many rows into rows of `columns`, but for their hashes: return those.

        What isn't decoded yet is decoded first. Raises DataError where a group is damaged or gone,
        OSError where the disk is full.
        """
        numbers = np.unique(self.group_numbers(positions))
        is_decoded = np.zeros(len(numbers), np.uint8)
        self._decoded.read(numbers, is_decoded, np.arange(len(numbers)))
        for number in numbers[is_decoded == 0].tolist():
            self._decode(number)
        facts = np.empty(len(positions), _FACTS)
        self._facts.read(positions, facts, np.arange(len(positions)))
        self._vectors.read(positions, columns.vectors, rows)
        columns.tokens[rows] = facts["tokens"]
        columns.truncated[rows] = facts["truncated"]
        return facts["hash"]

    def _decode(self, number: int) -> None:
        """Put the rows of a group into the files."""
        columns = self._cache.embedding_columns(self._groups[number])
        facts = np.empty(len(columns.hashes), _FACTS)
        facts["hash"] = columns.hashes
        facts["tokens"] = columns.tokens
        facts["truncated"] = columns.truncated
        start = int(self._starts[number])
        self._vectors.write(start, columns.vectors)
        self._facts.write(start, facts)
        # Last: another process that sees this finds the rows there.
        self._decoded.write(number, np.ones(1, np.uint8))


class _Records(NamedTuple):
    """A file of records of one size."""

    descriptor: int
    size: int

    def write(self, start: int, values: npt.NDArray[Any]) -> None:
        """Write records, from the one of a number on. Raises OSError where the disk is full."""
        rest, offset = _bytes_of(values), start * self.size
        while rest:
            written = os.pwrite(self.descriptor, rest, offset)
            rest, offset = rest[written:], offset + written

    def read(self, positions: Positions, target: npt.NDArray[Any], rows: Positions) -> None:
        """Read records into rows of an array: those that follow one another, there and here, at
        once. What was never written stays as it is.
        """
        is_next = (np.diff(positions) == 1) & (np.diff(rows) == 1)
        starts = [0, *(np.flatnonzero(~is_next) + 1).tolist()] if len(rows) else []
        content, size = _bytes_of(target), self.size
        offsets = (positions * size).tolist()
        row_starts = (rows * size).tolist()
        for start, stop in itertools.pairwise([*starts, len(rows)]):
            first = row_starts[start]
            buffer = content[first : first + (stop - start) * size]
            os.preadv(self.descriptor, [buffer], offsets[start])


def _bytes_of(values: npt.NDArray[Any]) -> memoryview:
    """Return the bytes of an array, to read and to write in place."""
    assert values.flags.c_contiguous
    return values.reshape(-1).view(np.uint8).data
