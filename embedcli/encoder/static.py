"""The backend `static`: a text's vector is the mean of its tokens' vectors, looked up in a table
(model2vec's potion, static-retrieval-mrl). No transformer, no torch: fast on any CPU.

As sentence-transformers' StaticEmbedding module: no special tokens, the mean over all tokens.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
from tokenizers import Tokenizer as RawTokenizer

from embedcli.computation import Computation
from embedcli.config import RunOptions
from embedcli.encoder.api import Encoded, OnBatch
from embedcli.encoder.repair import normalized, without_tokens
from embedcli.encoder.tokenizer import Tokenizer, Tokens, is_failure
from embedcli.errors import ConfigurationError
from embedcli.models.spec import ModelSpec
from embedcli.models.weights import SINGLE
from embedcli.records import Rendered

# A batch's token vectors: 2**16 of 1,024 float32 are 256 MiB.
_TOKENS_AT_ONCE = 2**16
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "U8": "u1",
}


def load(spec: ModelSpec, options: RunOptions) -> "StaticEncoder":
    """Read the table. No option changes it. Raises ConfigurationError."""
    return StaticEncoder(spec)


def release() -> None:
    """Do nothing: all of it is ordinary memory."""


def count_tokens(spec: ModelSpec, rendered: Rendered) -> list[int]:
    """Count the tokens that the model would see of each text."""
    return [len(ids) for ids in token_ids(spec, rendered)]


def token_ids(spec: ModelSpec, rendered: Rendered) -> list[list[int]]:
    """Return the ids that the model gets for each text."""
    return _load_tokenizer(spec).encode(rendered).as_lists()


def _load_tokenizer(spec: ModelSpec) -> Tokenizer:
    assert spec.folder is not None
    path = spec.folder / "tokenizer.json"
    try:
        return Tokenizer(RawTokenizer.from_file(str(path)), spec)
    except ConfigurationError:
        raise
    except BaseException as error:  # the library's own have no class
        if not is_failure(error):
            raise
        raise ConfigurationError(f"{path}: not a readable tokenizer: {error}") from None


def _load_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read a file of tensors; bfloat16, which numpy lacks, as float32."""
    tensors = {}
    for name, tensor in safetensors.deserialize(path.read_bytes()):
        if tensor["dtype"] == "BF16":
            halves = np.frombuffer(tensor["data"], "<u2").astype(np.uint32)
            values = (halves << 16).view(np.float32)
        else:
            values = np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]])
        tensors[name] = values.reshape(tensor["shape"])
    return tensors


def _load_table(spec: ModelSpec) -> npt.NDArray[np.float32]:
    """Return the vector of each token id, float32 [vocabulary, full_dim].

    model2vec's files may hold fewer rows, with `mapping` from ids to rows, and `weights` by id.
    """
    assert spec.folder is not None
    path = spec.folder / SINGLE
    try:
        tensors = _load_tensors(path)
        table = tensors.get("embedding.weight")
        if table is None:
            table = tensors["embeddings"]
            if "mapping" in tensors:
                table = table[tensors["mapping"].astype(np.int64)]
        table = table.astype(np.float32)
        if "weights" in tensors:
            table = table * tensors["weights"].astype(np.float32)[:, None]
    except (
        OSError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        safetensors.SafetensorError,
    ) as error:
        raise ConfigurationError(f"{path}: no table of vectors: {error}") from None
    return np.ascontiguousarray(table, np.float32)


class StaticEncoder:
    """Encodes by a table of token vectors."""

    computation = Computation("cpu", "float32", backend="static")
    note = ""

    def __init__(self, spec: ModelSpec) -> None:
        unsupported = [module.name for module in spec.text_modules if module.kind != "normalize"]
        if unsupported or spec.token_modules:
            raise ConfigurationError(
                f"{spec.files.id}: {unsupported[0]} behind a table of vectors is not supported"
            )
        self._tokenizer = _load_tokenizer(spec)
        self._table = _load_table(spec)
        self._normalizes = bool(spec.text_modules)
        self._dim, self._normalize = spec.dim, spec.normalize

    def count_tokens(self, strings: list[str]) -> list[int]:
        """Count the tokens of each string, nothing cut."""
        return self._tokenizer.count(strings)

    def prepare(self, rendered: Rendered) -> Tokens:
        """Tokenize, on all cores."""
        return self._tokenizer.encode(rendered)

    def encode(self, prepared: Tokens, on_batch: OnBatch) -> Encoded:
        """Encode texts to float32 [n, dim], in the order given."""
        lengths = prepared.lengths
        vectors = np.zeros((len(lengths), self._dim), np.float32)
        failed = without_tokens(lengths)
        on_batch(len(failed), 0)
        for rows in _batches(np.flatnonzero(lengths), lengths):
            ids = prepared.ids_of(rows)
            for row in _beyond(ids, lengths[rows], len(self._table)):
                failed[int(rows[row])] = (
                    f"it has a token beyond the model's vocabulary of {len(self._table):,}"
                )
            vectors[rows] = self._vectors(np.minimum(ids, len(self._table) - 1), lengths[rows])
            on_batch(len(rows), int(lengths[rows].sum()))
        unusable = ~(np.linalg.norm(vectors, axis=1) > 0) | ~np.isfinite(vectors).all(axis=1)
        for row in np.flatnonzero(unusable).tolist():
            failed.setdefault(row, "the model gives no vector for it that is finite and not zero")
        vectors[list(failed)] = 0
        return Encoded(vectors, lengths, prepared.truncated, int(lengths.sum()), failed)

    def _vectors(
        self, ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.float32]:
        """Return the mean of each text's token vectors [n, dim]; no text is empty."""
        starts = np.cumsum(lengths) - lengths
        sums: npt.NDArray[np.float32] = np.add.reduceat(self._table[ids], starts, axis=0)
        vectors = np.divide(sums, lengths[:, None], dtype=np.float32)
        if self._normalizes:
            vectors = normalized(vectors)
        vectors = vectors[:, : self._dim]
        return normalized(vectors) if self._normalize else vectors


def _batches(
    rows: npt.NDArray[np.intp], lengths: npt.NDArray[np.int32]
) -> list[npt.NDArray[np.intp]]:
    """Return the rows of each batch: those of about as many tokens."""
    if not len(rows):
        return []
    batch = np.cumsum(lengths[rows]) // _TOKENS_AT_ONCE
    return np.split(rows, np.flatnonzero(np.diff(batch)) + 1)


def _beyond(
    ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32], size: int
) -> npt.NDArray[np.intp]:
    """Return the texts of a batch that have a token whose id isn't below `size`."""
    text_of_token = np.repeat(np.arange(len(lengths)), lengths)
    return np.unique(text_of_token[ids >= size])
