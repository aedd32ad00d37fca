"""How well vectors find what people judged relevant: encode what isn't, rank exactly, measure,
compare runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcli import sources
from embedcli.analysis import metrics
from embedcli.analysis.queries import Queries, QueryEncoder, open_if_ours
from embedcli.analysis.similarity import nearest
from embedcli.config import ID_COLUMNS, InputOptions, OutputOptions, RunOptions
from embedcli.errors import DataError, UsageError
from embedcli.models.request import ModelRequest
from embedcli.models.resolve import ResolvedModel, resolve, resolve_like
from embedcli.run import Job, ProgressListener, encode_corpus
from embedcli.store.parts import Vectors
from embedcli.store.vector_file import VectorFile, open_ours

# What `--ablate template` leaves of a template.
BARE_TEMPLATE = "{text}"
_BEST_SHOWN = 10


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
    passages: ModelRequest
    queries: ModelRequest
    like: str | None = None

    def resolve(self, role: str) -> ResolvedModel:
        """Return the model and template for `passage` or `query`. Raises ConfigurationError."""
        request = self.passages if role == "passage" else self.queries
        if self.like is None:
            return resolve(request, role)
        return resolve_like(request, role, open_ours(self.like).made, self.like)


@dataclass(frozen=True)
class Evaluation:
    """What a setup is worth.

    values: each measure's for each query of `ids`; best: the first documents of each ranking. recall:
    by k, the share of the relevant documents among the first k, on average.
    speed: passages encoded a second, loading left out; None where their vectors were there. bytes:
    of the passages' vectors on disk.
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
    recall: dict[int, float]

    def estimates(self) -> dict[str, metrics.Estimate]:
        """Return the mean of each measure and its interval."""
        return {name: metrics.estimate(values) for name, values in self.values.items()}

    def to_json(self) -> dict[str, object]:
        """Return all of it but the single queries."""
        return {
            "name": self.name,
            "model": self.model,
            "templates": self.templates,
            "dim": self.dim,
            "rows": self.rows,
            "bytes": self.bytes,
            "passages_per_second": self.speed,
            "queries": len(self.ids),
            "measures": {name: asdict(estimate) for name, estimate in self.estimates().items()},
            "recall": {str(cutoff): value for cutoff, value in self.recall.items()},
        }

    def per_query(self) -> dict[str, list[object]]:
        """Return a column for each thing known of a query."""
        values = {name: column.tolist() for name, column in self.values.items()}
        return {"query_id": self.ids, "query": self.texts, **values, "best": self.best}


@dataclass(frozen=True)
class RunValues:
    """Each measure's values in some run: `rows` tells the position of each query's value."""

    name: str
    rows: Mapping[str, int]
    values: Mapping[str, npt.NDArray[np.float64]]

    @classmethod
    def of(cls, evaluation: Evaluation) -> "RunValues":
        """Return those of an evaluation."""
        rows = {query: row for row, query in enumerate(evaluation.ids)}
        return cls(evaluation.name, rows, evaluation.values)

    @classmethod
    def from_file(cls, columns: Mapping[str, Sequence[Any]], path: str) -> "RunValues":
        """Read what `--per-query` wrote. Raises DataError where it is something else."""
        absent = [name for name in ("query_id", *metrics.MEASURES) if name not in columns]
        if absent:
            raise DataError(f"{path}: no column {absent[0]!r}: not what --per-query writes")
        rows = {str(query): row for row, query in enumerate(columns["query_id"])}
        return cls(
            path, rows, {name: np.array(columns[name], np.float64) for name in metrics.MEASURES}
        )


@dataclass(frozen=True)
class RunDifference:
    """One run's measures less another's, over the queries of both."""

    other: str
    queries: int
    measures: Mapping[str, metrics.Difference]

    def to_json(self) -> dict[str, object]:
        """Return all of it."""
        return asdict(self)


def compare_runs(run: RunValues, baseline: RunValues) -> RunDifference:
    """Subtract another run's measures from ours, over the queries of both.

    Raises DataError where there are none.
    """
    common = [query for query in run.rows if query in baseline.rows]
    if not common:
        raise DataError(f"{baseline.name}: no query is in both runs")
    our_rows = [run.rows[query] for query in common]
    their_rows = [baseline.rows[query] for query in common]
    measures = {
        name: metrics.difference(run.values[name][our_rows], baseline.values[name][their_rows])
        for name in metrics.MEASURES
    }
    return RunDifference(baseline.name, len(common), measures)


