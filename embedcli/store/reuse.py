"""Vectors on disk, found by the hash of their text.

A vector is a function of the recipe and the rendered text, so the hash of that text finds it; rows
and files play no part. The index is a pair of sorted arrays on disk, mapped into memory: 16 bytes a
row, shared by all processes.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedcli.store.parts import EmbeddingColumns, Hashes
from embedcli.store.vector_file import RowGroup, RowGroupCache

_KEYS = "index-keys.npy"
_POSITIONS = "index-positions.npy"

# The first eight bytes of each hash.
Prefixes = npt.NDArray[np.uint64]


def text_hashes(rendered: Sequence[str]) -> Hashes:
    """Return 16 bytes that stand for each rendered text, as voids [n]: BLAKE2b of its UTF-8,
    untruncated.
    """
    blake2b = hashlib.blake2b
    digests = [blake2b(text.encode(), digest_size=16).digest() for text in rendered]
    return np.frombuffer(b"".join(digests), "V16")


def hash_prefixes(hashes: Hashes) -> Prefixes:
    """Return the first eight bytes of each hash: enough to look it up, not to trust it."""
    return np.ascontiguousarray(hashes).view("<u8").reshape(-1, 2)[:, 0]


def distinct(hashes: Hashes) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the rows whose hash is new, in order, and for each row the number of its hash among
    those.
    """
    _, first_rows, numbers = np.unique(
        hash_prefixes(hashes), return_index=True, return_inverse=True
    )
    if not np.array_equal(hashes[first_rows[numbers]], hashes):  # two hashes that begin alike
        return np.arange(len(hashes)), np.arange(len(hashes))
    # np.unique numbers hashes by their value: renumber them by their first row.
    order = np.argsort(first_rows)
    return first_rows[order], np.argsort(order)[numbers]


def build_index(groups: Sequence[RowGroup], directory: Path) -> None:
    """Write the index of all rows of some row groups: sorted prefixes, and the position of each row.

    Of equal prefixes the first row comes first.
    """
    cache = RowGroupCache()
    keys = np.concatenate(
        [np.empty(0, np.uint64), *(hash_prefixes(cache.hashes(group)) for group in groups)]
    )
    order = np.argsort(keys, kind="stable")
    np.save(directory / _POSITIONS, order)
    np.save(directory / _KEYS, keys[order])


def has_index(directory: Path) -> bool:
    """Tell whether the index is there."""
    return (directory / _KEYS).exists()


class VectorIndex:
    """The vectors of some row groups, found by hash."""

    def __init__(self, groups: Sequence[RowGroup], directory: Path, cache: RowGroupCache) -> None:
        self.groups = tuple(groups)
        self._cache = cache
        # Rows are counted over all groups; a group's rows begin at its start.
        self._starts = np.cumsum([0, *(group.rows for group in self.groups)])
        self._keys = np.load(directory / _KEYS, mmap_mode="r")
        self._positions = np.load(directory / _POSITIONS, mmap_mode="r")

    def take(self, hashes: Hashes, dim: int) -> tuple[EmbeddingColumns, npt.NDArray[np.int64]]:
        """Return for each hash its values, and the number of the row group they come from.

        Where a hash is unknown the values are zeros and the number is -1.
        """
        columns = EmbeddingColumns.zeros(hashes, dim)
        source = np.full(len(hashes), -1, np.int64)
        positions = self._find(hashes)
        group_numbers = np.searchsorted(self._starts, positions, side="right") - 1
        numbers = np.where(positions >= 0, group_numbers, -1)
        # Group by group, so that each is read once.
        for number in np.unique(numbers[numbers >= 0]):
            stored = self._cache.embedding_columns(self.groups[number])
            rows = np.flatnonzero(numbers == number)
            stored_rows = positions[rows] - self._starts[number]
            # The prefix may be another text's: the whole hash decides.
            is_same = stored.hashes[stored_rows] == hashes[rows]
            rows, stored_rows = rows[is_same], stored_rows[is_same]
            columns.vectors[rows] = stored.vectors[stored_rows]
            columns.tokens[rows] = stored.tokens[stored_rows]
            columns.truncated[rows] = stored.truncated[stored_rows]
            source[rows] = number
        return columns, source

    def _find(self, hashes: Hashes) -> npt.NDArray[np.int64]:
        """Return the position of each hash's first occurrence; -1 where there is none."""
        if not len(self._keys):
            return np.full(len(hashes), -1, np.int64)
        keys = hash_prefixes(hashes)
        # Where a key would stand in the sorted ones: it is there, or nowhere.
        nearest = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[nearest] == keys, self._positions[nearest], -1)


def count_removed(before: Prefixes, after: Iterable[Prefixes]) -> int:
    """Count the keys `before` that have no partner among the keys `after`.

    Each key is the partner of one.
    """
    keys, unmatched = np.unique(before, return_counts=True)
    if not len(keys):
        return 0
    # In blocks, so that only the keys before stay in memory.
    for prefixes in after:
        present, counts = np.unique(prefixes, return_counts=True)
        position = np.minimum(np.searchsorted(keys, present), len(keys) - 1)
        hit = keys[position] == present
        unmatched[position[hit]] -= counts[hit]
    return int(np.maximum(unmatched, 0).sum())
