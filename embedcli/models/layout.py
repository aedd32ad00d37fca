"""The folder layout of sentence-transformers, in both its generations: modules.json and a config
for each module.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from embedcli.errors import ConfigurationError
from embedcli.models.facts import PooledTokens, Pooling
from embedcli.models.hub import ModelFiles

_LAYER_KINDS: dict[str, Literal["dense", "layer_norm"]] = {
    "Dense": "dense",
    "LayerNorm": "layer_norm",
}


@dataclass(frozen=True)
class Layer:
    """A module after pooling: its kind, its folder (none: no weights) and its config."""

    kind: Literal["dense", "layer_norm"]
    folder: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class ModuleList:
    """What modules.json lists after the transformer; nothing where there is no such file."""

    pooling: tuple[Pooling, ...] = ()
    pooled: PooledTokens = "all"
    layers: tuple[Layer, ...] = ()


def read_modules(files: ModelFiles) -> ModuleList:
    """Read modules.json and the configs it points to.

    Raises ConfigurationError for modules that we don't know.
    """
    modules = ModuleList()
    for entry in files.json_value("modules.json") or ():
        library, _, kind = str(entry.get("type", "")).rpartition(".")
        folder = str(entry.get("path", ""))
        if (
            not library.startswith("sentence_transformers")
            or ".." in folder
            or folder.startswith("/")
        ):
            raise ConfigurationError(
                f"{files.id}: its module {entry.get('type')!r} is code of the model's own"
            )
        config = files.json(f"{folder}/config.json") if folder else {}
        if kind == "Pooling":
            pooled: PooledTokens = "text" if config.get("include_prompt", True) is False else "all"
            modules = replace(modules, pooling=_read_pooling(files, config), pooled=pooled)
        elif kind in _LAYER_KINDS:
            layer = Layer(_LAYER_KINDS[kind], folder, config)
            modules = replace(modules, layers=(*modules.layers, layer))
        elif kind not in (
            "Transformer",
            "Normalize",
        ):  # every vector is normalized at the end, unless unwanted
            raise ConfigurationError(f"{files.id}: its module {kind} is not supported")
    return modules


def _read_pooling(files: ModelFiles, config: Mapping[str, Any]) -> tuple[Pooling, ...]:
    """Read the poolings whose vectors are joined: flags up to sentence-transformers 5, then one
    mode or several.
    """
    modes = config.get("pooling_mode")
    if modes is None:
        return tuple(pooling for pooling in Pooling if config.get(pooling.flag)) or (Pooling.MEAN,)
    if not isinstance(modes, list):
        modes = [modes]
    try:
        return tuple(Pooling.parse(mode) for mode in modes)
    except ValueError as error:
        known = ", ".join(Pooling)
        raise ConfigurationError(
            f"{files.id}: unknown pooling {error.args[0]!r}", f"known: {known}"
        ) from None
