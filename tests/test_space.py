"""Equal ids mean equal vectors: whatever changes in a model's folder changes its recipe, is refused,
or changes no vector.
"""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcli import encoder, templates
from embedcli.config import RunOptions
from embedcli.errors import EmbedcliError
from embedcli.models.request import ModelRequest
from embedcli.models.resolve import resolve
from tests import fidelity, tiny

FOLDERS = {
    "BERT": tiny.bert,
    "BERT with a Dense layer": fidelity.modules("Transformer", "Pooling", "Dense", "Normalize"),
    "decoder": fidelity.architecture("Qwen3"),
    "adapter": fidelity.adapter_beside,
    "static": fidelity.static,
    "router": fidelity.router,
}
TEXTS = ["The sea rises and falls twice a day.", "Größer, naïve [MASK] </s>", "water " * 60]


def vectors_and_id(path: Path, role: str = "query", **request: Any) -> tuple[np.ndarray, str]:
    resolved = resolve(ModelRequest(str(path), **{"template": "{text}", **request}), role)
    model = encoder.load(resolved.spec, RunOptions("cpu", "float32"))
    rendered, _ = templates.render(resolved.template, TEXTS, {})
    encoded = model.encode(model.prepare(rendered), lambda rows, tokens: None)
    return encoded.vectors, resolved.recipe.id


def others(value: Any) -> Iterator[Any]:
    """Values that a key could have instead."""
    yield None
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value * 2, -1)
    elif isinstance(value, float):
        yield from (value * 2 + 0.1, 0)
    elif isinstance(value, str):
        yield from (value + "x", "")
    elif isinstance(value, list) and value:
        yield value[::-1]
        yield value[:-1]
    elif isinstance(value, dict):
        yield {}


def changed_json(value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """A JSON value with one key changed, or removed, and the key's path."""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in list(entries)[:40]:
        for other in others(entry):
            changed = copy.copy(value)
            changed[key] = other
            yield f"{key} = {str(other)[:40]}", changed
        if isinstance(value, dict):
            yield f"no {key}", {name: entry for name, entry in value.items() if name != key}
        if isinstance(entry, (dict, list)) and depth < 2:
            for path, inner in changed_json(entry, depth + 1):
                changed = copy.copy(value)
                changed[key] = inner
                yield f"{key}.{path}", changed


def changes(folder: Path) -> Iterator[tuple[str, Path, bytes | None]]:
    """Each file of a folder changed in one place, or gone."""
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        name = str(path.relative_to(folder))
        content = path.read_bytes()
        yield f"no {name}", path, None
        if path.suffix == ".json":
            for key, value in changed_json(json.loads(content)):
                yield f"{name}: {key}", path, json.dumps(value).encode()
        else:
            middle = len(content) * 2 // 3
            flipped = bytes([content[middle] ^ 0x40])
            yield f"{name}: a bit", path, content[:middle] + flipped + content[middle + 1 :]


# tokenizer.json's thousands of keys are in its digest, byte by byte: some of them do.
TRIED_OF_TOKENIZER = 12


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["BERT", "static", "router"])
def test_some_changes_of_a_folder_change_its_ids_or_are_refused_or_change_no_vector(name, tmp_path):
    check(name, tmp_path, step=5 if name == "BERT" else 1)


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FOLDERS)
def test_every_change_of_a_folder_changes_its_ids_or_is_refused_or_changes_no_vector(
    name, tmp_path
):
    check(name, tmp_path)


def check_pair(first: tuple[np.ndarray, str], second: tuple[np.ndarray, str]) -> None:
    """See that vectors that differ have ids that differ."""
    assert np.abs(first[0] - second[0]).max() > 1e-3
    assert first[1] != second[1]


@pytest.mark.torch
def test_the_default_route_of_a_router_is_in_its_ids(tmp_path):
    fidelity.router(tmp_path / "model", "query")
    first = vectors_and_id(tmp_path / "model", "clustering", max_length=32)
    parameters = {"default_route": "document", "allow_empty_key": True}
    fidelity.edit(tmp_path / "model", "router_config.json", parameters=parameters)
    check_pair(first, vectors_and_id(tmp_path / "model", "clustering", max_length=32))


@pytest.mark.torch
def test_what_a_family_says_of_a_router_is_in_its_ids(tmp_path):
    fidelity.router(tmp_path / "model")
    pairs = []
    for pooling in ("cls", "mean"):
        family = tmp_path / f"{pooling}.toml"
        family.write_text(
            f'pooling = "{pooling}"\nmodels = []\nsource = "x"\n[roles]\npassage = "{{text}}"\n'
        )
        pairs.append(vectors_and_id(tmp_path / "model", "passage", template=str(family)))
    check_pair(*pairs)


CODE = """
from transformers import BertConfig, BertModel


class OddConfig(BertConfig):
    model_type = "oddbert"


class OddModel(BertModel):
    config_class = OddConfig

    def forward(self, *args, **options):
        output = super().forward(*args, **options)
        output.last_hidden_state = output.last_hidden_state.{method}()
        return output
"""


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_the_code_of_a_model_is_in_its_ids(tmp_path):
    path = tiny.bert(tmp_path / "model")
    code = {"AutoConfig": "odd.OddConfig", "AutoModel": "odd.OddModel"}
    fidelity.edit(path, "config.json", model_type="oddbert", auto_map=code)
    pairs = []
    for method in ("sin", "abs"):
        (path / "odd.py").write_text(CODE.format(method=method))
        pairs.append(vectors_and_id(path, trust_remote_code=True))
    check_pair(*pairs)


def check(name: str, tmp_path: Path, step: int = 1) -> None:
    """Make every `step`-th change to a folder, and look for other vectors under the same id."""
    original = tmp_path / "original"
    FOLDERS[name](original)
    expected, recipe_id = vectors_and_id(original)
    folder = tmp_path / "model"
    holes, tried = [], 0
    for number, (change, path, content) in enumerate(changes(original)):
        if number % (TRIED_OF_TOKENIZER if "tokenizer.json" in change else step):
            continue
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(original, folder)
        target = folder / path.relative_to(original)
        target.unlink() if content is None else target.write_bytes(content)
        tried += 1
        try:
            vectors, other_id = vectors_and_id(folder)
        except EmbedcliError:
            continue
        same = vectors.shape == expected.shape and np.abs(vectors - expected).max() < 1e-6
        if other_id == recipe_id and not same:
            holes.append(change)
    assert tried > 25
    assert holes == []
