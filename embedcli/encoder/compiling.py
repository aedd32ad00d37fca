"""A transformer compiled for packs of one size, with its weights frozen.

On CPUs with matrix tiles (AMX) the compiler writes kernels of its own for them: packs of MiniLM go
4 times as fast as in float32, also on virtual machines whose tiles the libraries can't use (see
environment). Of kernels to choose from there is one only: choosing by time, as compilers like to,
would make the bytes depend on the time.
"""

import os
from collections.abc import Callable
from typing import Any

import torch

from embedcli import machine
from embedcli.encoder.memory import is_exhausted
from embedcli.errors import ConfigurationError


def _keep_code() -> None:
    """Compiled code is kept beside other tools' caches, closed to other users, not in the common
    temporary folder.
    """
    cache = machine.user_cache()
    if cache is not None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "embedcli" / "compiled"))


def compile_model(transformer: Any, run: Callable[[Any], object]) -> Any:
    """Compile the transformer; `run` runs it on a pack, once.

    Raises ConfigurationError where that isn't possible.
    """
    _keep_code()
    from torch._inductor import config

    on_cpu = next(transformer.parameters()).device.type == "cpu"
    # A GPU's code runs packs of any size, and must not hold the weights twice.
    best = torch.compile(transformer, dynamic=not on_cpu)
    settings: dict[str, Any] = {}
    if on_cpu:
        settings = {
            "freezing": True,
            "max_autotune": True,
            "max_autotune_gemm_backends": "CPP",
        }
    try:
        with config.patch(settings), torch.inference_mode():
            run(best)
    except Exception as error:  # the compiler's own, of many kinds
        if isinstance(error, torch.AcceleratorError) or is_exhausted(error):
            raise  # no fault of the compiler's
        reason = " ".join(str(error).split())[:200]
        raise ConfigurationError(
            f"the model can't be compiled: {type(error).__name__}: {reason}", "--compile off"
        ) from None
    return best
