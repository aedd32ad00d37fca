"""Token ids into vectors: batches through the transformer, pooling, layers, cut and normalization."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from embedcli.config import RunOptions
from embedcli.encoder import Encoded, OnBatch
from embedcli.encoder.batching import batches
from embedcli.encoder.loading import Modules
from embedcli.encoder.pooling import POOLINGS
from embedcli.encoder.tokenize import Tokenizer, Tokens
from embedcli.records import Rendered

# Measured: larger batches leave a CPU's caches and are slower; a GPU wants many rows at once.
_BATCH_TOKENS = {"cpu": 4096, "cuda": 32_768}


class TorchEncoder:
    """Encodes with a loaded model on one device."""

    def __init__(self, modules: Modules, options: RunOptions) -> None:
        self._modules = modules
        self._budget = options.batch_tokens or _BATCH_TOKENS.get(modules.device.type, 4096)

    @property
    def device(self) -> str:
        """The device by name, such as `cpu` or `NVIDIA H100`."""
        device = self._modules.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    @property
    def dtype(self) -> str:
        """The number format of the weights."""
        return str(self._modules.dtype).removeprefix("torch.")

    def count_tokens(self, strings: list[str]) -> list[int]:
        """Tokens of each string, special ones included, nothing cut."""
        return self._modules.tokenizer.count(strings)

    @torch.inference_mode()
    def encode(self, rendered: Rendered, on_batch: OnBatch) -> Encoded:
        """Encode texts to float32 [n, dim], in the order given."""
        modules = self._modules
        tokens = modules.tokenizer.encode(rendered)
        lengths = np.array([len(row) for row in tokens.ids], dtype=np.int32)
        vectors = torch.zeros((len(lengths), modules.checkpoint.dim), device=modules.device)
        padded = 0
        failed: dict[int, str] = {}
        pending = [*batches(lengths, self._budget)][::-1]
        while pending:
            indices = pending.pop()
            batch = pad(tokens, indices.tolist(), modules.tokenizer)
            found = _if_it_fits(partial(embed, modules, batch))
            if found is None and len(indices) > 1:
                self._budget = len(indices) // 2 * int(lengths[indices[0]])
                rest = np.concatenate([indices, *pending[::-1]])
                pending = [rest[some] for some in batches(lengths[rest], self._budget)][::-1]
                continue
            if found is None:
                failed[int(indices[0])] = f"its {lengths[indices[0]]} tokens don't fit into the device's memory"
            else:
                vectors[torch.from_numpy(indices).to(modules.device)] = found
                padded += batch.ids.numel()
            on_batch(len(indices), int(lengths[indices].sum()))
        failed |= self._repair(vectors, tokens, failed)
        truncated = np.array(tokens.truncated, dtype=np.bool_)
        return Encoded(vectors.cpu().numpy(), lengths, truncated, padded, failed)

    def _repair(self, vectors: Tensor, tokens: Tokens, given_up: Mapping[int, str]) -> dict[int, str]:
        """Try rows without a usable vector again, alone and in float32; those that stay unusable are zeroed."""
        failed: dict[int, str] = {}
        for index in torch.nonzero(~usable(vectors)).flatten().tolist():
            if index in given_up:
                continue
            if tokens.skipped[index] >= len(tokens.ids[index]):  # no format helps
                failed[index] = "it has no token beside the prompt, and this model pools none of the prompt's"
                continue
            vector = _if_it_fits(partial(self._alone_in_float32, tokens, index))
            if vector is not None and usable(vector).item():
                vectors[index] = vector[0]
            else:
                failed[index] = "the model gives no finite vector for it, in float32 neither"
        vectors[list(failed)] = 0
        return failed

    def _alone_in_float32(self, tokens: Tokens, index: int) -> Tensor:
        again = self._modules.in_float32
        return embed(again, pad(tokens, [index], again.tokenizer))


def _if_it_fits(compute: Callable[[], Tensor]) -> Tensor | None:
    """What is computed, or None where the device's memory doesn't suffice."""
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


class Batch(NamedTuple):
    """Token ids [B, T], the mask of tokens [B, T], and the mask of those that are pooled [B, T]; all int64."""

    ids: Tensor
    mask: Tensor
    pooled: Tensor


def pad(tokens: Tokens, rows: list[int], tokenizer: Tokenizer) -> Batch:
    """The given rows as one batch, padded to the longest on the model's side."""
    width = max(len(tokens.ids[row]) for row in rows)
    ids = np.full((len(rows), width), tokenizer.pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    pooled = np.zeros((len(rows), width), dtype=np.int64)
    for place, row in enumerate(rows):
        own = tokens.ids[row]
        start = width - len(own) if tokenizer.pads_left else 0
        ids[place, start : start + len(own)] = own
        mask[place, start : start + len(own)] = 1
        pooled[place, start + tokens.skipped[row] : start + len(own)] = 1
    return Batch(torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(pooled))


def embed(modules: Modules, batch: Batch) -> Tensor:
    """One batch to vectors float32 [B, dim]."""
    checkpoint = modules.checkpoint
    ids, mask, pooled = (tensor.to(modules.device) for tensor in batch)
    states = modules.latent(modules.transformer(input_ids=ids, attention_mask=mask).last_hidden_state)
    vectors = torch.cat([POOLINGS[name](states, pooled) for name in checkpoint.pooling], dim=1)
    vectors = modules.layers(vectors)[:, : checkpoint.dim]
    return torch.nn.functional.normalize(vectors, dim=1) if checkpoint.normalize else vectors


def usable(vectors: Tensor) -> Tensor:
    """bool [B]: finite and not zero. Normalized vectors then have norm 1."""
    norms = torch.linalg.vector_norm(vectors, dim=1)
    return torch.isfinite(norms) & (norms > 0)
