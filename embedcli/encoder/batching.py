"""Token lengths into batches under a token budget. Pure arithmetic: no texts, no tensors.

Both ways depend on the lengths alone, ties in input order: the same texts always share a batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Lengths = npt.NDArray[np.int32]
Rows = npt.NDArray[np.intp]
# The kernel for texts of any length numbers them in one dimension of its grid.
MOST_TEXTS = 65_535


def batches(lengths: Lengths, budget: int) -> Iterator[Rows]:
    """Yield the rows of each batch: longest first, so that memory peaks at once and padding is least.

    A batch holds as many rows as fit into `budget` tokens when padded to its longest; always at
    least one.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        count = max(1, budget // longest)
        yield order[start : start + count]
        start += count


def packs(lengths: Lengths, budget: int) -> Iterator[Rows]:
    """Yield the rows of each pack: together at most `budget` tokens and MOST_TEXTS, longest first,
    equal lengths side by side.

    Best-fit decreasing: what the longest texts leave free is filled with the longest that still
    fit, so that packs are full but for the last. A text longer than the budget has a pack of its
    own.
    """
    # Rows from the longest to the shortest; those of one length follow one another.
    order = np.argsort(-lengths, kind="stable")
    sizes, next_row, remaining = np.unique(-lengths[order], return_index=True, return_counts=True)
    sizes = -sizes  # falling
    # A pack is filled length by length, not text by text: there are far fewer lengths than texts.
    while remaining.any():
        longest = int(sizes[np.flatnonzero(remaining)[0]])
        room = max(budget, longest)
        pack: list[Rows] = []
        free = MOST_TEXTS
        while room > 0 and free > 0:
            fitting = np.flatnonzero((remaining > 0) & (sizes <= room))
            if not len(fitting):
                break
            size = fitting[0]  # the longest that fits
            count = min(int(remaining[size]), room // int(sizes[size]), free)
            pack.append(order[next_row[size] : next_row[size] + count])
            next_row[size] += count
            remaining[size] -= count
            room -= count * int(sizes[size])
            free -= count
        yield np.concatenate(pack)


@dataclass(frozen=True)
class PaddedBatch:
    """Texts side by side, padded to the longest: int64 [n, T].

    mask: 1 for tokens, 0 for padding; ranks: the number of each token in its text, from 1 on; 0 for
    what isn't pooled.
    """

    ids: npt.NDArray[np.int64]
    mask: npt.NDArray[np.int64]
    ranks: npt.NDArray[np.int64]


def padded(
    ids: npt.NDArray[np.int32], lengths: Lengths, skipped: Lengths, pad_id: int, pads_left: bool
) -> PaddedBatch:
    """Lay out texts whose ids follow one another; of each text the first `skipped` tokens aren't
    pooled.
    """
    # The position of each token in its text: negative before it, beyond its length behind it.
    width = int(lengths.max())
    positions = np.arange(width) - (width - lengths[:, None] if pads_left else 0)
    # All ids at once: True cells of a mask are filled row by row, as the ids lie.
    is_token = (positions >= 0) & (positions < lengths[:, None])  # [n, T]
    laid_out = np.full(is_token.shape, pad_id, np.int64)
    laid_out[is_token] = ids
    is_pooled = is_token & (positions >= skipped[:, None])
    return PaddedBatch(laid_out, is_token.astype(np.int64), (positions + 1) * is_pooled)


def length_groups(lengths: Lengths) -> list[tuple[int, int]]:
    """Return runs of equal lengths: how many texts, and how long each."""
    if not len(lengths):
        return []
    starts = np.concatenate([[0], np.flatnonzero(np.diff(lengths)) + 1])
    counts = np.diff(np.concatenate([starts, [len(lengths)]]))
    return list(zip(counts.tolist(), lengths[starts].tolist(), strict=True))
