"""The steps of one unit: read, render, look up what is known, encode the rest, leave a durable part.

In steps, since they overlap with those of other units, and since the lookup often shows that there
is nothing to encode: then no model is loaded.
"""

from collections.abc import Callable, Mapping

import numpy as np

from embedcli import encoder, sources
from embedcli.errors import RowFault
from embedcli.records import Records, Rendered
from embedcli.run.job import Job, timed
from embedcli.run.lookup import Lookup
from embedcli.run.planning import RunPlan
from embedcli.run.texts import render_texts
from embedcli.run.unit import (
    EXCERPT_LENGTH,
    Numbers,
    UnitResult,
    UnitState,
    rejects_of,
    rows_without,
    select_records,
)
from embedcli.store import parts, publish
from embedcli.store.parts import ColumnNames, EmbeddingColumns
from embedcli.store.provenance import merge_made

# Called with the rows and the tokens of each batch that is done.
OnProgress = Callable[[int, int], None]


class UnitSteps:
    """The steps of a plan's units in one process, which keeps input files open and row groups in
    memory.
    """

    def __init__(self, plan: RunPlan) -> None:
        self.plan = plan
        self.lookup = Lookup(plan)
        self._read = sources.reader(plan.corpus, plan.job.input)

    def read(self, index: int) -> UnitState:
        """Read and render a unit, and find the vectors that are on disk.

        Raises DataError at a bad row, InputChangedError.
        """
        job = self.plan.job
        result = UnitResult()
        with timed(result.seconds, "reading"):
            records = self._read(self.plan.corpus.units[index])
        with timed(result.seconds, "rendering"):
            texts = render_texts(job.template, records.texts, records.fields)
            result.rejects = [
                *records.rejects,
                *rejects_of(job, self.plan.corpus, records, texts.faults),
            ]
            records = select_records(records, texts.good)
            _observe(job, records, texts.rendered, result)
            result.counts.duplicates = len(texts.hashes) - len(texts.first_rows)
        with timed(result.seconds, "looking up"):
            state = UnitState(
                index=index,
                result=result,
                records=records,
                rendered=texts.rendered,
                hashes=texts.hashes,
                first_rows=texts.first_rows,
                text_numbers=texts.text_numbers,
                columns=EmbeddingColumns.zeros(texts.hashes[:0], job.spec.dim),
                missing=np.arange(len(texts.first_rows)),
            )
            return self.lookup.fill_in(state)

    def prepare(
        self, state: UnitState, model: encoder.Encoder, numbers: Numbers | None = None
    ) -> None:
        """Tokenize some texts, or all that are missing."""
        if numbers is None:
            numbers = state.missing
        if len(numbers):
            with timed(state.result.seconds, "tokenizing"):
                state.prepared = model.prepare(state.rendered_texts(numbers))

    def encode(
        self,
        state: UnitState,
        model: encoder.Encoder,
        advance: OnProgress,
        bad_texts: Mapping[int, str] | None = None,
    ) -> dict[int, str]:
        """Compute the missing vectors; return the texts, by number, that have none, and why.

        `bad_texts` are texts that may not be tried.
        """
        result = state.result
        failed = dict(bad_texts or {})
        numbers = np.setdiff1d(state.missing, list(failed)).astype(np.intp)
        if not len(numbers):
            return failed
        if state.prepared is None or failed:
            self.prepare(state, model, numbers)
        with timed(result.seconds, "encoding"):
            encoded = model.encode(state.prepared, advance)
        state.prepared = None
        state.columns.vectors[numbers] = encoded.vectors
        state.columns.tokens[numbers] = encoded.tokens
        state.columns.truncated[numbers] = encoded.truncated
        result.counts.encoded_tokens = int(encoded.tokens.sum())
        result.counts.padded_tokens = encoded.padded
        result.made.append(model.computation)
        result.note = model.note
        for row, reason in encoded.failed.items():
            failed[int(numbers[row])] = reason
        for row in parts.rows_too_large(encoded.vectors, self.plan.job.output.vector_type):
            failed.setdefault(int(numbers[row]), parts.TOO_LARGE)
        return failed

    def finish(self, state: UnitState, failed: Mapping[int, str]) -> UnitResult:
        """Leave the unit's part, without the texts that have no vector.

        Raises DataError at such a row, unless they are to be set aside; StorageError.
        """
        result = state.result
        counts = result.counts
        if state.kept_part is not None:
            result.part = publish.keep_part(
                self.plan.stage, state.index, state.kept_part, result.rows
            )
        if not state.is_kept:
            faults = _faults_of(state, failed)
            result.rejects += rejects_of(self.plan.job, self.plan.corpus, state.records, faults)
            good = rows_without(len(state.text_numbers), faults)
            counts.embedded = int(np.isin(state.text_numbers[good], state.missing).sum())
            with timed(result.seconds, "writing"):
                self._write(state, good)
        result.rejects.sort(key=lambda reject: reject.number)
        counts.rows_in = self.plan.corpus.units[state.index].rows
        counts.rows_out = result.rows
        counts.rejected = len(result.rejects)
        return result

    def _write(self, state: UnitState, good: Numbers) -> None:
        """Write the unit's part: carried columns, then ours."""
        job, stage, result = self.plan.job, self.plan.stage, state.result
        numbers = state.text_numbers[good]
        columns = state.columns.select(numbers)
        result.rows = len(good)
        result.made = list(merge_made(result.made))
        result.counts.tokens = int(columns.tokens.sum())
        result.counts.truncated = int(columns.truncated.sum())
        carried = select_records(state.records, good).table
        table = parts.assemble(
            carried, self.plan.schema, ColumnNames.of(job.output.embedding_column), columns
        )
        result.part = publish.put_part(
            stage, state.index, self.plan.schema, job.provenance(result.made), [table]
        )


def _faults_of(state: UnitState, failed: Mapping[int, str]) -> dict[int, RowFault]:
    """Return the rows whose text has no vector, and why."""
    if not failed:
        return {}
    rows = np.flatnonzero(np.isin(state.text_numbers, list(failed)))
    return {int(row): RowFault("no-vector", failed[int(state.text_numbers[row])]) for row in rows}


def _observe(job: Job, records: Records, rendered: Rendered, result: UnitResult) -> None:
    """Count what a user should know of before trusting the vectors."""
    prefix = job.template.prefix.strip()
    if rendered.strings:
        result.example = rendered.strings[0][: EXCERPT_LENGTH + 1]
    result.counts.blank = records.texts.count("") + sum(map(str.isspace, records.texts))
    if prefix:
        result.counts.prefixed = sum(text.startswith(prefix) for text in records.texts)
