"""`embedcli inspect`: the numbers it gives are those of the file."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.runs import HASH, write_corpus


@pytest.fixture
def output(cli, tmp_path):
    texts = ["one", "two words", "three little words", "one", "a very long text of many words"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return cli(
        "encode",
        tmp_path / "a.jsonl",
        "--role",
        "passage",
        "--model",
        "hash:8",
        "--max-length",
        "6",
    ).lines[-1]


def test_what_encode_wrote(cli, output):
    said = json.loads(cli("inspect", output, "--json").out)
    assert (said["rows"], said["dim"], said["vector_type"], said["embedding_column"]) == (
        5,
        8,
        "float",
        "embedding",
    )
    assert said["norm_min"] == pytest.approx(1, abs=1e-6)
    assert said["norm_max"] == pytest.approx(1, abs=1e-6)
    assert (
        said["non_finite"],
        said["zero"],
        said["missing"],
        said["duplicates"],
        said["truncated"],
    ) == (0, 0, 0, 1, 1)
    assert said["tokens"] == {
        "min": 2,
        "mean": 3.4,
        "p50": 3,
        "p90": 6,
        "p99": 6,
        "max": 6,
        "total": 17,
    }
    assert said["provenance"]["columns"]["embedding"]["recipe"]["role"] == "passage"


def test_a_directory_is_inspected_as_one_file_is(cli, tmp_path):
    corpus = write_corpus(tmp_path / "c.jsonl", 6_000)
    outputs = [tmp_path / "o.parquet", f"{tmp_path}/o/"]
    for output in outputs:
        assert cli("encode", corpus, *HASH, "-o", output).code == 0
    file, folder = (json.loads(cli("inspect", output, "--json").out) for output in outputs)
    ignored = ("file", "bytes")
    assert {k: v for k, v in file.items() if k not in ignored} == {
        k: v for k, v in folder.items() if k not in ignored
    }
    parts = json.loads((tmp_path / "o" / "_embedcli.json").read_text())["parts"]
    assert sum(part["rows"] for part in parts) == 6_000
    (tmp_path / "empty").mkdir()
    assert cli("inspect", tmp_path / "empty").code == 65


def test_for_people(cli, output):
    ran = cli("inspect", output)
    for words in (
        "hash:8",
        "passage: {text}",
        "5 in = 5 out + 0 rejected",
        "1 of 5 rows (20.0%)",
        "all finite, none zero",
    ):
        assert words in ran.out.decode()
    assert ran.err == ""


def test_somebody_elses_vectors(cli, tmp_path):
    vectors = [[3.0, 4.0], [0.0, 0.0], [float("nan"), 1.0], None, [float("inf"), 0.0]]
    table = pa.table({"id": range(5), "v": pa.array(vectors, pa.list_(pa.float32(), 2))})
    pq.write_table(table, tmp_path / "v.parquet")
    said = json.loads(cli("inspect", tmp_path / "v.parquet", "--json").out)
    assert (said["embedding_column"], said["norm_min"], said["norm_max"]) == ("v", 0.0, 5.0)
    assert (said["non_finite"], said["zero"], said["missing"]) == (2, 1, 1)
    assert (said["tokens"], said["duplicates"], said["provenance"]) == (None, None, None)
    assert "no provenance" in cli("inspect", tmp_path / "v.parquet").out.decode()


def test_vectors_of_short_numbers_and_several_row_groups(cli, tmp_path):
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(90, 4)).astype(np.float16)
    table = pa.table({"v": pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), 4)})
    pq.write_table(table, tmp_path / "v.parquet", row_group_size=20)
    said = json.loads(cli("inspect", tmp_path / "v.parquet", "--json").out)
    norms = np.linalg.norm(flat.astype(np.float32), axis=1)
    assert said["norm_min"] == pytest.approx(norms.min())
    assert said["norm_max"] == pytest.approx(norms.max())


def test_an_empty_output(cli, tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    path = cli(
        "encode", tmp_path / "a.jsonl", "--role", "query", "--model", "hash:8", "--allow-empty"
    ).lines[-1]
    said = json.loads(cli("inspect", path, "--json").out)
    assert (said["rows"], said["dim"], said["norm_min"], said["truncated"]) == (0, 8, None, 0)
    assert cli("inspect", path).code == 0


def test_what_is_no_file_of_vectors(cli, tmp_path, output):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    (tmp_path / "text").write_text("hello")
    for path, code, message in (
        (tmp_path / "x.parquet", 65, "no column of vectors"),
        (tmp_path / "text", 65, "not a readable Parquet file"),
        (tmp_path / "none", 66, "no such file"),
    ):
        ran = cli("inspect", path)
        assert (ran.code, message in ran.err) == (code, True), ran.err
    assert cli("inspect", output, "--embedding-column", "text").code == 65
