"""`embedcli compare`: what two outputs have in common."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest


@pytest.fixture
def encode(cli, tmp_path, tiny_bert):
    def run(name, texts, *options, model=tiny_bert):
        corpus = tmp_path / f"{name}.jsonl"
        corpus.write_text(
            "".join(json.dumps({"_id": t.split()[-1], "text": t}) + "\n" for t in texts)
        )
        template = () if "--template" in options else ("--template", "{text}")
        ran = cli(
            "encode",
            corpus,
            "--role",
            "query",
            "--model",
            model,
            *template,
            "-o",
            tmp_path / name,
            *options,
        )
        assert ran.code == 0, ran.err
        return tmp_path / name

    return run


def compare(cli, one, other, *options):
    ran = cli("compare", one, other, "--json", *options)
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


TEXTS = [f"{'word ' * (i % 7)}text {i}" for i in range(50)]


def test_an_output_is_itself(cli, encode):
    one, other = (
        encode("a", TEXTS, "--dtype", "float32"),
        encode("b", TEXTS[::-1], "--dtype", "float32"),
    )
    found = compare(cli, one, other)
    assert found["same_space"]
    assert found["differing"] == {}
    assert found["rows"] == {
        "in the first": 50,
        "in the second": 50,
        "in both": 50,
        "only in the first": 0,
        "only in the second": 0,
    }
    assert found["cosines"]["least"] == pytest.approx(1, abs=1e-6)
    assert (found["overlap"], found["compared"], found["asked"]) == (1, 50, 50)


def test_dtype_shows_in_cosines_and_rows_in_one_only_are_counted(cli, encode):
    one, other = (
        encode("a", TEXTS, "--dtype", "float32"),
        encode("b", TEXTS[10:], "--dtype", "bfloat16"),
    )
    found = compare(cli, one, other)
    assert found["same_space"]
    assert found["differing"]["dtype"] == ["float32", "bfloat16"]
    assert found["rows"]["only in the first"] == 10
    first, second = (
        np.array(pq.read_table(path)["embedding"].to_pylist()) for path in (one, other)
    )
    wanted = (first[10:] * second).sum(axis=1)
    assert found["cosines"]["least"] == pytest.approx(wanted.min(), abs=1e-5)
    assert found["cosines"]["median"] == pytest.approx(np.median(wanted), abs=1e-5)
    assert 0.5 < found["overlap"] <= 1


def test_other_dimensions_compare_by_neighbours(cli, encode):
    one, other = (
        encode("a", TEXTS, "--dtype", "float32"),
        encode("b", TEXTS, "--dtype", "float32", "--dim", 4),
    )
    found = compare(cli, one, other)
    assert (found["same_space"], found["cosines"], found["differing"]["dim"]) == (
        False,
        None,
        [32, 4],
    )
    vectors = [np.array(pq.read_table(path)["embedding"].to_pylist()) for path in (one, other)]
    # Scores as compare rounds them: the last bits of a product depend on how the library adds.
    scores = [(v @ v.T - 9 * np.eye(50)).astype(np.float32) for v in vectors]
    near = [np.argsort(-score, axis=1, kind="stable")[:, :10] for score in scores]
    wanted = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*near, strict=True)])
    assert found["overlap"] == pytest.approx(wanted, abs=0.01)


def test_other_templates_compare_by_id_or_by_a_named_column(cli, encode):
    one, other = encode("a", TEXTS), encode("b", TEXTS, "--template", "say: {text}")
    assert compare(cli, one, other)["key"] == "_id"
    assert compare(cli, one, other, "--key", "text")["rows"]["in both"] == 50
    assert compare(cli, one, other, "--key", "embedding_hash")["rows"]["in both"] == 0
    ran = cli("compare", one, other, "--key", "nothing")
    assert (ran.code, "no column 'nothing'" in ran.err) == (65, True)


def test_other_models_compare_by_neighbours(cli, encode):
    found = compare(cli, encode("a", TEXTS), encode("b", TEXTS, model="hash:32"))
    assert not found["same_space"]
    assert "weights" in found["differing"]
    assert found["overlap"] < 0.6


def test_repeated_texts_count_once_and_no_common_row_is_no_error(cli, encode):
    one, other = encode("a", ["same", "same", "other"]), encode("b", ["same", "third"])
    assert compare(cli, one, other)["rows"]["in both"] == 1
    found = compare(cli, encode("c", ["alone"]), other)
    assert (found["rows"]["in both"], found["cosines"], found["overlap"]) == (0, None, None)


def test_for_people(cli, encode):
    ran = cli("compare", encode("a", TEXTS), encode("b", TEXTS, "--dtype", "bfloat16"))
    assert ran.code == 0
    for words in (
        "the same: the vectors compare",
        "50 in both",
        "least",
        "of the 10 nearest are the same",
    ):
        assert words in ran.out.decode()
