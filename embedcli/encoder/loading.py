"""A spec into model on a device. The only place where weights are read."""

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
import transformers
from torch import Tensor, nn

from embedcli.config import RunOptions
from embedcli.encoder import compiling
from embedcli.encoder.choice import Choice, choose_for_cpu
from embedcli.encoder.devices import (
    DTYPES,
    choose_batch_tokens,
    choose_device,
    choose_for_cuda,
)
from embedcli.encoder.forward import full_vectors
from embedcli.encoder.latent_attention import load_latent_attention
from embedcli.encoder.memory import is_exhausted, room_for
from embedcli.encoder.model import LoadedModel, errors_of_the_model
from embedcli.encoder.packing import (
    CannotPackError,
    Groups,
    Packing,
    find_packing,
    packed_states,
)
from embedcli.encoder.tokenizer import Tokenizer, is_failure
from embedcli.errors import ConfigurationError
from embedcli.models.contents import SIGNS_OF_A_TOKENIZER
from embedcli.models.layout import Module
from embedcli.models.schemas import read_json
from embedcli.models.spec import ModelSpec
from embedcli.records import Rendered

# What an embedding never uses: heads for other tasks, and buffers of older versions.
_UNUSED = re.compile(
    r"(^|\.)(pooler|cls|lm_head|classifier|head|decoder|vocab_transform|vocab_layer_norm"
    r"|vocab_projector|predictions|lm_predictions|mask_predictions|generator_predictions"
    r"|generator_lm_head|discriminator_predictions|seq_relationship|sop_classifier|score"
    r"|dense|layer_norm|embeddings\.position_ids)(\.|$)"
)
_MISFIT = (
    "the config names another model class than the weights were made for, or a file is damaged"
)


# Their numbers outgrow float16, whoever made the model.
_OVERFLOWING = {"t5", "mt5", "umt5", "gemma2", "gemma3", "gemma3_text"}
# Tokens of the pack by which compilation for a GPU is tried.
_COMPILED_TRIAL = 4096


def load_model(spec: ModelSpec, options: RunOptions, choice: Choice | None = None) -> LoadedModel:
    """Load the transformer, the layers after it and the tokenizer; compile where that is wanted.

    Raises ConfigurationError where they don't belong together, or where `--compile on` can't be
    had; DeviceError where the device isn't there.
    """
    device = choose_device(options.device)
    if choice is None:
        choice = _choose(spec, options, device)
    dtype = DTYPES[choice.dtype]
    if dtype == torch.float16 and spec.facts.float16 is False:
        raise ConfigurationError(
            f"{spec.files.id} overflows in float16", "--dtype bfloat16, or float32"
        )
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer = load_tokenizer(spec)
    with room_for(spec, device):
        transformer = _transformer(spec, dtype, device).to(device).eval()
        packing, reason = _packing(spec, tokenizer, transformer, options)
        model = LoadedModel(
            spec=spec,
            tokenizer=tokenizer,
            transformer=transformer,
            token_modules=_token_modules(spec).to(device).eval(),
            text_modules=nn.Sequential(*map(_module, spec.text_modules)).to(device).eval(),
            device=device,
            dtype=dtype,
            reason="; ".join(filter(None, [choice.reason, reason])),
            note=choice.note,
            batch_tokens=options.batch_tokens or choose_batch_tokens(device, transformer),
            packing=packing,
        )
        _check_width(model)
    if not choice.compiled:
        return model
    try:
        with room_for(spec, device):
            return _compiled(model)
    except ConfigurationError as error:
        if options.compile == "on":
            raise
        uncompiled = load_model(spec, replace(options, compile="off"))
        return replace(uncompiled, note=f"{error.message}: it runs uncompiled")


def _choose(spec: ModelSpec, options: RunOptions, device: torch.device) -> Choice:
    if device.type == "cuda":
        may_float16 = spec.facts.float16 is not False and spec.model_type not in _OVERFLOWING
        return choose_for_cuda(options, device, may_float16)
    return choose_for_cpu(replace(options, backend="torch"), spec.model_type, is_converted=False)


@torch.inference_mode()
def _check_width(model: LoadedModel) -> None:
    """See that a text goes through, and that its vector is as wide as the configs say.

    Raises ConfigurationError.
    """
    tokens = model.tokenizer.encode(Rendered(["a"], [0], [1]))
    if not tokens.lengths[0]:
        return
    with errors_of_the_model(model.spec):
        width = full_vectors(model, tokens, np.zeros(1, np.intp)).shape[1]
    if width != model.spec.full_dim:
        raise ConfigurationError(
            f"{model.spec.files.id}: gives vectors of {width} dimensions, its configs say "
            f"{model.spec.full_dim}"
        )


