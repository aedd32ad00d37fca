"""A model's files of weights and of its tokenizer: which ones are loaded, whether they are sound,
and their digests. Reads headers and JSON only: imports no torch.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from embedcli.errors import ConfigurationError
from embedcli.models.schemas import MAX_TOKENIZER_BYTES, read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
# The longest header that safetensors itself reads.
_MAX_HEADER_BYTES = 100_000_000
_MAX_SHARDS = 10_000
_DTYPE_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
_TOKENIZERS = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("sentencepiece.bpe.model",),
    ("spiece.model",),
    ("vocab.txt",),
    ("vocab.json", "merges.txt"),
)
# What transformers reads beside one of them.
_TOKENIZER_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# They name files and programs, are for chats, or are in the recipe: the maximum length.
_HARMLESS_TOKENIZER_KEYS = {
    *("name_or_path", "_name_or_path", "transformers_version", "processor_class", "chat_template"),
    *(
        "model_max_length",
        "backend",
        "is_local",
        "local_files_only",
        "tokenizer_file",
        "vocab_file",
    ),
}


# Where the weights came from, and how they were trained.
_HARMLESS_ADAPTER_KEYS = {
    *("base_model_name_or_path", "revision", "peft_version", "inference_mode", "task_type"),
    *("auto_mapping", "lora_dropout"),
}


def transformer_weights(folder: Path) -> list[Path]:
    """List the files that transformers loads from a folder, the single file before shards.

    Raises ConfigurationError.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = read_json(folder / INDEX)
    if index is None:
        raise ConfigurationError(
            f"{folder}: no model.safetensors there",
            "weights in pickle files can run code when loaded and are refused",
        )
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConfigurationError(f"{folder / INDEX}: no weight_map")
    names = {str(name) for name in weight_map.values()}
    if len(names) > _MAX_SHARDS:
        raise ConfigurationError(f"{folder / INDEX}: names {len(names):,} files")
    for name in sorted(names):
        if not re.fullmatch(r"model[\w.-]*\.safetensors", name):
            raise ConfigurationError(f"{folder / INDEX}: names {name[:100]!r}, no file of weights")
        if not (folder / name).is_file():
            raise ConfigurationError(
                f"{folder}: the weights file {name} is missing", "is a download unfinished?"
            )
    return [folder / name for name in sorted(names)]


def adapter_weights(folder: Path) -> Path:
    """Return an adapter's weights, from safetensors only. Raises ConfigurationError."""
    if not (folder / ADAPTER).is_file():
        raise ConfigurationError(
            f"{folder}: no {ADAPTER} there",
            "weights in pickle files can run code when loaded and are refused",
        )
    return folder / ADAPTER


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read what an adapter_config.json says, harmless keys left out. Raises ConfigurationError."""
    path = folder / ADAPTER_CONFIG
    config = read_json(path)
    if config is None:
        raise ConfigurationError(f"{folder}: no {ADAPTER_CONFIG}", "is a download unfinished?")
    if not isinstance(config, dict):
        raise ConfigurationError(f"{path}: not an object")
    return {key: config[key] for key in config.keys() - _HARMLESS_ADAPTER_KEYS}


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the header of a safetensors file: the shape of each tensor.

    Raises ConfigurationError where the file is damaged or cut off (safetensors' format: 8 bytes for
    the header's length, the header as JSON, then the tensors' bytes without gaps).
    """
    try:
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise ConfigurationError(f"{path}: damaged: its header can't be {length:,} bytes")
            header = json.loads(stream.read(length))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: damaged: {error}") from None
    if not isinstance(header, dict):
        raise ConfigurationError(f"{path}: damaged: its header is no object")
    shapes = {}
    for name, tensor in header.items():
        if name != "__metadata__":
            shapes[name] = _checked_shape(path, name, tensor, size - 8 - length)
    return shapes


def _checked_shape(path: Path, name: str, tensor: Any, data_bytes: int) -> tuple[int, ...]:
    try:
        shape = [int(side) for side in tensor["shape"]]
        start, stop = (int(offset) for offset in tensor["data_offsets"])
        size = math.prod(shape) * _DTYPE_BYTES[tensor["dtype"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ConfigurationError(f"{path}: damaged: tensor {name[:100]!r}: {error!r}") from None
    if min(shape, default=0) < 0 or not 0 <= start <= stop <= data_bytes or stop - start != size:
        raise ConfigurationError(
            f"{path}: damaged: tensor {name[:100]!r} of {size:,} bytes at {start:,} to {stop:,} "
            f"of {data_bytes:,}",
            "is a download unfinished?",
        )
    return tuple(shape)


def measure(paths: Iterable[Path]) -> tuple[int, int]:
    """Return how many numbers and how many tensors some files of weights hold, by their headers.

    Raises ConfigurationError where one is damaged.
    """
    numbers = tensors = 0
    for path in paths:
        shapes = tensor_shapes(path)
        numbers += sum(math.prod(shape) for shape in shapes.values())
        tensors += len(shapes)
    return numbers, tensors


def tokenizer_files(folder: Path) -> list[Path]:
    """List the files that make the tokenizer. Raises ConfigurationError where there are none."""
    names = next((names for names in _TOKENIZERS if _are_files(folder, names)), None)
    if names is None:
        raise ConfigurationError(f"{folder}: no tokenizer there (tokenizer.json is missing)")
    if max((folder / name).stat().st_size for name in names) > MAX_TOKENIZER_BYTES:
        raise ConfigurationError(f"{folder / names[0]}: longer than {MAX_TOKENIZER_BYTES:,} bytes")
    return [folder / name for name in names]


def _are_files(folder: Path, names: Sequence[str]) -> bool:
    return all((folder / name).is_file() for name in names)


def tokenizer_sha256(folder: Path) -> str:
    """Return 64 hex digits over the tokenizer's files and its configs, harmless keys left out.

    Raises ConfigurationError.
    """
    configs = {}
    for name in _TOKENIZER_CONFIGS:
        value = read_json(folder / name)
        if isinstance(value, dict):
            value = {key: value[key] for key in value.keys() - _HARMLESS_TOKENIZER_KEYS}
        if value is not None:
            configs[name] = value
    return json_sha256([files_sha256(tokenizer_files(folder)), configs])


def json_sha256(value: object) -> str:
    """Return 64 hex digits over a value as JSON, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return a file's sha256, 64 hex digits.

    In the hub's cache a large file's name is its digest: it is not read again.
    """
    target = os.path.realpath(path)
    if re.fullmatch(r"[0-9a-f]{64}", name := os.path.basename(target)) and "/blobs/" in target:
        return name
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ConfigurationError(f"{path}: not readable: {error.strerror}") from None


def files_sha256(paths: Sequence[Path]) -> str:
    """Return one digest for several files; a single file's is its own sha256, as the hub shows it."""
    digests = [file_sha256(path) for path in paths]
    if len(digests) == 1:
        return digests[0]
    lines = [f"{digest}  {path.name}\n" for digest, path in zip(digests, paths, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
