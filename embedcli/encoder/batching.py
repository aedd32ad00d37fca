"""Token lengths into batches under a token budget. Pure arithmetic: no texts, no tensors.

Both ways depend on the lengths alone, ties in input order: the same texts always share a batch.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Lengths = npt.NDArray[np.int32]
Rows = npt.NDArray[np.intp]


def batches(lengths: Lengths, budget: int) -> Iterator[Rows]:
    """Yield the rows of each batch: longest first, so that memory peaks at once and padding is least.

    A batch holds as many rows as fit into `budget` tokens when padded to its longest; always at least one.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        rows = max(1, budget // max(1, int(lengths[order[start]])))
        yield order[start : start + rows]
        start += rows


def packs(lengths: Lengths, budget: int) -> Iterator[Rows]:
    """Yield the rows of each pack: together at most `budget` tokens, longest first, equal lengths side by side.

    What the longest texts leave free is filled with the longest that still fit (best-fit decreasing), so that packs
    are full but for the last. A text longer than the budget has a pack of its own.
    """
    order = np.argsort(-lengths, kind="stable")
    sizes, firsts, left = np.unique(-lengths[order], return_index=True, return_counts=True)
    sizes = -sizes  # falling; firsts: where the rows of that length that are left begin in `order`
    while left.any():
        room, pack = max(budget, int(sizes[np.flatnonzero(left)[0]])), []
        while room > 0 and len(fitting := np.flatnonzero((left > 0) & (sizes <= room))):
            best = fitting[0]
            rows = min(int(left[best]), room // int(sizes[best]))
            pack.append(order[firsts[best] : firsts[best] + rows])
            firsts[best], left[best], room = firsts[best] + rows, left[best] - rows, room - rows * int(sizes[best])
        yield np.concatenate(pack)


def groups(lengths: Lengths) -> list[tuple[int, int]]:
    """Runs of equal lengths: how many texts, and how long each."""
    if not len(lengths):
        return []
    edges = np.flatnonzero(np.diff(lengths)) + 1
    counts = np.diff(np.concatenate([[0], edges, [len(lengths)]]))
    return list(zip(counts.tolist(), lengths[np.concatenate([[0], edges])].tolist(), strict=True))
