"""A model's directory into the facts of its pipeline: pooling, layers, lengths, dimensions, digests.

Reads the directory's own modules.json and configs; a template family's facts correct or supply the
rest. Reads JSON only: imports no torch, loads no weights.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from embedcli.errors import ConfigurationError
from embedcli.models.facts import FamilyFacts, PooledTokens, Pooling
from embedcli.models.hub import ModelFiles, files_sha256, tokenizer_files, weight_files
from embedcli.models.layout import Layer, ModuleList, read_modules
from embedcli.models.request import NO_REQUEST, ModelRequest
from embedcli.recipe import Space

# Their position table starts after the padding index.
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet"}
_HASH_MAX_LENGTH = 512


@dataclass(frozen=True)
class ModelSpec:
    """All that is known of a model before it is loaded.

    `pooling` may name several poolings, whose vectors are joined; it is empty for the pseudo-model.
    `full_dim` is the model's own dimension and `dim` what is kept of it; `max_length` counts
    tokens; `pooled` says which tokens are pooled (see FamilyFacts); `own_code` is True where the
    repository's code is to be run; `adapter` is the folder of the role's adapter; `origins` says
    for each fact who stated it.
    """

    files: ModelFiles
    weights: str
    tokenizer: str
    model_type: str
    pooling: tuple[Pooling, ...]
    layers: tuple[Layer, ...]
    normalize: bool
    full_dim: int
    dim: int
    max_length: int
    facts: FamilyFacts = field(default_factory=FamilyFacts)
    pooled: PooledTokens = "all"
    lower_case: bool = False
    own_code: bool = False
    adapter: str | None = None
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_hash(self) -> bool:
        """True for the pseudo-model that needs no torch."""
        return self.files.path is None

    @property
    def pipeline(self) -> tuple[str, ...]:
        """The modules by name, and what is unusual about them."""
        facts = self.facts
        unusual = {
            "bidirectional": facts.attention == "bidirectional",
            "causal": facts.attention == "causal",
            "own code": self.own_code,
            "latent attention": bool(facts.latent_attention),
            f"pooled: {self.pooled}": self.pooled != "all",
            f"begin: {facts.begin_token}": facts.begin_token is not None,
            f"end: {facts.end_token}": facts.end_token is not None,
        }
        layers = [
            f"{layer.kind}:{layer.config.get('activation_function', '')}".rstrip(":")
            for layer in self.layers
        ]
        named = [name for name, applies in unusual.items() if applies]
        pooling = "+".join(self.pooling) or "hash"
        return (facts.native_class or self.model_type, pooling, *layers, *named)

    @property
    def space(self) -> Space:
        """What must be equal for vectors to be comparable."""
        return Space(
            model=self.files.id,
            revision=self.files.revision,
            weights=self.weights,
            tokenizer=self.tokenizer,
            pipeline=self.pipeline,
            dim=self.dim,
            normalized=self.normalize,
        )


def read_prompts(files: ModelFiles) -> dict[str, str]:
    """Read the model's own prompts by role, from config_sentence_transformers.json."""
    prompts = files.json("config_sentence_transformers.json").get("prompts") or {}
    return {role: prompt for role, prompt in prompts.items() if isinstance(prompt, str)}


def read_spec(
    files: ModelFiles,
    facts: FamilyFacts,
    request: ModelRequest = NO_REQUEST,
    adapter: str | None = None,
) -> ModelSpec:
    """Read what a model's folder says, corrected and supplied by the facts of its family, and by
    what is asked for.

    Raises ConfigurationError where the folder can't be used, or can't fulfil the request.
    """
    if files.path is None:
        return _read_hash(files, facts, request)
    config = files.json("config.json")
    own_code = _own_code(files, config, facts, request)
    modules = read_modules(files)
    pooling = _pooling(files, modules, facts)
    layers, full_dim = _layers(files, config, facts, request, modules.layers, pooling)
    max_length, length_origin = _max_length(files, config, facts, request)
    if adapter is not None and not (files.path / adapter / "adapter_config.json").is_file():
        raise ConfigurationError(
            f"{files.id}: the adapter {adapter} is missing", "is a download unfinished?"
        )
    folders = [layer.folder for layer in layers if layer.folder]
    return ModelSpec(
        files=files,
        weights=files_sha256(files.path, weight_files(files.path, folders)),
        tokenizer=files_sha256(files.path, tokenizer_files(files.path)),
        model_type=str(config.get("model_type", "")),
        pooling=pooling,
        layers=layers,
        normalize=_normalize(facts, request),
        full_dim=full_dim,
        dim=_dim_kept(files, full_dim, request),
        max_length=max_length,
        facts=facts,
        pooled=facts.pooled or modules.pooled,
        lower_case=bool(files.json("sentence_bert_config.json").get("do_lower_case", False)),
        own_code=own_code,
        adapter=adapter,
        origins=_origins(facts, request, length_origin),
    )


def _read_hash(files: ModelFiles, facts: FamilyFacts, request: ModelRequest) -> ModelSpec:
    return ModelSpec(
        files=files,
        weights="",
        tokenizer="",
        model_type="hash",
        pooling=(),
        layers=(),
        normalize=_normalize(facts, request),
        full_dim=files.hash_dim,
        dim=_dim_kept(files, files.hash_dim, request),
        max_length=request.max_length or facts.max_length or _HASH_MAX_LENGTH,
        origins=_origins(facts, request, "the pseudo-model"),
    )


def _pooling(files: ModelFiles, modules: ModuleList, facts: FamilyFacts) -> tuple[Pooling, ...]:
    if facts.pooling is not None:
        return (facts.pooling,)
    if not modules.pooling:
        raise ConfigurationError(
            f"{files.id}: how its tokens become one vector is not known (no modules.json)",
            'pass a template file that says: pooling = "mean" (or "cls", "last_token")',
        )
    return modules.pooling


