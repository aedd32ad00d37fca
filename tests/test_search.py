"""`embedcli search`: what it finds is what comparing every vector finds, queries match their index,
or it refuses.
"""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcli.analysis.similarity import nearest
from embedcli.config import OutputOptions
from embedcli.store import parts
from embedcli.store.vector_file import VectorFile
from tests.conftest import SAMPLE, run_process


def blocks(vectors, size):
    return (
        (np.arange(at, min(at + size, len(vectors))), vectors[at : at + size])
        for at in range(0, len(vectors), size)
    )


def brute_force(queries, vectors, k):
    scores = (queries.astype(np.float64) @ vectors.astype(np.float64).T).astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


@pytest.mark.parametrize("size", [500, 4096, 10_000])
def test_nearest_is_brute_force_on_ten_thousand_vectors_with_ties_in_row_order(size):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(10_000, 64)).astype(np.float32)
    vectors[7000:7500] = vectors[:500]
    queries = np.concatenate([vectors[:20], rng.normal(size=(20, 64)).astype(np.float32)])
    scores, rows = nearest(queries, blocks(vectors, size), 10)
    wanted_scores, wanted_rows = brute_force(queries, vectors, 10)
    assert np.array_equal(rows, wanted_rows)
    assert np.array_equal(scores, wanted_scores)
    assert rows[:20, 1].tolist() == list(range(7000, 7020))


@given(st.integers(1, 60), st.integers(1, 70), st.integers(1, 20), st.integers(0, 5))
def test_nearest_with_any_block_and_any_k_has_ties_in_row_order(count, k, size, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-1, 2, size=(count, 3)).astype(np.float32)  # many equal scores
    queries = rng.integers(-1, 2, size=(4, 3)).astype(np.float32)
    scores, rows = nearest(queries, blocks(vectors, size), k)
    wanted_scores, wanted_rows = brute_force(queries, vectors, k)
    assert np.array_equal(rows, wanted_rows)
    assert np.array_equal(scores, wanted_scores)


def test_nearest_never_finds_what_is_not_finite():
    vectors = np.ones((4, 3), np.float32)
    vectors[1, 0], vectors[2, 2] = np.nan, np.inf
    _, rows = nearest(np.ones((2, 3), np.float32), blocks(vectors, 2), 4)
    assert rows.tolist() == [[0, 3], [0, 3]]


def test_nearest_of_nothing_is_nothing():
    scores, rows = nearest(np.ones((2, 3), np.float32), iter(()), 5)
    assert scores.shape == rows.shape == (2, 0)


TEXTS = [
    {"_id": f"d{i}", "lang": "de" if i % 3 else "en", "text": f"text number {i}", "n": i}
    for i in range(300)
]


@pytest.fixture
def index(cli, tmp_path):
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TEXTS))
    (tmp_path / "q.jsonl").write_text(
        '{"qid": 7, "text": "text number 17"}\n{"qid": 8, "text": "other"}\n'
    )
    for name, role in (("c", "passage"), ("q", "query")):
        ran = cli("encode", tmp_path / f"{name}.jsonl", "--role", role, "--model", "hash:16")
        assert ran.code == 0, ran.err
    return tmp_path / "c.passage.parquet"


def found(ran):
    assert ran.code == 0, ran.err
    return [json.loads(line) for line in ran.lines]


def test_a_text_is_encoded_as_a_query_of_the_index(cli, index, tmp_path):
    hits = found(cli("search", index, "text number 17", "-k", 5))
    vectors, query = (
        np.array(pq.read_table(tmp_path / name)["embedding"].to_pylist(), np.float32)
        for name in ("c.passage.parquet", "q.query.parquet")
    )
    scores, rows = brute_force(query[:1], vectors, 5)
    assert [hit["row"] for hit in hits] == rows[0].tolist()
    assert [hit["score"] for hit in hits] == pytest.approx(scores[0].tolist(), abs=1e-7)
    assert [hit["rank"] for hit in hits] == [1, 2, 3, 4, 5]
    assert hits[0]["record"] == TEXTS[rows[0, 0]]
    assert hits[0]["query"] == "text number 17"


def test_queries_come_from_texts_files_and_vectors_alike(cli, index, tmp_path):
    given = found(cli("search", index, "text number 17", "other", "-k", 3))
    from_file = found(cli("search", index, "--queries", tmp_path / "q.jsonl", "-k", 3))
    from_vectors = found(cli("search", index, "--queries", tmp_path / "q.query.parquet", "-k", 3))
    assert given == from_file == from_vectors
    assert [hit["query_row"] for hit in given] == [0, 0, 0, 1, 1, 1]


