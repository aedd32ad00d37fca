"""Folders and files that somebody made to do harm, or that are merely damaged.

No code of theirs is run, no exit code is 70, nothing takes over 20 s of CPU or 1 GB.
"""

import copy
import json
import os
import pickle
import random
import shutil
import struct
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests import fidelity, tiny
from tests.campaigns.children import run

DONE, DATA, CONFIGURATION = 0, 65, 78
Attack = tuple[str, Callable[[Path], None]]
CANARY = "canary"
BASES: dict[str, Callable[[Path], None]] = {
    "bert": fidelity.modules("Transformer", "Pooling", "Dense", "Normalize"),
    "adapter": fidelity.adapter_beside,
    "static": fidelity.static,
    "router": fidelity.router,
}
ODD_VALUES: list[Any] = [None, [], {}, "", "x", 5, -1, 0, 2**40, 1e300, True, ["a"] * 3, {"a": {}}]


class _Canary:
    """What a pickle runs when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {CANARY}",)


def folder_attacks() -> Iterator[tuple[str, Attack]]:
    """Each base's name with an attack on its folder."""
    for base in BASES:
        for attack in _file_attacks(base):
            yield base, attack
        for attack in _json_attacks(base):
            yield base, attack
    for attack in _code_attacks():
        yield "bert", attack


def _file_attacks(base: str) -> Iterator[Attack]:
    names = {
        "bert": ["model.safetensors", "2_Dense/model.safetensors", "tokenizer.json", "config.json"],
        "adapter": ["adapter_model.safetensors", "adapter_config.json"],
        "static": ["model.safetensors", "tokenizer.json"],
        "router": [
            "query_0_StaticEmbedding/model.safetensors",
            "document_0_Transformer/config.json",
        ],
    }[base]
    for name in [*names, "modules.json"]:
        yield f"{name} gone", lambda path, n=name: (path / n).unlink()
        yield f"{name} empty", lambda path, n=name: (path / n).write_bytes(b"")
        yield f"{name} zeros", lambda path, n=name: (path / n).write_bytes(bytes(1000))
        yield f"{name} a folder", lambda path, n=name: _replace(path / n, os.mkdir)
        yield f"{name} a FIFO", lambda path, n=name: _replace(path / n, os.mkfifo)
        yield f"{name} -> /dev/zero", lambda path, n=name: _link(path / n, "/dev/zero")
        yield f"{name} -> itself", lambda path, n=name: _link(path / n, (path / n).name)
        for share in (1, 3, 7, 9):
            yield f"{name} cut at {share}0 %", lambda path, n=name, s=share: _cut(path / n, s / 10)
        if name.endswith("safetensors"):
            for what, content in _odd_safetensors():
                yield f"{name} {what}", lambda path, n=name, c=content: _write(path / n, c)


def _replace(path: Path, make: Callable[[Path], None]) -> None:
    path.unlink()
    make(path)


def _link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def _cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _odd_safetensors() -> Iterator[tuple[str, bytes]]:
    def file(header: Any, data: bytes = bytes(64)) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data

    tensor = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
    yield "header of 2**63", struct.pack("<Q", 2**63) + bytes(100)
    yield "header of 99 MB", struct.pack("<Q", 99_000_000) + bytes(100)
    yield "header no JSON", file(b"{" * 50)
    yield "header deep", file(b"[" * 100_000)
    yield "header a list", file([1, 2])
    for key, value in (
        *(("dtype", "F99"), ("dtype", 3), ("shape", [-4, -4]), ("shape", [2**40, 2**40])),
        *(
            ("shape", "4"),
            ("shape", [4.5]),
            ("data_offsets", [64, 0]),
            ("data_offsets", [0, 2**62]),
        ),
        *(("data_offsets", [0]), ("data_offsets", None)),
    ):
        yield f"{key} {value}", file({"embedding.weight": {**tensor, key: value}})
    yield "other tensors", file({"evil": tensor})


