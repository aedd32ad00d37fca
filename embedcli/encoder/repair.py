"""Texts whose vector came out unusable: tried again alone and in float32, else told."""

from collections.abc import Callable, Container

import numpy as np
import numpy.typing as npt

from embedcli.encoder.batching import Rows
from embedcli.encoder.tokenizer import Tokens

Vectors = npt.NDArray[np.float32]

NO_TOKENS = "it has no tokens: this tokenizer adds none"


def without_tokens(lengths: npt.NDArray[np.int32]) -> dict[int, str]:
    """Return the rows that have nothing to look at, and why."""
    return dict.fromkeys(np.flatnonzero(lengths == 0).tolist(), NO_TOKENS)


def normalized(vectors: Vectors) -> Vectors:
    """L2-normalize vectors [n, dim]; one that is zero stays so."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(norms, np.float32(1e-12))


def are_usable(vectors: Vectors) -> npt.NDArray[np.bool_]:
    """Tell which vectors are finite and not zero, bool [n]. Normalized ones then have norm 1."""
    norms: npt.NDArray[np.float32] = np.linalg.norm(vectors, axis=1)
    return np.isfinite(norms) & (norms > 0)


def repair(
    vectors: Vectors,
    tokens: Tokens,
    given_up: Container[int],
    encode_again: Callable[[Rows], Vectors | None],
) -> dict[int, str]:
    """Replace vectors that aren't usable by what `encode_again` gives for a row, in float32; None
    where it doesn't fit into memory.

    Those that stay unusable are zeroed; returns why. Rows in `given_up` are left alone.
    """
    failed: dict[int, str] = {}
    for row in np.flatnonzero(~are_usable(vectors)).tolist():
        if row in given_up:
            continue
        if tokens.skipped[row] >= tokens.lengths[row]:  # no dtype helps
            failed[row] = (
                "it has no token beside the prompt, and this model pools none of the prompt's"
            )
            continue
        vector = encode_again(np.array([row]))
        if vector is None:
            failed[row] = (
                "the model gives no finite vector for it, and in float32 doesn't fit into memory"
            )
        elif are_usable(vector)[0]:
            vectors[row] = vector[0]
        else:
            failed[row] = "the model gives no finite vector for it, in float32 neither"
    vectors[list(failed)] = 0
    return failed
