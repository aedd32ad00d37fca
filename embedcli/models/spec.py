"""A model's folder into the facts of its pipeline: pooling, modules, lengths, dimensions, digests.

Reads the folder's own modules.json and configs; a template family's facts correct or supply the
rest. Reads JSON and headers only: imports no torch, loads no weights.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from embedcli.errors import ConfigurationError
from embedcli.models import weights
from embedcli.models.contents import existing, hidden_size, read_contents, weights_of
from embedcli.models.facts import FamilyFacts, PooledTokens, Pooling
from embedcli.models.hub import ModelFiles
from embedcli.models.layout import (
    Module,
    Pipeline,
    read_layout,
    read_sentence_config,
)
from embedcli.models.request import NO_REQUEST, ModelRequest
from embedcli.models.schemas import (
    DenseConfig,
    SentenceConfig,
    convert,
    read_json,
)
from embedcli.models.tokens import added_tokens, read_max_length, truncation_side
from embedcli.recipe import Space

_HASH_MAX_LENGTH = 512


@dataclass(frozen=True)
class ModelSpec:
    """All that is known of a model before it is loaded.

    `weights`, `tokenizer` and `config` are digests of what is loaded for any role; `source` is
    where the token states come from, in `folder`; `base` is where that folder's transformer lies,
    another one for a folder that holds an adapter alone. `pooling` may name several poolings, whose
    vectors are joined; it is empty for the pseudo-model. `full_dim` is the model's own dimension
    and `dim` what is kept of it; `max_length` counts tokens; `pooled` says which tokens are pooled
    (see FamilyFacts); `begin`, `end` are tokens that stand around every text; `own_code` is True
    where the repository's code is to be run; `adapters` are merged into the weights, in this order;
    `origins` says for each fact who stated it.
    """

    files: ModelFiles
    weights: str
    tokenizer: str
    config: str
    model_type: str
    pooling: tuple[Pooling, ...]
    normalize: bool
    full_dim: int
    dim: int
    max_length: int
    source: Literal["transformer", "static", "hash"] = "transformer"
    folder: Path | None = None
    base: Path | None = None
    token_modules: tuple[Module, ...] = ()
    text_modules: tuple[Module, ...] = ()
    facts: FamilyFacts = field(default_factory=FamilyFacts)
    pooled: PooledTokens = "all"
    truncation_side: Literal["left", "right"] = "right"
    begin: str | None = None
    end: str | None = None
    lower_case: bool = False
    own_code: bool = False
    adapters: tuple[Path, ...] = ()
    routes: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)

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
            f"begin: {self.begin}": self.begin is not None,
            f"end: {self.end}": self.end is not None,
            "truncated at the left": self.truncation_side == "left",
        }
        before = [f"token {module.name}" for module in self.token_modules]
        after = [module.name for module in self.text_modules]
        named = [name for name, applies in unusual.items() if applies]
        pooling = "+".join(self.pooling) or "hash"
        return (facts.native_class or self.model_type, *before, pooling, *after, *named)

    @property
    def _stated_facts(self) -> tuple[str, ...]:
        """What a family says of all routes, where it says something that changes vectors."""
        facts = self.facts
        stated = {
            "pooling": facts.pooling,
            "pooled": facts.pooled,
            "attention": facts.attention,
            "begin": facts.begin_token,
            "end": facts.end_token,
            "layer_norm": facts.layer_norm,
            "native_class": facts.native_class,
        }
        return tuple(f"{name} {value}" for name, value in stated.items() if value is not None)

    @property
    def space(self) -> Space:
        """What must be equal for vectors to be comparable."""
        return Space(
            model=self.files.id,
            revision=self.files.revision,
            weights=self.weights,
            tokenizer=self.tokenizer,
            config=self.config,
            # Of a Router's routes the digests tell all: their vectors compare with one another.
            pipeline=(*self.routes, *self._stated_facts) if self.routes else self.pipeline,
            dim=self.dim,
            normalized=self.normalize,
        )


def read_prompts(files: ModelFiles) -> dict[str, str]:
    """Read the model's own prompts by role, from config_sentence_transformers.json."""
    prompts = read_sentence_config(files).prompts
    return {role: prompt for role, prompt in prompts.items() if prompt is not None}


