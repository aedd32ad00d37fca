"""A transformer compiled for packs of one size, with its weights frozen, and when that pays.

On CPUs with matrix tiles (AMX) the compiler writes kernels of its own for them: packs of MiniLM go
4 times as fast as in float32, also on virtual machines whose tiles the libraries can't use (see
environment). Of kernels to choose from there is one only: choosing by time, as compilers like to,
would make the bytes depend on the time.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from embedcli.config import RunOptions
from embedcli.encoder import environment
from embedcli.errors import ConfigurationError

# 15 to 30 seconds of compilation against what a token saves: compared with float32, or with bfloat16 without tiles
# where that is asked for. Both grow with the layers, so that their number drops out; measured with MiniLM (384 x 1536).
_PAYING_TOKENS = {"auto": 500_000, "bfloat16": 150_000}
# Where the libraries use the tiles, too, compiled code gains a tenth and not four times.
_PAYING_TOKENS_WITH_TILES = 10_000_000


def pays(options: RunOptions, device: torch.device) -> bool:
    """Tell whether compiled code is asked for, or pays. Under `auto` on CPUs with tiles alone: nothing
    else was measured.
    """
    if options.compile in ("on", "off"):
        return options.compile == "on"
    if options.compile == "if-possible":
        return device.type == "cpu" and environment.announces_tiles() and has_compiler()
    if (
        device.type != "cpu"
        or options.dtype not in _PAYING_TOKENS
        or not environment.announces_tiles()
    ):
        return False
    paying = _PAYING_TOKENS_WITH_TILES if environment.has_tiles() else _PAYING_TOKENS[options.dtype]
    return has_compiler() and (options.expected_tokens or 0) >= paying


def has_compiler() -> bool:
    """Tell whether there is a C++ compiler."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def _keep_code() -> None:
    """Compiled code is kept beside other tools' caches, closed to other users, not in the common
    temporary folder.
    """
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        return
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(cache) / "embedcli" / "compiled"))


def compile_model(transformer: Any, run: Callable[[Any], object]) -> Any:
    """Compile the transformer; `run` runs it on a pack, once.

    Raises ConfigurationError where that isn't possible.
    """
    _keep_code()
    from torch._inductor import config

    best = torch.compile(transformer, dynamic=False)
    settings: dict[str, Any] = {"freezing": True}
    if next(transformer.parameters()).device.type == "cpu":
        settings |= {"max_autotune": True, "max_autotune_gemm_backends": "CPP"}
    try:
        with config.patch(settings), torch.inference_mode():
            run(best)
    except Exception as error:  # the compiler's own, of many kinds
        reason = " ".join(str(error).split())[:200]
        raise ConfigurationError(
            f"the model can't be compiled: {type(error).__name__}: {reason}", "--compile off"
        ) from None
    return best