def _json_attacks(base: str) -> Iterator[Attack]:
    names = {
        "bert": [
            *("config.json", "modules.json", "1_Pooling/config.json", "2_Dense/config.json"),
            *("sentence_bert_config.json", "config_sentence_transformers.json", "tokenizer.json"),
            "tokenizer_config.json",
        ],
        "adapter": ["adapter_config.json"],
        "static": ["tokenizer.json"],
        "router": ["router_config.json"],
    }[base]
    for name in names:
        for value in ODD_VALUES:
            yield (
                f"{name} is {value!r:.20}",
                lambda path, n=name, v=value: tiny.write_json(path / n, v),
            )
        yield f"{name} deep", lambda path, n=name: _write(path / n, b'{"a":' * 50_000)
        yield f"{name} not UTF-8", lambda path, n=name: _write(path / n, b'{"a": "\xff"}')
        for value in ODD_VALUES:
            yield f"{name} keys {value!r:.20}", lambda path, n=name, v=value: _set_all(path / n, v)
    sizes = ("hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings")
    for key in (
        *sizes,
        "num_attention_heads",
        "intermediate_size",
        "type_vocab_size",
        "num_labels",
    ):
        for value in (-1, 0, 10**6, 10**9, 10**12, 2**63, "x", 1.5, []):
            if base == "bert":
                yield (
                    f"config {key} {value}",
                    lambda path, k=key, v=value: fidelity.edit(path, "config.json", **{k: v}),
                )


def _set_all(path: Path, value: Any) -> None:
    """Set every key of an object, one level deep, or every entry of a list."""
    content = json.loads(path.read_text()) if path.exists() else {"prompts": {"query": "a"}}
    if isinstance(content, dict):
        tiny.write_json(path, dict.fromkeys(content, value))
    else:
        tiny.write_json(path, [dict.fromkeys(entry, value) for entry in content])


def _with_code(path: Path, name: str = "evil.py") -> None:
    (path / name).write_text(f"import os\nos.system('touch {CANARY}')\nclass Evil: pass\n")


def _code_attacks() -> Iterator[Attack]:
    """Folders with code that would make a canary."""
    yield from _named_code()
    yield from _pickles()
    for tokenizer_class in ("Evil", "os.system", "PreTrainedTokenizer", "LlamaTokenizer"):
        yield (
            f"tokenizer_class {tokenizer_class}",
            lambda path, c=tokenizer_class: fidelity.edit(
                path, "tokenizer_config.json", tokenizer_class=c
            ),
        )
    yield "token ids beyond the vocabulary", _beyond


def _named_code() -> Iterator[Attack]:
    for key in ("AutoConfig", "AutoModel", "AutoTokenizer"):
        for value in ("evil.Evil", ["evil.Evil", None], 5, {"a": 1}):

            def mapped(path: Path, key: str = key, value: Any = value) -> None:
                _with_code(path)
                name = "tokenizer_config.json" if key == "AutoTokenizer" else "config.json"
                fidelity.edit(path, name, auto_map={key: value})

            yield f"auto_map {key} {value!r:.20}", mapped
    for name in ("torch.py", "json.py", "sitecustomize.py", "numpy.py", "conftest.py"):
        yield f"{name} in the folder", lambda path, n=name: _with_code(path, n)
    for module in ("evil.Evil", "os.system", "sentence_transformers.models.evil", "builtins.eval"):

        def listed(path: Path, module: str = module) -> None:
            _with_code(path)
            entries = json.loads((path / "modules.json").read_text())
            entries[-1]["type"] = module
            tiny.write_json(path / "modules.json", entries)

        yield f"module {module}", listed
    for activation in (
        "os.system",
        "torch.nn.modules.module.Module",
        "torch.nn.Sequential",
        "evil.Evil",
    ):
        yield (
            f"activation {activation}",
            lambda path, a=activation: fidelity.edit(
                path, "2_Dense/config.json", activation_function=a
            ),
        )


