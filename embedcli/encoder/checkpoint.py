"""A model's directory into the facts of its pipeline: pooling, layers, lengths, dimensions, digests.

Reads the directory's own modules.json and configs; a template family's facts correct or supply the rest.
Reads JSON only: imports no torch, loads no weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcli.config import Space
from embedcli.encoder.model_files import ModelFiles, files_sha256
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
POOLINGS = ("cls", "mean", "max", "mean_sqrt_len", "weighted_mean", "last_token")
# Their position table starts after the padding index.
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet"}
_HASH_MAX_LENGTH = 512


@dataclass(frozen=True)
class Layer:
    """A module after pooling: its kind (`dense` or `layer_norm`), its folder and its config."""

    kind: str
    folder: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """All that is known of a model before it is loaded.

    `pooling` may name several poolings, whose vectors are joined; `full_dim` is the model's own dimension and `dim`
    what is kept of it; `max_length` counts tokens; `max_positions` is the position table's size, or None.
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
    max_positions: int | None
    append_eos: bool = False
    lower_case: bool = False

    @property
    def is_hash(self) -> bool:
        """True for the pseudo-model that needs no torch."""
        return self.files.path is None

    @property
    def space(self) -> Space:
        """What must be equal for vectors to be comparable."""
        pipeline = [self.model_type, "+".join(self.pooling)]
        pipeline += [f"{layer.kind}:{layer.config.get('activation_function', '')}".rstrip(":") for layer in self.layers]
        return Space(
            model=self.files.id,
            revision=self.files.revision,
            weights=self.weights,
            tokenizer=self.tokenizer,
            pipeline=(*pipeline, *(["append_eos"] if self.append_eos else [])),
            dim=self.dim,
            normalized=self.normalize,
        )


@dataclass(frozen=True)
class Wishes:
    """What the user wants otherwise than the model has it; None leaves it as it is."""

    max_length: int | None = None
    dim: int | None = None
    normalize: bool | None = None


def prompts(files: ModelFiles) -> dict[str, str]:
    """The model's own prompts by role, from config_sentence_transformers.json."""
    found = files.json("config_sentence_transformers.json").get("prompts") or {}
    return {role: prompt for role, prompt in found.items() if isinstance(prompt, str)}


def read(files: ModelFiles, facts: Mapping[str, Any], wishes: Wishes) -> Checkpoint:
    """Read a model's facts; `facts` are a template family's (see templates.FACTS).

    Raises ConfigurationError where the directory can't be used, or can't fulfil the wishes.
    """
    if files.path is None:
        return _read_hash(files, facts, wishes)
    config = files.json("config.json")
    pooling, layers = _modules(files)
    if "pooling" in facts:
        pooling = (facts["pooling"],)
    if not pooling:
        raise ConfigurationError(
            f"{files.id}: how its tokens become one vector is not known (no modules.json)",
            'pass a template file that says: pooling = "mean" (or "cls", "last_token")',
        )
    unknown = [name for name in pooling if name not in POOLINGS]
    if unknown:
        raise ConfigurationError(f"{files.id}: unknown pooling {unknown[0]!r}", f"known: {', '.join(POOLINGS)}")
    full_dim = _dim(files, config, pooling, layers)
    positions = _max_positions(config)
    return Checkpoint(
        files=files,
        weights=files_sha256(files.path, _weight_files(files.path, layers)),
        tokenizer=files_sha256(files.path, _tokenizer_files(files.path)),
        model_type=str(config.get("model_type", "")),
        pooling=pooling,
        layers=layers,
        normalize=_normalize(facts, wishes),
        full_dim=full_dim,
        dim=_wished_dim(files, full_dim, wishes),
        max_length=_max_length(files, facts, wishes, positions),
        max_positions=positions,
        append_eos=bool(facts.get("append_eos", False)),
        lower_case=bool(files.json("sentence_bert_config.json").get("do_lower_case", False)),
    )


def _read_hash(files: ModelFiles, facts: Mapping[str, Any], wishes: Wishes) -> Checkpoint:
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
        max_length=wishes.max_length or facts.get("max_length", _HASH_MAX_LENGTH),
        max_positions=None,
    )


def _normalize(facts: Mapping[str, Any], wishes: Wishes) -> bool:
    return wishes.normalize if wishes.normalize is not None else bool(facts.get("normalize", True))


