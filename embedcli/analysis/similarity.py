"""The exact nearest vectors, block by block: memory depends on a block and on k, not on how many
vectors there are.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from embedcli.store.parts import Vectors

# Numbers of rows.
Numbers = npt.NDArray[np.int64]

# A block's scores for so many queries at once take at most 64 MiB.
_SCORES_AT_ONCE = 2**24
# The largest relative error of one rounding to float32.
_UNIT_ROUNDOFF = float(np.finfo(np.float32).eps) / 2
_SEED = 0


def cosines(first_vectors: Vectors, second_vectors: Vectors) -> npt.NDArray[np.float32]:
    """Return the cosine of each row [n, dim] with the other's, [n]; -1 where a vector is zero or
    not finite.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        products = (first_vectors * second_vectors).sum(axis=1)
        values = (
            products
            / np.linalg.norm(first_vectors, axis=1)
            / np.linalg.norm(second_vectors, axis=1)
        )
    return np.nan_to_num(values, nan=-1.0)


def sample(count: int, size: int | None) -> Numbers:
    """Return the numbers of all rows, or of `size` at random (always the same), rising."""
    if size is None or count <= size:
        return np.arange(count)
    return np.sort(np.random.default_rng(_SEED).choice(count, size, replace=False))


def nearest(
    queries: Vectors, blocks: Iterable[tuple[Numbers, Vectors]], k: int
) -> tuple[npt.NDArray[np.float32], Numbers]:
    """Return scores and numbers [queries, k] of the vectors with the largest scalar product, best
    first.

    `blocks` give numbers, rising, and vectors float32 [n, dim]. Equal scores come in the order of
    the numbers. Scores are rounded to float32 from float64, so they depend on the two vectors alone
    and not on their block. Vectors that aren't finite are never found. Where there are fewer than k
    vectors, there are fewer columns.
    """
    scores = np.empty((len(queries), 0), np.float32)
    numbers = np.empty((len(queries), 0), np.int64)
    if not len(queries):
        return scores, numbers
    for block_numbers, block_vectors in blocks:
        # A NaN would take part in every comparison below.
        finite = np.isfinite(block_vectors).all(axis=1)
        block_numbers, block_vectors = block_numbers[finite], block_vectors[finite]
        if not len(block_numbers):
            continue
        best = []
        for query, rows in enumerate(_candidates(queries, scores, block_vectors, k)):
            exact = _exact_scores(queries[query], block_vectors[rows])
            best.append(_best(scores[query], numbers[query], exact, block_numbers[rows], k))
        scores = np.stack([query_scores for query_scores, _ in best])
        numbers = np.stack([query_numbers for _, query_numbers in best])
    return scores, numbers


def _candidates(
    queries: Vectors, scores: npt.NDArray[np.float32], vectors: Vectors, k: int
) -> Iterator[npt.NDArray[np.intp]]:
    """Yield for each query the rows of a block that may be among its k best.

    Products in float32 are fast and inexact. The error of a sum of dim products is at most dim * u
    * |q| * |v|, with u the unit roundoff, so two scores can change places only if they are closer
    than twice that: whatever lies within `slack` of the k-th best is looked at again, in float64.
    """
    longest = np.linalg.norm(vectors, axis=1).max()
    error = vectors.shape[1] * _UNIT_ROUNDOFF * np.linalg.norm(queries, axis=1) * longest
    slack = 2 * error  # [queries]
    step = max(1, _SCORES_AT_ONCE // len(vectors))
    for start in range(0, len(queries), step):
        rough = queries[start : start + step] @ vectors.T  # [step, n]
        kth_best = np.full(len(rough), -np.inf)
        if len(vectors) > k:
            kth_best = np.partition(rough, len(vectors) - k, axis=1)[:, len(vectors) - k]
        if scores.shape[1] == k:
            # The k-th best of the blocks before is exact: whatever falls behind it by more than the error is out.
            kth_best = np.maximum(kth_best, scores[start : start + step, -1])
        floors = kth_best - slack[start : start + step]
        for row, floor in zip(rough, floors, strict=True):
            yield np.flatnonzero(row >= floor)


def _exact_scores(query: Vectors, vectors: Vectors) -> npt.NDArray[np.float32]:
    products = vectors.astype(np.float64) @ query.astype(np.float64)
    return products.astype(np.float32)


def _best(
    scores: npt.NDArray[np.float32],
    numbers: Numbers,
    more_scores: npt.NDArray[np.float32],
    more_numbers: Numbers,
    k: int,
) -> tuple[npt.NDArray[np.float32], Numbers]:
    """Return the k best of both, equal scores in the order of the numbers."""
    all_scores = np.concatenate([scores, more_scores])
    all_numbers = np.concatenate([numbers, more_numbers])
    order = np.lexsort((all_numbers, -all_scores))[:k]
    return all_scores[order], all_numbers[order]


def neighbours_in_common(
    first_rankings: Sequence[Sequence[int]], second_rankings: Sequence[Sequence[int]], size: int
) -> float:
    """Return the mean share of `size` neighbours that both rankings of a row have."""
    shares = [
        len(set(ranking) & set(second_ranking)) / size
        for ranking, second_ranking in zip(first_rankings, second_rankings, strict=True)
    ]
    return float(np.mean(shares))
