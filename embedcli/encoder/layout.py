"""The folder layout of sentence-transformers, in both its generations: modules.json and a config for each module."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from embedcli.encoder.model_files import ModelFiles
from embedcli.errors import ConfigurationError

# The names of sentence-transformers' two generations of Pooling configs.
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last_token",
}
_POOLING_NAMES = {"mean_sqrt_len_tokens": "mean_sqrt_len", "weightedmean": "weighted_mean", "lasttoken": "last_token"}
_LAYER_KINDS = {"Dense": "dense", "LayerNorm": "layer_norm"}


@dataclass(frozen=True)
class Layer:
    """A module after pooling: its kind (`dense` or `layer_norm`), its folder (none: no weights) and its config."""

    kind: str
    folder: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Modules:
    """What modules.json lists after the transformer; nothing where there is no such file."""

    pooling: tuple[str, ...] = ()
    pooled: str = "all"
    layers: tuple[Layer, ...] = ()


def read_modules(files: ModelFiles) -> Modules:
    """Read modules.json and the configs it points to. Raises ConfigurationError for modules that we don't know."""
    found = Modules()
    for module in files.json_value("modules.json") or ():
        library, _, kind = str(module.get("type", "")).rpartition(".")
        folder = str(module.get("path", ""))
        if not library.startswith("sentence_transformers") or ".." in folder or folder.startswith("/"):
            raise ConfigurationError(f"{files.id}: its module {module.get('type')!r} is code of the model's own")
        config = files.json(f"{folder}/config.json") if folder else {}
        if kind == "Pooling":
            pooled = "text" if config.get("include_prompt", True) is False else "all"
            found = replace(found, pooling=_pooling(config), pooled=pooled)
        elif kind in _LAYER_KINDS:
            found = replace(found, layers=(*found.layers, Layer(_LAYER_KINDS[kind], folder, config)))
        elif kind not in ("Transformer", "Normalize"):  # every vector is normalized at the end, unless unwanted
            raise ConfigurationError(f"{files.id}: its module {kind} is not supported")
    return found


def _pooling(config: Mapping[str, Any]) -> tuple[str, ...]:
    modes = config.get("pooling_mode")
    if modes is None:
        return tuple(name for flag, name in _POOLING_FLAGS.items() if config.get(flag)) or ("mean",)
    return tuple(_POOLING_NAMES.get(mode, mode) for mode in ([modes] if isinstance(modes, str) else modes))
