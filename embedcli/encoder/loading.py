"""A spec into model on a device. The only place where weights are read."""

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
from embedcli.encoder.devices import choose_batch_tokens, choose_device, choose_dtype
from embedcli.encoder.latent_attention import load_latent_attention
from embedcli.encoder.model import LoadedModel
from embedcli.encoder.packing import Groups, Packing, find_packing, packed_states
from embedcli.encoder.tokenizer import Tokenizer
from embedcli.errors import ConfigurationError
from embedcli.models.layout import Layer
from embedcli.models.spec import ModelSpec

# Parts of a spec that an embedding never uses: heads for other tasks, and buffers of older versions.
_UNUSED = ("pooler.", "cls.", "lm_head.", "embeddings.position_ids", "classifier.")
_MISFIT = (
    "the config names another model class than the weights were made for, or a file is damaged"
)


def load_model(spec: ModelSpec, options: RunOptions) -> LoadedModel:
    """Load the transformer, the layers after it and the tokenizer; compile where that is wanted.

    Raises ConfigurationError where they don't belong together, or where `--compile on` can't be
    had; DeviceError where the device isn't there.
    """
    device = choose_device(options.device)
    compile_it = compiling.pays(options, device)
    dtype = choose_dtype(options.dtype, device, compile_it)
    if dtype == torch.float16 and spec.facts.float16 is False:
        raise ConfigurationError(
            f"{spec.files.id} overflows in float16", "--dtype bfloat16, or float32"
        )
    path = spec.files.path
    assert path is not None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer, transformer = load_tokenizer(spec), _transformer(spec, path, dtype).to(device).eval()
    model = LoadedModel(
        spec=spec,
        tokenizer=tokenizer,
        transformer=transformer,
        latent=_latent(spec, path).to(device).eval(),
        layers=nn.Sequential(*(_layer(layer, path) for layer in spec.layers)).to(device).eval(),
        device=device,
        dtype=dtype,
        batch_tokens=options.batch_tokens or choose_batch_tokens(device, transformer),
        packing=None if options.plain else _packing(spec, tokenizer, transformer),
    )
    if not compile_it:
        return model
    try:
        return _compiled(model)
    except ConfigurationError:
        if options.compile == "on":
            raise
        return load_model(spec, replace(options, compile="off"))


@torch.inference_mode()
def _packing(spec: ModelSpec, tokenizer: Tokenizer, transformer: nn.Module) -> Packing | None:
    if spec.own_code:
        return None
    positions = spec.files.json("config.json").get("max_position_embeddings")
    return find_packing(
        transformer, tokenizer.pad_id, positions if isinstance(positions, int) else None
    )


