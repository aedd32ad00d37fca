"""The nearest rows of files of vectors, with their columns."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcli.errors import DataError
from embedcli.judging.asking import Queries
from embedcli.judging.nearest import Floats, Numbers, nearest
from embedcli.judging.spaces import Index, check_comparable
from embedcli.store import describe, filtering, streams


@dataclass(frozen=True)
class Hit:
    """A row that was found: its rank from 1, the scalar product with the query (normalized: the cosine), its values."""

    rank: int
    score: float
    file: str
    row: int
    record: dict[str, Any]


def search(
    indexes: Sequence[Index], queries: Floats, k: int, columns: Sequence[str], where: str | None = None
) -> list[list[Hit]]:
    """For each query [n, dim] the k nearest rows of all indexes, best first; equal ones as they come in the files.

    `where` is an SQL condition on the rows' columns. Raises ConfigurationError where the files are of different spaces,
    UsageError where the condition can't be used, DataError where a file is damaged.
    """
    for other in indexes[1:]:
        check_comparable(indexes[0], other)
    edges = np.cumsum([0, *(index.head.rows for index in indexes)])
    scores, numbers = nearest(queries, _blocks(indexes, edges, where), k)
    files = np.searchsorted(edges, numbers, side="right") - 1
    records = [
        describe.take(index.path, (numbers[files == at] - edges[at]).tolist(), present(index, columns))
        for at, index in enumerate(indexes)
    ]
    return [
        [
            Hit(rank, float(score), indexes[at].path, int(number - edges[at]), records[at][int(number - edges[at])])
            for rank, (score, number, at) in enumerate(zip(*found, strict=True), 1)
        ]
        for found in zip(scores, numbers, files, strict=True)
    ]


def present(index: Index, columns: Sequence[str]) -> list[str]:
    """Those of the columns that a file has."""
    return [name for name in columns if name in index.head.columns]


def _blocks(
    indexes: Sequence[Index], edges: npt.NDArray[np.int64], where: str | None
) -> Iterator[tuple[Numbers, Floats]]:
    for index, first in zip(indexes, edges, strict=False):
        named = filtering.columns(where, index.carried) if where is not None else []
        for block in describe.blocks(index.path, index.head, named):
            rows, vectors = block.rows, block.vectors
            if where is not None:
                holds = filtering.mask(block.table, where, index.carried)[rows - block.first]
                rows, vectors = rows[holds], vectors[holds]
            yield first + rows, vectors


def lines(queries: Queries, found: Sequence[Sequence[Hit]]) -> Iterator[str]:
    """A JSON object for each hit."""
    for row, (text, hits) in enumerate(zip(queries.texts, found, strict=True)):
        for hit in hits:
            yield streams.json_of({"query": text, "query_row": row, **asdict(hit)})


def check_columns(indexes: Sequence[Index], columns: Sequence[str]) -> None:
    """See that each column is in some file. Raises DataError."""
    known = {name for index in indexes for name in index.carried}
    for name in columns:
        if name not in known:
            raise DataError(f"no column {name!r} in {indexes[0].path}", f"its columns: {', '.join(sorted(known))}")
