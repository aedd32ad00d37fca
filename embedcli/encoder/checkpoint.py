"""A model's directory into the facts of its pipeline: pooling, layers, lengths, dimensions, digests.

Reads the directory's own modules.json and configs; a template family's facts correct or supply the rest.
Reads JSON only: imports no torch, loads no weights.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from embedcli.config import Facts, Space
from embedcli.encoder.layout import Layer, read_modules
from embedcli.encoder.model_files import ModelFiles, files_sha256, tokenizer_files, weight_files
from embedcli.errors import ConfigurationError

POOLINGS = ("cls", "mean", "max", "mean_sqrt_len", "weighted_mean", "last_token")
# Their position table starts after the padding index.
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet"}
_HASH_MAX_LENGTH = 512


@dataclass(frozen=True)
class Wishes:
    """What the user wants otherwise than the model has it; None leaves it as it is."""

    max_length: int | None = None
    dim: int | None = None
    normalize: bool | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """All that is known of a model before it is loaded.

    `pooling` may name several poolings, whose vectors are joined; `full_dim` is the model's own dimension and `dim`
    what is kept of it; `max_length` counts tokens; `pooled` says which tokens are pooled (see config.Facts);
    `own_code` is True where the repository's code is to be run; `adapter` is the folder of the role's adapter;
    `origins` says for each fact who stated it.
    """

    files: ModelFiles
    weights: str
    tokenizer: str
    model_type: str
    pooling: tuple[str, ...]
    layers: tuple[Layer, ...]
    normalize: bool
    full_dim: int
    dim: int
    max_length: int
    facts: Facts = field(default_factory=Facts)
    pooled: str = "all"
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
        layers = [f"{layer.kind}:{layer.config.get('activation_function', '')}".rstrip(":") for layer in self.layers]
        named = [name for name, applies in unusual.items() if applies]
        return (facts.native_class or self.model_type, "+".join(self.pooling), *layers, *named)

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


def prompts(files: ModelFiles) -> dict[str, str]:
    """The model's own prompts by role, from config_sentence_transformers.json."""
    found = files.json("config_sentence_transformers.json").get("prompts") or {}
    return {role: prompt for role, prompt in found.items() if isinstance(prompt, str)}


def read(files: ModelFiles, facts: Facts, wishes: Wishes, adapter: str | None = None) -> Checkpoint:
    """Read what a model's folder says, corrected and supplied by the facts of its family.

    Raises ConfigurationError where the folder can't be used, or can't fulfil the wishes.
    """
    if files.path is None:
        return _read_hash(files, facts, wishes)
    config = files.json("config.json")
    own_code = _own_code(files, config, facts, wishes)
    modules = read_modules(files)
    pooling = modules.pooling if facts.pooling is None else (facts.pooling,)
    if not pooling:
        raise ConfigurationError(
            f"{files.id}: how its tokens become one vector is not known (no modules.json)",
            'pass a template file that says: pooling = "mean" (or "cls", "last_token")',
        )
    if unknown := [name for name in pooling if name not in POOLINGS]:
        raise ConfigurationError(f"{files.id}: unknown pooling {unknown[0]!r}", f"known: {', '.join(POOLINGS)}")
    layers, full_dim = _layers(files, config, facts, wishes, modules.layers, pooling)
    max_length, length_origin = _max_length(files, config, facts, wishes)
    if adapter is not None and not (files.path / adapter / "adapter_config.json").is_file():
        raise ConfigurationError(f"{files.id}: the adapter {adapter} is missing", "is a download unfinished?")
    return Checkpoint(
        files=files,
        weights=files_sha256(files.path, weight_files(files.path, [layer.folder for layer in layers if layer.folder])),
        tokenizer=files_sha256(files.path, tokenizer_files(files.path)),
        model_type=str(config.get("model_type", "")),
        pooling=pooling,
        layers=layers,
        normalize=_normalize(facts, wishes),
        full_dim=full_dim,
        dim=_wished_dim(files, full_dim, wishes),
        max_length=max_length,
        facts=facts,
        pooled=facts.pooled or modules.pooled,
        lower_case=bool(files.json("sentence_bert_config.json").get("do_lower_case", False)),
        own_code=own_code,
        adapter=adapter,
        origins=_origins(facts, wishes, length_origin),
    )


