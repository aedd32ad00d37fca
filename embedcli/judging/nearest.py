"""The exact nearest vectors, block by block: memory depends on a block and on k, not on how many vectors there are."""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]

# A block's scores for so many queries at once take at most 64 MiB.
_SCORES = 2**24
_UNIT = float(np.finfo(np.float32).eps) / 2


def nearest(queries: Floats, blocks: Iterable[tuple[Numbers, Floats]], k: int) -> tuple[Floats, Numbers]:
    """Scores and numbers [queries, k] of the vectors with the largest scalar product, best first.

    `blocks` give numbers, rising, and vectors float32 [n, dim]. Equal scores come in the order of the numbers. Scores
    are rounded to float32 from float64, so they depend on the two vectors alone and not on their block. Vectors that
    aren't finite are never found. Where there are fewer than k others, there are fewer columns.
    """
    scores, numbers = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for own, vectors in (_finite(*block) for block in blocks):
        if len(own) and len(queries):
            candidates = _candidates(queries, scores, vectors, k)
            pairs = [
                _joined(query, kept, at, own, vectors, found, k)
                for query, kept, at, found in zip(queries, scores, numbers, candidates, strict=True)
            ]
            scores, numbers = np.stack([pair[0] for pair in pairs]), np.stack([pair[1] for pair in pairs])
    return scores, numbers


def _finite(own: Numbers, vectors: Floats) -> tuple[Numbers, Floats]:
    good = np.isfinite(vectors).all(axis=1)
    return own[good], vectors[good]


def _candidates(queries: Floats, scores: Floats, vectors: Floats, k: int) -> Iterator[npt.NDArray[np.intp]]:
    """For each query the rows of a block that may be among its k best: products in float32, and their largest error."""
    longest = np.linalg.norm(vectors, axis=1).max()
    slack = 2 * vectors.shape[1] * _UNIT * np.linalg.norm(queries, axis=1) * longest
    step = max(1, _SCORES // len(vectors))
    for start in range(0, len(queries), step):
        rough = queries[start : start + step] @ vectors.T
        floor = np.full(len(rough), -np.inf)
        if len(vectors) > k:
            floor = np.partition(rough, len(vectors) - k, axis=1)[:, len(vectors) - k]
        if scores.shape[1] == k:
            floor = np.maximum(floor, scores[start : start + step, -1])
        for row, least in zip(rough, floor - slack[start : start + step], strict=True):
            yield np.flatnonzero(row >= least)


def _joined(
    query: Floats, scores: Floats, numbers: Numbers, own: Numbers, vectors: Floats, found: npt.NDArray[np.intp], k: int
) -> tuple[Floats, Numbers]:
    """The k best of those kept and those found."""
    exact = (vectors[found].astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    scores, numbers = np.concatenate([scores, exact]), np.concatenate([numbers, own[found]])
    best = np.lexsort((numbers, -scores))[:k]
    return scores[best], numbers[best]
