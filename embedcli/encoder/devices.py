"""The device, and what suits it: the number format, the size of a batch."""

from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from embedcli.config import RunOptions
from embedcli.encoder.choice import Choice
from embedcli.errors import DeviceError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Measured on 2 cores: from 1,024 to 4,096 tokens there is no difference; larger packs leave the caches.
_CPU_BATCH_TOKENS = 2048
# A GPU wants many tokens at once, but no more than this share of its free memory for what a layer keeps of them.
_CUDA_BATCH_TOKENS, _CUDA_SHARE = 65_536, 0.25


def choose_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:1`.

    Raises DeviceError where there is none of that name.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise DeviceError(
                f"--device {name}: this machine shows {count} CUDA devices",
                "--device cpu runs anywhere",
            )
    return device


def choose_for_cuda(options: RunOptions, device: torch.device, may_float16: bool) -> Choice:
    """Choose the dtype for `auto`: the 16 bits that this GPU calculates in, if the model bears them."""
    with torch.cuda.device(device):
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    fastest = "bfloat16" if has_bfloat16 else "float16" if may_float16 else "float32"
    dtype = fastest if options.dtype == "auto" else options.dtype
    generation = "with" if has_bfloat16 else "without"
    compiled = options.compile == "on"
    return Choice("torch", dtype, compiled, f"fastest on a GPU {generation} bfloat16")


def choose_batch_tokens(device: torch.device, transformer: nn.Module) -> int:
    """Tokens per batch: what a CPU's caches hold; what a share of a GPU's free memory holds of a
    layer's states.
    """
    if device.type != "cuda":
        return _CPU_BATCH_TOKENS
    config: Any = transformer.config
    width = 8 * config.hidden_size + 3 * getattr(
        config, "intermediate_size", 4 * config.hidden_size
    )
    free, _ = torch.cuda.mem_get_info(device)
    size = next(transformer.parameters()).element_size()
    tokens = int(_CUDA_SHARE * free / (width * size))
    # A power of two: the memory that is free differs a little from process to process, and the batches should not.
    return min(_CUDA_BATCH_TOKENS, max(1024, 2 ** (max(1, tokens).bit_length() - 1)))


def to_device(values: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """Copy an array to the device; the copy to a GPU doesn't wait for what the GPU is at."""
    tensor = torch.from_numpy(values)
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
