"""What lies on disk of a unit: all of it as it stands, or vectors of some of its texts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from embedcli.errors import DataError, RowFault
from embedcli.job import provenance
from embedcli.job.draft import Draft, records_of, rejects_of, rows_without
from embedcli.job.summary import Job
from embedcli.records import Corpus
from embedcli.store import parts, reuse, staging


@dataclass
class Lookup:
    """Finds vectors in this run's staging directory and in the output as it was.

    previous: the row groups of that output; candidates: for a unit, which of them may be its own; earlier: parts that
    an interrupted run left for the input as it was then.
    """

    job: Job
    corpus: Corpus
    stage: staging.Staging
    schema: Any
    previous: Sequence[reuse.Block]
    candidates: Mapping[int, int]
    earlier: Sequence[reuse.Block]

    def __post_init__(self) -> None:
        self._shelf = reuse.Shelf()
        self._earlier_of: dict[int, list[reuse.Block]] = {}
        for block in self.earlier:
            self._earlier_of.setdefault(parts.part_index(block.path.name), []).append(block)

    @cached_property
    def known(self) -> reuse.Known | None:
        """All vectors that can be looked up; None where there are none. The index is built when it is first needed."""
        blocks = [*self.earlier, *self.previous]
        if blocks and not reuse.has_index(self.stage.run):
            reuse.build_index(blocks, self.stage.run)
        return reuse.Known(blocks, self.stage.run, self._shelf) if blocks else None

    def fill_in(self, draft: Draft) -> Draft:
        """Find what can stay as it is; else look every text up. Raises DataError where the output is damaged."""
        return self._keep(draft) or self._look_up(draft)

    def _keep(self, draft: Draft) -> Draft | None:
        """Leave a unit as it stands, where its part or row group holds the same texts and the same carried values."""
        own = self.stage.part(draft.index)
        if own.exists() and (kept := self._keep_own(draft, own)):
            return kept
        for block in self._earlier_of.get(draft.index, ()):
            if self._is_whole(block, draft):
                draft.kept_part = block.path
                return self._kept(draft, block, "resumed")
        number = self.candidates.get(draft.index)
        if number is None:
            return None
        block = self.previous[number]
        if not self._shelf.holds(block, draft.records.table, self.schema, draft.hashes):
            return None
        draft.result.previous = number
        if self.job.output.directory:
            draft.kept_part = block.path
        return self._kept(draft, block, "reused")

    def _keep_own(self, draft: Draft, part: Path) -> Draft | None:
        """The unit's part from an interrupted run; the rows that the model gave no vector for are written beside it."""
        try:
            rejected = {one["place"]: RowFault(one["code"], one["reason"]) for one in self._rejected(draft.index)}
            blocks = reuse.blocks_of(part)
        except (DataError, OSError, ValueError, KeyError, TypeError):
            return None  # damaged: done again
        faults = {row: rejected[place] for row, place in enumerate(draft.records.places) if place in rejected}
        good = rows_without(len(draft.hashes), faults)
        rest = replace(draft, records=records_of(draft.records, good), hashes=draft.hashes[good])
        block = blocks[0] if blocks else reuse.Block(part, 0, 0)
        if len(good) != block.rows or (len(good) and not self._is_whole(block, rest)):
            return None
        draft.result.rejects += rejects_of(self.job, self.corpus, draft.index, draft.records, faults)
        return self._kept(draft, block, "resumed")

    def _rejected(self, index: int) -> Any:
        path = self.stage.rejected(index)
        return json.loads(path.read_bytes()) if path.exists() else []

    def _is_whole(self, block: reuse.Block, draft: Draft) -> bool:
        """Does a part in staging hold the unit, and is every page of it sound?"""
        try:
            same = self._shelf.holds(block, draft.records.table, self.schema, draft.hashes)
            return same and len(self._shelf.own(block).tokens) == block.rows
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
        draft.result.made = provenance.joined(provenance.made_of(self._shelf.provenance(file)) for file in files)
        return draft