def _pickles() -> Iterator[Attack]:
    for name in (
        "pytorch_model.bin",
        "training_args.bin",
        "2_Dense/pytorch_model.bin",
        "adapter_model.bin",
    ):

        def pickled(path: Path, name: str = name) -> None:
            (path / name).write_bytes(pickle.dumps(_Canary()))
            if name != "training_args.bin" and "adapter" not in name:
                (path / name.replace("pytorch_model.bin", "model.safetensors")).unlink()

        yield f"pickle {name}", pickled


def _beyond(path: Path) -> None:
    """A tokenizer with ids that the table of the model lacks."""
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    for number, token in enumerate(list(vocabulary)[5:]):
        vocabulary[token] = 10**6 + number
    tiny.write_json(path / "tokenizer.json", tokenizer)


def attack_folders(number: int | None, seed: int) -> tuple[int, list[str]]:
    """Run attacks on model folders, or a sample of them; return how many, and the faults."""
    import torch

    torch.set_num_threads(1)  # children are forked
    attacks = list(folder_attacks())
    if number is not None:
        attacks = random.Random(seed).sample(attacks, min(number, len(attacks)))
    faults = []
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        for base, build in BASES.items():
            build(folder / base)
        (folder / "t.jsonl").write_text('{"text": "the sea rises"}\n{"text": ""}\n')
        for base, (what, attack) in attacks:
            faults += _attack_folder(folder, base, what, attack)
    return len(attacks), faults


def _attack_folder(folder: Path, base: str, what: str, attack: Callable[[Path], None]) -> list[str]:
    model, output = folder / "model", folder / "o.parquet"
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(folder / base, model)
    attack(model)
    arguments = ["encode", "t.jsonl", "--role", "query", "--template", "{text}", "--quiet"]
    arguments += [
        "--model",
        "./model",
        "-o",
        str(output),
        "--device",
        "cpu",
        "--on-error",
        "reject",
    ]
    ended = run([*arguments, "--overwrite", "--fresh"], folder)
    output.unlink(missing_ok=True)
    found = ended.faults((DONE, 3, DATA, CONFIGURATION))
    for canary in (folder / CANARY, model / CANARY):
        if canary.exists():
            canary.unlink()
            found.append("CODE WAS RUN")
    last = ended.words.strip().splitlines()[-1:]
    return [f"{base}: {what}: {', '.join(found)}: {last}"] if found else []


COMMANDS = {
    "search": ["search", "{file}", "the sea"],
    "search by rows": ["search", "{file}", "--queries", "{file}"],
    "inspect": ["inspect", "{file}"],
    "verify": ["verify", "{file}"],
    "compare": ["compare", "{file}", "good.parquet"],
    "like": [
        "encode",
        "t.jsonl",
        "--role",
        "query",
        "--like",
        "{file}",
        "-o",
        "like.parquet",
        "-q",
    ],
    "update": [
        *("encode", "t.jsonl", "--role", "passage", "--model", "hash:8", "-o", "{file}"),
        *("--update", "-q"),
    ],
}


def metadata_attacks() -> Iterator[tuple[str, str, Any]]:
    """A command, what was changed, and the changed provenance."""
    good = _good_provenance()
    for what, value in _changed(good):
        for command in COMMANDS:
            yield command, what, value


def _good_provenance() -> Any:
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_good(folder)
        return json.loads(pq.read_metadata(folder / "good.parquet").metadata[b"embedcli"])


def _write_good(folder: Path) -> None:
    (folder / "t.jsonl").write_text('{"id": 1, "text": "the sea"}\n{"id": 2, "text": "bread"}\n')
    for output in ("good.parquet", "good/"):
        arguments = ["encode", "t.jsonl", "--role", "passage", "--model", "hash:8", "-q"]
        ended = run([*arguments, "-o", output], folder)
        assert ended.code == 0, ended.words


PATHS = [
    "/etc/passwd",
    "../../../etc/shadow",
    "./evil.toml",
    "/dev/zero",
    "/dev/stdin",
    "fifo",
    "./model",
]
LONG = "x" * 2_000_000


