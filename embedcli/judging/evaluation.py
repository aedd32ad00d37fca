"""How well vectors find what people judged relevant: encode what isn't, rank exactly, measure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcli import job as jobs
from embedcli import sources
from embedcli.choosing import Choice, Wanted, choose, choose_like
from embedcli.config import InputOptions, OutputOptions, RunOptions
from embedcli.errors import DataError, UsageError
from embedcli.judging import asking, metrics, spaces
from embedcli.judging.nearest import Floats, Numbers, nearest
from embedcli.judging.spaces import Index
from embedcli.store import describe

# What `--ablate template` leaves of a template.
BARE = "{text}"


@dataclass(frozen=True)
class Data:
    """What is evaluated: a corpus and queries, as texts or as vectors, and the judgments.

    id_column None takes `_id`, else `id`.
    """

    corpus: str
    queries: str
    judged: metrics.Judged
    id_column: str | None = None
    text_column: str = "text"
    ignore_identical: bool = False


@dataclass(frozen=True)
class Setup:
    """A way to encode them, by a name for people; `like`: vectors that theirs are to compare with."""

    name: str
    passages: Wanted
    queries: Wanted
    like: str | None = None

    def choose(self, role: str) -> Choice:
        """The model and template for `passage` or `query`. Raises ConfigurationError."""
        wanted = self.passages if role == "passage" else self.queries
        if self.like is None:
            return choose(wanted, role)
        return choose_like(wanted, role, describe.provenance_of(self.like), self.like)


@dataclass(frozen=True)
class Evaluation:
    """What a setup is worth.

    values: each measure's for each query of `ids`; best: the first documents found for each. speed: passages encoded a
    second, loading left out; None where their vectors were there. bytes: of the passages' vectors on disk.
    """

    name: str
    model: str
    templates: dict[str, str]
    dim: int
    rows: int
    bytes: int
    speed: float | None
    ids: list[str]
    texts: list[str]
    values: dict[str, npt.NDArray[np.float64]]
    best: list[list[str]]

    def estimates(self) -> dict[str, metrics.Estimate]:
        """The mean of each measure and its interval."""
        return {name: metrics.estimate(values) for name, values in self.values.items()}

    def as_dict(self) -> dict[str, Any]:
        """All of it but the single queries, for `--json`."""
        return {
            "name": self.name,
            "model": self.model,
            "templates": self.templates,
            "dim": self.dim,
            "rows": self.rows,
            "bytes": self.bytes,
            "passages_per_second": self.speed,
            "queries": len(self.ids),
            "measures": {name: vars(one) for name, one in self.estimates().items()},
        }

    def per_query(self) -> dict[str, list[Any]]:
        """A column for each thing known of a query."""
        values = {name: column.tolist() for name, column in self.values.items()}
        return {"query_id": self.ids, "query": self.texts, **values, "best": self.best}


def evaluate(data: Data, setup: Setup, running: RunOptions, folder: Path, watcher: jobs.Watcher) -> Evaluation:
    """Encode what isn't encoded into `folder`, rank, and measure. Raises what encoding and reading raise."""
    corpus, speed = _corpus(data, setup, running, folder, watcher)
    queries, ids, template = _queries(data, setup, running, folder, watcher, corpus)
    judged = [(row, query) for row, query in enumerate(ids) if query in data.judged]
    if not judged:
        raise DataError(f"none of the {len(ids):,} queries of {data.queries} is judged", "are the ids the same?")
    if missing := len(data.judged.keys() - set(ids)):
        watcher.warn(f"{missing:,} judged queries are not in {data.queries}: they are left out")
    watcher.stage("ranking")
    rows = np.array([row for row, _ in judged])
    names = [query for _, query in judged]
    run = _ranking(data, corpus, queries.vectors[rows], names)
    values = metrics.measure(run, {query: data.judged[query] for query in names})
    return Evaluation(
        name=setup.name,
        model=corpus.said["recipe"]["space"]["model"],
        templates={"passage": corpus.said["recipe"]["template"], "query": template},
        dim=corpus.head.dim,
        rows=corpus.head.rows,
        bytes=sum(Path(file).stat().st_size for file in describe.files_of(corpus.path)),
        speed=speed,
        ids=names,
        texts=[queries.texts[row] for row in rows],
        values={name: np.array([values[query][name] for query in names]) for name in metrics.MEASURES},
        best=[[document for document, _ in run[query][:10]] for query in names],
    )


