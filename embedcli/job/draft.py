"""A unit on its way: its good rows, their hashes, and what became of it in the end."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcli.errors import RowFault
from embedcli.job import provenance
from embedcli.job.summary import Counts, Job
from embedcli.records import Corpus, Records, Reject, Rendered, stop_at_first
from embedcli.store import parts, reuse

EXCERPT = 200
Rows = npt.NDArray[np.intp]


@dataclass
class Result:
    """What became of a unit.

    previous: the row group of the earlier output that stays as it is, by its number; None where the unit has a part.
    made: the devices and dtypes behind its vectors.
    """

    rows: int = 0
    previous: int | None = None
    counts: Counts = field(default_factory=Counts)
    rejects: list[Reject] = field(default_factory=list)
    made: list[provenance.Made] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    example: str = ""

    def as_dict(self) -> dict[str, Any]:
        """All of it, for a file."""
        return asdict(self)

    @classmethod
    def of(cls, value: dict[str, Any]) -> "Result":
        """The same from such a file."""
        rejects = [Reject(**{**one, "fault": RowFault(**one["fault"])}) for one in value["rejects"]]
        made = [provenance.Made(**one) for one in value["made"]]
        return cls(**{**value, "counts": Counts(**value["counts"]), "rejects": rejects, "made": made})


@dataclass
class Draft:
    """The good rows of a unit, before the model is asked.

    hashes: voids [rows]; firsts: the rows whose text is new in the unit; texts: for each row the number of its text
    among those; own: values by text, zero for those in `missing`. kept: the unit stays as it is on disk; kept_part: the
    part that it stays as, where that isn't its own yet. prepared: the missing texts as the model takes them, once they
    are.
    """

    index: int
    records: Records
    rendered: Rendered
    hashes: npt.NDArray[Any]
    firsts: Rows
    texts: Rows
    own: parts.Own
    missing: Rows
    result: Result
    kept: bool = False
    kept_part: Path | None = None
    prepared: Any = None

    def strings(self, texts: Sequence[int] | Rows) -> Rendered:
        """The rendered strings of some texts, by their numbers."""
        return strings_of(self.rendered, self.firsts[np.asarray(texts, np.intp)])


def text_hashes(rendered: Sequence[str]) -> npt.NDArray[Any]:
    """16 bytes that stand for each rendered text, as voids [n]: BLAKE2b of its UTF-8, uncut."""
    blake2b = hashlib.blake2b
    return np.frombuffer(b"".join([blake2b(text.encode(), digest_size=16).digest() for text in rendered]), "V16")


def distinct(hashes: npt.NDArray[Any]) -> tuple[Rows, Rows]:
    """The rows whose hash is new, in order, and for each row the number of its hash among those."""
    _, firsts, texts = np.unique(reuse.prefixes(hashes), return_index=True, return_inverse=True)
    if not np.array_equal(hashes[firsts[texts]], hashes):  # two hashes that begin alike
        return np.arange(len(hashes)), np.arange(len(hashes))
    order = np.argsort(firsts)
    return firsts[order], np.argsort(order)[texts]


def rows_without(count: int, faults: Mapping[int, RowFault]) -> Rows:
    """The numbers of `count` rows but those that have a fault."""
    good = np.ones(count, np.bool_)
    good[list(faults)] = False
    return np.flatnonzero(good)


def records_of(records: Records, rows: Rows) -> Records:
    """The records of some rows; the same where these are all."""
    if len(rows) == len(records.texts):
        return records
    return Records(
        table=records.table.take(rows),
        texts=[records.texts[row] for row in rows],
        fields={name: [values[row] for row in rows] for name, values in records.fields.items()},
        places=[records.places[row] for row in rows],
    )


def strings_of(rendered: Rendered, rows: Rows) -> Rendered:
    """The rendered texts of some rows; the same where these are all."""
    if len(rows) == len(rendered.strings):
        return rendered
    return Rendered(*([column[row] for row in rows] for column in rendered))


def rejects_of(job: Job, corpus: Corpus, index: int, records: Records, faults: Mapping[int, RowFault]) -> list[Reject]:
    """A unit's rows with a fault as rejects. Raises the first as DataError, unless such rows are to be set aside."""
    file = corpus.files[corpus.units[index].file]
    rejects = [
        Reject(file.name, file.place, records.places[row], None, fault, records.texts[row][:EXCERPT])
        for row, fault in sorted(faults.items())
    ]
    stop_at_first(rejects, job.input.on_error)
    return rejects
