"""`--like`: queries are encoded to match their passages, or not at all."""

import json
import shutil

import pytest

from tests import tiny
from tests.runs import made_of


def encode(cli, folder, name, *options):
    corpus = folder / "c.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("one", "two words")))
    ran = cli("encode", corpus, "-o", folder / name, "--dtype", "float32", *options)
    return ran


def recipe(path):
    return made_of(path)["recipe"]


@pytest.fixture
def passages(cli, tmp_path, tiny_bert):
    options = (
        "--role",
        "passage",
        "--model",
        tiny_bert,
        "--template",
        "e5",
        "--dim",
        8,
        "--no-normalize",
    )
    ran = encode(cli, tmp_path, "p.parquet", *options)
    assert ran.code == 0, ran.err
    return tmp_path / "p.parquet"


def test_model_family_dimension_and_normalization_are_the_files_own(
    cli, tmp_path, passages, tiny_bert
):
    ran = encode(
        cli, tmp_path, "q.parquet", "--role", "query", "--like", passages, "--model", tiny_bert
    )
    assert ran.code == 0, ran.err
    ours, theirs = recipe(tmp_path / "q.parquet"), recipe(passages)
    assert ours["space"] == theirs["space"]
    assert (ours["space"]["dim"], ours["space"]["normalized"]) == (8, False)
    assert (ours["template"], theirs["template"]) == ("query: {text}", "passage: {text}")


@pytest.mark.torch
def test_the_embedded_model_and_the_pseudo_model_need_no_name(cli, tmp_path):
    for model in ((), ("--model", "hash:8")):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        assert encode(cli, tmp_path, "p.parquet", "--role", "passage", *model).code == 0
        ran = encode(
            cli, tmp_path, "q.parquet", "--role", "query", "--like", tmp_path / "p.parquet"
        )
        assert ran.code == 0, ran.err
        assert recipe(tmp_path / "q.parquet")["space"] == recipe(tmp_path / "p.parquet")["space"]


def test_another_model_is_refused_with_both_named(cli, tmp_path, passages, tmp_path_factory):
    other = tiny.bert(tmp_path_factory.mktemp("other") / "other-bert", seed=1)
    ran = encode(
        cli, tmp_path, "q.parquet", "--role", "query", "--like", passages, "--model", other
    )
    assert ran.code == 78
    assert "tiny-bert" in ran.err
    assert "other-bert" in ran.err
    assert "weights" in ran.err
    assert not (tmp_path / "q.parquet").exists()


def test_options_that_make_another_space_are_refused(cli, tmp_path, passages, tiny_bert):
    for option in (("--dim", 16), ("--normalize",)):
        ran = encode(
            cli, tmp_path, "q", "--role", "query", "--like", passages, "--model", tiny_bert, *option
        )
        assert ran.code == 78, ran.err
        assert "can't be compared" in ran.err


def test_a_template_given_by_hand_serves_its_own_role_alone(cli, tmp_path):
    options = ("--model", "hash:8", "--template", "doc: {text}")
    assert encode(cli, tmp_path, "p.parquet", "--role", "passage", *options).code == 0
    like = ("--like", tmp_path / "p.parquet")
    ran = encode(cli, tmp_path, "q.parquet", "--role", "query", *like)
    assert (ran.code, "'doc: {text}' for role passage" in ran.err) == (78, True)
    assert (
        encode(
            cli, tmp_path, "q.parquet", "--role", "query", *like, "--template", "ask: {text}"
        ).code
        == 0
    )
    assert recipe(tmp_path / "q.parquet")["template"] == "ask: {text}"
    assert encode(cli, tmp_path, "p2.parquet", "--role", "document", *like).code == 0
    assert recipe(tmp_path / "p2.parquet")["template"] == "doc: {text}"


def test_a_file_that_says_nothing_is_refused(cli, tmp_path):
    (tmp_path / "x").write_text("no vectors")
    for path, code in ((tmp_path / "none", 66), (tmp_path / "x", 65)):
        assert encode(cli, tmp_path, "q", "--role", "query", "--like", path).code == code
