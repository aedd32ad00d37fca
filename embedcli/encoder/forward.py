"""Token ids into vectors: batches through the transformer, pooling, layers, truncation and
normalization.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedcli.encoder.api import Encoded, OnBatch
from embedcli.encoder.batching import Rows, batches, length_groups, packs
from embedcli.encoder.model import LoadedModel
from embedcli.encoder.pooling import POOLINGS
from embedcli.encoder.tokenizer import Tokens
from embedcli.records import Rendered

# States [n, T, H] of n texts, and int64 [n, T]: the number of each token in its text, from 1 on; 0 for
# what isn't pooled.
Block = tuple[Tensor, Tensor]


class TorchEncoder:
    """Encodes with a loaded model on one device."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._budget = model.batch_tokens

    @property
    def device(self) -> str:
        """The device by name, such as `cpu` or `NVIDIA H100`."""
        device = self._model.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    @property
    def dtype(self) -> str:
        """The dtype of the weights."""
        return str(self._model.dtype).removeprefix("torch.")

    @property
    def compiled(self) -> bool:
        """Does compiled code do the work?"""
        return self._model.compiled is not None

    def count_tokens(self, strings: list[str]) -> list[int]:
        """Count the tokens of each string, special ones included, untruncated."""
        return self._model.tokenizer.count(strings)

    def prepare(self, rendered: Rendered) -> Tokens:
        """Tokenize, on all cores."""
        return self._model.tokenizer.encode(rendered)

    @torch.inference_mode()
    def encode(self, prepared: Tokens, on_batch: OnBatch) -> Encoded:
        """Encode texts to float32 [n, dim], in the order given.

        Vectors leave the device once, at the end.
        """
        model, lengths = self._model, prepared.lengths
        vectors = torch.zeros((len(lengths), model.spec.dim), device=model.device)  # float32
        padded = 0
        # Some tokenizers add no special tokens: an empty text has nothing that a model could look at.
        failed = dict.fromkeys(
            np.flatnonzero(lengths == 0).tolist(), "it has no tokens: this tokenizer adds none"
        )
        on_batch(len(failed), 0)
        pending = self._batches(prepared, np.flatnonzero(lengths))
        while pending:
            rows = pending.pop()
            embedded = _if_it_fits(partial(embed, model, prepared, rows))
            if embedded is None and len(rows) > 1:
                # Halve the budget for good, and cut all that is left anew.
                self._budget = int(lengths[rows].sum()) // 2
                pending = self._batches(prepared, np.concatenate([rows, *pending[::-1]]))
                continue
            if embedded is None:
                failed[int(rows[0])] = (
                    f"its {lengths[rows[0]]} tokens don't fit into the device's memory"
                )
            else:
                vectors[torch.from_numpy(rows).to(model.device)] = embedded
                padded += model.computed_tokens(prepared, rows)
            on_batch(len(rows), int(lengths[rows].sum()))
        failed |= self._repair(vectors, prepared, failed)
        return Encoded(vectors.cpu().numpy(), lengths, prepared.truncated, padded, failed)

    def _batches(self, tokens: Tokens, rows: Rows) -> list[Rows]:
        """Return the batches of some rows, the first one last; what can't be packed comes first."""
        lengths = tokens.lengths
        packable = self._model.can_pack(tokens, rows)
        packed, padded = rows[packable], rows[~packable]
        ordered = [packed[batch] for batch in packs(lengths[packed], self._budget)]
        ordered += [padded[batch] for batch in batches(lengths[padded], self._budget)]
        return ordered[::-1]  # the caller pops from the end

    def _repair(
        self, vectors: Tensor, tokens: Tokens, given_up: Mapping[int, str]
    ) -> dict[int, str]:
        """Try rows without a usable vector again, alone and in float32; those that stay unusable
        are zeroed.
        """
        failed: dict[int, str] = {}
        for row in torch.nonzero(~is_usable(vectors)).flatten().tolist():
            if row in given_up:
                continue
            if tokens.skipped[row] >= tokens.lengths[row]:  # no dtype helps
                failed[row] = (
                    "it has no token beside the prompt, and this model pools none of the prompt's"
                )
                continue
            vector = _if_it_fits(partial(embed, self._model.in_float32, tokens, np.array([row])))
            if vector is not None and is_usable(vector).item():
                vectors[row] = vector[0]
            else:
                failed[row] = "the model gives no finite vector for it, in float32 neither"
        vectors[list(failed)] = 0
        return failed


