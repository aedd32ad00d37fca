"""From rows to units: what planning learns of the rows, range by range, becomes a list of units."""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from embedcli.records import Segment, Unit
from embedcli.sources.cuts import Cutter, Grain, Rows


class ScannedRows(NamedTuple):
    """What planning learned of rows that follow one another in a file; arrays [n].

    start: where the first begins; stops: where each ends (bytes or rows, int64); lines: the lines of
    text that each takes, int64; digests: 8 bytes for each (JSONL).
    """

    file: int
    start: int
    stops: npt.NDArray[np.int64]
    cutting: Rows
    lines: npt.NDArray[np.int64]
    digests: bytes = b""

    def digest_bytes(self, start: int, stop: int) -> bytes:
        """Return the digests of rows [start, stop), without those of blank lines: several are
        scanned as one, now these, now those.
        """
        if not self.digests:
            return b""
        digests = np.frombuffer(self.digests, "V8")[start:stop]
        return digests[self.cutting.are_rows[start:stop]].tobytes()


class UnitBuilder:
    """Puts scanned rows together to units, in the order in which they come."""

    def __init__(self, grain: Grain) -> None:
        self._cutter = Cutter(grain)
        self._units: list[Unit] = []
        # Of the unit that is open.
        self._segments: list[Segment] = []
        self._digest = hashlib.blake2b(digest_size=16)
        # The lines or rows so far of the file that came last.
        self._file, self._lines = -1, 0

    def add(self, scanned: ScannedRows) -> None:
        """Take the rows that follow those of the last call."""
        if scanned.file != self._file:
            self._file, self._lines = scanned.file, 0
        position = 0
        for cut in self._cutter.cuts(scanned.cutting):
            self._extend(scanned, position, cut)
            self._close()
            position = cut
        if position < len(scanned.stops):
            self._extend(scanned, position, len(scanned.stops))

    def lines_of(self, file: int) -> int:
        """Return how many lines or rows of a file were added."""
        return self._lines if file == self._file else 0

    def units(self) -> tuple[Unit, ...]:
        """Return all units; the last ends where the corpus does."""
        if self._segments:
            self._close()
        return tuple(self._units)

    def _extend(self, scanned: ScannedRows, start: int, stop: int) -> None:
        """Add the scanned rows [start, stop) to the open unit."""
        segment = Segment(
            file=scanned.file,
            start=int(scanned.stops[start - 1]) if start else scanned.start,
            stop=int(scanned.stops[stop - 1]),
            first=self._lines + 1,
            rows=int(np.count_nonzero(scanned.cutting.are_rows[start:stop])),
        )
        self._lines += int(scanned.lines[start:stop].sum())
        last = self._segments[-1] if self._segments else None
        if last is not None and (last.file, last.stop) == (segment.file, segment.start):
            segment = Segment(
                last.file, last.start, segment.stop, last.first, last.rows + segment.rows
            )
            self._segments.pop()
        self._segments.append(segment)
        self._digest.update(scanned.digest_bytes(start, stop))

    def _close(self) -> None:
        self._units.append(Unit(tuple(self._segments), self._digest.hexdigest()))
        self._segments = []
        self._digest = hashlib.blake2b(digest_size=16)


def digest_of(digests: Iterable[bytes]) -> str:
    """Return the digest of a unit, 32 hex digits, from those of its segments' lines."""
    return hashlib.blake2b(b"".join(digests), digest_size=16).hexdigest()
