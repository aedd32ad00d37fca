"""Pictures of evaluations and files: drawn, repeatable, and in the place of nobody's file."""

import json

import pytest

from embedcli.analysis import metrics
from tests.runs import HASH


@pytest.fixture
def data(tmp_path):
    texts = [f"text number {i}" for i in range(12)]
    rows = [{"_id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    queries = [{"_id": f"q{i}", "text": texts[i]} for i in range(6)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    lines = [f"q{i}\td{i}\t1\n" for i in range(6)]
    (tmp_path / "r.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return tmp_path


def files(data):
    return ("--corpus", data / "c.jsonl", "--queries", data / "q.jsonl", "--qrels", data / "r.tsv")


def test_recall_grows_with_k_up_to_all():
    run = {"a": [("x", 3.0), ("y", 2.0), ("z", 1.0)], "b": [("y", 1.0)]}
    judged = {"a": {"y": 1, "z": 2, "x": 0}, "b": {"z": 1}, "c": {"x": 0}}
    recall = metrics.recall_at(run, judged)
    assert (recall[1], recall[2], recall[5]) == (0.0, 0.25, 0.5)


@pytest.mark.parametrize("options", [(), ("--models", "hash:8,hash:64")])
def test_an_evaluation_is_drawn(cli, data, options):
    picture = data / "e.svg"
    model = () if options else ("--model", "hash:64")
    arguments = ("eval", *files(data), *model, *options, "--plot", picture, "-q")
    ran = cli(*arguments)
    assert ran.code == 0, ran.err
    drawn = picture.read_text()
    assert "nDCG@10" in drawn
    assert cli(*arguments).code == 0  # our own picture may be replaced
    picture.write_text("mine")
    assert (cli(*arguments).code, picture.read_text()) == (73, "mine")


def test_a_file_is_drawn(cli, data):
    output, picture = data / "o.parquet", data / "i.png"
    assert cli("encode", data / "c.jsonl", *HASH, "-o", output, "-q").code == 0
    ran = cli("inspect", output, "--plot", picture)
    assert ran.code == 0, ran.err
    first = picture.read_bytes()
    assert first.startswith(b"\x89PNG")
    assert cli("inspect", output, "--plot", picture).code == 0
    assert picture.read_bytes() == first
    assert "norms" not in json.loads(cli("inspect", output, "--json").out)
    assert cli("inspect", output, "--plot", data / "i.bmp").code == 2