def read_spec(
    files: ModelFiles,
    facts: FamilyFacts,
    request: ModelRequest = NO_REQUEST,
    role: str = "passage",
    adapters: Mapping[str, str] | None = None,
) -> ModelSpec:
    """Read what a model's folder says, corrected and supplied by the facts of its family, and by
    what is asked for.

    `adapters` names the folder of a role's adapter. Raises ConfigurationError where the folder
    can't be used, or can't fulfil the request.
    """
    if files.path is None:
        return _read_hash(files, facts, request)
    layout = read_layout(files)
    pipeline = layout.pipeline_of(role, files.id)
    sentence = read_sentence_config(files)
    role_adapters = {name: files.path / folder for name, folder in (adapters or {}).items()}
    contents = [read_contents(files, pipeline) for pipeline in layout.routes.values()]
    content = contents[list(layout.routes.values()).index(pipeline)]
    pooling = _pooling(files, pipeline, facts)
    modules, full_dim = _modules(files, content.config, facts, request, pipeline, pooling)
    dim = _dim_kept(files, full_dim, request, sentence)
    max_length, length_origin = read_max_length(content, pipeline, facts, request, role)
    own_code = _own_code(files, content.config, facts, request)
    begin, end = added_tokens(pipeline, facts)
    adapter = [role_adapters[role]] if role in role_adapters else []
    weight_files = [path for content in contents for path in content.weight_files]
    # Those of all roles, so that vectors of two roles are of one space.
    adapter_configs = []
    for folder in dict.fromkeys(role_adapters.values()):
        if folder.is_dir() or folder in adapter:
            adapter_configs.append(weights.read_adapter_config(folder))
            weight_files.append(weights.adapter_weights(folder))
    weight_files += weights_of(set(modules) - set(pipeline.modules))
    return ModelSpec(
        files=files,
        weights=weights.files_sha256(weight_files),
        tokenizer="".join(content.tokenizer for content in contents),
        config=weights.json_sha256(
            [
                [content.digested for content in contents],
                adapter_configs,
                layout.default_route,
                _code_digest(content.base) if own_code else None,
            ]
        ),
        model_type=str(content.config.get("model_type", pipeline.source)),
        pooling=pooling,
        normalize=_normalize(facts, request, pipeline, sentence),
        full_dim=full_dim,
        dim=dim,
        max_length=max_length,
        source=pipeline.source,
        folder=pipeline.folder,
        base=content.base,
        token_modules=pipeline.token_modules,
        text_modules=modules,
        facts=facts,
        pooled=facts.pooled or pipeline.pooled,
        truncation_side=truncation_side(pipeline),
        begin=begin,
        end=end,
        lower_case=pipeline.settings.do_lower_case,
        own_code=own_code,
        adapters=(*content.adapters, *adapter),
        routes=tuple(f"route {name}" for name in layout.routes if name),
        origins=_origins(facts, request, sentence, length_origin),
    )


def _read_hash(files: ModelFiles, facts: FamilyFacts, request: ModelRequest) -> ModelSpec:
    normalize = request.normalize if request.normalize is not None else facts.normalize is not False
    return ModelSpec(
        files=files,
        weights="",
        tokenizer="",
        config="",
        model_type="hash",
        pooling=(),
        normalize=normalize,
        full_dim=files.hash_dim,
        dim=_dim_kept(files, files.hash_dim, request, SentenceConfig()),
        max_length=request.max_length or facts.max_length or _HASH_MAX_LENGTH,
        source="hash",
        origins=_origins(facts, request, SentenceConfig(), "the pseudo-model"),
    )


def _pooling(files: ModelFiles, pipeline: Pipeline, facts: FamilyFacts) -> tuple[Pooling, ...]:
    if facts.pooling is not None and pipeline.source != "static":
        return (facts.pooling,)
    if not pipeline.pooling:
        raise ConfigurationError(
            f"{files.id}: how its tokens become one vector is not known (no modules.json)",
            'pass a template file that says: pooling = "mean" (or "cls", "last_token")',
        )
    return pipeline.pooling


def _normalize(
    facts: FamilyFacts, request: ModelRequest, pipeline: Pipeline, sentence: SentenceConfig
) -> bool:
    """Decide whether vectors get norm 1: not where the model is compared by the scalar product, or
    by a distance, and doesn't normalize itself.
    """
    if request.normalize is not None:
        return request.normalize
    if facts.normalize is not None:
        return facts.normalize
    return pipeline.normalized or sentence.similarity_fn_name in (None, "cosine")


