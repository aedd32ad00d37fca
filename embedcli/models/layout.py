"""The folder layout of sentence-transformers, in both its generations: modules.json and a config
for each module, as a pipeline that is run in order.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from embedcli.errors import ConfigurationError
from embedcli.models.facts import PooledTokens, Pooling
from embedcli.models.hub import ModelFiles
from embedcli.models.schemas import (
    HARMLESS_KWARGS,
    TRANSFORMER_CONFIG_NAMES,
    DenseConfig,
    DropoutConfig,
    LayerNormConfig,
    ModuleEntry,
    NormalizeConfig,
    PoolingConfig,
    RouterConfig,
    SentenceConfig,
    TransformerConfig,
    convert,
    read_json,
)

_TOKENS, _TEXT = "token_embeddings", "sentence_embedding"
_NO_CONFIG = TransformerConfig()
# The routes of a Router for texts that we call passages, in sentence-transformers' order.
_PASSAGE_ROUTES = ("document", "passage", "corpus")


@dataclass(frozen=True)
class Module:
    """A step behind the transformer, on the states of tokens or on the vectors of texts.

    `folder` holds its weights; None where it has none, or its config says all.
    """

    kind: Literal["dense", "layer_norm", "normalize"]
    folder: Path | None = None
    dense: DenseConfig | None = None
    dimension: int = 0

    @property
    def name(self) -> str:
        """What provenance calls it: its kind, and a Dense layer's activation."""
        return f"{self.kind}:{self.dense.activation_function}" if self.dense else self.kind


@dataclass(frozen=True)
class Pipeline:
    """What a folder's modules.json lists, in its order.

    source: what gives the token states, the folder of a `transformer` or of a `static` table.
    pooling: several are joined; none where nothing says it. normalized: the last module
    normalizes. The settings are those of the transformer's own config.
    """

    source: Literal["transformer", "static"]
    folder: Path
    settings: TransformerConfig = _NO_CONFIG
    token_modules: tuple[Module, ...] = ()
    pooling: tuple[Pooling, ...] = ()
    pooled: PooledTokens = "all"
    text_modules: tuple[Module, ...] = ()
    normalized: bool = False

    @property
    def modules(self) -> tuple[Module, ...]:
        """The modules that may have weights."""
        return (*self.token_modules, *self.text_modules)


@dataclass(frozen=True)
class Layout:
    """A folder's pipelines by route; one, named "", unless the model has a Router."""

    routes: Mapping[str, Pipeline]
    default_route: str | None = None

    def pipeline_of(self, role: str, where: str) -> Pipeline:
        """Return the pipeline for a role. Raises ConfigurationError where no route is for it."""
        if "" in self.routes:
            return self.routes[""]
        names = _PASSAGE_ROUTES if role == "passage" else (role,)
        for name in (*names, self.default_route):
            if name in self.routes:
                return self.routes[name]
        raise ConfigurationError(
            f"{where}: its Router has no route for role {role!r}",
            f"its routes: {', '.join(sorted(self.routes))}",
        )


def read_layout(files: ModelFiles) -> Layout:
    """Read modules.json and the configs it points to; without it, the transformer alone.

    Raises ConfigurationError for whatever isn't known to us, by its name.
    """
    assert files.path is not None
    check_regular(files.path)
    path = files.path / "modules.json"
    value = read_json(path)
    if value is None:
        return Layout({"": Pipeline("transformer", files.path, _read_settings(files.path))})
    entries = convert(path, value, list[ModuleEntry])
    if not entries:
        raise ConfigurationError(f"{path}: lists no modules")
    for entry in entries:
        if entry.kwargs and _kind_of(path, entry.type) != "Transformer":
            raise ConfigurationError(f"{path}: kwargs of module {entry.path!r} aren't supported")
    steps = [(entry.type, _inside(files.path, entry.path, path)) for entry in entries]
    if _kind_of(path, steps[0][0]) in ("Router", "Asym"):
        return _read_router(steps[0][1], steps[1:], path)
    return Layout({"": _read_pipeline(steps, path)})


