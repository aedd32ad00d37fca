"""One unit: read, render, look up what is known, encode the rest, leave a durable part.

In two steps, because the first often shows that there is nothing to encode, and then no model is loaded.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcli import encoder, sources, templates
from embedcli.errors import DataError, RowFault
from embedcli.job import provenance
from embedcli.job.summary import Counts, Job, timed
from embedcli.records import Corpus, Records, Reject, Rendered, stop_at_first
from embedcli.store import parts, publish, reuse, staging

_EXCERPT = 200
OnProgress = Callable[[int, int], None]


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
    part that it stays as, where that isn't its own yet.
    """

    index: int
    records: Records
    rendered: Rendered
    hashes: npt.NDArray[Any]
    firsts: npt.NDArray[np.intp]
    texts: npt.NDArray[np.intp]
    own: parts.Own
    missing: npt.NDArray[np.intp]
    result: Result
    kept: bool = False
    kept_part: Path | None = None

    def strings(self, texts: Sequence[int] | npt.NDArray[np.intp]) -> Rendered:
        """The rendered strings of some texts, by their numbers."""
        return _strings(self.rendered, self.firsts[np.asarray(texts, np.intp)])


@dataclass
class Workshop:
    """All that work on units needs, but the model.

    previous: the row groups of the output as it was; candidates: for a unit, which of them may be its own; earlier:
    parts that an interrupted run left for the input as it was then.
    """

    job: Job
    corpus: Corpus
    stage: staging.Staging
    previous: Sequence[reuse.Block] = ()
    candidates: Mapping[int, int] = field(default_factory=dict)
    earlier: Sequence[reuse.Block] = ()

    def __post_init__(self) -> None:
        self.schema = parts.output_schema(self.corpus.schema, self.job.checkpoint.dim, self.job.output)
        self._read = sources.reader(self.corpus, self.job.input)
        self._shelf = reuse.Shelf()
        self._known: reuse.Known | None = None

    @property
    def known(self) -> reuse.Known | None:
        """All vectors that can be looked up; None where there are none. The index is built when it is first needed."""
        blocks = [*self.earlier, *self.previous]
        if self._known is None and blocks:
            if not reuse.has_index(self.stage.run):
                reuse.build_index(blocks, self.stage.run)
            self._known = reuse.Known(blocks, self.stage.run, self._shelf)
        return self._known

    def draft(self, index: int) -> Draft:
        """Read and render a unit, and find the vectors that are on disk. Raises DataError at a bad row."""
        unit, result = self.corpus.units[index], Result()
        with timed(result.seconds, "reading"):
            records = self._read(unit)
        with timed(result.seconds, "rendering"):
            rendered, faults = templates.render(self.job.template, records.texts, records.fields)
            result.rejects = [*records.rejects, *self._rejects(index, records, faults)]
            good = np.array([row for row in range(len(records.texts)) if row not in faults], np.intp)
            if faults:
                records, rendered = _rows(records, good), _strings(rendered, good)
            _look_at(self.job, records, rendered, result)
            hashes = text_hashes(rendered.strings)
            firsts, texts = _distinct(hashes)
            result.counts.duplicates = len(hashes) - len(firsts)
        with timed(result.seconds, "looking up"):
            own = parts.nothing(hashes[firsts], self.job.checkpoint.dim)
            missing = np.arange(len(firsts))
            draft = Draft(index, records, rendered, hashes, firsts, texts, own, missing, result)
            return self._keep(draft) or self._look_up(draft)

    def finish(
        self, draft: Draft, model: encoder.Encoder | None, advance: OnProgress, poison: Mapping[int, str] | None = None
    ) -> Result:
        """Encode what is missing and leave the unit's part; `poison` are texts, by number, that may not be tried.

        Raises DataError at a row without a vector, unless such rows are to be set aside; StorageError.
        """
        result, counts = draft.result, draft.result.counts
        unit = self.corpus.units[draft.index]
        asked = np.array([text for text in draft.missing if text not in (poison or {})], np.intp)
        failed = dict(poison or {})
        if len(asked):
            assert model is not None
            with timed(result.seconds, "encoding"):
                encoded = model.encode(draft.strings(asked), advance)
            draft.own.vectors[asked], draft.own.tokens[asked] = encoded.vectors, encoded.tokens
            draft.own.truncated[asked] = encoded.truncated
            failed |= {int(asked[at]): reason for at, reason in encoded.failed.items()}
            counts.encoded_tokens, counts.padded_tokens = int(encoded.tokens.sum()), encoded.padded
            result.made.append(provenance.Made(model.device, model.dtype))
        if draft.kept_part is not None:
            publish.keep(draft.kept_part, self.stage.part(draft.index))
        if not draft.kept:
            good = np.flatnonzero(~np.isin(draft.texts, list(failed)))
            faults = {
                row: RowFault("no-vector", failed[text]) for row, text in enumerate(draft.texts) if text in failed
            }
            result.rejects += self._rejects(draft.index, draft.records, faults)
            counts.embedded = int(np.isin(draft.texts[good], asked).sum())
            with timed(result.seconds, "writing"):
                self._write(draft, good, faults)
        result.rejects.sort(key=lambda reject: reject.number)
        counts.rows_in, counts.rows_out, counts.rejected = unit.rows, result.rows, len(result.rejects)
        advance(unit.rows - len(asked), 0)
        return result

    def _keep(self, draft: Draft) -> Draft | None:
        """Leave a unit as it stands, where its part or row group holds the same texts and the same carried values."""
        own = self.stage.part(draft.index)
        if own.exists() and (kept := self._keep_part(draft, own)):
            return kept
        for block in self.earlier:
            if block.path.name.startswith(f"{own.stem}.") and self._is_whole(block, draft):
                draft.kept_part = block.path
                return self._kept(draft, block, "resumed")
        number = self.candidates.get(draft.index)
        if number is None or not self._shelf.holds(
            self.previous[number], draft.records.table, self.schema, draft.hashes
        ):
            return None
        block, draft.result.previous = self.previous[number], number
        if self.job.output.directory:
            draft.kept_part = block.path
        return self._kept(draft, block, "reused")

    def _keep_part(self, draft: Draft, part: Path) -> Draft | None:
        """The unit's part from an interrupted run; its rejected rows are written beside it."""
        try:
            rejected = {one["place"]: one for one in _read_json(self.stage.rejected(draft.index))}
            blocks = reuse.blocks_of(part)
        except (DataError, OSError, ValueError, KeyError):
            return None  # damaged: done again
        faults = {
            row: RowFault(rejected[place]["code"], rejected[place]["reason"])
            for row, place in enumerate(draft.records.places)
            if place in rejected
        }
        good = np.array([row for row in range(len(draft.hashes)) if row not in faults], np.intp)
        rest = replace(draft, records=_rows(draft.records, good), hashes=draft.hashes[good])
        block = blocks[0] if blocks else reuse.Block(part, 0, 0)
        if len(good) != block.rows or (len(good) and not self._is_whole(block, rest)):
            return None
        draft.result.rejects += self._rejects(draft.index, draft.records, faults)
        return self._kept(draft, block, "resumed")

    def _is_whole(self, block: reuse.Block, draft: Draft) -> bool:
        """Does a part in staging hold the unit, and is every page of it sound?"""
        try:
            return self._shelf.holds(block, draft.records.table, self.schema, draft.hashes) and bool(
                len(self._shelf.own(block).tokens) == block.rows
            )
        except DataError:
            return False

    def _kept(self, draft: Draft, block: reuse.Block, how: str) -> Draft:
        result, counts = draft.result, draft.result.counts
        result.rows = block.rows
        setattr(counts, how, block.rows)
        if block.rows:
            tokens, truncated = self._shelf.lengths(block)
            counts.tokens, counts.truncated = int(tokens.sum()), int(truncated.sum())
            result.made = [provenance.made_of(self._shelf.provenance(block.path))]
        draft.missing, draft.kept = draft.missing[:0], True
        return draft

    def _look_up(self, draft: Draft) -> Draft:
        """Find each text's vector by its hash."""
        if self.known is None or not len(draft.firsts):
            return draft
        draft.own, source = self.known.take(draft.hashes[draft.firsts], self.job.checkpoint.dim)
        draft.missing = np.flatnonzero(source < 0)
        by_row, counts = source[draft.texts], draft.result.counts
        counts.resumed = int(((by_row >= 0) & (by_row < len(self.earlier))).sum())
        counts.reused = int((by_row >= len(self.earlier)).sum())
        files = {self.known.blocks[number].path for number in np.unique(source[source >= 0])}
        draft.result.made = provenance.joined([provenance.made_of(self._shelf.provenance(file)) for file in files])
        return draft

    def _write(self, draft: Draft, good: npt.NDArray[np.intp], faults: Mapping[int, RowFault]) -> None:
        """The unit's part: carried columns, then vectors, hashes, tokens, truncated. Its rename makes the unit done."""
        result, texts = draft.result, draft.texts[good]
        records = draft.records if len(good) == len(draft.texts) else _rows(draft.records, good)
        own = parts.Own(
            draft.own.vectors[texts], draft.hashes[good], draft.own.tokens[texts], draft.own.truncated[texts]
        )
        result.rows, result.made = len(good), provenance.joined(result.made)
        result.counts.tokens, result.counts.truncated = int(own.tokens.sum()), int(own.truncated.sum())
        if faults:
            rejected = [{"place": draft.records.places[row], **asdict(fault)} for row, fault in faults.items()]
            staging.write_json(self.stage.unfinished(), self.stage.rejected(draft.index), rejected)
        unfinished, durable = self.stage.unfinished(), self.stage.output is not None
        table = parts.assemble(records.table, self.schema, own)
        parts.write(unfinished, self.schema, provenance.of_part(self.job, result.made), [table], durable)
        staging.move(unfinished, self.stage.part(draft.index))

    def _rejects(self, index: int, records: Records, faults: Mapping[int, RowFault]) -> list[Reject]:
        file = self.corpus.files[self.corpus.units[index].file]
        rejects = [
            Reject(file.name, file.place, records.places[row], None, fault, records.texts[row][:_EXCERPT])
            for row, fault in sorted(faults.items())
        ]
        stop_at_first(rejects, self.job.input.on_error)
        return rejects


