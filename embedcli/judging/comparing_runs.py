"""Two evaluations of the same queries: what differs, and how surely."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from embedcli.errors import DataError
from embedcli.judging import metrics
from embedcli.judging.evaluation import Evaluation

# A name, the row of each query's id, and each measure's values by row.
Other = tuple[str, dict[str, int], Mapping[str, Any]]


def of_run(run: Evaluation) -> Other:
    """A run of now."""
    return run.name, {query: row for row, query in enumerate(run.ids)}, run.values


def of_file(columns: Mapping[str, Sequence[Any]], path: str) -> Other:
    """An earlier run from what `--per-query` wrote. Raises DataError where it is something else."""
    missing = [name for name in ("query_id", *metrics.MEASURES) if name not in columns]
    if missing:
        raise DataError(f"{path}: no column {missing[0]!r}: not what --per-query writes")
    rows = {str(query): row for row, query in enumerate(columns["query_id"])}
    return path, rows, {name: np.array(columns[name], np.float64) for name in metrics.MEASURES}


def compare(ours: Evaluation, name: str, rows: Mapping[str, int], values: Mapping[str, Any]) -> dict[str, Any]:
    """Our measures less another run's, over the queries of both. Raises DataError where there are none."""
    common = [row for row, query in enumerate(ours.ids) if query in rows]
    if not common:
        raise DataError(f"{name}: no query is in both runs")
    theirs = [rows[ours.ids[row]] for row in common]
    found = {
        measure: vars(metrics.difference(ours.values[measure][common], values[measure][theirs]))
        for measure in metrics.MEASURES
    }
    return {"other": name, "queries": len(common), "measures": found}
