"""What lies in the folders of a pipeline: the transformer's config, the files of weights, whether its
sizes are possible, and the digests by which equal models are known.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from embedcli.errors import ConfigurationError
from embedcli.models import weights
from embedcli.models.hub import ModelFiles, find_base
from embedcli.models.layout import Module, Pipeline, check_regular
from embedcli.models.schemas import read_json

# Names and programs, not facts: two configs that differ only here make the same vectors.
_HARMLESS_CONFIG_KEYS = {
    *("_name_or_path", "_commit_hash", "transformers_version", "torch_dtype", "dtype"),
    *("use_cache", "return_dict", "output_hidden_states", "output_attentions", "torchscript"),
    *("id2label", "label2id", "problem_type", "finetuning_task", "task_specific_params"),
}
SIGNS_OF_A_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
# They are in the recipe, as the maximum length of the role's texts.
_LENGTHS = {"max_seq_length", "query_length", "document_length"}
# What a config may ask for before anything is allocated.
_LAYERS = re.compile(r"num_hidden_layers|num_layers|n_layers?$|decoder_layers|encoder_layers")
_SIZES = re.compile(r"size|dim|d_model|d_ff|heads|num_|n_|vocab|rank|max_position")
_MAX_LABELS = 2**16
_POSITION_TABLE = re.compile(r"(position_embeddings|wpe|embed_positions|positions_embed)\.weight$")
# A config may describe that many times the numbers that the weights hold: the tables of positions
# of a long context are computed, not stored.
_MAX_EXPANSION = 8
_MIN_NUMBERS = 2**28


@dataclass(frozen=True)
class Contents:
    """What lies in the folders of a pipeline: the transformer's config, the files of weights, and
    what the digests of the space go over.
    """

    base: Path
    config: Mapping[str, Any]
    has_position_table: bool
    weight_files: tuple[Path, ...]
    adapters: tuple[Path, ...]
    tokenizer: str
    digested: object


def read_contents(files: ModelFiles, pipeline: Pipeline) -> Contents:
    """Read the configs of a pipeline and see that its weights are there. Raises ConfigurationError."""
    folder, base = pipeline.folder, pipeline.folder
    adapters: tuple[Path, ...] = ()
    adapter_config = None
    if pipeline.source == "transformer" and (folder / weights.ADAPTER_CONFIG).exists():
        adapter_config = weights.read_adapter_config(folder)
        base = _find_base(files, folder)
        adapters = (folder,) if base != folder else ()  # else transformers loads it
    config = _read_config(base, pipeline)
    if pipeline.source == "static":
        weight_files = [existing(folder / weights.SINGLE)]
    else:
        weight_files = weights.transformer_weights(base)
    _check_sizes(base, config, weight_files)
    if adapter_config is not None:
        weight_files.append(weights.adapter_weights(folder))
    weight_files += weights_of(pipeline.modules)
    settings = msgspec.to_builtins(pipeline.settings)
    has_tokenizer = any((folder / name).is_file() for name in SIGNS_OF_A_TOKENIZER)
    return Contents(
        base=base,
        config=config,
        has_position_table=_has_position_table(weight_files),
        weight_files=tuple(weight_files),
        adapters=adapters,
        tokenizer=weights.tokenizer_sha256(folder if has_tokenizer else base),
        digested=[
            {key: config[key] for key in config.keys() - _HARMLESS_CONFIG_KEYS},
            adapter_config,
            {key: settings[key] for key in settings.keys() - _LENGTHS},
            [pipeline.pooling, pipeline.pooled, pipeline.normalized],
            [_as_json(module) for module in pipeline.modules],
        ],
    )


def _has_position_table(weight_files: Iterable[Path]) -> bool:
    """Tell whether positions are looked up in a table of learnt ones, by the names of tensors."""
    return any(
        _POSITION_TABLE.search(name)
        for path in weight_files
        for name in weights.tensor_shapes(path)
    )


def _as_json(module: Module) -> object:
    return [module.kind, module.dimension, msgspec.to_builtins(module.dense)]


def weights_of(modules: Iterable[Module]) -> list[Path]:
    """List the files of weights of some modules. Raises ConfigurationError where one is missing, or
    of other shapes than its config says.
    """
    paths = []
    for module in modules:
        if module.folder is None:
            continue
        path = existing(module.folder / weights.SINGLE)
        shape = weights.tensor_shapes(path).get("linear.weight")
        if module.dense and shape != (module.dense.out_features, module.dense.in_features):
            raise ConfigurationError(
                f"{path}: its linear.weight is {shape}, not as its config says"
            )
        paths.append(path)
    return paths


def existing(path: Path) -> Path:
    """Return the path of a file of weights. Raises ConfigurationError where it is missing."""
    if not path.is_file():
        raise ConfigurationError(f"{path.parent}: the weights file {path.name} is missing")
    return path


def _find_base(files: ModelFiles, folder: Path) -> Path:
    """Return the folder of the model that an adapter was trained on. Raises ConfigurationError."""
    if (folder / "config.json").is_file():
        return folder  # the adapter lies beside the model that it was trained on
    path = folder / weights.ADAPTER_CONFIG
    config = read_json(path)
    base = find_base(config.get("base_model_name_or_path"), files, path)
    if not (base / "config.json").is_file() or (base / weights.ADAPTER_CONFIG).is_file():
        raise ConfigurationError(f"{path}: its base {base} is no model")
    check_regular(base)
    return base


def _read_config(base: Path, pipeline: Pipeline) -> dict[str, Any]:
    """Read config.json. Raises ConfigurationError where it can't be used."""
    path = base / "config.json"
    config = read_json(path)
    if config is None and pipeline.source == "static":
        return {}
    if config is None:
        raise ConfigurationError(f"{base}: no model there (config.json is missing)")
    if not isinstance(config, dict):
        raise ConfigurationError(f"{path}: not an object")
    for key, kind in (("model_type", str), ("text_config", dict)):
        if not isinstance(config.get(key, kind()), kind | None):
            raise ConfigurationError(f"{path}: {key} is no {kind.__name__}")
    if "transformers_weights" in config:
        raise ConfigurationError(
            f"{path}: transformers_weights names other weights than the folder's: not supported"
        )
    return config