def test_where_chooses_rows_and_columns_what_is_shown(cli, index):
    every = found(cli("search", index, "text number 17", "-k", 300))
    some = found(
        cli("search", index, "text number 17", "-k", 300, "--where", "lang = 'en' AND n >= 30")
    )
    assert [hit["row"] for hit in some] == [
        h["row"] for h in every if h["row"] % 3 == 0 and h["row"] >= 30
    ]
    assert found(cli("search", index, "x", "--where", "n > 1000")) == []
    shown = found(cli("search", index, "x", "--columns", "n,_id", "-k", 1))[0]["record"]
    assert set(shown) == {"n", "_id"}
    for options in (
        ("--where", "nothing = 1"),
        ("--where", "lang ="),
        ("--where", "read_csv('/etc/passwd')"),
    ):
        ran = cli("search", index, "x", *options)
        assert (ran.code, ran.out) == (2, b""), ran.err
        assert "columns: _id, lang, text, n" in ran.err
    assert cli("search", index, "x", "--columns", "nothing").code == 65


def test_several_files_are_one_index(cli, index, tmp_path):
    half = tmp_path / "half"
    for name, rows in (("a", TEXTS[:100]), ("b", TEXTS[100:])):
        corpus = tmp_path / f"{name}.jsonl"
        corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
        output = f"{half}.{name}.parquet" if name == "a" else f"{half}.{name}/"
        assert (
            cli("encode", corpus, "--role", "passage", "--model", "hash:16", "-o", output).code == 0
        )
    whole = found(cli("search", index, "text number 17", "-k", 40))
    parted = found(
        cli("search", f"{half}.a.parquet", "text number 17", "-k", 40, "--also", f"{half}.b")
    )
    assert [hit["record"] for hit in parted] == [hit["record"] for hit in whole]
    assert [hit["score"] for hit in parted] == [hit["score"] for hit in whole]
    assert {hit["file"] for hit in parted} == {f"{half}.a.parquet", f"{half}.b"}
    shown = cli(
        "search", f"{half}.a.parquet", "text number 17", "--also", f"{half}.b", "--table"
    ).out.decode()
    assert all(name in shown for name in ("half.a.parquet", "half.b ", "score"))


def test_what_does_not_compare_is_refused_with_both_recipes_named(cli, index, tmp_path):
    other = tmp_path / "other.parquet"
    assert (
        cli(
            "encode", tmp_path / "q.jsonl", "--role", "query", "--model", "hash:8", "-o", other
        ).code
        == 0
    )
    ran = cli("search", index, "--queries", other)
    assert (ran.code, ran.out) == (78, b"")
    assert "dim is 16 in " in ran.err
    ran = cli("search", index, "--queries", index)
    assert (ran.code, ran.out) == (78, b"")
    assert "role 'passage' (template 'passage: {text}')" in ran.err
    assert "--role passage" in ran.err
    assert len(
        found(cli("search", index, "--queries", index, "--role", "passage", "-k", 1))
    ) == len(TEXTS)
    assert cli("search", index, "--also", other, "x").code == 78


def test_bad_input_is_named(cli, index, tmp_path):
    plain = tmp_path / "plain.parquet"
    pq.write_table(pa.table({"text": ["a"]}), plain)
    for args, code, words in (
        ((tmp_path / "none", "x"), 66, "no such file"),
        ((plain, "x"), 65, "not written by embedcli"),
        ((tmp_path / "c.jsonl", "x"), 65, "is no Parquet file"),
        ((index,), 2, "--queries"),
        ((index, "x", "--queries", tmp_path / "q.jsonl"), 2, "--queries"),
        ((index, "--queries", tmp_path / "none.jsonl"), 66, "none.jsonl"),
        ((index, "x", "-k", 0), 2, "k"),
    ):
        ran = cli("search", *args)
        assert (ran.code, ran.out) == (code, b""), ran.err
        assert words in ran.err
        assert "Traceback" not in ran.err


def test_vectors_that_are_missing_or_not_finite_are_never_found(cli, index, tmp_path):
    table = pq.read_table(index)
    vectors = table["embedding"].to_pylist()
    vectors[3], vectors[4] = None, [float("nan")] * 16
    column = pa.array(vectors, table.schema.field("embedding").type)
    pq.write_table(
        table.set_column(4, table.schema.field("embedding"), column), tmp_path / "holes.parquet"
    )
    rows = [hit["row"] for hit in found(cli("search", tmp_path / "holes.parquet", "x", "-k", 300))]
    assert sorted(rows) == [row for row in range(300) if row not in (3, 4)]
    where = [
        hit["row"]
        for hit in found(
            cli("search", tmp_path / "holes.parquet", "x", "-k", 300, "--where", "n < 9")
        )
    ]
    assert sorted(where) == [0, 1, 2, 5, 6, 7, 8]


