"""Tokenizing in processes of their own, so that the one that feeds a GPU isn't held up.

The tokenizers' library works outside of Python's lock, but what it gives becomes Python's numbers one
by one: some 100 ns a token, as much as a small model takes of a GPU. Here they cross as arrays.
"""

import os
import weakref
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from embedcli.encoder.tokenizer import Tokenizer, Tokens
from embedcli.errors import DeviceError
from embedcli.processes import pool
from embedcli.records import Rendered

# So many texts are tokenized sooner here than sent; so few are sent at once.
_FEW_TEXTS = 512
_LEAST_SENT = 64
# Parts for each process, so that none is left with a long one.
_ROUNDS = 4
# One process tokenizes about 400,000 tokens a second; so many keep up with a small model on a fast GPU.
_MOST = 12
# Cores that reading, encoding and writing take for themselves.
_OTHERS = 2

_tokenizer: Tokenizer | None = None


class TokenizerProcesses:
    """A tokenizer in several processes, which end with this one."""

    def __init__(self, tokenizer: Tokenizer, count: int) -> None:
        self._tokenizer, self._count = tokenizer, count
        self._pool = pool(count, _begin, tokenizer)
        weakref.finalize(self, self._pool.shutdown, wait=False)

    def encode(self, rendered: Rendered) -> Tokens:
        """Tokenize, in the order of the texts. Raises ConfigurationError; DeviceError where a process
        dies.
        """
        texts = len(rendered.strings)
        if texts <= _FEW_TEXTS:
            return self._tokenizer.encode(rendered)
        size = max(_LEAST_SENT, -(-texts // (_ROUNDS * self._count)))  # rounded up
        parts = [_part(rendered, start, start + size) for start in range(0, texts, size)]
        try:
            return joined(list(self._pool.map(_encode, parts)))
        except BrokenProcessPool:
            raise DeviceError(
                "a process that tokenizes died", "is there too little memory?"
            ) from None


def process_count(cores: int) -> int:
    """Return how many processes should tokenize where so many cores are there; 0 where none."""
    return min(_MOST, cores - _OTHERS) if cores > _OTHERS + 1 else 0


def joined(parts: Sequence[Tokens]) -> Tokens:
    """Put the tokens of several lists of texts together."""
    if not parts:
        empty = np.empty(0, np.int32)
        return Tokens(empty, empty.astype(np.int64), empty, empty.astype(np.bool_), empty)
    sizes = [len(part.ids) for part in parts]
    offsets = np.cumsum([0, *sizes[:-1]])
    return Tokens(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.starts + at for part, at in zip(parts, offsets, strict=True)]),
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.truncated for part in parts]),
        np.concatenate([part.skipped for part in parts]),
    )


def _part(rendered: Rendered, start: int, stop: int) -> Rendered:
    texts = slice(start, stop)
    return Rendered(rendered.strings[texts], rendered.starts[texts], rendered.stops[texts])


def _begin(tokenizer: Tokenizer) -> None:
    global _tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is one of these for each core
    _tokenizer = tokenizer


def _encode(part: Rendered) -> Tokens:
    assert _tokenizer is not None
    return _tokenizer.encode(part)