class Evaluator:
    """Evaluates setups on data; encodes into `folder` what isn't encoded yet."""

    def __init__(
        self, data: Data, run: RunOptions, folder: Path, listener: ProgressListener
    ) -> None:
        self.data = data
        self._run = run
        self._folder = folder
        self._listener = listener

    def evaluate(self, setup: Setup) -> Evaluation:
        """Encode, rank, and measure. Raises what encoding and reading raise."""
        data = self.data
        corpus, speed = self._corpus(setup)
        queries, ids, template = self._queries(setup, corpus)
        judged = [(row, query) for row, query in enumerate(ids) if query in data.judged]
        if not judged:
            raise DataError(
                f"none of the {len(ids):,} queries of {data.queries} is judged",
                "are the ids the same?",
            )
        absent = len(data.judged.keys() - set(ids))
        if absent:
            self._listener.warn(
                f"{absent:,} judged queries are not in {data.queries}: they are left out"
            )
        self._listener.stage("ranking")
        rows = np.array([row for row, _ in judged])
        names = [query for _, query in judged]
        rankings = self._rank(corpus, queries.vectors[rows], names)
        values = metrics.measure(rankings, {query: data.judged[query] for query in names})
        return Evaluation(
            name=setup.name,
            model=corpus.recipe.space.model,
            templates={"passage": corpus.recipe.template, "query": template},
            dim=corpus.dim,
            rows=corpus.rows,
            bytes=corpus.bytes,
            speed=speed,
            ids=names,
            texts=[queries.texts[row] for row in rows],
            values=_by_measure(values, names),
            best=[_best_documents(rankings[query]) for query in names],
            recall=metrics.recall_at(rankings, {query: data.judged[query] for query in names}),
        )

    def _corpus(self, setup: Setup) -> tuple[VectorFile, float | None]:
        """Return the passages' vectors, and how many were encoded a second."""
        stored = open_if_ours(self.data.corpus)
        if stored is not None:
            return stored, None
        return self._encode(self.data.corpus, setup.resolve("passage"))

    def _queries(self, setup: Setup, corpus: VectorFile) -> tuple[Queries, list[str], str]:
        """Return the queries, the id of each, and their template."""
        stored = open_if_ours(self.data.queries)
        if stored is None:
            if open_if_ours(self.data.corpus) is not None:  # its own recipe decides
                setup = replace(setup, like=corpus.path)
            stored, _ = self._encode(self.data.queries, setup.resolve("query"))
        encoder = QueryEncoder(
            corpus, setup.queries, "query", self._run, InputOptions(self.data.text_column)
        )
        queries = encoder.take_vectors(stored)
        column = self._id_column(stored)
        return queries, [str(row[column]) for row in queries.rows], stored.recipe.template

    def _encode(self, path: str, model: ResolvedModel) -> tuple[VectorFile, float | None]:
        """Return a file of vectors in the folder, and how many rows a second; a kept one is brought
        up to date.
        """
        for warning in model.warnings:
            self._listener.warn(warning)
        output = self._folder / f"{model.template.role}.{model.recipe.id}.parquet"
        job = Job(
            inputs=tuple(sources.find([path]).names),
            spec=model.spec,
            template=model.template,
            input=InputOptions(self.data.text_column, fields=model.template.fields),
            output=OutputOptions(str(output)),
            run=self._run,
        )
        summary = encode_corpus(job, self._listener)
        speed = None
        if summary is not None and summary.seconds.get("encoding"):
            speed = summary.counts.embedded / (summary.seconds["encoding"] / summary.workers)
        return open_ours(str(output)), speed

    def _id_column(self, file: VectorFile) -> str:
        names = (self.data.id_column,) if self.data.id_column is not None else ID_COLUMNS
        for name in names:
            if name in file.columns:
                return name
        known = ", ".join(file.carried) or "none"
        raise DataError(
            f"{file.path}: no column {names[0]!r} that says the ids",
            f"--id-column; its columns: {known}",
        )

    def _rank(
        self, corpus: VectorFile, queries: Vectors, names: Sequence[str]
    ) -> dict[str, list[tuple[str, float]]]:
        """Return for each query the documents, best first, by id; one of several rows counts by its
        best.
        """
        column = self._id_column(corpus)
        blocks = ((block.rows, block.vectors) for block in corpus.blocks())
        scores, numbers = nearest(queries, blocks, metrics.CUTOFF)
        records = corpus.take(np.unique(numbers).tolist(), [column])
        rankings = {}
        for query, query_scores, query_numbers in zip(
            names, scores.tolist(), numbers.tolist(), strict=True
        ):
            ranking: dict[str, float] = {}
            for score, number in zip(query_scores, query_numbers, strict=True):
                ranking.setdefault(str(records[number][column]), score)
            if self.data.ignore_identical:
                ranking.pop(query, None)
            rankings[query] = list(ranking.items())
        return rankings


def _by_measure(
    values: Mapping[str, Mapping[str, float]], queries: Sequence[str]
) -> dict[str, npt.NDArray[np.float64]]:
    """Return each measure's values in the order of the queries, from the measures by query."""
    return {name: np.array([values[query][name] for query in queries]) for name in metrics.MEASURES}


def _best_documents(ranking: Sequence[tuple[str, float]]) -> list[str]:
    return [document for document, _ in ranking[:_BEST_SHOWN]]


def check_texts(data: Data, option: str) -> None:
    """See that there are texts, which can be encoded in several ways. Raises UsageError."""
    for path in (data.corpus, data.queries):
        if open_if_ours(path) is not None:
            raise UsageError(f"{option} encodes anew: it needs texts, and {path} holds vectors")


def check_ablation(setup: Setup) -> None:
    """See that there is a template to leave out. Raises UsageError."""
    templates = [setup.resolve("passage").template, setup.resolve("query").template]
    if all(template.string == BARE_TEMPLATE for template in templates):
        raise UsageError(
            "--ablate template: this model has no instruction in either role",
            "--template names a family",
        )
