"""A loaded model into an OpenVINO graph, and how near the graph comes to it."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino
import torch
from torch import Tensor, nn

from embedcli import machine
from embedcli.config import RunOptions
from embedcli.encoder import graphs
from embedcli.encoder.batching import PaddedBatch, padded
from embedcli.encoder.conversion import Conversion
from embedcli.encoder.loading import load_model
from embedcli.encoder.model import LoadedModel
from embedcli.encoder.pooling import Padded, pool
from embedcli.models.spec import ModelSpec

# Texts of the trial: of so many tokens each, or of as many as the model has positions for. The first batch is what is
# traced; the others have other sides, which shows whether the trace holds for any. The last one is longer than windows.
_LENGTHS = (
    (2, 6, 8),
    (1, 2, 3, 5, 8, 13, 16, 17, 31, 32, 33, 48, 64),
    (100, 128, 200, 256, 400, 512),
    (40,),
    (1100,),
)


class _Whole(nn.Module):
    """All that is between token ids and full vectors."""

    def __init__(self, model: LoadedModel) -> None:
        super().__init__()
        self.transformer = model.transformer
        self.token_modules = model.token_modules
        self.text_modules = model.text_modules
        self._pooling = model.spec.pooling

    def forward(self, ids: Tensor, mask: Tensor, ranks: Tensor) -> Tensor:
        states = self.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
        states = self.token_modules(states)
        vectors: Tensor = self.text_modules(pool(states, Padded(ranks), self._pooling))
        return vectors


def trace(spec: ModelSpec, folder: Path, threads: int) -> Conversion:
    """Convert a model into graph.xml and graph.bin of a folder, with its tokenizer, and try it.

    Raises whatever the converter raises.
    """
    model = load_model(spec, RunOptions.reference("cpu"))
    whole = _Whole(model).eval()
    batches = [_trial(model, lengths, pads_left=False) for lengths in _LENGTHS]
    own = [_trial(model, lengths, model.tokenizer.pads_left) for lengths in _LENGTHS]
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a trace holds fast: the trial shows it
        graph = openvino.convert_model(whole, example_input=_tensors(batches[0]))
        expected = [whole(*_tensors(batch)).numpy() for batch in own]
    openvino.save_model(graph, folder / "graph.xml", compress_to_fp16=False)
    model.tokenizer.save(folder / "tokenizer.json")
    cosines = {}
    for dtype in ("float32", "bfloat16") if machine.cpu().has_bfloat16 else ("float32",):
        graph = graphs.Graph(folder / "graph.xml", dtype, 1, threads)
        pairs = zip(map(graph.vectors_of, batches), expected, strict=True)
        cosines[dtype] = min(_least_cosine(*pair, spec.normalize) for pair in pairs)
    return Conversion(pad_id=model.tokenizer.pad_id, threads=threads, cosines=cosines)


def _tensors(batch: PaddedBatch) -> tuple[Tensor, ...]:
    return tuple(map(torch.from_numpy, graphs.arrays(batch)))


def _trial(model: LoadedModel, wanted: Sequence[int], pads_left: bool) -> PaddedBatch:
    """Return a batch of texts of ids drawn by lot, the same ones each time; of every third the first
    token is not pooled, as of a prompt.
    """
    config: Any = model.transformer.config
    pad_id = model.tokenizer.pad_id
    # Whatever maximum a run asks for; RoBERTa's positions begin behind its padding's id.
    positions = getattr(config, "max_position_embeddings", None) or max(wanted) + pad_id + 1
    lengths = np.clip(wanted, 1, max(1, positions - pad_id - 1)).astype(np.int32)
    ids = np.random.default_rng(0).integers(0, config.vocab_size - 1, lengths.sum())
    ids += ids >= pad_id  # never the padding's
    skipped = np.minimum(np.arange(len(lengths)) % 3 == 2, lengths - 1).astype(np.int32)
    return padded(ids.astype(np.int32), lengths, skipped, pad_id, pads_left)


def _least_cosine(
    vectors: npt.NDArray[Any], expected: npt.NDArray[Any], is_normalized: bool
) -> float:
    """Return the least cosine; of vectors whose norm counts, times the ratio of norms."""
    pair = vectors.astype(np.float64), expected.astype(np.float64)
    norms = np.stack([np.linalg.norm(side, axis=1) for side in pair])
    cosines = (pair[0] * pair[1]).sum(axis=1) / norms.prod(axis=0)
    if not is_normalized:
        cosines = cosines * norms.min(axis=0) / norms.max(axis=0)
    return float(cosines.min()) if np.isfinite(cosines).all() else -1.0
