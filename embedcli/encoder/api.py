"""What every backend gives: an encoder, which turns prepared texts into vectors."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from embedcli.computation import Computation
from embedcli.records import Rendered

# Called with the rows and the tokens of each batch that is done.
OnBatch = Callable[[int, int], None]


@dataclass(frozen=True)
class Encoded:
    """Vectors of n texts and what became of each.

    vectors: float32 [n, dim]; tokens: int32 [n], what the model saw; truncated: bool [n]; padded:
    tokens computed, padding included; failed: rows without a usable vector, and why (their vectors
    are zero).
    """

    vectors: npt.NDArray[np.float32]
    tokens: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.bool_]
    padded: int
    failed: dict[int, str] = field(default_factory=dict)


class Encoder(Protocol):
    """A loaded model: encodes rendered texts and says what it runs on."""

    @property
    def computation(self) -> Computation:
        """How vectors are computed, and why so."""

    @property
    def note(self) -> str:
        """What people should know of how it came to that; mostly empty."""

    def count_tokens(self, strings: list[str]) -> list[int]:
        """Count the tokens of each string, special ones included, untruncated."""

    def prepare(self, rendered: Rendered) -> Any:
        """Return what `encode` takes: the texts as tokens. May run while another thread encodes."""

    def encode(self, prepared: Any, on_batch: OnBatch) -> Encoded:
        """Encode prepared texts; vectors come in the order of the texts.

        `on_batch(rows, tokens)` reports progress.
        """
