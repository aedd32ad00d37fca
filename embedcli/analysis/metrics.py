"""How good rankings are: judgments, the usual measures, their uncertainty, and whether two runs
differ.

The measures are trec_eval's, through ir-measures; resampling is scipy's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcli.errors import ConfigurationError, DataError, from_os_error

# By the names that people know: ir-measures' own.
MEASURES = {"nDCG@10": "nDCG@10", "Recall@100": "R@100", "MRR@10": "RR@10", "MAP": "AP"}
CUTOFF = 1000
# Of recall over k.
CUTOFFS = (1, 2, 5, 10, 20, 50, 100)
_RESAMPLES = 9999
_SEED = 0
_CONFIDENCE = 0.95
Run = Mapping[str, Sequence[tuple[str, float]]]
Judged = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Estimate:
    """A mean over queries and its 95 % confidence interval, by bootstrap over the queries."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """One run's mean less another's over the same queries; its 95 % interval; p of a paired
    permutation test.
    """

    mean: float
    low: float
    high: float
    p: float


def check_library() -> None:
    """See that the measures can be had, before time goes into vectors. Raises ConfigurationError."""
    _library()


def read_judgments(path: str) -> dict[str, dict[str, int]]:
    """Read for each query the documents judged and how relevant they are: BEIR's three columns with
    a header, or TREC's four.

    Queries without a relevant document are left out. Raises InputMissingError, DataError naming the
    line that is neither.
    """
    try:
        content = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise from_os_error(error, path) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8") from None
    judged: dict[str, dict[str, int]] = {}
    for number, line in enumerate(content.splitlines(), 1):
        parts = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or (number == 1 and not _is_whole_number(parts[-1])):
            continue
        if len(parts) not in (3, 4) or not _is_whole_number(parts[-1]):
            raise DataError(
                f"{path}:{number}: not a judgment: {line[:80]!r}",
                "query-id, corpus-id, score; or TREC's query-id, 0, corpus-id, score",
            )
        query, document = parts[0], parts[-2]
        judged.setdefault(query, {})[document] = int(float(parts[-1]))
    relevant = {
        query: documents for query, documents in judged.items() if max(documents.values()) > 0
    }
    if not relevant:
        raise DataError(f"{path}: no query has a relevant document")
    return relevant


def _is_whole_number(value: str) -> bool:
    try:
        return float(value).is_integer()
    except ValueError:
        return False


def measure(run: Run, judged: Judged) -> dict[str, dict[str, float]]:
    """Return each measure's value for each judged query, zeros where it has no results.

    Documents come best first.
    """
    ir_measures = _library()
    names = {ir_measures.parse_measure(parsed_name): name for name, parsed_name in MEASURES.items()}
    judgments = {query: dict(documents) for query, documents in judged.items()}
    # trec_eval orders equal scores by id, backwards: so that our order holds, it gets the ranks.
    ranks = {
        query: {document: -float(rank) for rank, (document, _) in enumerate(documents)}
        for query, documents in run.items()
    }
    values: dict[str, dict[str, float]] = {query: dict.fromkeys(MEASURES, 0.0) for query in judged}
    for result in ir_measures.iter_calc(list(names), judgments, ranks):
        values[result.query_id][names[result.measure]] = float(result.value)
    return values


def recall_at(run: Run, judged: Judged) -> dict[int, float]:
    """Return by k the share of a query's relevant documents among its first k, on average.

    Queries without a relevant document are left out.
    """
    shares: dict[int, list[float]] = {cutoff: [] for cutoff in CUTOFFS}
    for query, documents in judged.items():
        relevant = {document for document, grade in documents.items() if grade > 0}
        ranking = [document for document, _ in run.get(query, ())]
        for cutoff, values in shares.items():
            if relevant:
                values.append(len(relevant.intersection(ranking[:cutoff])) / len(relevant))
    return {cutoff: sum(values) / max(1, len(values)) for cutoff, values in shares.items()}


def _library() -> Any:
    try:
        import ir_measures
        import scipy.stats  # noqa: F401 - for what follows
    except ImportError:
        raise ConfigurationError(
            "eval needs the package ir-measures", "pip install 'embedcli[eval]'"
        ) from None
    return ir_measures


def estimate(values: npt.NDArray[np.float64]) -> Estimate:
    """Return the mean of a measure over queries [n]."""
    return Estimate(float(values.mean()), *_interval(values))


def difference(values: npt.NDArray[np.float64], baseline: npt.NDArray[np.float64]) -> Difference:
    """Compare two runs' values of a measure for the same queries [n]."""
    from scipy import stats

    differences = values - baseline
    if not differences.any():
        return Difference(0.0, 0.0, 0.0, 1.0)
    test = stats.permutation_test(
        (differences,),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        rng=np.random.default_rng(_SEED),
    )
    return Difference(float(differences.mean()), *_interval(differences), float(test.pvalue))


def _interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the interval by resampling the queries; the seed is fixed, so that equal runs say the
    same.
    """
    from scipy import stats

    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    interval = stats.bootstrap(
        (values,),
        np.mean,
        vectorized=True,
        n_resamples=_RESAMPLES,
        confidence_level=_CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(_SEED),
        batch=1000,
    ).confidence_interval
    return float(interval.low), float(interval.high)