@torch.inference_mode()
def _packing(
    spec: ModelSpec, tokenizer: Tokenizer, transformer: nn.Module, options: RunOptions
) -> tuple[Packing | None, str]:
    """Return how the transformer runs packs, None where it is to be padded; and why not better."""
    if options.plain:
        return None, ""
    if spec.own_code:
        return None, "padded: the repository's own code"
    # By the class's own name for it: GPT-2's config calls it n_positions.
    positions = getattr(transformer.config, "max_position_embeddings", None)
    with errors_of_the_model(spec):
        try:
            positions = positions if isinstance(positions, int) else None
            packing = find_packing(transformer, tokenizer.pad_id, positions, spec.max_length)
        except CannotPackError as error:
            return None, f"padded: {error}"
    return packing, packing.reason


def _compiled(model: LoadedModel) -> LoadedModel:
    if model.packing is None:
        raise ConfigurationError(
            f"{model.spec.files.id}: only models that run packs can be compiled", "--compile off"
        )
    packing, size = model.packing, max(model.batch_tokens, model.spec.max_length)
    fills = model.device.type == "cpu"
    # A GPU's code takes packs of any size: a small one shows whether it can be made.
    trial = (size if fills else min(size, _COMPILED_TRIAL)) // 8 * 8
    texts: Groups = [(trial // 8, 8)]

    def run(transformer: nn.Module) -> Tensor:
        return packed_states(
            transformer,
            np.full(trial, model.tokenizer.pad_id),
            texts,
            packing,
            size if fills else 0,
        )

    return replace(
        model, compiled=compiling.compile_model(model.transformer, run), batch_tokens=size
    )


def _transformer(spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> nn.Module:
    assert spec.base is not None
    try:
        config = _config(spec)
        model, info = _model_class(config).from_pretrained(
            spec.base,
            config=config,
            dtype=dtype,
            trust_remote_code=spec.own_code,  # unset, it would ask on stdin and eat the corpus
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            # Straight to the GPU: workers don't each hold the weights in the machine's memory first.
            device_map={"": device} if device.type == "cuda" else None,
            key_mapping={r"^embedding_model\.": ""} if spec.facts.latent_attention else None,
        )
    except Exception as error:  # at odd folders libraries raise whatever comes to their mind
        if is_exhausted(error):
            raise
        raise _unloadable(spec, error) from None
    _check_weights(spec, model, info)
    model.config.use_cache = False  # of keys and values, for texts that would go on
    model.config.return_dict = True
    for folder in spec.adapters:
        model = _merge_adapter(spec, model, folder)
    return model


def _unloadable(spec: ModelSpec, error: BaseException) -> ConfigurationError:
    if isinstance(error, ConfigurationError):
        return error
    reason = " ".join(str(error).split())[:300]
    return ConfigurationError(
        f"{spec.files.id}: transformers can't load it: {type(error).__name__}: {reason}"
    )


def _raw_config(spec: ModelSpec) -> dict[str, Any]:
    assert spec.base is not None
    config = read_json(spec.base / "config.json")
    return config if isinstance(config, dict) else {}


def _config(spec: ModelSpec) -> Any:
    """Read the model's config; as another native class, or with another attention, where the family says
    so.
    """
    facts = spec.facts
    if facts.native_class is not None and not spec.own_code:
        raw = _raw_config(spec)
        raw = raw.get("text_config", raw) if facts.latent_attention else raw
        dropped = {"model_type", "auto_map", "architectures"}
        if facts.latent_attention:
            # NV-Embed's authors build a mask without the window that their Mistral had.
            dropped.add("sliding_window")
        config_keys = {key: value for key, value in raw.items() if key not in dropped}
        config = transformers.CONFIG_MAPPING[facts.native_class].from_dict(config_keys)
        if facts.latent_attention:
            config.sliding_window = None
    else:
        config = transformers.AutoConfig.from_pretrained(
            spec.base, trust_remote_code=spec.own_code, local_files_only=True
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
        "lack parts of": [key for key in info["missing_keys"] if not _is_pooler(key)],
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


def _merge_adapter(spec: ModelSpec, model: nn.Module, folder: Path) -> nn.Module:
    """Merge an adapter into the model's weights."""
    try:
        import peft
    except ImportError:
        raise ConfigurationError(
            f"{spec.files.id}: adapters need the package peft",
            "pip install 'embedcli[adapters]'",
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own affairs with versions of transformers
            adapted = peft.PeftModel.from_pretrained(model, str(folder), local_files_only=True)
            merged: nn.Module = adapted.merge_and_unload()
    except Exception as error:  # at odd folders libraries raise whatever comes to their mind
        raise _unloadable(spec, error) from None
    return merged


def _token_modules(spec: ModelSpec) -> nn.Sequential:
    """Return what runs on the states of tokens, before they are pooled."""
    modules = [_module(module) for module in spec.token_modules]
    if spec.facts.latent_attention:
        assert spec.base is not None
        config = _raw_config(spec).get("latent_attention_config", {})
        modules.insert(0, load_latent_attention(config, spec.base))
    return nn.Sequential(*modules)


def _is_unused(key: str) -> bool:
    return _UNUSED.search(key) is not None


def _is_pooler(key: str) -> bool:
    """Tell whether a part of the class isn't used: it may be random."""
    return key.split(".")[0] in ("pooler", "cls") or ".pooler." in key


class _Normalize(nn.Module):
    def forward(self, vectors: Tensor) -> Tensor:
        return nn.functional.normalize(vectors, dim=-1)


class _Dense(nn.Module):
    """A linear layer and its activation, in float32; the input is added where that is wanted."""

    def __init__(
        self, linear: nn.Linear, activation: nn.Module, residual: nn.Module | None
    ) -> None:
        super().__init__()
        self.linear = linear
        self.activation_function = activation
        self.residual = residual

    def forward(self, vectors: Tensor) -> Tensor:
        vectors = vectors.float()
        out: Tensor = self.activation_function(self.linear(vectors))
        return out if self.residual is None else out + self.residual(vectors)


def _module(module: Module) -> nn.Module:
    """Load a module behind the transformer. Raises ConfigurationError."""
    if module.kind == "normalize":
        return _Normalize()
    if module.folder is None:
        return nn.LayerNorm(module.dimension, elementwise_affine=False)
    path = module.folder / "model.safetensors"
    try:
        tensors = safetensors.torch.load_file(path)
        built = _built(module, path.parent)
        built.load_state_dict({key: value.float() for key, value in tensors.items()})
    except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigurationError(f"{path}: not the weights of its config: {reason}") from None
    return built if module.kind == "dense" else built.norm


def _built(module: Module, where: Path) -> Any:
    """Return a module without its weights, its parts by the names that they have in the file."""
    if module.dense is None:
        return nn.ModuleDict({"norm": nn.LayerNorm(module.dimension)})
    config = module.dense
    sides = config.in_features, config.out_features
    residual: nn.Module | None = None
    if config.use_residual:
        same = sides[0] == sides[1]
        residual = nn.Identity() if same else nn.Linear(*sides, bias=False)
    linear = nn.Linear(*sides, bias=config.bias)
    return _Dense(linear, _activation(config.activation_function, where), residual)


def _activation(name: str, where: Path) -> nn.Module:
    """Return a Dense layer's activation: a class of torch.nn by its full name."""
    module = getattr(nn, name.rpartition(".")[2], None)
    if not name.startswith("torch.nn.") or not (
        isinstance(module, type) and issubclass(module, nn.Module)
    ):
        raise ConfigurationError(f"{where}: activation {name!r} is no activation of torch")
    try:
        return module()
    except TypeError as error:
        raise ConfigurationError(f"{where}: activation {name!r}: {error}") from None


def load_tokenizer(spec: ModelSpec) -> Tokenizer:
    """Load a spec's tokenizer alone. Raises ConfigurationError where it can't be used."""
    assert spec.folder is not None
    assert spec.base is not None
    has_own = any((spec.folder / name).is_file() for name in SIGNS_OF_A_TOKENIZER)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            spec.folder if has_own else spec.base,
            trust_remote_code=spec.own_code,
            local_files_only=True,
        )
        is_fast = tokenizer.is_fast
        pad_id, side = tokenizer.pad_token_id, tokenizer.padding_side
    except BaseException as error:  # at odd folders libraries raise whatever comes to their mind
        if not is_failure(error):
            raise
        raise _unloadable(spec, error) from None
    if not is_fast:
        raise ConfigurationError(
            f"{spec.files.id}: its tokenizer has no fast version", "tokenizer.json is needed"
        )
    backend = tokenizer.backend_tokenizer
    if "token_type_ids" in tokenizer.model_input_names and any(backend.encode("a").type_ids):
        raise ConfigurationError(f"{spec.files.id}: token types other than 0 aren't supported")
    return Tokenizer(backend, spec, pad_id if pad_id is not None else 0, pads_left=side == "left")
