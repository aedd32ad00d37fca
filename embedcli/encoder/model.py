"""A loaded model, and what it can run."""

import copy
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from embedcli.encoder.packing import Groups, Packing, packed_states
from embedcli.encoder.tokenizer import Tokenizer
from embedcli.models.spec import ModelSpec


@dataclass(frozen=True)
class LoadedModel:
    """A loaded model: token states from `transformer`, through `latent`, pooled, then `layers` in
    float32.

    packing: how the transformer runs packs; None where it can't. compiled: the same for packs of
    batch_tokens tokens.
    """

    spec: ModelSpec
    tokenizer: Tokenizer
    transformer: nn.Module
    latent: nn.Module
    layers: nn.Sequential
    device: torch.device
    dtype: torch.dtype
    batch_tokens: int
    packing: Packing | None = None
    compiled: nn.Module | None = None

    @cached_property
    def in_float32(self) -> "LoadedModel":
        """Copy the model to float32, for rows whose vector came out unusable in a shorter format; copied
        once, if at all.
        """
        if self.dtype == torch.float32:
            return self
        packing = self.packing and replace(
            self.packing, kernel="groups"
        )  # the one kernel that runs float32
        transformer = copy.deepcopy(self.transformer).float()
        return replace(
            self, transformer=transformer, dtype=torch.float32, packing=packing, compiled=None
        )

    def can_pack(self, lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """For each text whether it may go into a pack."""
        if self.packing is None:
            return np.zeros(len(lengths), np.bool_)
        return lengths <= (self.packing.window or np.iinfo(np.int32).max)

    def packed_states(self, ids: npt.NDArray[np.int32], groups: Groups) -> Tensor:
        """Return the states [tokens, hidden] of a pack's tokens, by compiled code where the pack fits into
        it.
        """
        assert self.packing is not None
        if self.compiled is not None and len(ids) <= self.batch_tokens:
            return packed_states(self.compiled, ids, groups, self.packing, self.batch_tokens)
        return packed_states(self.transformer, ids, groups, self.packing)

    def computed_tokens(self, lengths: npt.NDArray[np.int32]) -> int:
        """Count the tokens that a batch of such texts costs, padding included."""
        if not self.can_pack(lengths).all():
            return len(lengths) * int(lengths.max())
        useful = int(lengths.sum())
        return useful if self.compiled is None else max(useful, self.batch_tokens)