def test_an_index_without_columns_one_without_rows_and_no_queries(cli, index, tmp_path):
    bare, nothing = tmp_path / "bare.parquet", tmp_path / "nothing.jsonl"
    options = ("--role", "passage", "--model", "hash:16")
    assert cli("encode", tmp_path / "c.jsonl", *options, "--columns", "", "-o", bare).code == 0
    hits = found(cli("search", bare, "x", "-k", 3))
    assert [hit["record"] for hit in hits] == [{}, {}, {}]
    assert "carries no columns" in cli("search", bare, "x", "--where", "n = 1").err
    assert cli("search", bare, "x", "--table").code == 0
    nothing.write_text("")
    assert cli("encode", nothing, *options, "-o", tmp_path / "empty", "--allow-empty").code == 0
    assert found(cli("search", tmp_path / "empty", "x")) == []
    assert found(cli("search", index, "--queries", nothing)) == []
    queries = tmp_path / "empty.query"
    assert (
        cli(
            "encode",
            nothing,
            "--role",
            "query",
            "--model",
            "hash:16",
            "-o",
            queries,
            "--allow-empty",
        ).code
        == 0
    )
    assert found(cli("search", index, "--queries", queries)) == []


def test_a_table_holds_on_to_its_width_and_to_the_text_as_it_is(cli, index, tmp_path, monkeypatch):
    (tmp_path / "w.jsonl").write_text(
        json.dumps({"_id": "a\u202e", "text": "\x1b[31m" + "long " * 90}) + "\n"
    )
    output = tmp_path / "w.parquet"
    assert (
        cli(
            "encode", tmp_path / "w.jsonl", "--role", "passage", "--model", "hash:16", "-o", output
        ).code
        == 0
    )
    monkeypatch.setenv("COLUMNS", "60")
    lines = cli("search", output, "[b]x[/b]", "--table").lines
    assert lines[0] == "[b]x[/b]"
    assert all(len(line) <= 60 for line in lines)
    assert "a\\u202e" in lines[2]
    assert "\\x1b[31mlong" in lines[2]


@pytest.mark.heavy
def test_the_embedded_model_finds_what_people_would(cli, tmp_path):
    output = tmp_path / "o.parquet"
    ran = cli(
        "encode", SAMPLE / "corpus.jsonl", "--role", "passage", "-o", output, "--dtype", "float32"
    )
    assert ran.code == 0, ran.err
    hits = found(
        cli("search", output, "where does aspirin come from", "-k", 2, "--columns", "title")
    )
    assert hits[0]["record"] == {"title": "Willow bark"}
    assert hits[0]["score"] == pytest.approx(0.462, abs=0.001)


# Runs the program, then says the most memory that it took, in kB. (getrusage would tell its parent's, if that is more.)
MEASURED = """
import sys
from embedcli.cli import app
try:
    app(sys.argv[1:])
finally:
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(line.split()[1], file=sys.stderr)
"""


@pytest.mark.heavy
def test_an_index_of_two_gigabytes_is_searched_in_bounded_memory(tmp_path):
    """1.3 million rows; the process stays under 1 GB, with 384 dimensions and 50 queries."""
    (tmp_path / "c.jsonl").write_text('{"_id": "a", "text": "one"}\n')
    options = ("--role", "passage", "--model", "hash:384")
    assert run_process("encode", tmp_path / "c.jsonl", *options, "-o", tmp_path / "small").code == 0
    small = VectorFile(str(tmp_path / "small"))
    carried = pa.schema([("_id", pa.string())])
    schema = parts.output_schema(carried, 384, OutputOptions(""))
    rng, rows = np.random.default_rng(0), 50_000

    def tables():
        for at in range(26):
            vectors = rng.normal(size=(rows, 384)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            columns = parts.EmbeddingColumns.zeros(np.zeros(rows, "V16"), 384)
            columns.vectors[:] = vectors
            carried = pa.table({"_id": [f"{at}-{row}" for row in range(rows)]})
            yield parts.assemble(carried, schema, small.names, columns)

    index = tmp_path / "index.parquet"
    parts.write(index, schema, small.provenance, tables(), durable=False)
    assert index.stat().st_size > 1.5e9  # compressed; 2.0e9 in memory
    (tmp_path / "q.jsonl").write_text(
        "".join(json.dumps({"text": f"query {i}"}) + "\n" for i in range(50))
    )
    search = ["search", str(index), "--queries", str(tmp_path / "q.jsonl"), "-k", "10"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *search], capture_output=True, text=True, check=True
    )
    assert len(done.stdout.splitlines()) == 500
    assert int(done.stderr.split()[-1]) < 1_000_000
