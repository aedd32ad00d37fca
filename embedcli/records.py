"""The nouns that travel from the sources to the store: units of the input, their records, and
rejected rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from embedcli.config import OnError
from embedcli.errors import DataError, RowFault

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Segment:
    """Rows of one input file that follow one another.

    `start` and `stop` are byte offsets (JSONL) or row numbers from 0 (Parquet, Arrow); `first` is
    the number of the first line or row as people count, from 1; `rows` counts good and bad records.
    """

    file: int
    start: int
    stop: int
    first: int
    rows: int


@dataclass(frozen=True)
class Unit:
    """What is read, encoded and written at once: segments that follow one another, of one file or
    of several small ones. Cut by the input's content alone.

    `digest` is that of the rows' bytes (JSONL; other files have one of their own).
    """

    segments: tuple[Segment, ...]
    digest: str = ""

    @property
    def rows(self) -> int:
        """Rows, good and bad."""
        return sum(segment.rows for segment in self.segments)


@dataclass(frozen=True)
class Reject:
    """A row that gets no vector: where it stands and why; `id` is its id, if that can be read."""

    file: str
    place: str
    number: int
    offset: int | None
    fault: RowFault
    excerpt: str = ""
    id: str = ""

    def as_error(self) -> DataError:
        """Return it as an exception, for runs that stop at the first bad row."""
        more_hint = "--on-error reject sets bad rows aside and goes on"
        where = (
            f"{self.file}:{self.number}"
            if self.place == "line"
            else f"{self.file}: row {self.number}"
        )
        return DataError(
            f"{where}: {self.fault.reason}", "; ".join(filter(None, (self.fault.hint, more_hint)))
        )


def stop_at_first(rejects: Sequence[Reject], on_error: OnError) -> None:
    """Raise the first bad row as DataError, unless bad rows are to be set aside."""
    if rejects and on_error == "fail":
        raise rejects[0].as_error()


class Place(NamedTuple):
    """Where a row stands: its file, by number, and its line or row, from 1."""

    file: int
    number: int


@dataclass(frozen=True)
class Places(Sequence[Place]):
    """Where rows stand, in arrays: files int32 [n], numbers int64 [n]."""

    files: npt.NDArray[np.int32]
    numbers: npt.NDArray[np.int64]

    @classmethod
    def of(cls, file: int, numbers: Sequence[int]) -> "Places":
        """Return the places of rows of one file."""
        return cls(np.full(len(numbers), file, np.int32), np.asarray(numbers, np.int64))

    @classmethod
    def join(cls, places: Sequence["Places"]) -> "Places":
        """Return all places of several, in order."""
        return cls(
            np.concatenate([part.files for part in places]),
            np.concatenate([part.numbers for part in places]),
        )

    def select(self, rows: Sequence[int] | npt.NDArray[np.intp]) -> "Places":
        """Return the places of some rows."""
        return Places(self.files[rows], self.numbers[rows])

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: Any) -> Any:
        return Place(int(self.files[row]), int(self.numbers[row]))


@dataclass(frozen=True)
class Records:
    """The good rows of a unit, in the input's order, and the bad ones.

    `table` holds the carried columns, `fields` the columns that the template names; `places` gives
    the file, by its number in the corpus, and the line or row of each. `digests` are those of the
    lines that were read, 8 bytes each.
    """

    table: "pa.Table"
    texts: list[str]
    fields: dict[str, list[object]]
    places: Places
    rejects: list[Reject] = field(default_factory=list)
    digests: bytes = b""


@dataclass(frozen=True)
class InputFile:
    """One input: the name people gave it, the path that can be read from any offset, the format
    found inside, and what people count in it (`line`, `row`).

    `identity` are device, inode, size and times of the file when the run was planned; empty for a
    copy of this run's own. Equal ones mean equal content, others mean nothing: then the digest
    decides. `digest`: of the bytes that are read of a file of rows. `batch_rows`: the rows of each
    batch of an Arrow file.
    """

    name: str
    path: str
    format: str
    place: str
    identity: tuple[int, ...] = ()
    digest: str = ""
    batch_rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Corpus:
    """All inputs, planned: their files, their units in order, and the one schema of the carried
    columns.

    `json_columns` are carried as JSON text; `notes` is what people should know of the input.
    `digest` changes when the content does.
    """

    files: tuple[InputFile, ...]
    units: tuple[Unit, ...]
    schema: "pa.Schema"
    json_columns: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    digest: str = ""

    @property
    def rows(self) -> int:
        """Rows in the input, good and bad."""
        return sum(unit.rows for unit in self.units)


class Rendered(NamedTuple):
    """What the tokenizer gets: whole strings, and where in each the record's own text stands
    (character offsets).
    """

    strings: list[str]
    starts: list[int]
    stops: list[int]
