"""How good rankings are: the usual measures, their uncertainty, and whether two runs differ.

The measures are trec_eval's, through ir-measures; resampling is scipy's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcli.errors import ConfigurationError

# By the names that people know: ir-measures' own.
MEASURES = {"nDCG@10": "nDCG@10", "Recall@100": "R@100", "MRR@10": "RR@10", "MAP": "AP"}
CUTOFF = 1000
_RESAMPLES, _SEED, _CONFIDENCE = 9999, 0, 0.95
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
    """One run's mean less another's over the same queries; its 95 % interval; p of a paired permutation test."""

    mean: float
    low: float
    high: float
    p: float


def check_library() -> None:
    """See that the measures can be had, before time goes into vectors. Raises ConfigurationError."""
    _library()


def measure(run: Run, judged: Judged) -> dict[str, dict[str, float]]:
    """Each measure's value for each judged query; a query without results has zeros. Documents come best first."""
    ir_measures = _library()
    names = {ir_measures.parse_measure(theirs): ours for ours, theirs in MEASURES.items()}
    # trec_eval orders equal scores by id, backwards: so that our order holds, it gets the ranks.
    ranked = {query: {doc: -float(rank) for rank, (doc, _) in enumerate(docs)} for query, docs in run.items()}
    found: dict[str, dict[str, float]] = {query: dict.fromkeys(MEASURES, 0.0) for query in judged}
    for one in ir_measures.iter_calc(list(names), {query: dict(docs) for query, docs in judged.items()}, ranked):
        found[one.query_id][names[one.measure]] = float(one.value)
    return found


def _library() -> Any:
    try:
        import ir_measures
        import scipy.stats  # noqa: F401 - for what follows
    except ImportError:
        raise ConfigurationError("eval needs the package ir-measures", "pip install 'embedcli[eval]'") from None
    return ir_measures


def estimate(values: npt.NDArray[np.float64]) -> Estimate:
    """The mean of a measure over queries [n]."""
    return Estimate(float(values.mean()), *_interval(values))


def difference(ours: npt.NDArray[np.float64], theirs: npt.NDArray[np.float64]) -> Difference:
    """Two runs' values of a measure for the same queries [n]."""
    from scipy import stats

    less = ours - theirs
    if not less.any():
        return Difference(0.0, 0.0, 0.0, 1.0)
    test = stats.permutation_test(
        (less,),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        rng=np.random.default_rng(_SEED),
    )
    return Difference(float(less.mean()), *_interval(less), float(test.pvalue))


def _interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """By resampling the queries; the seed is fixed, so that equal runs say the same."""
    from scipy import stats

    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    found = stats.bootstrap(
        (values,),
        np.mean,
        vectorized=True,
        n_resamples=_RESAMPLES,
        confidence_level=_CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(_SEED),
        batch=1000,
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
