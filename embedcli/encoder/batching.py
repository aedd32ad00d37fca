"""Token lengths into batches under a token budget. Pure arithmetic: no texts, no tensors."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt


def batches(lengths: npt.NDArray[np.int32], budget: int) -> Iterator[npt.NDArray[np.intp]]:
    """Yield the indices of each batch: longest first, so that memory peaks at once and padding is least.

    A batch holds as many rows as fit into `budget` tokens when padded to its longest; always at least one.
    Depends on the lengths alone, ties in input order: the same texts always share a batch.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        rows = max(1, budget // max(1, int(lengths[order[start]])))
        yield order[start : start + rows]
        start += rows
