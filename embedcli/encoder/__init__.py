"""Strings into vectors. Knows one model on one device; no files, ids, roles, ranks or progress bars.

A backend is a row of BACKENDS and a module with four functions, which is imported when it is
needed:

    load(spec, options) -> Encoder                 transformers' also take the Choice
    release()                                      gives the memory of a model that is gone back
    count_tokens(spec, rendered) -> list[int]      what the model would see of each text
    token_ids(spec, rendered) -> list[list[int]]   the ids, special ones included
"""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from embedcli import machine
from embedcli.computation import Computation
from embedcli.config import RunOptions
from embedcli.encoder import choice, conversion, environment, torch_backend
from embedcli.encoder.api import Encoded, Encoder, OnBatch
from embedcli.encoder.choice import choose_for_cpu, has_openvino
from embedcli.encoder.conversion import cache_folder as conversions_folder
from embedcli.models.spec import ModelSpec
from embedcli.records import Rendered

__all__ = [
    "BACKENDS",
    "Backend",
    "Encoded",
    "Encoder",
    "OnBatch",
    "backend_of",
    "choose_for_cpu",
    "conversions_folder",
    "count_tokens",
    "cuda_devices",
    "has_openvino",
    "libraries_of",
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
    "openvino": Backend(
        module="embedcli.encoder.openvino_backend",
        needs_torch=False,
        libraries=("openvino", "torch", "transformers", "tokenizers", "numpy", "pyarrow"),
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
    """Return the backend that can run a model everywhere."""
    return BACKENDS["torch" if spec.source == "transformer" else spec.source]


def libraries_of(spec: ModelSpec, made: Iterable[Computation]) -> set[str]:
    """Return the libraries that computed some of a model's vectors."""
    # Vectors that are taken over may have been made by a backend of a later version.
    known = {BACKENDS[entry.backend] for entry in made if entry.backend in BACKENDS}
    backends = known or {backend_of(spec)}
    return {name for backend in backends for name in backend.libraries}


def load(spec: ModelSpec, options: RunOptions) -> Encoder:
    """Load a model onto its device, by the backend that suits both. Raises ConfigurationError,
    DeviceError.
    """
    if spec.source != "transformer":
        encoder: Encoder = backend_of(spec).functions.load(spec, options)
        return encoder
    choice.check(options)
    if _runs_on_cuda(options):
        return torch_backend.load(spec, options)
    return _load_on_cpu(spec, options)


def _runs_on_cuda(options: RunOptions) -> bool:
    if options.device != "auto":
        return options.device.startswith("cuda")
    if options.backend == "openvino" or not machine.may_have_cuda():
        return False
    import torch

    return torch.cuda.is_available()


def _load_on_cpu(spec: ModelSpec, options: RunOptions) -> Encoder:
    is_converted = choice.has_openvino() and conversion.is_ready(spec)
    chosen = choice.choose_for_cpu(options, spec.model_type, is_converted)
    if chosen.backend == "torch":
        return torch_backend.load(spec, options, chosen)
    try:
        return _load_openvino(spec, options, chosen)
    except conversion.NotConvertedError as error:
        if options.backend == "openvino":
            raise
        instead = choice.choose_for_cpu(replace(options, backend="torch"), spec.model_type, False)
        note = f"{error.message}: it is computed by torch"
        return torch_backend.load(spec, options, replace(instead, note=note))


def _load_openvino(spec: ModelSpec, options: RunOptions, chosen: choice.Choice) -> Encoder:
    environment.prepare()
    try:
        from embedcli.encoder import openvino_backend
    except ImportError as error:
        raise conversion.NotConvertedError(
            f"OpenVINO can't be imported: {error}", "--backend torch"
        ) from None
    return openvino_backend.load(spec, options, chosen)


def release(spec: ModelSpec) -> None:
    """Give a device's memory back to other processes, once the model is referenced no more."""
    backend_of(spec).functions.release()


def cuda_devices() -> list[str]:
    """Describe the CUDA devices of this machine. Imports torch."""
    import torch

    return [
        f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB, "
        f"compute capability {properties.major}.{properties.minor}"
        for index in range(torch.cuda.device_count())
        if (properties := torch.cuda.get_device_properties(index))
    ]


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