def _read_hash(files: ModelFiles, facts: Facts, wishes: Wishes) -> Checkpoint:
    return Checkpoint(
        files=files,
        weights="",
        tokenizer="",
        model_type="hash",
        pooling=("hash",),
        layers=(),
        normalize=_normalize(facts, wishes),
        full_dim=files.hash_dim,
        dim=_wished_dim(files, files.hash_dim, wishes),
        max_length=wishes.max_length or facts.max_length or _HASH_MAX_LENGTH,
        origins=_origins(facts, wishes, "the pseudo-model"),
    )


def _normalize(facts: Facts, wishes: Wishes) -> bool:
    stated = (wishes.normalize, facts.normalize)
    return next((value for value in stated if value is not None), True)


def _wished_dim(files: ModelFiles, full_dim: int, wishes: Wishes) -> int:
    if wishes.dim is not None and wishes.dim > full_dim:
        raise ConfigurationError(f"--dim {wishes.dim}: {files.id} has {full_dim} dimensions")
    return wishes.dim or full_dim


def _origins(facts: Facts, wishes: Wishes, length_origin: str) -> dict[str, str]:
    """Who stated what, for people."""
    stated = {
        "pooling": "modules.json" if facts.pooling is None else "family",
        "max_length": length_origin,
        "normalize": "default" if facts.normalize is None else "family",
        "pooled": "modules.json" if facts.pooled is None else "family",
    }
    wished = {"max_length": wishes.max_length, "normalize": wishes.normalize, "dim": wishes.dim}
    return stated | {name: "option" for name, value in wished.items() if value is not None}


def _own_code(files: ModelFiles, config: Mapping[str, Any], facts: Facts, wishes: Wishes) -> bool:
    """Whether to run the repository's code: only where the user trusts it, and it is all in the repository.

    A config that brings code often names a native class as well, which loads and gives other vectors.
    """
    auto_map = config.get("auto_map") or {}
    classes = [value if isinstance(value, str) else str(value) for value in auto_map.values()]
    if wishes.trust_remote_code and classes:
        if elsewhere := [name for name in classes if "--" in name]:
            raise ConfigurationError(
                f"{files.id}: its code is in another repository: {elsewhere[0]}", _native_hint(facts)
            )
        return True
    if facts.own_code == "replaced" or not (classes or facts.own_code == "required"):
        return False
    code = classes[0] if classes else "its own modeling code"
    raise ConfigurationError(
        f"{files.id}: needs code of its own repository ({code}), which is not run unasked", _native_hint(facts)
    )


def _native_hint(facts: Facts) -> str:
    if facts.native is not None:
        return f"the same weights for transformers' own class: --model {facts.native}"
    return "if you have read it: --trust-remote-code --revision <the commit, 40 hex digits>"


def _layers(
    files: ModelFiles,
    config: Mapping[str, Any],
    facts: Facts,
    wishes: Wishes,
    layers: tuple[Layer, ...],
    pooling: tuple[str, ...],
) -> tuple[tuple[Layer, ...], int]:
    """The layers after pooling, and the dimension they lead to."""
    if facts.dense_by_dim is not None and wishes.dim is not None:
        layers = (_dense_of_dim(files, facts.dense_by_dim, wishes.dim),)
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
        raise ConfigurationError(f"--dim {dim}: {files.id} has no layer for it", f"its dimensions: {known}")
    return Layer("dense", folder, config)


def _dim(files: ModelFiles, config: Mapping[str, Any], pooling: tuple[str, ...], layers: tuple[Layer, ...]) -> int:
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
    offset = int(config.get("pad_token_id", 1)) + 1 if config.get("model_type") in _OFFSET_POSITIONS else 0
    return positions - offset


def _max_length(files: ModelFiles, config: Mapping[str, Any], facts: Facts, wishes: Wishes) -> tuple[int, str]:
    """The most tokens of a text, and who says so: the user, the family, or the model's own configs."""
    positions = _max_positions(config)
    if wishes.max_length is not None and positions is not None and wishes.max_length > positions:
        raise ConfigurationError(f"--max-length {wishes.max_length}: {files.id} has {positions} positions")
    tokenizer = files.json("tokenizer_config.json").get("model_max_length")
    known = {
        "option": wishes.max_length,
        "family": facts.max_length,
        "sentence_bert_config.json": files.json("sentence_bert_config.json").get("max_seq_length"),
        "tokenizer_config.json": int(tokenizer) if isinstance(tokenizer, (int, float)) and tokenizer < 1e9 else None,
        "config.json": positions,
    }
    for origin, value in known.items():
        if isinstance(value, int) and value > 0:
            return (value, origin) if positions is None or value <= positions else (positions, "config.json")
    raise ConfigurationError(f"{files.id}: its max length is not known", "pass --max-length")