def check_texts(data: Data, option: str) -> None:
    """See that there are texts, which can be encoded in several ways. Raises UsageError."""
    for path in (data.corpus, data.queries):
        if asking.own(path) is not None:
            raise UsageError(f"{option} encodes anew: it needs texts, and {path} holds vectors")


def check_ablation(setup: Setup) -> None:
    """See that there is a template to leave out. Raises UsageError."""
    found = [setup.choose("passage").template, setup.choose("query").template]
    if all(template.string == BARE for template in found):
        raise UsageError("--ablate template: this model has no instruction in either role", "--template names a family")


def _corpus(
    data: Data, setup: Setup, running: RunOptions, folder: Path, watcher: jobs.Watcher
) -> tuple[Index, float | None]:
    if (own := asking.own(data.corpus)) is not None:
        return own, None
    return _encoded(data, data.corpus, setup.choose("passage"), running, folder, watcher)


def _queries(
    data: Data, setup: Setup, running: RunOptions, folder: Path, watcher: jobs.Watcher, corpus: Index
) -> tuple[asking.Queries, list[str], str]:
    """The queries, the id of each, and their template."""
    if (own := asking.own(data.queries)) is None:
        by = setup if asking.own(data.corpus) is None else replace(setup, like=corpus.path)
        own, _ = _encoded(data, data.queries, by.choose("query"), running, folder, watcher)
    ask = asking.Ask(corpus, setup.queries, "query", running, InputOptions(data.text_column))
    queries, column = ask.vectors(own), _id_column(data, own)
    return queries, [str(row[column]) for row in queries.rows], own.said["recipe"]["template"]


def _encoded(
    data: Data, path: str, choice: Choice, running: RunOptions, folder: Path, watcher: jobs.Watcher
) -> tuple[Index, float | None]:
    """A file of vectors in the folder, and how many rows a second; a kept one is brought up to date."""
    for note in choice.notes:
        watcher.warn(note)
    job = jobs.Job(
        inputs=tuple(sources.find([path])),
        checkpoint=choice.checkpoint,
        template=choice.template,
        input=InputOptions(data.text_column, fields=choice.template.fields),
        output=OutputOptions(""),
        run=running,
    )
    output = str(folder / f"{choice.template.role}.{job.recipe.id}.parquet")
    summary = jobs.run(replace(job, output=OutputOptions(output)), watcher)
    seconds = summary.seconds.get("encoding", 0.0) / summary.workers if summary is not None else 0.0
    speed = summary.counts.embedded / seconds if summary is not None and seconds else None
    return spaces.open_index(output), speed


def _id_column(data: Data, index: Index) -> str:
    wanted = (data.id_column,) if data.id_column is not None else spaces.IDS
    for name in wanted:
        if name in index.head.columns:
            return name
    known = ", ".join(index.carried) or "none"
    raise DataError(f"{index.path}: no column {wanted[0]!r} that says the ids", f"--id-column; its columns: {known}")


def _ranking(data: Data, corpus: Index, vectors: Floats, names: Sequence[str]) -> dict[str, list[tuple[str, float]]]:
    """For each query the documents found, best first, by id; a document of several rows counts by its best."""
    column = _id_column(data, corpus)
    scores, numbers = nearest(vectors, _blocks(corpus), metrics.CUTOFF)
    records = describe.take(corpus.path, np.unique(numbers).tolist(), [column])
    run = {}
    for query, row_scores, row_numbers in zip(names, scores.tolist(), numbers.tolist(), strict=True):
        found: dict[str, float] = {}
        for score, number in zip(row_scores, row_numbers, strict=True):
            found.setdefault(str(records[number][column]), score)
        if data.ignore_identical:
            found.pop(query, None)
        run[query] = list(found.items())
    return run


def _blocks(index: Index) -> Iterator[tuple[Numbers, Floats]]:
    for block in describe.blocks(index.path, index.head):
        yield block.rows, block.vectors