def _check_sizes(base: Path, config: Mapping[str, Any], weight_files: Iterable[Path]) -> None:
    """See that the sizes in config.json go with the weights, before anything is allocated.

    A layer has one tensor at least; a table has a row for each token or position. Raises
    ConfigurationError.
    """
    numbers, tensors = weights.measure(weight_files)
    hidden_size = config.get("hidden_size")
    most_rows = max(_MAX_EXPANSION * numbers, _MIN_NUMBERS)
    if isinstance(hidden_size, int) and hidden_size > 0:
        most_rows //= hidden_size
    for key, value in _numbers(config):
        if _LAYERS.search(key):
            limit = tensors
        elif "label" in key:
            limit = _MAX_LABELS
        elif _SIZES.search(key):
            limit = most_rows
        else:
            continue
        if not -1 <= value <= limit:
            raise ConfigurationError(
                f"{base / 'config.json'}: {key} is {value:,}, the weights allow {limit:,} at most"
            )


def _numbers(config: Mapping[str, Any], depth: int = 0) -> Iterable[tuple[str, int]]:
    """Yield all whole numbers of a config with their keys, those of nested configs included."""
    for key, value in config.items():
        if isinstance(value, bool):
            continue
        if isinstance(value, int):
            yield key, value
        elif isinstance(value, dict) and depth < 3:
            yield from _numbers(value, depth + 1)


def hidden_size(files: ModelFiles, config: Mapping[str, Any], pipeline: Pipeline) -> int:
    """Return the dimension of a token's state. Raises ConfigurationError."""
    if pipeline.source == "static":
        return _static_dim(pipeline.folder)
    for source in (config, config.get("text_config") or {}):
        for key in ("word_embed_proj_dim", "hidden_size", "d_model", "n_embd", "dim"):
            if isinstance(source.get(key), int):
                return int(source[key])
    raise ConfigurationError(f"{files.id}: config.json does not say the model's hidden_size")


def _static_dim(folder: Path) -> int:
    path = folder / weights.SINGLE
    shapes = weights.tensor_shapes(path)
    name = "embedding.weight" if "embedding.weight" in shapes else "embeddings"
    shape = shapes.get(name, ())
    by_token = [shapes[key] for key in ("mapping", "weights") if key in shapes]
    if len(shape) == 2 and min(shape) > 0 and all(len(other) == 1 for other in by_token):
        return shape[1]
    raise ConfigurationError(
        f"{path}: holds no table of vectors: {', '.join(sorted(shapes))[:200]}"
    )
