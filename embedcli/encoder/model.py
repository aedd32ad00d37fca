"""A loaded model, and what it can run."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from embedcli.encoder.batching import Rows
from embedcli.encoder.memory import is_exhausted
from embedcli.encoder.packing import Groups, Packing, packed_states, unpacked
from embedcli.encoder.tokenizer import Tokenizer, Tokens
from embedcli.errors import DEVICE_WORDS, ConfigurationError
from embedcli.models.spec import ModelSpec

_Module = TypeVar("_Module", bound=nn.Module)

# Words of errors that are a device's, and not the model's: torch raises RuntimeError for both.
_OF_DEVICES = (*DEVICE_WORDS, "CUDA", "cuda", "NCCL", "cuBLAS")


@contextmanager
def errors_of_the_model(spec: ModelSpec) -> Iterator[None]:
    """Name the model where its class or its own code fails: no fault of the texts, nor of ours.

    Raises ConfigurationError.
    """
    try:
        yield
    except Exception as error:
        words = str(error)
        if is_exhausted(error) or any(word in words for word in _OF_DEVICES):
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
    batch_tokens tokens. reason: why its dtype was chosen; note: what people should know besides.
    """

    spec: ModelSpec
    tokenizer: Tokenizer
    transformer: nn.Module
    token_modules: nn.Sequential
    text_modules: nn.Sequential
    device: torch.device
    dtype: torch.dtype
    batch_tokens: int
    reason: str = ""
    note: str = ""
    packing: Packing | None = None
    compiled: nn.Module | None = None
    _copies: dict[torch.device, "LoadedModel"] = field(default_factory=dict)

    def in_float32(self, device: torch.device) -> "LoadedModel":
        """Return the model in float32 on a device, for rows whose vector came out unusable in a shorter
        format; copied once, if at all.
        """
        if (self.dtype, self.device) == (torch.float32, device):
            return self
        if device not in self._copies:
            packing = self.packing and replace(self.packing, kernel="groups")  # it runs float32
            self._copies[device] = replace(
                self,
                transformer=_copied(self.transformer, device),
                token_modules=_copied(self.token_modules, device),
                text_modules=_copied(self.text_modules, device),
                device=device,
                dtype=torch.float32,
                packing=packing,
                compiled=None,
                _copies={},
            )
        return self._copies[device]

    def can_pack(self, tokens: Tokens, rows: Rows) -> npt.NDArray[np.bool_]:
        """For each text whether it may go into a pack."""
        if self.packing is None:
            return np.zeros(len(rows), np.bool_)
        if self.packing.offset:
            # RoBERTa's classes don't count padding tokens, also where a text holds one literally.
            return ~tokens.contain(self.tokenizer.pad_id, rows)
        return np.ones(len(rows), np.bool_)

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
            return packed_states(self.compiled, ids, groups, packing, self.filled_to)
        return packed_states(self.transformer, ids, groups, packing)

    @property
    def filled_to(self) -> int:
        """The tokens that compiled code runs on, whatever the pack; 0 where it runs on any number."""
        return self.batch_tokens if self.compiled is not None and self.device.type == "cpu" else 0

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
        return max(useful, self.filled_to)


def _copied(module: _Module, device: torch.device) -> _Module:
    """Copy a module to a device in float32, tensor by tensor: the device never holds a second copy."""
    tensors = {*module.parameters(), *module.buffers()}
    copies = {
        id(tensor): tensor.detach().to(
            device, torch.float32 if tensor.is_floating_point() else None
        )
        for tensor in tensors
    }
    for tensor in module.parameters():
        copies[id(tensor)] = nn.Parameter(copies[id(tensor)], requires_grad=False)
    copied: _Module = copy.deepcopy(module, copies)
    return copied