def _dim_kept(
    files: ModelFiles, full_dim: int, request: ModelRequest, sentence: SentenceConfig
) -> int:
    if request.dim is not None and request.dim > full_dim:
        raise ConfigurationError(f"--dim {request.dim}: {files.id} has {full_dim} dimensions")
    return request.dim or min(full_dim, sentence.truncate_dim or full_dim)


def _origins(
    facts: FamilyFacts, request: ModelRequest, sentence: SentenceConfig, length_origin: str
) -> dict[str, str]:
    """Return who stated what, for people."""
    own = "config_sentence_transformers.json"
    stated = {
        "pooling": "modules.json" if facts.pooling is None else "family",
        "max_length": length_origin,
        "normalize": own if sentence.similarity_fn_name not in (None, "cosine") else "default",
        "dim": own if sentence.truncate_dim else "the model",
        "pooled": "modules.json" if facts.pooled is None else "family",
    }
    if facts.normalize is not None:
        stated["normalize"] = "family"
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
    if facts.refused is not None:
        raise ConfigurationError(
            f"{files.id}: {facts.refused}",
            f"the same weights for transformers' own class: --model {facts.native}"
            if facts.native
            else "",
        )
    auto_map = config.get("auto_map") or {}
    if not isinstance(auto_map, dict):
        raise ConfigurationError(f"{files.id}: config.json: auto_map is not an object")
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


def _code_digest(folder: Path) -> str:
    """Return 64 hex digits over the code of a repository."""
    return weights.files_sha256(sorted(folder.rglob("*.py")))


def _native_hint(facts: FamilyFacts) -> str:
    if facts.native is not None:
        return f"the same weights for transformers' own class: --model {facts.native}"
    return "if you have read it: --trust-remote-code --revision <the commit, 40 hex digits>"


def _modules(
    files: ModelFiles,
    config: Mapping[str, Any],
    facts: FamilyFacts,
    request: ModelRequest,
    pipeline: Pipeline,
    pooling: tuple[Pooling, ...],
) -> tuple[tuple[Module, ...], int]:
    """Return the modules after pooling, and the dimension they lead to.

    A Normalize that comes last isn't among them: every vector is normalized at the end, after
    truncation, unless that is unwanted.
    """
    modules = pipeline.text_modules
    if pipeline.normalized:
        modules = modules[:-1]
    if facts.dense_by_dim is not None and request.dim is not None:
        modules = (_dense_of_dim(files, facts.dense_by_dim, request.dim),)
    full_dim = _check_dims(files, pipeline, modules, hidden_size(files, config, pipeline), pooling)
    if facts.layer_norm:
        modules = (*modules, Module("layer_norm", dimension=full_dim))
    return modules, full_dim


def _check_dims(
    files: ModelFiles,
    pipeline: Pipeline,
    modules: tuple[Module, ...],
    hidden_size: int,
    pooling: tuple[Pooling, ...],
) -> int:
    """Follow the dimensions through the modules. Raises ConfigurationError where they don't fit."""
    dim = hidden_size
    steps = [*pipeline.token_modules, None, *modules]
    for module in steps:
        if module is None:
            dim *= len(pooling)
            continue
        expected = module.dense.in_features if module.dense else module.dimension or dim
        if expected != dim:
            raise ConfigurationError(
                f"{files.id}: its module {module.name} takes {expected} dimensions, and gets {dim}"
            )
        if module.dense is not None:
            dim = module.dense.out_features
    return dim


def _dense_of_dim(files: ModelFiles, pattern: str, dim: int) -> Module:
    assert files.path is not None
    folder = files.path / pattern.replace("{dim}", str(dim))
    value = read_json(folder / "config.json")
    if value is None:
        shape = re.compile(re.escape(pattern).replace(re.escape("{dim}"), r"(\d+)"))
        names = [shape.fullmatch(path.name) for path in files.path.iterdir()]
        known = ", ".join(map(str, sorted(int(match.group(1)) for match in names if match)))
        raise ConfigurationError(
            f"--dim {dim}: {files.id} has no layer for it", f"its dimensions: {known}"
        )
    existing(folder / weights.SINGLE)
    return Module("dense", folder, dense=convert(folder / "config.json", value, DenseConfig))