def _changed(good: Any) -> Iterator[tuple[str, Any]]:
    """The provenance with one entry ill-typed, missing, a path, or very long."""
    for path in _paths(good):
        for value in (*ODD_VALUES[:8], LONG, *(PATHS if isinstance(_at(good, path), str) else ())):
            yield f"{'.'.join(map(str, path))} = {value!r:.30}", _with(good, path, value)
        yield f"no {'.'.join(map(str, path))}", _without(good, path)
    column = ("columns", "embedding")
    for kind, name in (
        ("option", ""),
        ("family", "../evil"),
        ("family", "/etc/passwd"),
        ("prompts", ""),
    ):
        for template in (*PATHS, "{text}", "{task}{text}", "x" * 60_000, "{text}" * 2, "{a}{text}"):
            value = _with(good, (*column, "template_source"), {"kind": kind, "name": name})
            value = _with(value, (*column, "recipe", "template"), template)
            value = _with(value, (*column, "recipe", "role"), "query")
            yield f"template {kind} {template!r:.20}", _signed(value)
    for model in (*PATHS, "attacker/model", "hash:99999", "hash:0", LONG, "", "./../x"):
        value = _with(good, (*column, "recipe", "space", "model"), model)
        yield f"model {model!r:.30}", _signed(value)


def _paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in entries:
        yield (*before, key)
        if isinstance(entry, (dict, list)):
            yield from _paths(entry, (*before, key))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _with(value: Any, path: tuple[Any, ...], entry: Any) -> Any:
    changed = copy.deepcopy(value)
    _at(changed, path[:-1])[path[-1]] = entry
    return changed


def _without(value: Any, path: tuple[Any, ...]) -> Any:
    changed = copy.deepcopy(value)
    del _at(changed, path[:-1])[path[-1]]
    return changed


def _signed(value: Any) -> Any:
    """The same with ids that fit: whoever makes such a file can compute them."""
    import msgspec

    from embedcli.recipe import Recipe

    for column in value["columns"].values():
        recipe = msgspec.convert(column["recipe"], Recipe)
        column["space_id"], column["recipe_id"] = recipe.space.id, recipe.id
    return value


def attack_metadata(number: int | None, seed: int) -> tuple[int, list[str]]:
    """Run attacks by a file's metadata and by manifests; return how many, and the faults."""
    import pyarrow.parquet as pq

    attacks = list(metadata_attacks())
    if number is not None:
        attacks = random.Random(seed).sample(attacks, min(number, len(attacks)))
    faults = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_good(folder)
        (folder / "evil.toml").write_text('pooling = "max"\n[roles]\nquery = "evil {text}"\n')
        os.mkfifo(folder / "fifo")
        tiny.bert(folder / "model")
        table = pq.read_table(folder / "good.parquet")
        for turn, (command, what, value) in enumerate(attacks):
            file = _hostile_file(folder, table, value, as_folder=turn % 3 == 0)
            arguments = [part.replace("{file}", file) for part in COMMANDS[command]]
            ended = run(arguments, folder)
            found = ended.faults((0, 1, 2, 3, DATA, 66, 73, CONFIGURATION))
            if "evil" in ended.words and "evil {text}" in ended.words:
                found.append("a template file was obeyed")
            if found:
                last = ended.words.strip().splitlines()[-1:]
                faults.append(f"{command} {file}: {what}: {', '.join(found)}: {str(last)[:200]}")
            (folder / "like.parquet").unlink(missing_ok=True)
            shutil.rmtree(folder / ".hostile.embedcli", ignore_errors=True)
    return len(attacks), faults


def _hostile_file(folder: Path, table: Any, value: Any, as_folder: bool) -> str:
    import pyarrow.parquet as pq

    if as_folder:
        shutil.rmtree(folder / "hostile", ignore_errors=True)
        shutil.copytree(folder / "good", folder / "hostile")
        manifest = json.loads((folder / "good" / "_embedcli.json").read_text())
        content = value if not isinstance(value, dict) else {**manifest, **value}
        (folder / "hostile" / "_embedcli.json").write_text(json.dumps(content))
        return "hostile"
    metadata = {b"embedcli": json.dumps(value).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), folder / "hostile.parquet")
    return "hostile.parquet"
