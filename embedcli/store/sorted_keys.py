"""Keys of many rows in their order, sorted share by share: memory doesn't grow with the rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]

# Fewer rows than this are sorted at once; more are put into files by their first byte.
_ROWS_AT_ONCE = 2**21
_BUCKETS = 256
_RECORD = np.dtype([("key", "<u8"), ("position", "<i8")])


class SortedKeys:
    """Collects keys, numbered as they come, and gives them back sorted, 40 bytes of memory a row at
    most, for two million rows at most.

    `directory` is a new one, for what doesn't fit into memory; `rows` about how many there will be.
    """

    def __init__(self, directory: Path, rows: int) -> None:
        self._directory = directory
        self._is_spilled = rows > _ROWS_AT_ONCE
        self._pending: list[npt.NDArray[Any]] = []
        self._pending_rows = 0
        self._rows = 0

    def add(self, keys: Keys) -> None:
        """Take the keys of the next rows."""
        records = np.empty(len(keys), _RECORD)
        records["key"] = keys
        records["position"] = np.arange(self._rows, self._rows + len(keys))
        self._rows += len(keys)
        self._pending.append(records)
        self._pending_rows += len(keys)
        if self._is_spilled and self._pending_rows >= _ROWS_AT_ONCE:
            self._spill()

    def _spill(self) -> None:
        records = np.concatenate([np.empty(0, _RECORD), *self._pending])
        self._pending, self._pending_rows = [], 0
        buckets = (records["key"] >> np.uint64(56)).astype(np.int64)
        records = records[np.argsort(buckets, kind="stable")]
        stops = np.cumsum(np.bincount(buckets, minlength=_BUCKETS))
        self._directory.mkdir(exist_ok=True)
        for number, (start, stop) in enumerate(zip([0, *stops[:-1]], stops, strict=True)):
            if start < stop:
                with open(self._bucket(number), "ab") as file:
                    file.write(records[start:stop].tobytes())

    def _bucket(self, number: int) -> Path:
        return self._directory / f"{number:03d}"

    def shares(self) -> Iterator[tuple[Keys, Positions]]:
        """Yield the keys in their order with the numbers of their rows, share by share.

        Equal keys keep the order of their rows. Of as many rows the shares of two have the same
        limits.
        """
        if not self._is_spilled:
            yield _sort(np.concatenate([np.empty(0, _RECORD), *self._pending]))
            return
        self._spill()
        for number in range(_BUCKETS):
            path = self._bucket(number)
            records = np.fromfile(path, _RECORD) if path.exists() else np.empty(0, _RECORD)
            path.unlink(missing_ok=True)
            yield _sort(records)
        self._directory.rmdir()


def _sort(records: npt.NDArray[Any]) -> tuple[Keys, Positions]:
    order = np.argsort(records["key"], kind="stable")
    return records["key"][order], records["position"][order]
