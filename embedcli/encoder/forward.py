"""Token ids into vectors: batches through the transformer, pooling, layers, cut and normalization."""

import numpy as np
import torch
from torch import Tensor

from embedcli.config import RunOptions
from embedcli.encoder import Encoded, OnBatch
from embedcli.encoder.batching import batches
from embedcli.encoder.loading import Modules
from embedcli.encoder.pooling import POOLINGS
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
        for indices in batches(lengths, self._budget):
            ids, mask = pad([tokens.ids[i] for i in indices], modules.tokenizer.pad_id, modules.tokenizer.pads_left)
            vectors[torch.from_numpy(indices).to(modules.device)] = embed(modules, ids, mask)
            padded += ids.numel()
            on_batch(len(indices), int(lengths[indices].sum()))
        failed = self._repair(vectors, tokens.ids)
        truncated = np.array(tokens.truncated, dtype=np.bool_)
        return Encoded(vectors.cpu().numpy(), lengths, truncated, padded, failed)

    def _repair(self, vectors: Tensor, ids: list[list[int]]) -> dict[int, str]:
        """Try rows without a usable vector again, alone and in float32; those that stay unusable are zeroed."""
        failed: dict[int, str] = {}
        bad = torch.nonzero(~usable(vectors)).flatten().tolist()
        again = self._modules.in_float32() if bad else self._modules
        for index in bad:
            row, mask = pad([ids[index]], again.tokenizer.pad_id, again.tokenizer.pads_left)
            vector = embed(again, row, mask)
            if usable(vector).item():
                vectors[index] = vector[0]
            else:
                vectors[index] = 0
                failed[index] = "the model gives no finite vector for it, in float32 neither"
        return failed


def pad(rows: list[list[int]], pad_id: int, left: bool) -> tuple[Tensor, Tensor]:
    """Token ids [B, T] and their mask [B, T], both int64, padded to the longest row on the model's side."""
    width = max(len(row) for row in rows)
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for index, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, where] = row
        mask[index, where] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def embed(modules: Modules, ids: Tensor, mask: Tensor) -> Tensor:
    """One batch of token ids [B, T] to vectors float32 [B, dim]."""
    checkpoint = modules.checkpoint
    ids, mask = ids.to(modules.device), mask.to(modules.device)
    states = modules.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
    vectors = torch.cat([POOLINGS[name](states, mask) for name in checkpoint.pooling], dim=1)
    vectors = modules.layers(vectors)[:, : checkpoint.dim]
    return torch.nn.functional.normalize(vectors, dim=1) if checkpoint.normalize else vectors


def usable(vectors: Tensor) -> Tensor:
    """bool [B]: finite and not zero. Normalized vectors then have norm 1."""
    norms = torch.linalg.vector_norm(vectors, dim=1)
    return torch.isfinite(norms) & (norms > 0)
