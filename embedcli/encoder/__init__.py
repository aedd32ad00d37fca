"""Strings into vectors. Knows one model on one device; no files, ids, roles, ranks or progress bars."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from embedcli.config import RunOptions
from embedcli.encoder import environment
from embedcli.encoder.checkpoint import Checkpoint
from embedcli.errors import ConfigurationError
from embedcli.records import Rendered

OnBatch = Callable[[int, int], None]


@dataclass(frozen=True)
class Encoded:
    """Vectors of n texts and what became of each.

    vectors: float32 [n, dim]; tokens: int32 [n], what the model saw; truncated: bool [n]; padded: tokens computed,
    padding included; failed: rows without a usable vector, and why (their vectors are zero).
    """

    vectors: npt.NDArray[np.float32]
    tokens: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.bool_]
    padded: int
    failed: dict[int, str] = field(default_factory=dict)


class Encoder(Protocol):
    """A loaded model: encodes rendered texts and says what it runs on."""

    @property
    def device(self) -> str:
        """The device by name."""

    @property
    def dtype(self) -> str:
        """The number format of the weights."""

    @property
    def compiled(self) -> bool:
        """Does compiled code do the work?"""

    def count_tokens(self, strings: list[str]) -> list[int]:
        """Tokens of each string, special ones included, nothing cut."""

    def prepare(self, rendered: Rendered) -> Any:
        """What `encode` takes: the texts as tokens. May run while another thread encodes."""

    def encode(self, prepared: Any, on_batch: OnBatch) -> Encoded:
        """Encode prepared texts; vectors come in the order of the texts. `on_batch(rows, tokens)` reports progress."""


def load(checkpoint: Checkpoint, options: RunOptions) -> Encoder:
    """Load a checkpoint onto its device. Imports torch only where the model needs it."""
    if checkpoint.is_hash:
        from embedcli.encoder.hashing import HashEncoder

        return HashEncoder(checkpoint)
    environment.prepare()
    from embedcli.encoder.forward import TorchEncoder
    from embedcli.encoder.loading import load_modules

    return TorchEncoder(load_modules(checkpoint, options))


def count_tokens(checkpoint: Checkpoint, rendered: Rendered) -> list[int]:
    """How many tokens a model would see of each text. Loads the tokenizer, not the weights."""
    if checkpoint.is_hash:
        from embedcli.encoder.hashing import HashEncoder

        return [min(count, checkpoint.max_length) for count in HashEncoder(checkpoint).count_tokens(rendered.strings)]
    return [len(ids) for ids in token_ids(checkpoint, rendered)]


def token_ids(checkpoint: Checkpoint, rendered: Rendered) -> list[list[int]]:
    """The ids that a model gets for each text, special ones included. Loads the tokenizer, not the weights."""
    if checkpoint.is_hash:
        raise ConfigurationError("the pseudo-model has no token ids")
    environment.prepare()
    from embedcli.encoder.loading import load_tokenizer

    return load_tokenizer(checkpoint).encode(rendered).as_lists()
