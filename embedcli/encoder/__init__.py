"""Strings into vectors. Knows one model on one device; no files, ids, roles, ranks or progress bars.

A backend is a row of BACKENDS and a module with four functions, which is imported when it is
needed:

    load(spec, options) -> Encoder
    release()                                      gives the memory of a model that is gone back
    count_tokens(spec, rendered) -> list[int]      what the model would see of each text
    token_ids(spec, rendered) -> list[list[int]]   the ids, special ones included
"""

import importlib
from dataclasses import dataclass
from typing import Any

from embedcli.config import RunOptions
from embedcli.encoder.api import Encoded, Encoder, OnBatch
from embedcli.models.spec import ModelSpec
from embedcli.records import Rendered

__all__ = [
    "BACKENDS",
    "Backend",
    "Encoded",
    "Encoder",
    "OnBatch",
    "backend_of",
    "count_tokens",
    "load",
    "release",
    "token_ids",
]


@dataclass(frozen=True)
class Backend:
    """What runs a model.

    module: where its functions are; needs_torch: is torch imported, and may CUDA devices be used;
    libraries: whose versions are recorded with the vectors.
    """

    module: str
    needs_torch: bool
    libraries: tuple[str, ...]

    @property
    def functions(self) -> Any:
        """The module, imported."""
        return importlib.import_module(self.module)


BACKENDS = {
    "torch": Backend(
        module="embedcli.encoder.torch_backend",
        needs_torch=True,
        libraries=("torch", "transformers", "tokenizers", "numpy", "pyarrow"),
    ),
    "static": Backend(
        module="embedcli.encoder.static",
        needs_torch=False,
        libraries=("tokenizers", "numpy", "pyarrow"),
    ),
    "hash": Backend(
        module="embedcli.encoder.hashing",
        needs_torch=False,
        libraries=("numpy", "pyarrow"),
    ),
}


def backend_of(spec: ModelSpec) -> Backend:
    """Return the backend that runs a model."""
    return BACKENDS["torch" if spec.source == "transformer" else spec.source]


def load(spec: ModelSpec, options: RunOptions) -> Encoder:
    """Load a model onto its device. Raises ConfigurationError, DeviceError."""
    encoder: Encoder = backend_of(spec).functions.load(spec, options)
    return encoder


def release(spec: ModelSpec) -> None:
    """Give a device's memory back to other processes, once the model is referenced no more."""
    backend_of(spec).functions.release()


def count_tokens(spec: ModelSpec, rendered: Rendered) -> list[int]:
    """Count the tokens that a model would see of each text. Loads the tokenizer, not the weights."""
    counts: list[int] = backend_of(spec).functions.count_tokens(spec, rendered)
    return counts


def token_ids(spec: ModelSpec, rendered: Rendered) -> list[list[int]]:
    """Return the ids that a model gets for each text, special ones included.

    Loads the tokenizer, not the weights.
    """
    ids: list[list[int]] = backend_of(spec).functions.token_ids(spec, rendered)
    return ids
