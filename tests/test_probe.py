"""`embedcli probe`: its numbers are those of the vectors that encode writes, its pictures are
pictures.
"""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedcli.analysis import probe_plot as pictures
from embedcli.analysis.probe import Probed, View
from embedcli.config import RunOptions
from tests.conftest import run_process

WORDS = ["warm", "hot", "cold", "philosophy"]
INSTRUCTION = "Classify a given temperature by its sensation."


FLOAT32 = ("--dtype", "float32")  # whatever is faster on this machine


def probe(cli, *options, code=0):
    ran = cli("probe", *options, "--json")
    assert ran.code == code, ran.err
    return json.loads(ran.out) if code == 0 else ran


def encoded(cli, folder, tiny_bert, texts, template):
    (folder / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = ("--model", tiny_bert, "--template", template, "--dtype", "float32", "--overwrite")
    assert (
        cli(
            "encode", folder / "c.jsonl", "--role", "query", *options, "-o", folder / "o", "--fresh"
        ).code
        == 0
    )
    return np.array(pq.read_table(folder / "o")["embedding"].to_pylist())


def test_cosines_are_those_of_encode_with_and_without_the_instruction(cli, tmp_path, tiny_bert):
    found = probe(
        cli, *WORDS, "-i", INSTRUCTION, *FLOAT32, "--model", tiny_bert, "--template", "all-minilm"
    )
    assert found["texts"] == WORDS
    bare = encoded(cli, tmp_path, tiny_bert, WORDS, "{text}")
    instructed = encoded(cli, tmp_path, tiny_bert, WORDS, f"{INSTRUCTION} {{text}}")
    for view, vectors in zip(found["views"], (bare, instructed), strict=True):
        assert np.abs(np.array(view["cosines"]) - vectors @ vectors.T).max() < 1e-5
        assert np.abs(np.array(view["moved"]) - (1 - (vectors * bare).sum(axis=1))).max() < 1e-5
    assert [view["instruction"] for view in found["views"]] == ["no instruction", INSTRUCTION]


def test_a_template_with_a_task_takes_the_instruction_in_its_place(cli, tiny_bert):
    found = probe(
        cli, *WORDS, "-i", "Do this", "--model", tiny_bert, "--template", "multilingual-e5-instruct"
    )
    assert found["views"][1]["template"] == "Instruct: Do this\nQuery: {text}"
    braces = probe(
        cli, *WORDS, "-i", "Use {braces}", "--model", tiny_bert, "--template", "all-minilm"
    )
    assert len(braces["views"]) == 2


def test_the_projection_is_the_two_leading_singular_directions(cli, tmp_path, tiny_bert):
    view = probe(cli, *WORDS, *FLOAT32, "--model", tiny_bert, "--template", "all-minilm")["views"][
        0
    ]
    vectors = encoded(cli, tmp_path, tiny_bert, WORDS, "{text}")
    centred = vectors - vectors.mean(axis=0)
    variances = np.sort(np.linalg.eigvalsh(centred @ centred.T))[::-1]
    assert view["shares_of_variance"] == pytest.approx(
        (variances[:2] / variances.sum()).tolist(), abs=1e-4
    )
    places = np.array(view["places"])
    assert (places**2).sum(axis=0) == pytest.approx(variances[:2], rel=1e-3)


def test_pairs_and_labels(cli, tmp_path):
    rows = [{"left": f"text {i}", "right": f"text {i}", "kind": "ab"[i % 2]} for i in range(6)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--input", tmp_path / "p.jsonl", "--model", "hash:32")
    found = probe(cli, *options, "--pairs", "left,right", "-i", "x")
    assert found["pairs"] == [[i, 6 + i] for i in range(6)]
    assert found["labels"] == ["left"] * 6 + ["right"] * 6
    assert all(view["nearest_is_partner"] == [1, 1] for view in found["views"])
    labelled = probe(cli, *options, "--text-column", "left", "--label", "kind")
    assert labelled["labels"] == list("ababab")
    assert 0 <= labelled["views"][0]["nearest_has_same_label"] <= 1


def test_pairs_come_through_a_pipe(tmp_path):
    ran = run_process(
        "probe",
        "--input",
        "-",
        "--pairs",
        "a,b",
        "--model",
        "hash:32",
        "--json",
        input=b'{"a": "x", "b": "y"}\n' * 3,
    )
    assert (ran.code, json.loads(ran.out)["texts"]) == (0, ["x"] * 3 + ["y"] * 3), ran.err


def test_partners_are_counted_both_ways():
    from embedcli.analysis import probe as probing

    vectors = np.array([[1, 0], [0.9, 0.1], [1, 0], [0, 1]])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    assert probing._partners(cosines, [(0, 2), (1, 3)]) == (0.5, 1.0)
    assert probing._same_label(cosines, ["a", "b", "a", "b"]) == 0.75


def test_pictures_are_drawn(cli, tmp_path):
    png, svg = tmp_path / "p.png", tmp_path / "p.svg"
    ran = cli(
        "probe", *WORDS, "-i", INSTRUCTION, "--model", "hash:32", "--plot", png, "--plot", svg
    )
    assert ran.code == 0, ran.err
    assert png.read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    first = svg.read_bytes()
    assert cli("probe", *WORDS, "-i", INSTRUCTION, "--model", "hash:32", "--plot", svg).code == 0
    assert svg.read_bytes() == first
    assert cli("probe", *WORDS, "--model", "hash:32", "--plot", tmp_path / "p.pdf").code == 0
    assert (tmp_path / "p.pdf").read_bytes().startswith(b"%PDF")


def test_one_text_beside_another_and_markup_can_be_drawn(tmp_path):
    texts = ["$x_1$ [b] _", "<&>"]
    view = View("a $ b", "{text}", np.eye(2), np.zeros((2, 2)), (0.0, 0.0), np.zeros(2))
    pictures.draw([str(tmp_path / "p.png")], Probed(texts), [view], "m_1$")
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_bad_input_is_named(cli, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"a": "x", "b": "y"}\n{"a": "x"}\n')
    for options, code, words in (
        ((), 2, "--input"),
        (("a", "--input", "x"), 2, "--input"),
        (("alone",), 65, "two texts"),
        (("a", "b", "--plot", tmp_path / "p.bmp"), 2, ".png"),
        (("a", "b", "--plot", tmp_path / "none" / "p.png"), 73, "none"),
        (("a", "b", "--label", "x"), 2, "--input"),
        (("--input", tmp_path / "p.jsonl", "--pairs", "a"), 2, "--pairs"),
        (("--input", tmp_path / "p.jsonl", "--pairs", "a,b"), 65, "p.jsonl:2"),
        (("--input", tmp_path / "none"), 66, "none"),
    ):
        ran = cli("probe", *options, "--model", "hash:8")
        assert ran.code == code, ran.err
        assert words in ran.err
        assert "Traceback" not in ran.err


@pytest.mark.torch
def test_the_embedded_models_tables_are_shown(cli):
    ran = cli("probe", *WORDS, "-i", INSTRUCTION, "--dtype", "float32")
    assert ran.code == 0, ran.err
    assert "0.717" in ran.out.decode()  # warm and hot
    assert RunOptions().plain is False