def text_hashes(rendered: Sequence[str]) -> npt.NDArray[Any]:
    """16 bytes that stand for each rendered text, as voids [n]: BLAKE2b of its UTF-8, uncut."""
    blake2b = hashlib.blake2b
    return np.frombuffer(b"".join([blake2b(text.encode(), digest_size=16).digest() for text in rendered]), "V16")


def _distinct(hashes: npt.NDArray[Any]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The rows whose hash is new, in order, and for each row the number of its hash among those."""
    _, firsts, texts = np.unique(reuse.prefixes(hashes), return_index=True, return_inverse=True)
    if not np.array_equal(hashes[firsts[texts]], hashes):  # two hashes that begin alike
        return np.arange(len(hashes)), np.arange(len(hashes))
    order = np.argsort(firsts)
    return firsts[order], np.argsort(order)[texts]


def _rows(records: Records, good: npt.NDArray[np.intp]) -> Records:
    """The records of some rows."""
    return Records(
        table=records.table.take(good),
        texts=[records.texts[row] for row in good],
        fields={name: [values[row] for row in good] for name, values in records.fields.items()},
        places=[records.places[row] for row in good],
    )


def _strings(rendered: Rendered, rows: npt.NDArray[np.intp]) -> Rendered:
    """The rendered texts of some rows."""
    if len(rows) == len(rendered.strings):
        return rendered
    return Rendered(*([column[row] for row in rows] for column in rendered))


def _look_at(job: Job, records: Records, rendered: Rendered, result: Result) -> None:
    """Count what a user should know of before trusting the vectors."""
    prefix = job.template.prefix.strip()
    result.example = rendered.strings[0][: _EXCERPT + 1] if rendered.strings else ""
    result.counts.blank = sum(not text or text.isspace() for text in records.texts)
    result.counts.prefixed = sum(text.startswith(prefix) for text in records.texts) if prefix else 0


def _read_json(path: Path) -> Any:
    return json.loads(path.read_bytes()) if path.exists() else []
