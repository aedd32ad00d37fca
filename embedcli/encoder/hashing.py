"""The built-in pseudo-model `hash:64`: vectors from a hash of the text, to test pipelines at full
speed.

Its vectors mean nothing, but they are what a real model's are: a pure function of the text up to
its max length, finite, of norm 1. A "token" is a run of non-blank characters. Imports no torch.
"""

import hashlib
import re

import numpy as np

from embedcli.computation import Computation
from embedcli.config import RunOptions
from embedcli.encoder.api import Encoded, OnBatch
from embedcli.errors import ConfigurationError
from embedcli.models.spec import ModelSpec
from embedcli.records import Rendered

_WORD = re.compile(r"\S+")
_ROWS_AT_ONCE = 1024


def load(spec: ModelSpec, options: RunOptions) -> "HashEncoder":
    """Return the encoder. No option changes it."""
    return HashEncoder(spec)


def release() -> None:
    """Do nothing: all of it is ordinary memory."""


def count_tokens(spec: ModelSpec, rendered: Rendered) -> list[int]:
    """Count the words that the pseudo-model would see of each text."""
    return [
        min(count, spec.max_length) for count in HashEncoder(spec).count_tokens(rendered.strings)
    ]


def token_ids(spec: ModelSpec, rendered: Rendered) -> list[list[int]]:
    """Refuse: there are no ids. Raises ConfigurationError."""
    raise ConfigurationError("the pseudo-model has no token ids")


class HashEncoder:
    """Encodes without a model."""

    computation = Computation("cpu", "float32", backend="hash")
    note = ""

    def __init__(self, spec: ModelSpec) -> None:
        self._full_dim = spec.full_dim
        self._dim, self._max_length = spec.dim, spec.max_length
        self._normalize = spec.normalize

    def count_tokens(self, strings: list[str]) -> list[int]:
        """Count the words of each string, nothing cut."""
        return [len(string.split()) for string in strings]

    def prepare(self, rendered: Rendered) -> Rendered:
        """Return the texts as they are: nothing is to be done ahead."""
        return rendered

    def encode(self, prepared: Rendered, on_batch: OnBatch) -> Encoded:
        """Encode texts to float32 [n, dim]."""
        count = len(prepared.strings)
        vectors = np.empty((count, self._dim), dtype=np.float32)
        tokens = np.empty(count, dtype=np.int32)
        truncated = np.zeros(count, dtype=np.bool_)
        for start in range(0, count, _ROWS_AT_ONCE):
            stop = min(count, start + _ROWS_AT_ONCE)
            strings = prepared.strings[start:stop]
            tokens[start:stop] = self.count_tokens(strings)
            for row in np.flatnonzero(tokens[start:stop] > self._max_length):
                begin, end = prepared.starts[start + row], prepared.stops[start + row]
                cut = self._cut(strings[row], begin, end)
                strings[row], tokens[start + row], truncated[start + row] = cut
            vectors[start:stop] = self._vectors(strings)
            on_batch(stop - start, int(tokens[start:stop].sum()))
        return Encoded(vectors, tokens, truncated, padded=int(tokens.sum()))

    def _cut(self, string: str, start: int, stop: int) -> tuple[str, int, bool]:
        """Cut the text of a string that has more than max_length words, so that those are left.

        Returns the string, its number of words, and whether it was cut.
        """
        words = list(_WORD.finditer(string))
        extra = len(words) - self._max_length
        inside = [word for word in words if start <= word.start() < stop]
        if extra <= 0 or not inside:
            return string, len(words), False
        removed = min(extra, len(inside))
        return string[: inside[-removed].start()] + string[stop:], len(words) - removed, True

    def _vectors(self, strings: list[str]) -> np.ndarray:
        size = 2 * self._full_dim
        digests = b"".join(hashlib.shake_128(string.encode()).digest(size) for string in strings)
        components = np.frombuffer(digests, dtype="<i2").reshape(len(strings), self._full_dim)
        vectors = components[:, : self._dim].astype(np.float32) + np.float32(0.5)  # never all zero
        if self._normalize:
            vectors /= np.sqrt(np.add.reduce(vectors * vectors, axis=1, keepdims=True))
        return vectors