def _compiled(model: LoadedModel) -> LoadedModel:
    if model.packing is None:
        raise ConfigurationError(
            f"{model.spec.files.id}: only models that run packs can be compiled", "--compile off"
        )
    packing, size = model.packing, max(model.batch_tokens, model.spec.max_length)
    texts: Groups = [(size // 8, 8)]

    def run(transformer: nn.Module) -> Tensor:
        return packed_states(
            transformer, np.full(size // 8 * 8, model.tokenizer.pad_id), texts, packing, size
        )

    return replace(
        model, compiled=compiling.compile_model(model.transformer, run), batch_tokens=size
    )


def _transformer(spec: ModelSpec, path: Path, dtype: torch.dtype) -> nn.Module:
    try:
        config = _config(spec, path)
        model, info = _model_class(config).from_pretrained(
            path,
            config=config,
            dtype=dtype,
            trust_remote_code=spec.own_code,  # unset, it would ask on stdin and eat the corpus
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            key_mapping={r"^embedding_model\.": ""} if spec.facts.latent_attention else None,
        )
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        ImportError,
        AttributeError,
        TypeError,
    ) as error:
        raise _unloadable(spec, error) from None
    _check_weights(spec, model, info)
    model.config.use_cache = False  # of keys and values, for texts that would go on
    return model if spec.adapter is None else _adapted(spec, model, path)


def _unloadable(spec: ModelSpec, error: Exception) -> ConfigurationError:
    reason = " ".join(str(error).split())[:300]
    return ConfigurationError(
        f"{spec.files.id}: transformers can't load it: {type(error).__name__}: {reason}"
    )


def _config(spec: ModelSpec, path: Path) -> Any:
    """Read the model's config; as another native class, or with another attention, where the family says
    so.
    """
    facts = spec.facts
    if facts.native_class is not None and not spec.own_code:
        raw = spec.files.json("config.json")
        raw = raw.get("text_config", raw) if facts.latent_attention else raw
        config_keys = {
            key: value
            for key, value in raw.items()
            if key not in ("model_type", "auto_map", "architectures")
        }
        config = transformers.CONFIG_MAPPING[facts.native_class].from_dict(config_keys)
    else:
        config = transformers.AutoConfig.from_pretrained(
            path, trust_remote_code=spec.own_code, local_files_only=True
        )
    if facts.attention is not None and not spec.own_code:
        config.is_causal = facts.attention == "causal"  # transformers' own masks follow it
    return config


def _model_class(config: Any) -> Any:
    """Return the class that gives token states: for encoder-decoder models their encoder alone."""
    encoders = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
    return getattr(transformers, encoders.get(config.model_type, "AutoModel"))


def _check_weights(spec: ModelSpec, model: nn.Module, info: dict[str, Any]) -> None:
    """Refuse a class that the weights were not made for: what is missing would be random."""
    own_prefixes = ("latent_attention_model.",) if spec.facts.latent_attention else ()
    unexpected = [key for key in info["unexpected_keys"] if not _is_unused(key)]
    problems = {
        "lack parts of": [key for key in info["missing_keys"] if not _is_unused(key)],
        "hold more than": [key for key in unexpected if not key.startswith(own_prefixes)],
        "have other shapes than": [str(key) for key in info["mismatched_keys"]],
    }
    native = spec.facts.native
    for problem, keys in problems.items():
        if keys:
            raise ConfigurationError(
                f"{spec.files.id}: its weights {problem} {type(model).__name__}: {', '.join(sorted(keys)[:3])}",
                f"the same weights for this class: --model {native}" if native else _MISFIT,
            )


def _adapted(spec: ModelSpec, model: nn.Module, path: Path) -> nn.Module:
    """Merge the role's adapter into the model's weights."""
    try:
        import peft
    except ImportError:
        raise ConfigurationError(
            f"{spec.files.id}: role adapters need the package peft",
            "pip install 'embedcli[adapters]'",
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own affairs with versions of transformers
        adapted = peft.PeftModel.from_pretrained(model, str(path / (spec.adapter or "")))
        merged: nn.Module = adapted.merge_and_unload()
    return merged


def _latent(spec: ModelSpec, path: Path) -> nn.Module:
    if not spec.facts.latent_attention:
        return nn.Identity()
    return load_latent_attention(
        spec.files.json("config.json").get("latent_attention_config", {}), path
    )


def _is_unused(key: str) -> bool:
    return any(f".{part}" in f".{key}" for part in _UNUSED)


def _layer(layer: Layer, path: Path) -> nn.Module:
    config: dict[str, Any] = dict(layer.config)
    if not layer.folder:
        return nn.LayerNorm(config["dimension"], elementwise_affine=False)
    weights = safetensors.torch.load_file(path / layer.folder / "model.safetensors")
    if layer.kind == "layer_norm":
        module: nn.Module = nn.LayerNorm(config["dimension"])
        module.load_state_dict(
            {key.removeprefix("norm."): value.float() for key, value in weights.items()}
        )
        return module
    if config.get("use_residual"):
        raise ConfigurationError(
            f"{path / layer.folder}: a Dense layer with a residual is not supported"
        )
    linear = nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
    linear.load_state_dict(
        {key.removeprefix("linear."): value.float() for key, value in weights.items()}
    )
    return nn.Sequential(
        linear, _activation(config.get("activation_function"), path / layer.folder)
    )


def _activation(name: str | None, where: Path) -> nn.Module:
    """Return a Dense layer's activation: a class of torch.nn by its full name; Tanh where none is named."""
    if name is None:
        return nn.Tanh()
    module = getattr(nn, name.rpartition(".")[2], None)
    if not name.startswith("torch.nn.") or not (
        isinstance(module, type) and issubclass(module, nn.Module)
    ):
        raise ConfigurationError(f"{where}: activation {name!r} is no activation of torch")
    return module()


def load_tokenizer(spec: ModelSpec) -> Tokenizer:
    """Load a spec's tokenizer alone. Raises ConfigurationError where it can't be used."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            spec.files.path, trust_remote_code=spec.own_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        raise _unloadable(spec, error) from None
    if not tokenizer.is_fast:
        raise ConfigurationError(
            f"{spec.files.id}: its tokenizer has no fast version", "tokenizer.json is needed"
        )
    return Tokenizer(tokenizer, spec)
