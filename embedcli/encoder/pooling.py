"""Token states into one vector a text. Pure functions on tensors.

Every pooling takes states [B, T, H] and a mask [B, T] (1 for a token, 0 for padding, on either
side) and returns float32 [B, H]. Definitions as in sentence-transformers' Pooling module.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from embedcli.models.facts import Pooling

PoolingFunction = Callable[[Tensor, Tensor], Tensor]


def cls(states: Tensor, mask: Tensor) -> Tensor:
    """Take the first token's state."""
    position = mask.to(torch.int32).argmax(dim=1)  # [B], of the first 1
    return states[torch.arange(len(states), device=states.device), position].float()


def last_token(states: Tensor, mask: Tensor) -> Tensor:
    """Take the last token's state, whichever side is padded."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    position = (mask * positions).argmax(dim=1)  # [B], of the last 1
    return states[torch.arange(len(states), device=states.device), position].float()


def mean(states: Tensor, mask: Tensor) -> Tensor:
    """Average over tokens, summed in float32."""
    return _sum(states, mask) / _count(mask)


def mean_sqrt_len(states: Tensor, mask: Tensor) -> Tensor:
    """Sum over tokens and divide by the square root of their number."""
    return _sum(states, mask) / _count(mask).sqrt()


def weighted_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Average over tokens, the first weighing 1, the second 2, and so on (SGPT, arXiv:2202.08904,
    section 3).
    """
    weights = mask.cumsum(dim=1) * mask  # [B, T]: 1, 2, 3, ... over tokens, 0 over padding
    return _sum(states.float(), weights) / weights.sum(dim=1, keepdim=True).clamp(min=1).float()


def _sum(states: Tensor, weights: Tensor) -> Tensor:
    # In the states' dtype, summed in float32: as sentence-transformers does it.
    return (states * weights.unsqueeze(-1).to(states.dtype)).sum(dim=1, dtype=torch.float32)


def _count(mask: Tensor) -> Tensor:
    return mask.sum(dim=1, keepdim=True).clamp(min=1).float()


def max_tokens(states: Tensor, mask: Tensor) -> Tensor:
    """Take the largest value of each dimension over tokens."""
    return states.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(dim=1).float()


POOLINGS: dict[Pooling, PoolingFunction] = {
    Pooling.CLS: cls,
    Pooling.MEAN: mean,
    Pooling.MAX: max_tokens,
    Pooling.MEAN_SQRT_LEN: mean_sqrt_len,
    Pooling.WEIGHTED_MEAN: weighted_mean,
    Pooling.LAST_TOKEN: last_token,
}
