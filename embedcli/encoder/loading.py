"""A checkpoint into modules on a device. The only place where weights are read."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from torch import nn

from embedcli.config import RunOptions
from embedcli.encoder import environment
from embedcli.encoder.checkpoint import Checkpoint, Layer
from embedcli.encoder.tokenize import Tokenizer
from embedcli.errors import ConfigurationError, DeviceError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Parts of a checkpoint that an embedding never uses: heads for other tasks, and buffers of older versions.
_UNUSED = ("pooler.", "cls.", "lm_head.", "embeddings.position_ids", "classifier.")


@dataclass(frozen=True)
class Modules:
    """A loaded model: token states from `transformer`, then the checkpoint's pooling, then `layers` in float32."""

    checkpoint: Checkpoint
    tokenizer: Tokenizer
    transformer: nn.Module
    layers: nn.Sequential
    device: torch.device
    dtype: torch.dtype

    def in_float32(self) -> "Modules":
        """A copy in float32, for rows whose vector came out unusable in a shorter format."""
        transformer = copy.deepcopy(self.transformer).float()
        return Modules(self.checkpoint, self.tokenizer, transformer, self.layers, self.device, torch.float32)


def load_modules(checkpoint: Checkpoint, options: RunOptions) -> Modules:
    """Load the transformer, the layers after it and the tokenizer.

    Raises ConfigurationError where they don't belong together, DeviceError where the device isn't there.
    """
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    path = checkpoint.files.path
    assert path is not None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformer = _transformer(checkpoint, path, dtype).to(device).eval()
    layers = nn.Sequential(*(_layer(layer, path) for layer in checkpoint.layers)).to(device).eval()
    tokenizer = Tokenizer(_backend(path), checkpoint.max_length, checkpoint.append_eos, checkpoint.lower_case)
    return Modules(checkpoint, tokenizer, transformer, layers, device, dtype)


def choose_device(name: str) -> torch.device:
    """The device for `auto`, `cpu`, `cuda` or `cuda:1`. Raises DeviceError where there is none of that name."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise DeviceError(f"--device {name}: this machine shows {count} CUDA devices", "--device cpu runs anywhere")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format for `auto`: bfloat16 where the hardware is faster in it, else float32."""
    if name != "auto":
        return _DTYPES[name]
    cuda = device.type == "cuda"
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if cuda else environment.has_tiles()
    return torch.bfloat16 if fast else torch.float32


def _transformer(checkpoint: Checkpoint, path: Path, dtype: torch.dtype) -> nn.Module:
    try:
        model, info = transformers.AutoModel.from_pretrained(
            path,
            dtype=dtype,
            trust_remote_code=False,  # unset, it would ask on stdin and eat the corpus
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigurationError(f"{checkpoint.files.id}: transformers can't load it: {reason}") from None
    found = {
        "lack parts of": [key for key in info["missing_keys"] if not _is_unused(key)],
        "hold more than": [key for key in info["unexpected_keys"] if not _is_unused(key)],
        "have other shapes than": [str(key) for key in info["mismatched_keys"]],
    }
    for what, keys in found.items():
        if keys:
            raise ConfigurationError(
                f"{checkpoint.files.id}: its weights {what} {type(model).__name__}: {', '.join(sorted(keys)[:3])}",
                "the config names another model class than the weights were made for, or a file is damaged",
            )
    return model


def _is_unused(key: str) -> bool:
    return any(f".{part}" in f".{key}" for part in _UNUSED)


def _layer(layer: Layer, path: Path) -> nn.Module:
    weights = safetensors.torch.load_file(path / layer.folder / "model.safetensors")
    config: dict[str, Any] = dict(layer.config)
    if layer.kind == "layer_norm":
        module: nn.Module = nn.LayerNorm(config["dimension"])
        module.load_state_dict({key.removeprefix("norm."): value.float() for key, value in weights.items()})
        return module
    if config.get("use_residual"):
        raise ConfigurationError(f"{path / layer.folder}: a Dense layer with a residual is not supported")
    linear = nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
    linear.load_state_dict({key.removeprefix("linear."): value.float() for key, value in weights.items()})
    return nn.Sequential(linear, _activation(config.get("activation_function"), path / layer.folder))


def _activation(name: str | None, where: Path) -> nn.Module:
    """A Dense layer's activation: a class of torch.nn by its full name; Tanh where none is named."""
    if name is None:
        return nn.Tanh()
    module = getattr(nn, name.rpartition(".")[2], None)
    if not name.startswith("torch.nn.") or not (isinstance(module, type) and issubclass(module, nn.Module)):
        raise ConfigurationError(f"{where}: activation {name!r} is no activation of torch")
    return module()


def _backend(path: Path) -> Any:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigurationError(
            f"{path}: its tokenizer can't be loaded: {' '.join(str(error).split())[:300]}"
        ) from None
    if not tokenizer.is_fast:
        raise ConfigurationError(f"{path}: its tokenizer has no fast version", "a tokenizer.json is needed")
    return tokenizer
