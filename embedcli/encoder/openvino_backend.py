"""The backend `openvino`: transformers as graphs, on CPUs. Imports no torch, once a model is converted."""

from collections.abc import Callable, Iterator
from functools import cached_property, partial

import numpy as np
import tokenizers

from embedcli import machine
from embedcli.computation import Computation
from embedcli.config import RunOptions
from embedcli.encoder import conversion, environment, torch_backend
from embedcli.encoder.api import Encoded, OnBatch
from embedcli.encoder.batching import PaddedBatch, Rows, batches, padded
from embedcli.encoder.choice import Choice
from embedcli.encoder.graphs import Graph
from embedcli.encoder.repair import Vectors, normalized, repair, without_tokens
from embedcli.encoder.tokenizer import Tokenizer, Tokens
from embedcli.models.spec import ModelSpec
from embedcli.records import Rendered

# Of one batch, on one core: what its caches hold.
_BATCH_TOKENS = 2048


def load(spec: ModelSpec, options: RunOptions, choice: Choice) -> "OpenVinoEncoder":
    """Load a converted model; convert it where that wasn't done yet.

    Raises NotConvertedError where OpenVINO can't run it, or not accurately enough.
    """
    environment.prepare()
    folder, facts = conversion.converted(spec, choice.dtype)
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer(backend, spec, facts.pad_id)
    path, threads = folder / "graph.xml", facts.threads
    streams = max(1, machine.cores() // threads)
    graph = Graph(path, choice.dtype, streams, threads)
    in_float32 = partial(Graph, path, "float32", 1, threads)
    budget = options.batch_tokens or _BATCH_TOKENS
    return OpenVinoEncoder(spec, tokenizer, choice, graph, in_float32, budget)


class OpenVinoEncoder:
    """Encodes with a graph."""

    note = ""

    def __init__(
        self,
        spec: ModelSpec,
        tokenizer: Tokenizer,
        choice: Choice,
        graph: Graph,
        load_in_float32: Callable[[], Graph],
        budget: int,
    ) -> None:
        self._spec, self._tokenizer, self._choice = spec, tokenizer, choice
        self._graph, self._load_in_float32, self._budget = graph, load_in_float32, budget

    @property
    def computation(self) -> Computation:
        """How vectors are computed."""
        return Computation(
            "cpu",
            self._choice.dtype,
            backend="openvino",
            attention="padded",
            reason=self._choice.reason,
        )

    @cached_property
    def _in_float32(self) -> Graph:
        """The same graph, for rows whose vector came out unusable in a shorter format."""
        return self._load_in_float32()

    def count_tokens(self, strings: list[str]) -> list[int]:
        """Count the tokens of each string, special ones included, untruncated."""
        return self._tokenizer.count(strings)

    def prepare(self, rendered: Rendered) -> Tokens:
        """Tokenize, on all cores."""
        return self._tokenizer.encode(rendered)

    def encode(self, prepared: Tokens, on_batch: OnBatch) -> Encoded:
        """Encode texts to float32 [n, dim], in the order given."""
        lengths = prepared.lengths
        vectors = np.zeros((len(lengths), self._spec.dim), np.float32)
        failed = without_tokens(lengths)
        on_batch(len(failed), 0)
        computed = 0
        for rows, full in self._graph.run(self._batches(prepared)):
            vectors[rows] = self._finished(full)
            computed += len(rows) * int(lengths[rows].max())
            on_batch(len(rows), int(lengths[rows].sum()))
        failed |= repair(vectors, prepared, failed, partial(self._again, prepared))
        return Encoded(vectors, lengths, prepared.truncated, computed, failed)

    def _batches(self, tokens: Tokens) -> Iterator[tuple[Rows, PaddedBatch]]:
        present = np.flatnonzero(tokens.lengths)
        for batch in batches(tokens.lengths[present], self._budget):
            rows = present[batch]
            yield rows, self._padded(tokens, rows)

    def _padded(self, tokens: Tokens, rows: Rows) -> PaddedBatch:
        tokenizer = self._tokenizer
        ids, lengths, skipped = tokens.ids_of(rows), tokens.lengths[rows], tokens.skipped[rows]
        # On the right, whatever the model's side: what comes behind a text changes none of its states,
        # and tokens that see nothing are no numbers in some of OpenVINO's kernels.
        return padded(ids, lengths, skipped, tokenizer.pad_id, pads_left=False)

    def _finished(self, vectors: Vectors) -> Vectors:
        """Truncate full vectors, and normalize them if the model's are."""
        vectors = vectors[:, : self._spec.dim]
        return normalized(vectors) if self._spec.normalize else vectors

    def _again(self, tokens: Tokens, rows: Rows) -> Vectors:
        return self._finished(self._in_float32.vectors_of(self._padded(tokens, rows)))


def release() -> None:
    """Do nothing: all of it is ordinary memory."""


def count_tokens(spec: ModelSpec, rendered: Rendered) -> list[int]:
    """Count the tokens that the model would see of each text."""
    return torch_backend.count_tokens(spec, rendered)


def token_ids(spec: ModelSpec, rendered: Rendered) -> list[list[int]]:
    """Return the ids that the model gets for each text, special ones included."""
    return torch_backend.token_ids(spec, rendered)
