"""Token states into one vector a text. Pure functions on tensors.

Texts lie side by side, padded (states [n, T, H]), or one after the other in a pack (states
[tokens, H]). A layout knows where a text's tokens are, so that the poolings are the same for both.
They return float32 [n, H]; definitions as in sentence-transformers' Pooling module.

Ranks [n, T] or [tokens] are the number of each token in its text from 1 on, 0 for padding and for
what isn't pooled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from embedcli.encoder.devices import to_device
from embedcli.models.facts import Pooling


class Layout(Protocol):
    """Where the tokens of each text are."""

    @property
    def ranks(self) -> Tensor:
        """The number of each token in its text; 0 for what isn't pooled."""

    def first(self, states: Tensor) -> Tensor:
        """Take the state of each text's first pooled token."""

    def last(self, states: Tensor) -> Tensor:
        """Take the state of each text's last pooled token."""

    def sum(self, states: Tensor, weights: Tensor) -> Tensor:
        """Sum over each text's tokens, in float32: [n, H]."""

    def max(self, states: Tensor) -> Tensor:
        """Take the largest value of each dimension over each text's tokens."""


@dataclass(frozen=True)
class Padded:
    """Texts side by side, padded on either side; ranks int64 [n, T]."""

    ranks: Tensor

    def first(self, states: Tensor) -> Tensor:
        """Take states by their position [n]."""
        return self._at(states, (self.ranks > 0).to(torch.int32).argmax(dim=1))

    def last(self, states: Tensor) -> Tensor:
        """Take states by their position [n]."""
        return self._at(states, self.ranks.argmax(dim=1))

    def _at(self, states: Tensor, positions: Tensor) -> Tensor:
        index = positions[:, None, None].expand(-1, 1, states.shape[2])
        return states.gather(1, index).squeeze(1)

    def sum(self, states: Tensor, weights: Tensor) -> Tensor:
        """Weigh in the states' dtype, as sentence-transformers does it."""
        return (states * weights.unsqueeze(-1).to(states.dtype)).sum(dim=1, dtype=torch.float32)

    def max(self, states: Tensor) -> Tensor:
        """Take the largest value along the tokens."""
        return states.amax(dim=1)


@dataclass(frozen=True)
class Packed:
    """Texts one after the other; ranks int64 [tokens].

    starts, firsts, lasts: int64 [n], the places of each text's first token, and of its first and last
    pooled ones.
    """

    ranks: Tensor
    starts: Tensor
    firsts: Tensor
    lasts: Tensor

    def first(self, states: Tensor) -> Tensor:
        """Take states by their place."""
        return states[self.firsts]

    def last(self, states: Tensor) -> Tensor:
        """Take states by their place."""
        return states[self.lasts]

    def sum(self, states: Tensor, weights: Tensor) -> Tensor:
        """Sum the whole pack by one operation."""
        return self._reduced(states, "sum", weights.float())

    def max(self, states: Tensor) -> Tensor:
        """Reduce the whole pack by one operation."""
        return self._reduced(states, "max")

    def _reduced(self, states: Tensor, mode: str, weights: Tensor | None = None) -> Tensor:
        tokens = torch.arange(len(states), device=states.device)
        # Each text is a bag of its tokens' states: one kernel for all texts, whatever their lengths.
        return nn.functional.embedding_bag(
            tokens, states.float(), self.starts, mode=mode, per_sample_weights=weights
        )


def packed_layout(
    lengths: npt.NDArray[np.int32], skipped: npt.NDArray[np.int32], device: torch.device
) -> Packed:
    """Lay out texts of so many tokens; of each the first `skipped` ones aren't pooled."""
    stops = np.cumsum(lengths, dtype=np.int64)
    starts = stops - lengths
    positions = np.arange(stops[-1]) - np.repeat(starts, lengths)
    ranks = (positions + 1) * (positions >= np.repeat(skipped, lengths))
    firsts = starts + np.where(skipped < lengths, skipped, 0)
    return Packed(*(to_device(values, device) for values in (ranks, starts, firsts, stops - 1)))


PoolingFunction = Callable[[Tensor, Layout], Tensor]


def cls(states: Tensor, layout: Layout) -> Tensor:
    """Take the first token's state."""
    return layout.first(states).float()


def last_token(states: Tensor, layout: Layout) -> Tensor:
    """Take the last token's state, whichever side is padded."""
    return layout.last(states).float()


def mean(states: Tensor, layout: Layout) -> Tensor:
    """Average over tokens, summed in float32."""
    return layout.sum(states, layout.ranks > 0) / _count(layout)


def mean_sqrt_len(states: Tensor, layout: Layout) -> Tensor:
    """Sum over tokens and divide by the square root of their number."""
    return layout.sum(states, layout.ranks > 0) / _count(layout).sqrt()


def weighted_mean(states: Tensor, layout: Layout) -> Tensor:
    """Average over tokens, the first weighing 1, the second 2, and so on (SGPT, arXiv:2202.08904,
    section 3). Where a prompt isn't pooled, it still counts: the text begins with a higher number.
    """
    ranks = layout.ranks
    return layout.sum(states.float(), ranks) / _total(layout, ranks).clamp(min=1)


def max_tokens(states: Tensor, layout: Layout) -> Tensor:
    """Take the largest value of each dimension over tokens."""
    is_skipped = layout.ranks.unsqueeze(-1) == 0
    return layout.max(states.masked_fill(is_skipped, float("-inf"))).float()


def _count(layout: Layout) -> Tensor:
    return _total(layout, layout.ranks > 0).clamp(min=1)


def _total(layout: Layout, weights: Tensor) -> Tensor:
    """Sum the weights of each text: float32 [n, 1]."""
    return layout.sum(weights.unsqueeze(-1).float(), torch.ones_like(weights))


POOLINGS: dict[Pooling, PoolingFunction] = {
    Pooling.CLS: cls,
    Pooling.MEAN: mean,
    Pooling.MAX: max_tokens,
    Pooling.MEAN_SQRT_LEN: mean_sqrt_len,
    Pooling.WEIGHTED_MEAN: weighted_mean,
    Pooling.LAST_TOKEN: last_token,
}


def pool(states: Tensor, layout: Layout, names: Sequence[Pooling]) -> Tensor:
    """Pool in several ways, and join the vectors: float32 [n, H * ways]."""
    return torch.cat([POOLINGS[name](states, layout) for name in names], dim=1)