def _read_router(folder: Path, following: list[tuple[str, Path]], where: Path) -> Layout:
    """Read each route of a Router, with the modules that follow it."""
    path = folder / "router_config.json"
    value = read_json(path)
    if value is None:
        path = folder / "config.json"  # of older versions
        value = read_json(path)
    if value is None:
        raise ConfigurationError(f"{folder}: router_config.json is missing")
    config = convert(path, value, RouterConfig)
    if config.parameters.route_mappings:
        raise ConfigurationError(f"{path}: route_mappings aren't supported")
    routes = {}
    for route, names in config.structure.items():
        unknown = [name for name in names if name not in config.types]
        if unknown or not route:
            raise ConfigurationError(f"{path}: route {route!r} has no type for {unknown}")
        steps = [(config.types[name], _inside(folder, name, path)) for name in names]
        routes[route] = _read_pipeline([*steps, *following], where)
    return Layout(routes, config.parameters.default_route)


def _read_pipeline(steps: list[tuple[str, Path]], where: Path) -> Pipeline:
    """Read the modules of a pipeline, the first of which takes texts."""
    (first_type, folder), *following = steps
    kind = _kind_of(where, first_type)
    if kind == "Transformer":
        pipeline = Pipeline("transformer", folder, settings=_read_settings(folder))
    elif kind == "StaticEmbedding":
        pipeline = Pipeline("static", folder, pooling=(Pooling.MEAN,))
    else:
        raise _unsupported(where, kind)
    for module_type, module_folder in following:
        pipeline = _append(pipeline, _kind_of(where, module_type), module_folder, where)
    return pipeline


def _append(pipeline: Pipeline, kind: str, folder: Path, where: Path) -> Pipeline:
    """Return a pipeline with one more module."""
    if kind == "Dropout":
        _read_config(folder, DropoutConfig, {})
        return pipeline
    if kind == "Pooling":
        if pipeline.pooling:
            raise ConfigurationError(f"{where}: pools twice")
        config = _read_config(folder, PoolingConfig)
        pooled: PooledTokens = "all" if config.include_prompt else "text"
        return replace(pipeline, pooling=_poolings(folder, config), pooled=pooled)
    module, level = _read_module(kind, folder, where)
    if level == _TOKENS and not pipeline.pooling:
        return replace(pipeline, token_modules=(*pipeline.token_modules, module))
    if level == _TEXT and pipeline.pooling:
        return replace(
            pipeline,
            text_modules=(*pipeline.text_modules, module),
            normalized=module.kind == "normalize",
        )
    raise ConfigurationError(f"{where}: module {folder.name} works on {level} at the wrong place")


def _read_module(kind: str, folder: Path, where: Path) -> tuple[Module, str]:
    """Return a module, and what it works on."""
    if kind == "Dense":
        dense = _read_config(folder, DenseConfig)
        level = _level_of(folder, dense)
        return Module("dense", folder, dense=dense), level
    if kind == "LayerNorm":
        return Module(
            "layer_norm", folder, dimension=_read_config(folder, LayerNormConfig).dimension
        ), _TEXT
    if kind == "Normalize":
        return Module("normalize"), _level_of(folder, _read_config(folder, NormalizeConfig, {}))
    raise _unsupported(where, kind)


def _level_of(folder: Path, config: DenseConfig | NormalizeConfig) -> str:
    output = config.module_output_name or config.module_input_name
    if output != config.module_input_name or output not in (_TOKENS, _TEXT):
        raise ConfigurationError(
            f"{folder / 'config.json'}: module_input_name {config.module_input_name!r} and "
            f"module_output_name {config.module_output_name!r} aren't supported"
        )
    return output


def _read_config(folder: Path, kind: Any, default: object = None) -> Any:
    """Read a module's config. Raises ConfigurationError where there is none, and no default."""
    path = folder / "config.json"
    value = read_json(path)
    if value is None:
        value = default
    if value is None:
        raise ConfigurationError(f"{path} is missing", "was the folder copied without subfolders?")
    return convert(path, value, kind)


def _poolings(folder: Path, config: PoolingConfig) -> tuple[Pooling, ...]:
    """Return the poolings whose vectors are joined; sentence-transformers averages where none is
    named.
    """
    modes = config.pooling_mode
    if modes is None:
        flags = tuple(pooling for pooling in Pooling if getattr(config, pooling.flag))
        return flags or (Pooling.MEAN,)
    try:
        return tuple(Pooling.parse(mode) for mode in ([modes] if isinstance(modes, str) else modes))
    except ValueError as error:
        raise ConfigurationError(
            f"{folder}: unknown pooling {error.args[0]!r}", f"known: {', '.join(Pooling)}"
        ) from None


