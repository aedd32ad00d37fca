"""The one loop: for each unit of the corpus, read, render, encode, write; then publish.

Wires the layers together and counts. Knows no option parser, no terminal, no tensor.
"""

import contextlib
import hashlib
import importlib.metadata
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import embedcli
from embedcli import encoder, sources, templates
from embedcli.config import STDOUT, InputOptions, OutputOptions, Recipe, RunOptions
from embedcli.encoder.checkpoint import Checkpoint
from embedcli.errors import ConfigurationError, DataError, RowFault
from embedcli.records import Corpus, InputFile, Records, Reject, Rendered, stop_at_first
from embedcli.store import parts, sinks, staging

_LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "pyarrow")
_EXCERPT = 200


@dataclass(frozen=True)
class Job:
    """All that one run is asked to do."""

    inputs: tuple[str, ...]
    checkpoint: Checkpoint
    template: templates.Template
    input: InputOptions
    output: OutputOptions
    run: RunOptions

    @property
    def recipe(self) -> Recipe:
        """What makes this run's vectors what they are."""
        return Recipe(
            space=self.checkpoint.space,
            role=self.template.role,
            template=self.template.string,
            max_length=self.checkpoint.max_length,
        )


class Watcher(Protocol):
    """Whoever wants to know how the run goes."""

    def warn(self, message: str) -> None:
        """Something the user should look at."""

    def stage(self, name: str) -> None:
        """What goes on before there are rows to count."""

    def begin(self, rows: int) -> None:
        """Encoding starts; so many rows are to come."""

    def advance(self, rows: int, tokens: int) -> None:
        """So many more rows and tokens are done."""


@dataclass
class Counts:
    """What came in and what became of it, in rows; tokens as the model saw them, and with padding."""

    rows_in: int = 0
    rows_out: int = 0
    rejected: int = 0
    truncated: int = 0
    blank: int = 0
    prefixed: int = 0
    tokens: int = 0
    padded_tokens: int = 0


@dataclass
class Summary:
    """What a run did, for the closing words and `--report`. Times are in seconds."""

    output: str
    recipe: Recipe
    template_origin: str
    example: str = ""
    device: str = ""
    dtype: str = ""
    counts: Counts = field(default_factory=Counts)
    seconds: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """All of it, and the ids."""
        return {"embedcli": embedcli.__version__, "recipe_id": self.recipe.id, **asdict(self)}

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's time to a stage's."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def check_output(output: OutputOptions, inputs: Sequence[str], report: str | None = None) -> None:
    """See that all files could be written, before time goes into a model. Raises OutputError, AccessError."""
    if output.path != STDOUT:
        staging.check_output(Path(output.path), inputs)
    for beside in (output.rejects, report):
        if beside is not None:
            staging.check_folder(Path(beside))


def run(job: Job, watcher: Watcher, stdout: BinaryIO | None = None) -> Summary:
    """Encode the corpus and publish its vectors; `stdout` takes them where the output is `-`.

    Raises the errors of errors.py. Until the run is through, nothing is visible under the output's name.
    """
    summary = Summary(job.output.path, job.recipe, job.template.origin)
    with summary.timed("total"), _workplace(job) as place:
        watcher.stage("reading the input")
        with summary.timed("planning"):
            corpus = _plan(job, place, watcher)
        schema = parts.output_schema(corpus.schema, job.checkpoint.dim, job.output)
        summary.counts.rows_in = corpus.rows
        watcher.stage(f"loading {job.checkpoint.files.id}")
        with summary.timed("loading"):
            model = _load(job) if corpus.rows else None
        if model is not None:
            summary.device, summary.dtype = model.device, model.dtype
        sink = _open_sink(job, place, schema, stdout, _provenance(summary))
        rejects = sinks.RejectLog(place.path / "rejects.jsonl", job.output.rejects)
        read = sources.reader(corpus, job.input)
        watcher.begin(corpus.rows)
        for index, unit in enumerate(unit for unit in corpus.units if unit.rows):  # a unit may be blank lines alone
            with summary.timed("reading"):
                records = read(unit)
            assert model is not None
            done = _encode(job, model, records, corpus.files[unit.file], watcher, summary)
            with summary.timed("writing"):
                rejects.write(done.rejects)
                sink.write(index, _table(done, schema))
        with summary.timed("writing"):
            _publish(sink, rejects, summary)
    return summary


class _Place(NamedTuple):
    """A directory of this run's own; locks the output where that is a file."""

    path: Path
    staging: staging.Staging | None


@contextlib.contextmanager
def _workplace(job: Job) -> Iterator[_Place]:
    if job.output.path == STDOUT:
        with tempfile.TemporaryDirectory(prefix="embedcli-") as directory:
            yield _Place(Path(directory), None)
        return
    with staging.open_staging(Path(job.output.path)) as stage:
        yield _Place(stage.path, stage)


def _plan(job: Job, place: _Place, watcher: Watcher) -> Corpus:
    corpus = sources.plan(job.inputs, job.input, place.path)
    for note in corpus.notes:
        watcher.warn(note)
    if corpus.rows < job.output.min_rows:
        raise DataError(f"the input has {corpus.rows} rows, fewer than --min-rows {job.output.min_rows}")
    return corpus


