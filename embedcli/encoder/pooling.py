"""Token states into one vector a text. Pure functions on tensors.

Every pooling takes states [B, T, H] and ranks [B, T], the number of each token in its text from 1
on, 0 for padding (on either side) and for what isn't pooled; and returns float32 [B, H].
Definitions as in sentence-transformers' Pooling module.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from embedcli.models.facts import Pooling

PoolingFunction = Callable[[Tensor, Tensor], Tensor]


def cls(states: Tensor, ranks: Tensor) -> Tensor:
    """Take the first token's state."""
    position = (ranks > 0).to(torch.int32).argmax(dim=1)  # [B]
    return states[torch.arange(len(states), device=states.device), position].float()


def last_token(states: Tensor, ranks: Tensor) -> Tensor:
    """Take the last token's state, whichever side is padded."""
    position = ranks.argmax(dim=1)  # [B]
    return states[torch.arange(len(states), device=states.device), position].float()


def mean(states: Tensor, ranks: Tensor) -> Tensor:
    """Average over tokens, summed in float32."""
    return _sum(states, ranks > 0) / _count(ranks)


def mean_sqrt_len(states: Tensor, ranks: Tensor) -> Tensor:
    """Sum over tokens and divide by the square root of their number."""
    return _sum(states, ranks > 0) / _count(ranks).sqrt()


def weighted_mean(states: Tensor, ranks: Tensor) -> Tensor:
    """Average over tokens, the first weighing 1, the second 2, and so on (SGPT, arXiv:2202.08904,
    section 3). Where a prompt isn't pooled, it still counts: the text begins with a higher number.
    """
    return _sum(states.float(), ranks) / ranks.sum(dim=1, keepdim=True).clamp(min=1).float()


def _sum(states: Tensor, weights: Tensor) -> Tensor:
    # In the states' dtype, summed in float32: as sentence-transformers does it.
    return (states * weights.unsqueeze(-1).to(states.dtype)).sum(dim=1, dtype=torch.float32)


def _count(ranks: Tensor) -> Tensor:
    return (ranks > 0).sum(dim=1, keepdim=True).clamp(min=1).float()


def max_tokens(states: Tensor, ranks: Tensor) -> Tensor:
    """Take the largest value of each dimension over tokens."""
    return states.masked_fill(ranks.unsqueeze(-1) == 0, float("-inf")).amax(dim=1).float()


POOLINGS: dict[Pooling, PoolingFunction] = {
    Pooling.CLS: cls,
    Pooling.MEAN: mean,
    Pooling.MAX: max_tokens,
    Pooling.MEAN_SQRT_LEN: mean_sqrt_len,
    Pooling.WEIGHTED_MEAN: weighted_mean,
    Pooling.LAST_TOKEN: last_token,
}
