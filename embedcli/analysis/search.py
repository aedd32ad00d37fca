"""The nearest rows of files of vectors, with their columns."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from embedcli.analysis.comparability import check_comparable
from embedcli.analysis.similarity import Numbers, nearest
from embedcli.errors import DataError
from embedcli.store import filtering
from embedcli.store.parts import Vectors
from embedcli.store.vector_file import VectorFile


@dataclass(frozen=True)
class Hit:
    """A row that matches: its rank from 1, the scalar product with the query (normalized: the
    cosine), its values.
    """

    rank: int
    score: float
    file: str
    row: int
    record: Mapping[str, object]


def search(
    indexes: Sequence[VectorFile],
    queries: Vectors,
    k: int,
    columns: Sequence[str],
    where: str | None = None,
) -> list[list[Hit]]:
    """Return for each query [n, dim] the k nearest rows of all indexes, best first; equal ones in
    the files' order.

    `where` is an SQL condition on the rows' columns. Raises ConfigurationError where the files are
    of different spaces, UsageError where the condition can't be used, DataError where a file is
    damaged.
    """
    for index in indexes[1:]:
        check_comparable(indexes[0], index)
    # Rows are counted over all files; a file's rows begin at its start.
    starts = np.cumsum([0, *(index.rows for index in indexes)])
    scores, numbers = nearest(queries, _blocks(indexes, starts, where), k)
    files = np.searchsorted(starts, numbers, side="right") - 1
    rows = numbers - starts[files]
    records = [
        index.take(
            rows[files == position].tolist(),
            [name for name in columns if name in index.schema.names],
        )
        for position, index in enumerate(indexes)
    ]
    hits = []
    for query in range(len(queries)):
        ranked = zip(
            scores[query].tolist(), files[query].tolist(), rows[query].tolist(), strict=True
        )
        hits.append(
            [
                Hit(rank, score, indexes[file].path, row, records[file][row])
                for rank, (score, file, row) in enumerate(ranked, start=1)
            ]
        )
    return hits


def _blocks(
    indexes: Sequence[VectorFile], starts: Numbers, where: str | None
) -> Iterator[tuple[Numbers, Vectors]]:
    for index, start in zip(indexes, starts, strict=False):
        named = filtering.columns(where, index.carried) if where is not None else []
        for block in index.blocks(named):
            rows, vectors = block.rows, block.vectors
            if where is not None:
                matches = filtering.mask(block.table, where, index.carried)[rows - block.first]
                rows, vectors = rows[matches], vectors[matches]
            yield start + rows, vectors


def check_columns(indexes: Sequence[VectorFile], columns: Sequence[str]) -> None:
    """See that each column is in some file. Raises DataError."""
    known = {name for index in indexes for name in index.carried}
    for name in columns:
        if name not in known:
            raise DataError(
                f"no column {name!r} in {indexes[0].path}",
                f"its columns: {', '.join(sorted(known))}",
            )
