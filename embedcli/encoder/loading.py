"""A checkpoint into modules on a device. The only place where weights are read."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import transformers
from torch import Tensor, nn

from embedcli.config import RunOptions
from embedcli.encoder import compiling
from embedcli.encoder.checkpoint import Checkpoint
from embedcli.encoder.devices import choose_batch_tokens, choose_device, choose_dtype
from embedcli.encoder.latent_attention import load_latent_attention
from embedcli.encoder.layout import Layer
from embedcli.encoder.modules import Modules
from embedcli.encoder.packing import Groups, Packing, find_packing, packed_states
from embedcli.encoder.tokenize import Tokenizer
from embedcli.errors import ConfigurationError

# Parts of a checkpoint that an embedding never uses: heads for other tasks, and buffers of older versions.
_UNUSED = ("pooler.", "cls.", "lm_head.", "embeddings.position_ids", "classifier.")
_MISFIT = "the config names another model class than the weights were made for, or a file is damaged"


def load_modules(checkpoint: Checkpoint, options: RunOptions) -> Modules:
    """Load the transformer, the layers after it and the tokenizer; compile where that is wanted.

    Raises ConfigurationError where they don't belong together, or where `--compile on` can't be had; DeviceError where
    the device isn't there.
    """
    device = choose_device(options.device)
    compile_it = compiling.wanted(options, device)
    dtype = choose_dtype(options.dtype, device, compile_it)
    if dtype == torch.float16 and checkpoint.facts.float16 is False:
        raise ConfigurationError(f"{checkpoint.files.id} overflows in float16", "--dtype bfloat16, or float32")
    path = checkpoint.files.path
    assert path is not None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer, transformer = load_tokenizer(checkpoint), _transformer(checkpoint, path, dtype).to(device).eval()
    modules = Modules(
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        transformer=transformer,
        latent=_latent(checkpoint, path).to(device).eval(),
        layers=nn.Sequential(*(_layer(layer, path) for layer in checkpoint.layers)).to(device).eval(),
        device=device,
        dtype=dtype,
        batch_tokens=options.batch_tokens or choose_batch_tokens(device, transformer),
        packing=None if options.plain else _packing(checkpoint, tokenizer, transformer),
    )
    if not compile_it:
        return modules
    try:
        return _compiled(modules)
    except ConfigurationError:
        if options.compile == "on":
            raise
        return load_modules(checkpoint, replace(options, compile="off"))


@torch.inference_mode()
def _packing(checkpoint: Checkpoint, tokenizer: Tokenizer, transformer: nn.Module) -> Packing | None:
    if checkpoint.own_code:
        return None
    positions = checkpoint.files.json("config.json").get("max_position_embeddings")
    return find_packing(transformer, tokenizer.pad_id, positions if isinstance(positions, int) else None)


def _compiled(modules: Modules) -> Modules:
    if modules.packing is None:
        raise ConfigurationError(
            f"{modules.checkpoint.files.id}: only models that run packs can be compiled", "--compile off"
        )
    packing, size = modules.packing, max(modules.batch_tokens, modules.checkpoint.max_length)
    texts: Groups = [(size // 8, 8)]

    def run(transformer: nn.Module) -> Tensor:
        return packed_states(transformer, np.full(size // 8 * 8, modules.tokenizer.pad_id), texts, packing, size)

    return replace(modules, compiled=compiling.compiled(modules.transformer, run), batch_tokens=size)


def _transformer(checkpoint: Checkpoint, path: Path, dtype: torch.dtype) -> nn.Module:
    try:
        config = _config(checkpoint, path)
        model, info = _model_class(config).from_pretrained(
            path,
            config=config,
            dtype=dtype,
            trust_remote_code=checkpoint.own_code,  # unset, it would ask on stdin and eat the corpus
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            key_mapping={r"^embedding_model\.": ""} if checkpoint.facts.latent_attention else None,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError) as error:
        raise _unloadable(checkpoint, error) from None
    _check_weights(checkpoint, model, info)
    model.config.use_cache = False  # of keys and values, for texts that would go on
    return model if checkpoint.adapter is None else _adapted(checkpoint, model, path)


def _unloadable(checkpoint: Checkpoint, error: Exception) -> ConfigurationError:
    reason = " ".join(str(error).split())[:300]
    return ConfigurationError(f"{checkpoint.files.id}: transformers can't load it: {type(error).__name__}: {reason}")


def _config(checkpoint: Checkpoint, path: Path) -> Any:
    """The model's config; as another native class, or with another attention, where the family says so."""
    facts = checkpoint.facts
    if facts.native_class is not None and not checkpoint.own_code:
        raw = checkpoint.files.json("config.json")
        raw = raw.get("text_config", raw) if facts.latent_attention else raw
        kept = {key: value for key, value in raw.items() if key not in ("model_type", "auto_map", "architectures")}
        config = transformers.CONFIG_MAPPING[facts.native_class].from_dict(kept)
    else:
        config = transformers.AutoConfig.from_pretrained(
            path, trust_remote_code=checkpoint.own_code, local_files_only=True
        )
    if facts.attention is not None and not checkpoint.own_code:
        config.is_causal = facts.attention == "causal"  # transformers' own masks follow it
    return config