def _wished_dim(files: ModelFiles, full_dim: int, wishes: Wishes) -> int:
    if wishes.dim is not None and wishes.dim > full_dim:
        raise ConfigurationError(f"--dim {wishes.dim}: {files.id} has {full_dim} dimensions")
    return wishes.dim or full_dim


def _modules(files: ModelFiles) -> tuple[tuple[str, ...], tuple[Layer, ...]]:
    """The poolings and the layers after them that modules.json lists; nothing where there is no such file."""
    pooling: tuple[str, ...] = ()
    layers: list[Layer] = []
    for module in files.json_value("modules.json") or ():
        library, _, kind = str(module.get("type", "")).rpartition(".")
        folder = str(module.get("path", ""))
        if not library.startswith("sentence_transformers") or ".." in folder or folder.startswith("/"):
            raise ConfigurationError(f"{files.id}: its module {module.get('type')!r} is code of the model's own")
        config = files.json(f"{folder}/config.json") if folder else {}
        if kind == "Pooling":
            pooling = _pooling(files, config)
        elif kind == "Dense":
            layers.append(Layer("dense", folder, config))
        elif kind == "LayerNorm":
            layers.append(Layer("layer_norm", folder, config))
        elif kind not in ("Transformer", "Normalize"):  # every vector is normalized at the end, unless unwanted
            raise ConfigurationError(f"{files.id}: its module {kind} is not supported")
    return pooling, tuple(layers)


def _pooling(files: ModelFiles, config: Mapping[str, Any]) -> tuple[str, ...]:
    if config.get("include_prompt", True) is False:
        raise ConfigurationError(f"{files.id}: leaving the prompt out of the pooling is not supported yet")
    modes = config.get("pooling_mode")
    if modes is None:
        return tuple(name for flag, name in _POOLING_FLAGS.items() if config.get(flag)) or ("mean",)
    return tuple(_POOLING_NAMES.get(mode, mode) for mode in ([modes] if isinstance(modes, str) else modes))


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
    offset = int(config.get("pad_token_id") or 0) + 1 if config.get("model_type") in _OFFSET_POSITIONS else 0
    return positions - offset


def _max_length(files: ModelFiles, facts: Mapping[str, Any], wishes: Wishes, positions: int | None) -> int:
    """The most tokens of a text: what the user wants, the family says, or the model's own configs allow."""
    if wishes.max_length is not None and positions is not None and wishes.max_length > positions:
        raise ConfigurationError(f"--max-length {wishes.max_length}: {files.id} has {positions} positions")
    own = files.json("sentence_bert_config.json").get("max_seq_length")
    tokenizer = files.json("tokenizer_config.json").get("model_max_length")
    known = [
        facts.get("max_length"),
        own if isinstance(own, int) else None,
        int(tokenizer) if isinstance(tokenizer, (int, float)) and tokenizer < 1e9 else None,
        positions,
    ]
    found = wishes.max_length or next((value for value in known if value), None)
    if found is None:
        raise ConfigurationError(f"{files.id}: its max length is not known", "pass --max-length")
    return min(found, positions) if positions is not None else found


def _weight_files(path: Path, layers: tuple[Layer, ...]) -> list[str]:
    index = path / "model.safetensors.index.json"
    names = sorted(file.name for file in path.glob("model*.safetensors"))
    if not names:
        raise ConfigurationError(
            f"{path}: no model.safetensors there", "weights in pickle files can run code when loaded and are refused"
        )
    if index.is_file():
        wanted = sorted(set(ModelFiles("", (), "", path).json(index.name).get("weight_map", {}).values()))
        missing = [name for name in wanted if name not in names]
        if missing:
            raise ConfigurationError(f"{path}: the weights file {missing[0]} is missing", "is a download unfinished?")
        names = wanted
    elif "model.safetensors" in names:
        names = ["model.safetensors"]
    folders = [f"{layer.folder}/model.safetensors" for layer in layers]
    missing = [name for name in folders if not (path / name).is_file()]
    if missing:
        raise ConfigurationError(f"{path}: the weights file {missing[0]} is missing")
    return names + folders


def _tokenizer_files(path: Path) -> list[str]:
    for names in (
        ["tokenizer.json"],
        ["tokenizer.model"],
        ["sentencepiece.bpe.model"],
        ["spiece.model"],
        ["vocab.txt"],
    ):
        if (path / names[0]).is_file():
            return names
    if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        return ["vocab.json", "merges.txt"]
    raise ConfigurationError(f"{path}: no tokenizer there (tokenizer.json is missing)")
