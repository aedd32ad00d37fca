"""Token ids into vectors: batches through the transformer, pooling, layers, truncation and
normalization.
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from embedcli import machine
from embedcli.computation import Computation
from embedcli.encoder.api import Encoded, OnBatch
from embedcli.encoder.batching import Rows, batches, length_groups, packs, padded
from embedcli.encoder.devices import to_device
from embedcli.encoder.memory import if_it_fits
from embedcli.encoder.model import LoadedModel
from embedcli.encoder.pooling import Layout, Padded, packed_layout, pool
from embedcli.encoder.repair import Vectors, repair, without_tokens
from embedcli.encoder.tokenizer import Tokens
from embedcli.encoder.tokenizer_processes import TokenizerProcesses, process_count
from embedcli.records import Rendered


class TorchEncoder:
    """Encodes with a loaded model on one device."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._budget = model.batch_tokens
        # Devices without room for the model in float32.
        self._too_small: set[torch.device] = set()
        processes = process_count(machine.cores()) if model.device.type == "cuda" else 0
        self._tokenizer = (
            TokenizerProcesses(model.tokenizer, processes)
            if processes and model.tokenizer.can_be_sent
            else model.tokenizer
        )

    @property
    def computation(self) -> Computation:
        """How vectors are computed, on a device such as `cpu` or `NVIDIA H100`."""
        model = self._model
        on_gpu = model.device.type == "cuda"
        return Computation(
            device=torch.cuda.get_device_name(model.device) if on_gpu else "cpu",
            dtype=str(model.dtype).removeprefix("torch."),
            compiled=model.compiled is not None,
            backend="torch",
            attention=model.packing.kernel if model.packing is not None else "padded",
            reason=model.reason,
        )

    @property
    def note(self) -> str:
        """What people should know of how it came to that."""
        return self._model.note

    def count_tokens(self, strings: list[str]) -> list[int]:
        """Count the tokens of each string, special ones included, untruncated."""
        return self._model.tokenizer.count(strings)

    def prepare(self, rendered: Rendered) -> Tokens:
        """Tokenize, on all cores."""
        return self._tokenizer.encode(rendered)

    @torch.inference_mode()
    def encode(self, prepared: Tokens, on_batch: OnBatch) -> Encoded:
        """Encode texts to float32 [n, dim], in the order given.

        Vectors leave the device once, at the end.
        """
        model, lengths = self._model, prepared.lengths
        vectors = self._zeros(len(lengths))
        padded_tokens = 0
        # Some tokenizers add no special tokens: an empty text has nothing that a model could look at.
        failed = without_tokens(lengths)
        on_batch(len(failed), 0)
        pending = self._batches(prepared, np.flatnonzero(lengths))
        while pending:
            rows = pending.pop()
            embedded = if_it_fits(partial(embed, model, prepared, rows))
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
                vectors[to_device(rows, vectors.device)] = embedded.to(vectors.device)
                padded_tokens += model.computed_tokens(prepared, rows)
            on_batch(len(rows), int(lengths[rows].sum()))
        on_host = vectors.cpu().numpy()
        failed |= repair(on_host, prepared, failed, partial(self._again, prepared))
        return Encoded(on_host, lengths, prepared.truncated, padded_tokens, failed)

    def _batches(self, tokens: Tokens, rows: Rows) -> list[Rows]:
        """Return the batches of some rows, the first one last; what can't be packed comes first."""
        lengths = tokens.lengths
        packable = self._model.can_pack(tokens, rows)
        packed, padded = rows[packable], rows[~packable]
        ordered = [packed[batch] for batch in packs(lengths[packed], self._budget)]
        ordered += [padded[batch] for batch in batches(lengths[padded], self._budget)]
        return ordered[::-1]  # the caller pops from the end

    def _again(self, tokens: Tokens, rows: Rows) -> Vectors | None:
        """Return one text's vector in float32, on the CPU where the device has no room for it."""
        for device in dict.fromkeys((self._model.device, torch.device("cpu"))):
            if device in self._too_small:  # to find that out again would take its cache away
                continue
            vector = if_it_fits(partial(self._embed_again, tokens, rows, device))
            if vector is not None:
                return vector.cpu().numpy()
            self._too_small.add(device)
        return None

    def _embed_again(self, tokens: Tokens, rows: Rows, device: torch.device) -> Tensor:
        return embed(self._model.in_float32(device), tokens, rows)

    def _zeros(self, count: int) -> Tensor:
        """Return room for a unit's vectors: on the device, so that it needn't be waited for, if they
        fit there.
        """
        shape = count, self._model.spec.dim
        vectors = if_it_fits(lambda: torch.zeros(shape, device=self._model.device))  # float32
        return torch.zeros(shape) if vectors is None else vectors


def embed(model: LoadedModel, tokens: Tokens, rows: Rows) -> Tensor:
    """Turn one batch into vectors float32 [B, dim]."""
    vectors = full_vectors(model, tokens, rows)[:, : model.spec.dim]
    return torch.nn.functional.normalize(vectors, dim=1) if model.spec.normalize else vectors


def full_vectors(model: LoadedModel, tokens: Tokens, rows: Rows) -> Tensor:
    """Turn one batch into vectors float32 [B, full_dim], not yet truncated and normalized."""
    run = _packed if model.can_pack(tokens, rows).all() else _padded
    states, layout = run(model, tokens, rows)
    states = model.token_modules(states)
    vectors: Tensor = model.text_modules(pool(states, layout, model.spec.pooling))
    return vectors


def _packed(model: LoadedModel, tokens: Tokens, rows: Rows) -> tuple[Tensor, Layout]:
    """Run a pack: states [tokens, H]."""
    lengths = tokens.lengths[rows]
    states = model.packed_states(tokens.ids_of(rows), length_groups(lengths))
    return states, packed_layout(lengths, tokens.skipped[rows], model.device)


def _padded(model: LoadedModel, tokens: Tokens, rows: Rows) -> tuple[Tensor, Layout]:
    """Run texts padded to the longest on the model's side: states [n, T, H]."""
    tokenizer = model.tokenizer
    batch = padded(
        tokens.ids_of(rows),
        tokens.lengths[rows],
        tokens.skipped[rows],
        tokenizer.pad_id,
        tokenizer.pads_left,
    )
    device = model.device
    states = model.padded_states(to_device(batch.ids, device), to_device(batch.mask, device))
    return states, Padded(to_device(batch.ranks, device))