def _if_it_fits(compute: Callable[[], Tensor]) -> Tensor | None:
    """Return what is computed, or None where the device's memory doesn't suffice."""
    try:
        return compute()
    except torch.OutOfMemoryError:
        pass
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # torch's words on a CPU
            raise
    # Outside of `except`, which holds the failed computation's tensors.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def embed(model: LoadedModel, tokens: Tokens, rows: Rows) -> Tensor:
    """Turn one batch into vectors float32 [B, dim]."""
    vectors = full_vectors(model, tokens, rows)[:, : model.spec.dim]
    return torch.nn.functional.normalize(vectors, dim=1) if model.spec.normalize else vectors


def full_vectors(model: LoadedModel, tokens: Tokens, rows: Rows) -> Tensor:
    """Turn one batch into vectors float32 [B, full_dim], not yet truncated and normalized."""
    spec = model.spec
    blocks = _packed_blocks if model.can_pack(tokens, rows).all() else _padded_blocks
    pooled = []
    for states, ranks in blocks(model, tokens, rows):
        states = model.token_modules(states)
        pooled.append(torch.cat([POOLINGS[name](states, ranks) for name in spec.pooling], dim=1))
    vectors: Tensor = model.text_modules(torch.cat(pooled))
    return vectors


def _packed_blocks(model: LoadedModel, tokens: Tokens, rows: Rows) -> Iterator[Block]:
    """Yield a block for each length, from a pack."""
    groups = length_groups(tokens.lengths[rows])
    states = model.packed_states(tokens.ids_of(rows), groups)  # [tokens, H]
    skipped = torch.from_numpy(tokens.skipped[rows]).to(model.device)  # [n]
    row = start = 0
    for count, length in groups:
        stop = start + count * length
        positions = torch.arange(length, device=model.device)
        is_pooled = positions >= skipped[row : row + count, None]  # [count, length]
        block = states[start:stop].unflatten(0, (count, length))  # [count, length, H]
        yield block, (positions + 1) * is_pooled
        row += count
        start = stop


def _padded_blocks(model: LoadedModel, tokens: Tokens, rows: Rows) -> Iterator[Block]:
    """Yield one block, padded to its longest text on the model's side."""
    lengths = tokens.lengths[rows, None]  # [n, 1]
    width = int(lengths.max())
    # The position of each token in its text: negative before it, beyond its length behind it.
    positions = np.arange(width)
    if model.tokenizer.pads_left:
        positions = positions - (width - lengths)
    # All ids at once: True cells of a mask are filled row by row, as the ids lie.
    is_token = (positions >= 0) & (positions < lengths)  # [n, width]
    ids = np.full(is_token.shape, model.tokenizer.pad_id, np.int64)
    ids[is_token] = tokens.ids_of(rows)
    is_pooled = is_token & (positions >= tokens.skipped[rows, None])
    states = model.padded_states(_on_device(ids, model), _on_device(is_token, model))
    yield states, _on_device((positions + 1) * is_pooled, model)


def _on_device(values: npt.NDArray[Any], model: LoadedModel) -> Tensor:
    return torch.from_numpy(values.astype(np.int64)).to(model.device)


def is_usable(vectors: Tensor) -> Tensor:
    """Tell which vectors are finite and not zero, bool [B]. Normalized ones then have norm 1."""
    norms = torch.linalg.vector_norm(vectors, dim=1)
    return torch.isfinite(norms) & (norms > 0)
