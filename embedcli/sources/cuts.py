"""Where a corpus is cut into units: behind rows whose own content says so.

A row that is inserted, changed or deleted moves the cuts beside it and no others, so that an update
writes the units anew that hold a change, and keeps the rest. This is content-defined chunking
(Muthitacharoen et al., "A low-bandwidth network file system", SOSP 2001) with a least and a most
size (Xia et al., "FastCDC", USENIX ATC 2016).
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# Carried columns may be far wider than the text: of all bytes of a row, this share counts, if it is more than the text.
MAX_WIDTH = 8


# The hash of rows behind which no unit ends.
NO_CUT = 2**32 - 1


@dataclass(frozen=True)
class Grain:
    """How large units are, on average: so many rows, or so many bytes, whichever is less."""

    rows: int
    bytes: int

    @property
    def least(self) -> tuple[int, int]:
        """Rows and bytes of which a unit has one at least, unless the corpus ends."""
        return self.rows // 4, self.bytes // 4

    @property
    def most(self) -> tuple[int, int]:
        """Rows and bytes behind which a unit ends in any case."""
        return self.rows * 2, self.bytes * 2


# 16,384 vectors of 4,096 float32 numbers, the most of a unit, are 256 MiB.
COARSE = Grain(rows=8_192, bytes=2**23)
# For small corpora, so that several workers have something to do.
FINE = Grain(rows=2_048, bytes=2**20)
_FINE_BELOW = 2**25


def grain_of(total_bytes: int) -> Grain:
    """Return how a corpus of so many bytes is cut. Nothing else follows from its size: if it grew
    beyond a limit at each run, each run would cut it anew.
    """
    return FINE if total_bytes < _FINE_BELOW else COARSE


class Rows(NamedTuple):
    """What decides over the cuts in rows that follow one another; arrays [n].

    hashes: of the texts, uint32; sizes: the bytes that count, int64; are_rows: bool: blank lines
    among them are none, and take no part.
    """

    hashes: npt.NDArray[np.uint32]
    sizes: npt.NDArray[np.int64]
    are_rows: npt.NDArray[np.bool_]


def hash_texts(contents: Sequence[bytes]) -> npt.NDArray[np.uint32]:
    """Return a hash of each text, uint32 [n]. Empty texts end no unit: they may be many."""
    hashes = np.array(list(map(zlib.crc32, contents)), np.uint32)
    hashes[[not content for content in contents]] = NO_CUT
    return hashes


class Cutter:
    """Finds the cuts in a stream of rows, piece by piece; how it is cut into pieces plays no part."""

    def __init__(self, grain: Grain) -> None:
        self._grain = grain
        # Of the unit that is open.
        self._rows = 0
        self._bytes = 0

    def cuts(self, rows: Rows) -> Iterator[int]:
        """Yield behind how many of these rows a unit ends."""
        count = len(rows.hashes)
        # The totals behind each row, counted from the start of the open unit.
        totals = np.cumsum(rows.sizes) + self._bytes
        row_numbers = np.cumsum(rows.are_rows) + self._rows
        candidates = np.flatnonzero(self._may_end(rows)) + 1
        start = 0
        rows_before, bytes_before = 0, 0
        while True:
            least = self._first_reaching(row_numbers, totals, rows_before, bytes_before, "least")
            most = self._first_reaching(row_numbers, totals, rows_before, bytes_before, "most")
            position = np.searchsorted(candidates, max(least, start + 1))
            cut = int(candidates[position]) if position < len(candidates) else count + 1
            cut = min(cut, most)
            if cut > count:
                break
            yield cut
            start = cut
            rows_before, bytes_before = int(row_numbers[cut - 1]), int(totals[cut - 1])
        self._rows = int(row_numbers[-1]) - rows_before if count else self._rows
        self._bytes = int(totals[-1]) - bytes_before if count else self._bytes

    def _may_end(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Tell behind which rows a unit may end.

        A row's chance is what it takes of a unit of average size, in rows or in bytes.
        """
        shares = np.maximum(1 / self._grain.rows, rows.sizes / self._grain.bytes)
        return rows.hashes < shares * 2.0**32

    def _first_reaching(
        self,
        row_numbers: npt.NDArray[np.int64],
        totals: npt.NDArray[np.int64],
        rows_before: int,
        bytes_before: int,
        limit: str,
    ) -> int:
        """Return behind how many rows the unit that starts after so many rows and bytes has reached
        its least or its most size; one more than there are where it doesn't.
        """
        limit_rows, limit_bytes = getattr(self._grain, limit)
        by_rows = np.searchsorted(row_numbers, rows_before + limit_rows)
        by_bytes = np.searchsorted(totals, bytes_before + limit_bytes)
        return int(min(by_rows, by_bytes)) + 1
