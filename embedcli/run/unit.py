"""A unit while it is worked on: its good rows, their hashes, their vectors, and what became of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from embedcli.computation import Computation
from embedcli.errors import RowFault
from embedcli.records import Corpus, Records, Reject, Rendered, stop_at_first
from embedcli.run.job import Counts, Job
from embedcli.sources.tables import id_of
from embedcli.store.manifest import PartEntry
from embedcli.store.parts import EmbeddingColumns, Hashes

EXCERPT_LENGTH = 200
# Numbers of rows, or of distinct texts.
Numbers = npt.NDArray[np.intp]


@dataclass
class UnitResult:
    """What became of a unit.

    part: the unit's part; None where it has none in staging, since a row group of the earlier
    output stays as it is: `previous`, by its number. made: what computed its vectors; note: what
    people should know of that.
    """

    rows: int = 0
    part: PartEntry | None = None
    previous: int | None = None
    counts: Counts = field(default_factory=Counts)
    rejects: list[Reject] = field(default_factory=list)
    made: list[Computation] = field(default_factory=list)
    note: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    example: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the value that `from_json` reads."""
        value: dict[str, Any] = msgspec.to_builtins(self)
        return value

    @classmethod
    def from_json(cls, value: Any) -> "UnitResult":
        """Read the value that `to_json` gives."""
        return msgspec.convert(value, cls)


@dataclass
class UnitState:
    """A unit's good rows on their way to a part, in the order in which the fields are filled.

    Equal texts of a unit are encoded once: `text_numbers` tells for each row which distinct text it
    has, and `first_rows` for each distinct text the first row that has it.

    records, rendered, hashes (16-byte voids): by row, after reading. columns: by distinct text;
    after the lookup those of known texts are filled in, after encoding all are; empty where the
    unit is kept. missing: the
    distinct texts whose vector has to be computed. is_kept: the unit stays as it lies on disk;
    kept_part: the part that it stays as. prepared: the missing texts
    as the encoder takes them.
    """

    index: int
    result: UnitResult
    records: Records
    rendered: Rendered
    hashes: Hashes
    first_rows: Numbers
    text_numbers: Numbers
    columns: EmbeddingColumns
    missing: Numbers
    is_kept: bool = False
    kept_part: Path | None = None
    prepared: Any = None

    def rendered_texts(self, numbers: Sequence[int] | Numbers) -> Rendered:
        """Return some distinct texts, rendered."""
        return select_rendered(self.rendered, self.first_rows[np.asarray(numbers, np.intp)])


def rows_without(count: int, faults: Mapping[int, RowFault]) -> Numbers:
    """Return the numbers of `count` rows but those that have a fault."""
    good = np.ones(count, np.bool_)
    good[list(faults)] = False
    return np.flatnonzero(good)


def select_records(records: Records, rows: Numbers) -> Records:
    """Return the records of some rows; the same where these are all."""
    if len(rows) == len(records.texts):
        return records
    return Records(
        table=records.table.take(rows),
        texts=[records.texts[row] for row in rows],
        fields={name: [values[row] for row in rows] for name, values in records.fields.items()},
        places=records.places.select(rows),
    )


def select_rendered(rendered: Rendered, rows: Numbers) -> Rendered:
    """Return the rendered texts of some rows; the same where these are all."""
    if len(rows) == len(rendered.strings):
        return rendered
    return Rendered(
        strings=[rendered.strings[row] for row in rows],
        starts=[rendered.starts[row] for row in rows],
        stops=[rendered.stops[row] for row in rows],
    )


def rejects_of(
    job: Job, corpus: Corpus, records: Records, faults: Mapping[int, RowFault]
) -> list[Reject]:
    """Return a unit's rows with a fault as rejects.

    Raises the first as DataError, unless they are to be set aside.
    """
    rejects = []
    for row, fault in sorted(faults.items()):
        place = records.places[row]
        file = corpus.files[place.file]
        excerpt = records.texts[row][:EXCERPT_LENGTH]
        record_id = id_of(records.table, row, job.input)
        rejects.append(Reject(file.name, file.place, place.number, None, fault, excerpt, record_id))
    stop_at_first(rejects, job.input.on_error)
    return rejects
