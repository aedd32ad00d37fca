"""Vectors on disk, found by the hash of their text.

A vector is a function of the recipe and the rendered text, so the hash of that text finds it; rows
and files play no part. The index is a pair of sorted arrays on disk, mapped into memory: 16 bytes a
row, shared by all processes. It is sorted bucket by bucket, so that 100 million rows need no more
memory than two million.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcli.store import life
from embedcli.store.decoded_rows import DecodedRows
from embedcli.store.parts import EmbeddingColumns, Hashes
from embedcli.store.sorted_keys import SortedKeys
from embedcli.store.vector_file import RowGroup, RowGroupCache

_KEYS = "index-keys"
_POSITIONS = "index-positions"
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
    prefixes = hash_prefixes(hashes)
    in_order = np.sort(prefixes)  # far faster than np.unique, which says where each one was
    if not (in_order[1:] == in_order[:-1]).any():
        return np.arange(len(hashes)), np.arange(len(hashes))
    _, first_rows, numbers = np.unique(prefixes, return_index=True, return_inverse=True)
    if not np.array_equal(hashes[first_rows[numbers]], hashes):  # two hashes that begin alike
        return np.arange(len(hashes)), np.arange(len(hashes))
    # np.unique numbers hashes by their value: renumber them by their first row.
    order = np.argsort(first_rows)
    return first_rows[order], np.argsort(order)[numbers]


def first_hashes(groups: Sequence[RowGroup], cache: RowGroupCache) -> dict[bytes, list[int]]:
    """Return the numbers of the row groups by the hash of their first text.

    The group that holds the texts of a unit is found by its first one.
    """
    numbers: dict[bytes, list[int]] = {}
    for number, group in enumerate(groups):
        if group.rows:
            numbers.setdefault(cache.first_hash(group), []).append(number)
    return numbers


def build_index(groups: Sequence[RowGroup], directory: Path) -> None:
    """Write the index of all rows of some row groups: sorted prefixes, and the position of each row.

    Of equal prefixes the first row comes first.
    """
    cache = RowGroupCache()
    sorted_keys = SortedKeys(directory / "index", sum(group.rows for group in groups))
    for group in groups:
        sorted_keys.add(hash_prefixes(cache.hashes(group)))
    with open(directory / _KEYS, "wb") as keys, open(directory / _POSITIONS, "wb") as positions:
        for share_keys, share_positions in sorted_keys.shares():
            keys.write(share_keys.tobytes())
            positions.write(share_positions.tobytes())


def has_index(directory: Path) -> bool:
    """Tell whether the index is there."""
    return (directory / _KEYS).exists()


class VectorIndex:
    """The vectors of some row groups, found by hash."""

    def __init__(
        self, groups: Sequence[RowGroup], dim: int, directory: Path, cache: RowGroupCache
    ) -> None:
        self.groups = tuple(groups)
        # Of each machine its own: what one writes into a file, another may see late.
        decoded = directory / f"decoded-{life.boot()}"
        self._decoded = DecodedRows(groups, dim, decoded, cache)
        self._keys = _mapped(directory / _KEYS, np.uint64)
        self._positions = _mapped(directory / _POSITIONS, np.int64)

    def take(self, hashes: Hashes, dim: int) -> tuple[EmbeddingColumns, npt.NDArray[np.int64]]:
        """Return for each hash its values, and the number of the row group they come from.

        Where a hash is unknown the values are zeros and the number is -1.
        """
        columns = EmbeddingColumns.zeros(hashes, dim)
        source = np.full(len(hashes), -1, np.int64)
        positions = self._find(hashes)
        rows = np.flatnonzero(positions >= 0)
        stored_hashes = self._decoded.read(positions[rows], columns, rows)
        # The prefix may be another text's: the whole hash decides.
        is_same = stored_hashes == hashes[rows]
        for values in (columns.vectors, columns.tokens, columns.truncated):
            values[rows[~is_same]] = 0
        rows = rows[is_same]
        source[rows] = self._decoded.group_numbers(positions[rows])
        return columns, source

    def _find(self, hashes: Hashes) -> npt.NDArray[np.int64]:
        """Return the position of each hash's first occurrence; -1 where there is none."""
        found = np.full(len(hashes), -1, np.int64)
        if not len(self._keys):
            return found
        keys = hash_prefixes(hashes)
        # In the order of the index, which is read forwards then.
        order = np.argsort(keys)
        # Where a key would stand in the sorted ones: it is there, or nowhere.
        nearest = np.minimum(np.searchsorted(self._keys, keys[order]), len(self._keys) - 1)
        is_there = self._keys[nearest] == keys[order]
        found[order[is_there]] = self._positions[nearest[is_there]]
        return found


def _mapped(path: Path, dtype: type) -> npt.NDArray[Any]:
    # A file of no bytes can't be mapped.
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)