def _normalize(facts: FamilyFacts, request: ModelRequest) -> bool:
    if request.normalize is not None:
        return request.normalize
    return facts.normalize if facts.normalize is not None else True


def _dim_kept(files: ModelFiles, full_dim: int, request: ModelRequest) -> int:
    if request.dim is not None and request.dim > full_dim:
        raise ConfigurationError(f"--dim {request.dim}: {files.id} has {full_dim} dimensions")
    return request.dim or full_dim


def _origins(facts: FamilyFacts, request: ModelRequest, length_origin: str) -> dict[str, str]:
    """Return who stated what, for people."""
    stated = {
        "pooling": "modules.json" if facts.pooling is None else "family",
        "max_length": length_origin,
        "normalize": "default" if facts.normalize is None else "family",
        "pooled": "modules.json" if facts.pooled is None else "family",
    }
    requested = {
        "max_length": request.max_length,
        "normalize": request.normalize,
        "dim": request.dim,
    }
    return stated | {name: "option" for name, value in requested.items() if value is not None}


def _own_code(
    files: ModelFiles, config: Mapping[str, Any], facts: FamilyFacts, request: ModelRequest
) -> bool:
    """Decide whether to run the repository's code: only where the user trusts it, and all of it is
    in the repository.

    A config that brings code often names a native class as well, which loads and gives other
    vectors.
    """
    auto_map = config.get("auto_map") or {}
    classes = [value if isinstance(value, str) else str(value) for value in auto_map.values()]
    if request.trust_remote_code and classes:
        elsewhere = [name for name in classes if "--" in name]
        if elsewhere:
            raise ConfigurationError(
                f"{files.id}: its code is in another repository: {elsewhere[0]}",
                _native_hint(facts),
            )
        return True
    if facts.own_code == "replaced" or not (classes or facts.own_code == "required"):
        return False
    code = classes[0] if classes else "its own modeling code"
    raise ConfigurationError(
        f"{files.id}: needs code of its own repository ({code}), which is not run unasked",
        _native_hint(facts),
    )


def _native_hint(facts: FamilyFacts) -> str:
    if facts.native is not None:
        return f"the same weights for transformers' own class: --model {facts.native}"
    return "if you have read it: --trust-remote-code --revision <the commit, 40 hex digits>"


def _layers(
    files: ModelFiles,
    config: Mapping[str, Any],
    facts: FamilyFacts,
    request: ModelRequest,
    layers: tuple[Layer, ...],
    pooling: tuple[Pooling, ...],
) -> tuple[tuple[Layer, ...], int]:
    """Return the layers after pooling, and the dimension they lead to."""
    if facts.dense_by_dim is not None and request.dim is not None:
        layers = (_dense_of_dim(files, facts.dense_by_dim, request.dim),)
    full_dim = _dim(files, config, pooling, layers)
    if facts.layer_norm:
        layers = (*layers, Layer("layer_norm", "", {"dimension": full_dim}))
    return layers, full_dim


def _dense_of_dim(files: ModelFiles, pattern: str, dim: int) -> Layer:
    assert files.path is not None
    folder = pattern.replace("{dim}", str(dim))
    config = files.json(f"{folder}/config.json")
    if not config:
        shape = re.compile(re.escape(pattern).replace(re.escape("{dim}"), r"(\d+)"))
        names = [shape.fullmatch(path.name) for path in files.path.iterdir()]
        known = ", ".join(map(str, sorted(int(match.group(1)) for match in names if match)))
        raise ConfigurationError(
            f"--dim {dim}: {files.id} has no layer for it", f"its dimensions: {known}"
        )
    return Layer("dense", folder, config)


def _dim(
    files: ModelFiles,
    config: Mapping[str, Any],
    pooling: tuple[Pooling, ...],
    layers: tuple[Layer, ...],
) -> int:
    for layer in reversed(layers):
        if layer.kind == "dense":
            return int(layer.config["out_features"])
    inner = config.get("text_config") or {}
    for source in (config, inner):
        for key in ("hidden_size", "d_model", "n_embd", "dim"):
            if isinstance(source.get(key), int):
                return int(source[key]) * len(pooling)
    raise ConfigurationError(f"{files.id}: config.json does not say the model's hidden_size")


def _max_positions(config: Mapping[str, Any]) -> int | None:
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions < 1:
        return None
    offset = (
        int(config.get("pad_token_id", 1)) + 1
        if config.get("model_type") in _OFFSET_POSITIONS
        else 0
    )
    return positions - offset


def _max_length(
    files: ModelFiles, config: Mapping[str, Any], facts: FamilyFacts, request: ModelRequest
) -> tuple[int, str]:
    """Return the maximum tokens of a text, and who says so: the user, the family, or the model's
    own configs.
    """
    positions = _max_positions(config)
    if request.max_length is not None and positions is not None and request.max_length > positions:
        raise ConfigurationError(
            f"--max-length {request.max_length}: {files.id} has {positions} positions"
        )
    tokenizer = files.json("tokenizer_config.json").get("model_max_length")
    known = {
        "option": request.max_length,
        "family": facts.max_length,
        "sentence_bert_config.json": files.json("sentence_bert_config.json").get("max_seq_length"),
        "tokenizer_config.json": int(tokenizer)
        if isinstance(tokenizer, (int, float)) and tokenizer < 1e9
        else None,
        "config.json": positions,
    }
    for origin, value in known.items():
        if isinstance(value, int) and value > 0:
            return (
                (value, origin)
                if positions is None or value <= positions
                else (positions, "config.json")
            )
    raise ConfigurationError(f"{files.id}: its max length is not known", "pass --max-length")
