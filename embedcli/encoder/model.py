"""A loaded model, and what it can run."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from embedcli.encoder.batching import Rows
from embedcli.encoder.packing import Groups, Packing, packed_states, unpacked
from embedcli.encoder.tokenizer import Tokenizer, Tokens
from embedcli.errors import DEVICE_WORDS, ConfigurationError
from embedcli.models.spec import ModelSpec

# Words of errors that are a device's, and not the model's: torch raises RuntimeError for both.
_OF_DEVICES = (*DEVICE_WORDS, "can't allocate memory", "CUDA", "cuda", "NCCL", "cuBLAS")


@contextmanager
def errors_of_the_model(spec: ModelSpec) -> Iterator[None]:
    """Name the model where its class or its own code fails: no fault of the texts, nor of ours.

    Raises ConfigurationError.
    """
    try:
        yield
    except Exception as error:
        words = str(error)
        if isinstance(error, torch.OutOfMemoryError) or any(word in words for word in _OF_DEVICES):
            raise
        reason = " ".join(words.split())[:300]
        raise ConfigurationError(
            f"{spec.files.id}: transformers can't run it: {type(error).__name__}: {reason}"
        ) from None


@dataclass(frozen=True)
class LoadedModel:
    """A loaded model: token states from `transformer`, through `token_modules`, pooled, then
    `text_modules` in float32.

    packing: how the transformer runs packs; None where it can't. compiled: the same for packs of
    batch_tokens tokens.
    """

    spec: ModelSpec
    tokenizer: Tokenizer
    transformer: nn.Module
    token_modules: nn.Sequential
    text_modules: nn.Sequential
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

    def can_pack(self, tokens: Tokens, rows: Rows) -> npt.NDArray[np.bool_]:
        """For each text whether it may go into a pack."""
        if self.packing is None:
            return np.zeros(len(rows), np.bool_)
        fits = tokens.lengths[rows] <= (self.packing.window or np.iinfo(np.int32).max)
        if self.packing.offset:
            # RoBERTa's classes don't count padding tokens, also where a text holds one literally.
            fits &= ~tokens.contain(self.tokenizer.pad_id, rows)
        return fits

    def packed_states(self, ids: npt.NDArray[np.int32], groups: Groups) -> Tensor:
        """Return the states [tokens, hidden] of a pack's tokens, by compiled code where the pack fits into
        it.
        """
        assert self.packing is not None
        with errors_of_the_model(self.spec):
            return self._packed_states(ids, groups, self.packing)

    def _packed_states(
        self, ids: npt.NDArray[np.int32], groups: Groups, packing: Packing
    ) -> Tensor:
        if self.compiled is not None and len(ids) <= self.batch_tokens:
            return packed_states(self.compiled, ids, groups, packing, self.batch_tokens)
        return packed_states(self.transformer, ids, groups, packing)

    def padded_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the states [n, T, hidden] of padded texts [n, T]."""
        with errors_of_the_model(self.spec), unpacked(self.transformer, self.packing):
            states: Tensor = self.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
            return states

    def computed_tokens(self, tokens: Tokens, rows: Rows) -> int:
        """Count the tokens that a batch of such texts costs, padding included."""
        lengths = tokens.lengths[rows]
        if not self.can_pack(tokens, rows).all():
            return len(lengths) * int(lengths.max())
        useful = int(lengths.sum())
        return useful if self.compiled is None else max(useful, self.batch_tokens)
