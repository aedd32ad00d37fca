"""One unit: read, render, look up what is known, encode the rest, leave a durable part.

In steps, since they overlap with those of other units, and since the first often shows that there is nothing to encode:
then no model is loaded.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from embedcli import encoder, files, sources, templates
from embedcli.errors import RowFault
from embedcli.job import provenance
from embedcli.job.draft import (
    EXCERPT,
    Draft,
    Result,
    Rows,
    distinct,
    records_of,
    rejects_of,
    rows_without,
    strings_of,
    text_hashes,
)
from embedcli.job.lookup import Lookup
from embedcli.job.summary import Job, timed
from embedcli.records import Corpus, Records, Rendered
from embedcli.store import parts, publish, reuse, staging

OnProgress = Callable[[int, int], None]


@dataclass
class Workshop:
    """All that work on units needs, but the model. previous, candidates and earlier are those of Lookup.

    workers: how many processes share the units.
    """

    job: Job
    corpus: Corpus
    stage: staging.Staging
    previous: Sequence[reuse.Block] = ()
    candidates: Mapping[int, int] = field(default_factory=dict)
    earlier: Sequence[reuse.Block] = ()
    workers: int = 1

    def __post_init__(self) -> None:
        self.schema = parts.output_schema(self.corpus.schema, self.job.checkpoint.dim, self.job.output)
        self.lookup = Lookup(
            self.job, self.corpus, self.stage, self.schema, self.previous, self.candidates, self.earlier
        )
        self._read = sources.reader(self.corpus, self.job.input)

    def expect(self, tokens: int) -> None:
        """Say about how many tokens will be encoded, unless that is settled."""
        if self.job.run.expected_tokens is None:
            self.job = replace(self.job, run=replace(self.job.run, expected_tokens=tokens))

    def draft(self, index: int) -> Draft:
        """Read and render a unit, and find the vectors that are on disk. Raises DataError at a bad row."""
        unit, result = self.corpus.units[index], Result()
        with timed(result.seconds, "reading"):
            records = self._read(unit)
        with timed(result.seconds, "rendering"):
            rendered, faults = templates.render(self.job.template, records.texts, records.fields)
            result.rejects = [*records.rejects, *rejects_of(self.job, self.corpus, index, records, faults)]
            good = rows_without(len(records.texts), faults)
            records, rendered = records_of(records, good), strings_of(rendered, good)
            _look_at(self.job, records, rendered, result)
            hashes = text_hashes(rendered.strings)
            firsts, texts = distinct(hashes)
            result.counts.duplicates = len(hashes) - len(firsts)
        with timed(result.seconds, "looking up"):
            own = parts.nothing(hashes[firsts], self.job.checkpoint.dim)
            missing = np.arange(len(firsts))
            return self.lookup.fill_in(Draft(index, records, rendered, hashes, firsts, texts, own, missing, result))

    def prepare(self, draft: Draft, model: encoder.Encoder, texts: Rows | None = None) -> None:
        """Make of some texts, else of all that are missing, what the model takes."""
        texts = draft.missing if texts is None else texts
        if len(texts):
            with timed(draft.result.seconds, "tokenizing"):
                draft.prepared = model.prepare(draft.strings(texts))

    def encode(
        self, draft: Draft, model: encoder.Encoder, advance: OnProgress, poison: Mapping[int, str] | None = None
    ) -> dict[int, str]:
        """Fill in the missing values; gives the texts, by number, that have no vector, and why.

        `poison` are texts that may not be tried.
        """
        result, own, failed = draft.result, draft.own, dict(poison or {})
        asked = np.setdiff1d(draft.missing, list(failed)).astype(np.intp)
        if not len(asked):
            return failed
        if draft.prepared is None or failed:
            self.prepare(draft, model, asked)
        with timed(result.seconds, "encoding"):
            encoded = model.encode(draft.prepared, advance)
        draft.prepared = None
        own.vectors[asked], own.tokens[asked], own.truncated[asked] = encoded.vectors, encoded.tokens, encoded.truncated
        result.counts.encoded_tokens, result.counts.padded_tokens = int(encoded.tokens.sum()), encoded.padded
        result.made.append(provenance.Made(model.device, model.dtype, model.compiled))
        return failed | {int(asked[at]): reason for at, reason in encoded.failed.items()}

    def finish(self, draft: Draft, failed: Mapping[int, str]) -> Result:
        """Leave the unit's part, without the texts that have no vector.

        Raises DataError at such a row, unless they are to be set aside; StorageError.
        """
        result, counts = draft.result, draft.result.counts
        if draft.kept_part is not None:
            publish.keep(draft.kept_part, self.stage.part(draft.index))
        if not draft.kept:
            rows = np.flatnonzero(np.isin(draft.texts, list(failed))) if failed else ()
            faults = {int(row): RowFault("no-vector", failed[int(draft.texts[row])]) for row in rows}
            result.rejects += rejects_of(self.job, self.corpus, draft.index, draft.records, faults)
            good = rows_without(len(draft.texts), faults)
            counts.embedded = int(np.isin(draft.texts[good], draft.missing).sum())
            with timed(result.seconds, "writing"):
                self._write(draft, good, faults)
        result.rejects.sort(key=lambda reject: reject.number)
        counts.rows_in, counts.rows_out = self.corpus.units[draft.index].rows, result.rows
        counts.rejected = len(result.rejects)
        return result

    def _write(self, draft: Draft, good: Rows, faults: Mapping[int, RowFault]) -> None:
        """The unit's part: carried columns, then vectors, hashes, tokens, truncated. Its rename makes the unit done."""
        result, texts, stage = draft.result, draft.texts[good], self.stage
        own = parts.Own(
            draft.own.vectors[texts], draft.hashes[good], draft.own.tokens[texts], draft.own.truncated[texts]
        )
        result.rows, result.made = len(good), provenance.joined(result.made)
        result.counts.tokens, result.counts.truncated = int(own.tokens.sum()), int(own.truncated.sum())
        if faults:
            rejected = [{"place": draft.records.places[row], **asdict(fault)} for row, fault in faults.items()]
            staging.write_json(stage.unfinished(), stage.rejected(draft.index), rejected)
        else:
            stage.rejected(draft.index).unlink(missing_ok=True)  # of an attempt that didn't get as far as its part
        unfinished, durable = stage.unfinished(), stage.output is not None
        table = parts.assemble(records_of(draft.records, good).table, self.schema, own)
        parts.write(unfinished, self.schema, provenance.of_part(self.job, result.made), [table], durable)
        files.rename(unfinished, stage.part(draft.index))


def _look_at(job: Job, records: Records, rendered: Rendered, result: Result) -> None:
    """Count what a user should know of before trusting the vectors."""
    prefix = job.template.prefix.strip()
    result.example = rendered.strings[0][: EXCERPT + 1] if rendered.strings else ""
    result.counts.blank = sum(not text or text.isspace() for text in records.texts)
    result.counts.prefixed = sum(text.startswith(prefix) for text in records.texts) if prefix else 0
