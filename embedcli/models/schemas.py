"""The JSON files of a sentence-transformers folder: the keys that we know, and their types.

A key that isn't here is refused by its name, since it may change vectors. What the files mean is in
sentence-transformers 6.2: base/modules, sentence_transformer/modules, base/model.py.
"""

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from embedcli.errors import ConfigurationError

# No JSON file of a model but its tokenizer is longer; an index of 1,000 shards has 10 MB.
MAX_JSON_BYTES = 2**26
MAX_TOKENIZER_BYTES = 2**29

# Dimensions of a layer: the widest published have 2**16.
Size = Annotated[int, msgspec.Meta(ge=1, le=2**17)]
Count = Annotated[int, msgspec.Meta(ge=1, le=2**24)]
Prompt = Annotated[str, msgspec.Meta(max_length=2**16)]
Folder = Annotated[str, msgspec.Meta(max_length=255)]

_Value = TypeVar("_Value")


class _Known(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """An object whose keys are all known."""


class ModuleEntry(_Known, frozen=True):
    """An entry of modules.json."""

    type: str
    path: Folder
    idx: int = 0  # harmless: the order of the list counts
    name: str = ""  # harmless
    kwargs: list[str] = []


class SentenceConfig(_Known, frozen=True):
    """config_sentence_transformers.json."""

    prompts: dict[str, Prompt | None] = {}
    default_prompt_name: str | None = None
    similarity_fn_name: str | None = None
    truncate_dim: Size | None = None
    model_type: str = "SentenceTransformer"
    versions: Any = msgspec.field(default=None, name="__version__")  # harmless
    requirements: Any = None  # harmless: of other packages


class TransformerConfig(_Known, frozen=True):
    """sentence_bert_config.json, and the same file by its older names."""

    max_seq_length: Count | None = None
    do_lower_case: bool = False
    query_length: Count | None = None
    document_length: Count | None = None
    transformer_task: str = "feature-extraction"
    modality_config: dict[str, Any] | None = None
    module_output_name: str | None = None
    processing_kwargs: dict[str, Any] | None = None
    query_expansion: Any = None
    tokenizer_name_or_path: str | None = None
    unpad_inputs: bool | None = None  # harmless: packs instead of padding
    model_args: dict[str, Any] = {}
    model_kwargs: dict[str, Any] = {}
    tokenizer_args: dict[str, Any] = {}
    processor_kwargs: dict[str, Any] = {}
    config_args: dict[str, Any] = {}
    config_kwargs: dict[str, Any] = {}

    @property
    def tokenizer_options(self) -> dict[str, Any]:
        """The options of the tokenizer, by either name."""
        return {**self.tokenizer_args, **self.processor_kwargs}


TRANSFORMER_CONFIG_NAMES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
# Keys of the dictionaries above that change how a model is loaded, and no vector.
HARMLESS_KWARGS = {
    "model": {
        *("dtype", "torch_dtype", "attn_implementation", "low_cpu_mem_usage", "device_map"),
        *("use_safetensors", "add_pooling_layer", "trust_remote_code"),
    },
    # The length and the side are read: they change vectors.
    "processor": {
        *("use_fast", "trust_remote_code", "padding_side", "model_max_length", "truncation_side"),
    },
    "config": {"use_cache", "attn_implementation", "trust_remote_code"},
}


class PoolingConfig(_Known, frozen=True):
    """The config of a Pooling module: flags up to version 5, a mode or several from then on."""

    word_embedding_dimension: Size | None = None
    embedding_dimension: Size | None = None
    pooling_mode_cls_token: bool = False
    pooling_mode_mean_tokens: bool = False
    pooling_mode_max_tokens: bool = False
    pooling_mode_mean_sqrt_len_tokens: bool = False
    pooling_mode_weightedmean_tokens: bool = False
    pooling_mode_lasttoken: bool = False
    pooling_mode: str | Annotated[list[str], msgspec.Meta(min_length=1, max_length=8)] | None = None
    include_prompt: bool = True


class DenseConfig(_Known, frozen=True):
    """The config of a Dense module."""

    in_features: Size
    out_features: Size
    bias: bool = True
    activation_function: str = "torch.nn.modules.activation.Tanh"
    module_input_name: str = "sentence_embedding"
    module_output_name: str | None = None
    use_residual: bool = False


class LayerNormConfig(_Known, frozen=True):
    """The config of a LayerNorm module."""

    dimension: Size


class NormalizeConfig(_Known, frozen=True):
    """The config of a Normalize module; up to version 5 it had none."""

    module_input_name: str = "sentence_embedding"
    module_output_name: str | None = None


class DropoutConfig(_Known, frozen=True):
    """The config of a Dropout module, which does nothing but in training."""

    dropout: float = 0.0


class RouterParameters(_Known, frozen=True):
    """How a Router chooses one of its routes."""

    default_route: str | None = None
    allow_empty_key: bool = True  # harmless: of training data
    route_mappings: dict[str, str] | None = None


class RouterConfig(_Known, frozen=True):
    """router_config.json: the modules of each route."""

    types: dict[Folder, str]
    structure: dict[str, Annotated[list[Folder], msgspec.Meta(min_length=1, max_length=32)]]
    parameters: RouterParameters = RouterParameters()


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Any:
    """Return the content of a JSON file; None where there is none.

    Raises ConfigurationError where it isn't a regular file, is too long, or isn't JSON.
    """
    try:
        if not path.exists():
            return None
        if not path.is_file():
            raise ConfigurationError(f"{path}: not a regular file")
        if path.stat().st_size > limit:
            raise ConfigurationError(f"{path}: longer than {limit:,} bytes")
        content = path.read_bytes()
        value = json.loads(content)
        if b"\\ud" in content.lower():  # half a character can't be written anywhere
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: not readable: {error}") from None


def convert(path: Path, value: Any, kind: type[_Value]) -> _Value:
    """Check a file's content. Raises ConfigurationError that names the file and the key."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ConfigurationError(
            f"{path}: {error}", "what isn't known here may change vectors, and is refused"
        ) from None
