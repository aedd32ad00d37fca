"""What a run is asked to do, as frozen values that are passed whole.

`Recipe` holds everything that changes a vector and has an id; `RunOptions` holds what only changes the speed.
Two vectors may be compared within one `Space` and reused within one `Recipe`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

STDIN = STDOUT = "-"
DType = Literal["auto", "float32", "bfloat16", "float16"]
Compile = Literal["auto", "on", "off"]
OnError = Literal["fail", "reject"]
VectorType = Literal["float32", "float16"]

MANY_TOKENS = 2**62

# Names, not facts: two spaces that differ only here hold the same vectors.
NAMES = ("model", "revision")


def _digest(value: dict[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields of `here` that are otherwise there, with both values. JSON's lists are our tuples."""
    pairs = {name: (_plain(there.get(name)), _plain(value)) for name, value in here.items()}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def in_words(differences: Mapping[str, tuple[Any, Any]]) -> str:
    """The same for a message."""
    return "; ".join(f"{name} is {there!r} there and {here!r} here" for name, (there, here) in differences.items())


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Space:
    """What must be equal for two vectors to be comparable.

    `weights` and `tokenizer` are sha256 digests of the files; `pipeline` names the modules after the transformer.
    """

    model: str
    revision: str
    weights: str
    tokenizer: str
    pipeline: tuple[str, ...]
    dim: int
    normalized: bool

    @property
    def id(self) -> str:
        """16 hex digits over all fields but the names."""
        return _digest({key: value for key, value in asdict(self).items() if key not in NAMES})

    def as_dict(self) -> dict[str, Any]:
        """All fields, as provenance holds them."""
        return asdict(self)


@dataclass(frozen=True)
class Recipe:
    """What must be equal for a vector to be reusable: the space, and how a text becomes tokens.

    `template` is the template with its task filled in, `max_length` counts tokens, special ones included.
    """

    space: Space
    role: str
    template: str
    max_length: int

    @property
    def id(self) -> str:
        """16 hex digits over the space's id and all fields of its own."""
        return _digest({**asdict(self), "space": self.space.id})

    def as_dict(self) -> dict[str, Any]:
        """The recipe in full, for provenance."""
        return asdict(self)


@dataclass(frozen=True)
class RunOptions:
    """What changes the speed, not the vector (beyond the rounding of `dtype`).

    `num_processes` None takes one for each device. `update` reuses the vectors of the output as it is, `overwrite`
    replaces an output of another recipe, `fresh` forgets what an interrupted run left. `watchdog` is in seconds: how
    long a worker may show no progress; 0 is for ever. `batch_tokens` None takes what suits the device. `compile` auto
    compiles the model where that pays for about `expected_tokens`, which are None until that is known. `plain` runs
    padded batches as the model's class does.
    """

    device: str = "auto"
    dtype: DType = "auto"
    batch_tokens: int | None = None
    num_processes: int | None = None
    update: bool = False
    overwrite: bool = False
    fresh: bool = False
    watchdog: float = 1800.0
    compile: Compile = "auto"
    expected_tokens: int | None = None
    plain: bool = False


@dataclass(frozen=True)
class InputOptions:
    """How records are taken from files. `columns` None carries all; `fields` are columns that the template names."""

    text_column: str = "text"
    columns: tuple[str, ...] | None = None
    fields: tuple[str, ...] = ()
    max_row_bytes: int = 16 * 2**20
    binary_as_utf8: bool = False
    on_error: OnError = "fail"


@dataclass(frozen=True)
class OutputOptions:
    """Where vectors go. `path` is a file name or `-`; `rejects` the file for rejected rows, if any are set aside.

    `directory`: the output is a dataset directory of parts. `allow_empty`: an output without rows is wanted, too.
    """

    path: str
    directory: bool = False
    format: Literal["parquet", "arrow", "jsonl"] = "parquet"
    rejects: str | None = None
    embedding_column: str = "embedding"
    vector_type: VectorType = "float32"
    min_rows: int = 0
    allow_empty: bool = False


@dataclass(frozen=True)
class Facts:
    """What a template family states about a pipeline; None leaves a fact to the model's own folder.

    pooling: a name of encoder.checkpoint.POOLINGS. max_length: tokens, special ones included. normalize: are vectors
    meant to have norm 1? begin_token, end_token: tokens that stand around every text, whether or not the tokenizer adds
    them. attention: `bidirectional` or `causal`, where the class would do otherwise. pooled: the tokens that pooling
    takes: `all`, `text` (what follows the prompt), or `from_last_prompt_token`. layer_norm: the vector is layer-normed
    before it is cut. dense_by_dim: the folder of the Dense layer for `{dim}` dimensions. dims: dimensions that the
    model was trained to be cut to. own_code: is the repository's own code `required`, or `replaced` by what we do?
    native: a model with the same weights for a native class. native_class: transformers' name of the class.
    latent_attention: NV-Embed's block before pooling. float16: may the model run in it?
    """

    pooling: str | None = None
    max_length: int | None = None
    normalize: bool | None = None
    begin_token: str | None = None
    end_token: str | None = None
    attention: Literal["bidirectional", "causal"] | None = None
    pooled: Literal["all", "text", "from_last_prompt_token"] | None = None
    layer_norm: bool | None = None
    dense_by_dim: str | None = None
    dims: tuple[int, ...] | None = None
    own_code: Literal["required", "replaced"] | None = None
    native: str | None = None
    native_class: str | None = None
    latent_attention: bool | None = None
    float16: bool | None = None