def _load(job: Job) -> encoder.Encoder:
    """Load the model, and see that the template leaves room for a text."""
    model = encoder.load(job.checkpoint, job.run)
    bare, _ = templates.render(job.template, [""], {name: [""] for name in job.template.fields})
    taken = model.count_tokens(bare.strings)[0]
    if taken >= job.checkpoint.max_length:
        limit = job.checkpoint.max_length
        raise ConfigurationError(f"the template takes all {limit} tokens of the max length", "raise --max-length")
    return model


def _open_sink(job: Job, place: _Place, schema: Any, stdout: BinaryIO | None, provenance: dict[str, Any]) -> sinks.Sink:
    if place.staging is not None:
        return sinks.FileSink(place.staging, schema)
    assert stdout is not None
    # A stream starts with its metadata, before there is anything to count.
    return sinks.STREAMS[job.output.format](stdout, schema, {k: v for k, v in provenance.items() if k != "counts"})


class _Done(NamedTuple):
    """A unit's records with all that was found for them, and which of them have a vector."""

    records: Records
    rendered: Rendered
    encoded: encoder.Encoded
    kept: list[int]
    rejects: list[Reject]


def _encode(
    job: Job, model: encoder.Encoder, records: Records, file: InputFile, watcher: Watcher, summary: Summary
) -> _Done:
    """Render and encode a unit; rows that fail are rejected, or end the run."""
    with summary.timed("rendering"):
        rendered, faults = templates.render(job.template, records.texts, records.fields)
        rejects = _rejects(job, records, file, faults)
        _look_at(job, records, rendered, watcher, summary)
    with summary.timed("encoding"):
        encoded = model.encode(rendered, watcher.advance)
    failed = {index: RowFault("no-vector", reason) for index, reason in encoded.failed.items() if index not in faults}
    rejects += _rejects(job, records, file, failed)
    kept = [index for index in range(len(records.texts)) if index not in faults and index not in failed]
    counts = summary.counts
    counts.rows_out += len(kept)
    counts.rejected += len(records.rejects) + len(rejects)
    counts.truncated += int(encoded.truncated[kept].sum())
    counts.tokens += int(encoded.tokens.sum())
    counts.padded_tokens += encoded.padded
    return _Done(records, rendered, encoded, kept, [*records.rejects, *rejects])


def _rejects(job: Job, records: Records, file: InputFile, faults: Mapping[int, RowFault]) -> list[Reject]:
    rejects = [
        Reject(file.name, file.place, records.places[index], None, fault, records.texts[index][:_EXCERPT])
        for index, fault in sorted(faults.items())
    ]
    stop_at_first(rejects, job.input.on_error)
    return rejects


def _look_at(job: Job, records: Records, rendered: Rendered, watcher: Watcher, summary: Summary) -> None:
    """Count what a user should know of before trusting the vectors."""
    counts, prefix = summary.counts, job.template.prefix.strip()
    if rendered.strings and not summary.example:
        summary.example = rendered.strings[0]
    counts.blank += sum(not text.strip() for text in records.texts)
    prefixed = sum(text.startswith(prefix) for text in records.texts) if prefix else 0
    if prefixed and not counts.prefixed:
        watcher.warn(f"texts start with {prefix!r} already, which the template puts before them once more")
    counts.prefixed += prefixed


def _table(done: _Done, schema: Any) -> Any:
    """The unit's part of the output: carried columns, then vectors, hashes, tokens, truncated."""
    encoded, kept = done.encoded, done.kept
    carried, own = done.records.table, (encoded.vectors, encoded.tokens, encoded.truncated)
    if len(kept) < len(done.records.texts):
        carried, own = carried.take(kept), (own[0][kept], own[1][kept], own[2][kept])
    hashes = b"".join(text_hash(done.rendered.strings[index]) for index in kept)
    return parts.assemble(carried, schema, own[0], hashes, own[1], own[2])


def text_hash(rendered: str) -> bytes:
    """16 bytes that stand for a rendered text: BLAKE2b of its UTF-8, uncut."""
    return hashlib.blake2b(rendered.encode(), digest_size=16).digest()


def _publish(sink: sinks.Sink, rejects: sinks.RejectLog, summary: Summary) -> None:
    counts = summary.counts
    if counts.rows_out + counts.rejected != counts.rows_in:
        raise DataError(f"{counts.rows_in} rows came in, {counts.rows_out} and {counts.rejected} rejected came out")
    rejects.finish()
    sink.finish(_provenance(summary))


def _provenance(summary: Summary) -> dict[str, Any]:
    """What the output says of its making. No times, no paths, no counts of workers: equal runs write equal bytes."""
    recipe, counts = summary.recipe, summary.counts
    written = ("rows_in", "rows_out", "rejected", "truncated", "blank", "tokens")
    return {
        "format_version": parts.FORMAT_VERSION,
        "embedcli": embedcli.__version__,
        "space_id": recipe.space.id,
        "recipe_id": recipe.id,
        "recipe": recipe.as_dict(),
        "template_origin": summary.template_origin,
        "dtype": summary.dtype,
        "device": summary.device,
        "counts": {name: getattr(counts, name) for name in written},
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }
