"""What to do when a device's memory doesn't suffice, in whatever words it says so."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from embedcli.errors import DeviceError
from embedcli.models.spec import ModelSpec

# Words of torch on a CPU; of CUDA, when somebody else took the memory; of its libraries, which allocate for themselves.
_WORDS = (
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
)

_Result = TypeVar("_Result")


def is_exhausted(error: BaseException) -> bool:
    """Tell whether an error says that a device's memory doesn't suffice."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def if_it_fits(compute: Callable[[], _Result]) -> _Result | None:
    """Return what is computed; None where the device's memory doesn't suffice, and what was taken for
    it is free again.
    """
    try:
        return compute()
    except Exception as error:
        if not is_exhausted(error):
            raise
    # Outside of `except`, which holds the failed computation's tensors.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


@contextmanager
def room_for(spec: ModelSpec, device: torch.device) -> Iterator[None]:
    """Raise DeviceError where a model doesn't fit onto a device."""
    try:
        yield
    except Exception as error:
        if not is_exhausted(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise DeviceError(
            f"{spec.files.id} doesn't fit into the memory of {device}: {reason}",
            "--dtype bfloat16, a smaller --batch-tokens, a smaller model, or --device cpu",
        ) from None