def _model_class(config: Any) -> Any:
    """The class that gives token states: for encoder-decoder models their encoder alone."""
    encoders = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
    return getattr(transformers, encoders.get(config.model_type, "AutoModel"))


def _check_weights(checkpoint: Checkpoint, model: nn.Module, info: dict[str, Any]) -> None:
    """Refuse a class that the weights were not made for: what is missing would be random."""
    ours = ("latent_attention_model.",) if checkpoint.facts.latent_attention else ()
    found = {
        "lack parts of": [key for key in info["missing_keys"] if not _is_unused(key)],
        "hold more than": [key for key in info["unexpected_keys"] if not _is_unused(key) and not key.startswith(ours)],
        "have other shapes than": [str(key) for key in info["mismatched_keys"]],
    }
    native = checkpoint.facts.native
    for what, keys in found.items():
        if keys:
            raise ConfigurationError(
                f"{checkpoint.files.id}: its weights {what} {type(model).__name__}: {', '.join(sorted(keys)[:3])}",
                f"the same weights for this class: --model {native}" if native else _MISFIT,
            )


def _adapted(checkpoint: Checkpoint, model: nn.Module, path: Path) -> nn.Module:
    """The model with its role's adapter merged into the weights."""
    try:
        import peft
    except ImportError:
        raise ConfigurationError(
            f"{checkpoint.files.id}: role adapters need the package peft", "pip install 'embedcli[adapters]'"
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own affairs with versions of transformers
        adapted = peft.PeftModel.from_pretrained(model, str(path / (checkpoint.adapter or "")))
        merged: nn.Module = adapted.merge_and_unload()
    return merged


def _latent(checkpoint: Checkpoint, path: Path) -> nn.Module:
    if not checkpoint.facts.latent_attention:
        return nn.Identity()
    return load_latent_attention(checkpoint.files.json("config.json").get("latent_attention_config", {}), path)


def _is_unused(key: str) -> bool:
    return any(f".{part}" in f".{key}" for part in _UNUSED)


def _layer(layer: Layer, path: Path) -> nn.Module:
    config: dict[str, Any] = dict(layer.config)
    if not layer.folder:
        return nn.LayerNorm(config["dimension"], elementwise_affine=False)
    weights = safetensors.torch.load_file(path / layer.folder / "model.safetensors")
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


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Load a checkpoint's tokenizer alone. Raises ConfigurationError where it can't be used."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            checkpoint.files.path, trust_remote_code=checkpoint.own_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        raise _unloadable(checkpoint, error) from None
    if not tokenizer.is_fast:
        raise ConfigurationError(
            f"{checkpoint.files.id}: its tokenizer has no fast version", "tokenizer.json is needed"
        )
    return Tokenizer(tokenizer, checkpoint)
