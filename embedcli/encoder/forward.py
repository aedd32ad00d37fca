"""Token ids into vectors: batches through the transformer, pooling, layers, cut and normalization."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedcli.encoder.api import Encoded, OnBatch
from embedcli.encoder.batching import Rows, batches, groups, packs
from embedcli.encoder.model import LoadedModel
from embedcli.encoder.packing import unpacked
from embedcli.encoder.pooling import POOLINGS
from embedcli.encoder.tokenizer import Tokens
from embedcli.records import Rendered

# States [n, T, H] of n texts, and the mask of the tokens that are pooled, int64 [n, T].
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
        """The number format of the weights."""
        return str(self._model.dtype).removeprefix("torch.")

    @property
    def compiled(self) -> bool:
        """Does compiled code do the work?"""
        return self._model.compiled is not None

    def count_tokens(self, strings: list[str]) -> list[int]:
        """Tokens of each string, special ones included, nothing cut."""
        return self._model.tokenizer.count(strings)

    def prepare(self, rendered: Rendered) -> Tokens:
        """Tokenize, on all cores."""
        return self._model.tokenizer.encode(rendered)

    @torch.inference_mode()
    def encode(self, prepared: Tokens, on_batch: OnBatch) -> Encoded:
        """Encode texts to float32 [n, dim], in the order given. Vectors leave the device once, at the end."""
        model, tokens, lengths = self._model, prepared, prepared.lengths
        vectors = torch.zeros((len(lengths), model.spec.dim), device=model.device)
        padded = 0
        # Some tokenizers add no special tokens: an empty text has nothing that a model could look at.
        failed = dict.fromkeys(np.flatnonzero(lengths == 0).tolist(), "it has no tokens: this tokenizer adds none")
        on_batch(len(failed), 0)
        pending = self._batches(lengths, np.flatnonzero(lengths))
        while pending:
            rows = pending.pop()
            found = _if_it_fits(partial(embed, model, tokens, rows))
            if found is None and len(rows) > 1:
                self._budget = int(lengths[rows].sum()) // 2
                pending = self._batches(lengths, np.concatenate([rows, *pending[::-1]]))
                continue
            if found is None:
                failed[int(rows[0])] = f"its {lengths[rows[0]]} tokens don't fit into the device's memory"
            else:
                vectors[torch.from_numpy(rows).to(model.device)] = found
                padded += model.computed_tokens(lengths[rows])
            on_batch(len(rows), int(lengths[rows].sum()))
        failed |= self._repair(vectors, tokens, failed)
        return Encoded(vectors.cpu().numpy(), lengths, tokens.truncated, padded, failed)

    def _batches(self, lengths: npt.NDArray[np.int32], rows: Rows) -> list[Rows]:
        """The batches of some rows, the first one last; what can't be packed comes first."""
        packable = self._model.can_pack(lengths[rows])
        packed, padded = rows[packable], rows[~packable]
        return [
            *(packed[some] for some in packs(lengths[packed], self._budget)),
            *(padded[some] for some in batches(lengths[padded], self._budget)),
        ][::-1]

    def _repair(self, vectors: Tensor, tokens: Tokens, given_up: Mapping[int, str]) -> dict[int, str]:
        """Try rows without a usable vector again, alone and in float32; those that stay unusable are zeroed."""
        failed: dict[int, str] = {}
        for index in torch.nonzero(~usable(vectors)).flatten().tolist():
            if index in given_up:
                continue
            if tokens.skipped[index] >= tokens.lengths[index]:  # no format helps
                failed[index] = "it has no token beside the prompt, and this model pools none of the prompt's"
                continue
            vector = _if_it_fits(partial(embed, self._model.in_float32, tokens, np.array([index])))
            if vector is not None and usable(vector).item():
                vectors[index] = vector[0]
            else:
                failed[index] = "the model gives no finite vector for it, in float32 neither"
        vectors[list(failed)] = 0
        return failed


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


def embed(model: LoadedModel, tokens: Tokens, rows: Rows) -> Tensor:
    """One batch to vectors float32 [B, dim]."""
    spec = model.spec
    blocks = _packed if model.can_pack(tokens.lengths[rows]).all() else _padded
    pooled = [
        torch.cat([POOLINGS[name](model.latent(states), mask) for name in spec.pooling], dim=1)
        for states, mask in blocks(model, tokens, rows)
    ]
    vectors = model.layers(torch.cat(pooled))[:, : spec.dim]
    return torch.nn.functional.normalize(vectors, dim=1) if spec.normalize else vectors


def _packed(model: LoadedModel, tokens: Tokens, rows: Rows) -> Iterator[Block]:
    """A block for each length, from a pack."""
    texts, row, start = groups(tokens.lengths[rows]), 0, 0
    states = model.packed_states(tokens.rows(rows), texts)
    skipped = torch.from_numpy(tokens.skipped[rows]).to(model.device)
    for count, length in texts:
        pooled = torch.arange(length, device=model.device) >= skipped[row : row + count, None]
        yield states[start : start + count * length].unflatten(0, (count, length)), pooled.long()
        row, start = row + count, start + count * length


def _padded(model: LoadedModel, tokens: Tokens, rows: Rows) -> Iterator[Block]:
    """One block, padded to its longest text on the model's side."""
    lengths, tokenizer = tokens.lengths[rows, None], model.tokenizer
    width = int(lengths.max())
    places = np.arange(width) - (width - lengths if tokenizer.pads_left else 0)
    mask = (places >= 0) & (places < lengths)
    ids = np.full(mask.shape, tokenizer.pad_id, np.int64)
    ids[mask] = tokens.rows(rows)
    pooled = mask & (places >= tokens.skipped[rows, None])
    on_device = [torch.from_numpy(values.astype(np.int64)).to(model.device) for values in (ids, mask, pooled)]
    with unpacked(model.transformer, model.packing):
        states = model.transformer(input_ids=on_device[0], attention_mask=on_device[1]).last_hidden_state
    yield states, on_device[2]


def usable(vectors: Tensor) -> Tensor:
    """bool [B]: finite and not zero. Normalized vectors then have norm 1."""
    norms = torch.linalg.vector_norm(vectors, dim=1)
    return torch.isfinite(norms) & (norms > 0)