def _read_settings(folder: Path) -> TransformerConfig:
    """Read how the transformer is run. Raises ConfigurationError for what we don't do."""
    for name in TRANSFORMER_CONFIG_NAMES:
        value = read_json(folder / name)
        if value:  # sentence-transformers passes over an empty one
            settings = convert(folder / name, value, TransformerConfig)
            for problem in _unsupported_settings(settings):
                raise ConfigurationError(f"{folder / name}: {problem}")
            return settings
    return _NO_CONFIG


def _unsupported_settings(settings: TransformerConfig) -> Iterator[str]:
    """Yield what settings ask for that would change vectors and that we don't do."""
    if settings.transformer_task != "feature-extraction":
        yield f"transformer_task {settings.transformer_task!r} isn't supported"
    for name in ("processing_kwargs", "query_expansion", "tokenizer_name_or_path"):
        if getattr(settings, name):
            yield f"{name} isn't supported"
    given = {
        "model": {**settings.model_args, **settings.model_kwargs},
        "processor": settings.tokenizer_options,
        "config": {**settings.config_args, **settings.config_kwargs},
    }
    for kind, values in given.items():
        for key in sorted(values.keys() - HARMLESS_KWARGS[kind]):
            yield f"{key!r} among the arguments for the {kind} isn't supported"
    if settings.modality_config is not None:
        yield from _unsupported_modality(settings)


def _unsupported_modality(settings: TransformerConfig) -> Iterator[str]:
    modalities = settings.modality_config or {}
    if "message" in modalities:
        yield "modality_config has 'message': chat-format models aren't supported"
    text = modalities.get("text")
    if not isinstance(text, dict):
        yield "modality_config has no 'text'"
        return
    expected = {"method": "forward", "method_output_name": "last_hidden_state"}
    for key in sorted(text.keys() | expected.keys()):
        if text.get(key) != expected.get(key):
            yield f"modality_config: {key} {text.get(key)!r} of 'text' isn't supported"
    if settings.module_output_name != _TOKENS:
        yield f"module_output_name {settings.module_output_name!r} isn't supported"


def read_sentence_config(files: ModelFiles) -> SentenceConfig:
    """Read config_sentence_transformers.json: prompts, similarity, dimensions.

    Raises ConfigurationError.
    """
    if files.path is None:
        return SentenceConfig()
    path = files.path / "config_sentence_transformers.json"
    config = convert(path, read_json(path) or {}, SentenceConfig)
    if config.model_type != "SentenceTransformer":
        raise ConfigurationError(f"{path}: models of type {config.model_type} aren't supported")
    return config


def _kind_of(where: Path, module_type: str) -> str:
    """Return the class of a module. Raises ConfigurationError where it isn't of the library's own."""
    library, _, kind = module_type.rpartition(".")
    if library.split(".")[0] != "sentence_transformers":
        raise ConfigurationError(f"{where}: its module {module_type!r} is code of the model's own")
    return kind


def _inside(root: Path, folder: str, where: Path) -> Path:
    """Return a module's folder. Raises ConfigurationError where it isn't inside the model's."""
    parts = Path(folder).parts
    if ".." in parts or Path(folder).is_absolute():
        raise ConfigurationError(f"{where}: the folder {folder!r} is outside of the model's")
    inside = root.joinpath(*parts)
    check_regular(inside)
    return inside


def _unsupported(where: Path, kind: str) -> ConfigurationError:
    return ConfigurationError(f"{where}: its module {kind} is not supported")


def check_regular(folder: Path) -> None:
    """See that a model's folder holds nothing to wait for: libraries would read FIFOs and devices
    for ever. Raises ConfigurationError.
    """
    try:
        paths = [*folder.iterdir(), *folder.glob("*/*")]
    except OSError:
        return  # a folder that isn't there is a matter of who looks for a file in it
    for path in paths:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ConfigurationError(f"{path}: not a regular file")
