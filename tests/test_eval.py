"""`embedcli eval`: the measures are those that one works out by hand, and comparisons are fair."""

import json
import math
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedcli.analysis import metrics
from embedcli.errors import DataError, InputMissingError
from tests.conftest import SAMPLE


def ranked(*documents):
    return [(document, 1.0 - rank / 100) for rank, document in enumerate(documents)]


def test_measures_are_those_worked_out_by_hand():
    judged = {"a": {"d1": 1, "d3": 2, "d9": 1}, "b": {"d1": 1}, "c": {"d2": 1, "d1": 0}}
    run = {"a": ranked("d1", "d2", "d3"), "b": ranked("d3", "d1"), "c": []}
    found = metrics.measure(run, judged)
    gain = 1 / math.log2(2) + 2 / math.log2(4)
    ideal = 2 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4)
    assert found["a"]["nDCG@10"] == pytest.approx(gain / ideal, abs=1e-9)
    assert found["a"]["Recall@100"] == pytest.approx(2 / 3)
    assert found["a"]["MRR@10"] == 1
    assert found["a"]["MAP"] == pytest.approx((1 / 1 + 2 / 3) / 3)
    assert found["b"] == pytest.approx(
        {"nDCG@10": 1 / math.log2(3), "Recall@100": 1, "MRR@10": 0.5, "MAP": 0.5}
    )
    assert set(found["c"].values()) == {0.0}


def test_cutoffs_and_ties_keep_our_order():
    late = [f"d{i}" for i in range(200)]
    equal = [(document, 1.0) for document in late]
    found = metrics.measure({"q": equal, "r": equal}, {"q": {"d10": 1, "d150": 1}, "r": {"d9": 1}})
    assert (found["q"]["nDCG@10"], found["q"]["MRR@10"], found["q"]["Recall@100"]) == (0, 0, 0.5)
    assert (found["r"]["MRR@10"], found["r"]["MAP"]) == (pytest.approx(0.1), pytest.approx(0.1))


def test_intervals_hold_the_mean_and_are_repeatable():
    values = np.random.default_rng(1).random(100)
    found = metrics.estimate(values)
    assert found == metrics.estimate(values)
    assert found.low < found.mean < found.high
    assert found.mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / 10  # the normal approximation
    assert (found.low, found.high) == pytest.approx(
        (found.mean - half, found.mean + half), abs=0.01
    )
    assert metrics.estimate(np.ones(5)) == metrics.Estimate(1, 1, 1)


def test_a_paired_test_tells_a_steady_difference_from_none():
    rng = np.random.default_rng(2)
    base = rng.random(60)
    better, other = base + 0.05 + 0.02 * rng.normal(size=60), base + 0.3 * rng.normal(size=60)
    assert metrics.difference(better, base).p < 0.001
    assert metrics.difference(better, base).low > 0
    assert metrics.difference(other, base).p > 0.05
    assert metrics.difference(base, base) == metrics.Difference(0, 0, 0, 1)
    assert metrics.difference(base[:3] + 1, base[:3]).p == pytest.approx(
        0.25
    )  # 2 of the 8 ways to change signs


def test_judgments_in_both_layouts(tmp_path):
    path = tmp_path / "q"
    for content in (
        "query-id\tcorpus-id\tscore\n1\ta\t1\n1\tb\t0\n2\tc d\t2\n3\ta\t0\n",
        "1\ta\t1\n1\tb\t0\n2\tc d\t2\n3\ta\t0\n",
        "1\t0\ta\t1\r\n1\t0\tb\t0\r\n\r\n2\tQ0\tc d\t2\r\n",
    ):
        path.write_bytes(content.encode())
        assert metrics.read_judgments(str(path)) == {"1": {"a": 1, "b": 0}, "2": {"c d": 2}}
    path.write_text("1 0 a 1\n2 0 b 1\n")
    assert metrics.read_judgments(str(path)) == {"1": {"a": 1}, "2": {"b": 1}}


def test_what_is_no_judgment_is_named_by_its_line(tmp_path):
    path = tmp_path / "q"
    path.write_text("query-id\tcorpus-id\tscore\n1\ta\t1\n1\tb\n")
    with pytest.raises(DataError, match=r"q:3: not a judgment"):
        metrics.read_judgments(str(path))
    path.write_text("1\ta\t0\n")
    with pytest.raises(DataError, match="no query has a relevant document"):
        metrics.read_judgments(str(path))
    with pytest.raises(InputMissingError):
        metrics.read_judgments(str(tmp_path / "none"))


TEXTS = [f"text {i} with words of its own" for i in range(40)]


@pytest.fixture
def data(tmp_path):
    """40 passages, 10 of which are asked for with exactly their words."""
    (tmp_path / "c.jsonl").write_text(
        "".join(
            json.dumps({"_id": f"d{i}", "title": "T", "text": text}) + "\n"
            for i, text in enumerate(TEXTS)
        )
    )
    (tmp_path / "q.jsonl").write_text(
        "".join(json.dumps({"_id": f"q{i}", "text": TEXTS[i]}) + "\n" for i in range(12))
    )
    (tmp_path / "r.tsv").write_text(
        "query-id\tcorpus-id\tscore\n"
        + "".join(f"q{i}\td{i}\t1\n" for i in range(10))
        + "gone\td1\t1\n"
    )
    return tmp_path


def evaluate(cli, data, *options, corpus="c.jsonl", queries="q.jsonl", code=0):
    files = ("--corpus", data / corpus, "--queries", data / queries, "--qrels", data / "r.tsv")
    ran = cli("eval", *files, *options, "--json", "-q")
    assert ran.code == code, ran.err
    return json.loads(ran.out) if code == 0 else ran


BARE = ("--model", "hash:32", "--passage-template", "{text}", "--query-template", "{text}")


def test_the_same_words_are_found_first_and_a_template_of_one_role_spoils_that(cli, data):
    found = evaluate(cli, data, *BARE)["runs"][0]
    assert {name: one["mean"] for name, one in found["measures"].items()} == dict.fromkeys(
        metrics.MEASURES, 1.0
    )
    assert (found["queries"], found["rows"], found["dim"]) == (10, 40, 32)
    spoilt = evaluate(cli, data, "--model", "hash:32")["runs"][0]
    assert spoilt["templates"] == {"passage": "passage: {text}", "query": "query: {text}"}
    assert spoilt["measures"]["MRR@10"]["mean"] < 0.5


def test_texts_and_their_vectors_give_the_same(cli, data):
    from_texts = evaluate(cli, data, "--model", "hash:32")["runs"][0]
    for name, role in (("c", "passage"), ("q", "query")):
        assert cli("encode", data / f"{name}.jsonl", "--role", role, "--model", "hash:32").code == 0
    vectors = {"corpus": "c.passage.parquet", "queries": "q.query.parquet"}
    for files in (vectors, {"corpus": vectors["corpus"]}):
        from_vectors = evaluate(cli, data, **files)["runs"][0]
        assert from_vectors["measures"] == from_texts["measures"]
        assert from_vectors["templates"] == from_texts["templates"]
    ran = evaluate(cli, data, corpus=vectors["corpus"], queries=vectors["corpus"], code=78)
    assert "role 'passage'" in ran.err
    for option in (("--models", "hash:8"), ("--ablate", "template")):
        assert "holds vectors" in evaluate(cli, data, *option, **vectors, code=2).err


def test_like_takes_the_model_from_a_file(cli, data):
    ran = cli(
        "encode",
        data / "c.jsonl",
        "--role",
        "passage",
        "--model",
        "hash:32",
        "--dim",
        5,
        "-o",
        data / "o",
    )
    assert ran.code == 0, ran.err
    found = evaluate(cli, data, "--like", data / "o")["runs"][0]
    assert (found["model"], found["dim"], found["templates"]["query"]) == (
        "hash:32",
        5,
        "query: {text}",
    )
    assert "can't be compared" in evaluate(cli, data, "--like", data / "o", "--dim", 7, code=78).err


def test_ablation_says_what_the_template_is_worth(cli, data):
    found = evaluate(cli, data, "--model", "hash:32", "--ablate", "template")
    assert [one["name"] for one in found["runs"]] == ["with template", "without template"]
    assert found["runs"][1]["templates"] == {"passage": "{text}", "query": "{text}"}
    less = found["differences"][0]
    means = [one["measures"]["MAP"]["mean"] for one in found["runs"]]
    assert less["measures"]["MAP"]["mean"] == pytest.approx(means[0] - means[1])
    assert less["measures"]["MAP"]["p"] < 0.01
    assert (
        "no instruction" in evaluate(cli, data, "--ablate", "template", code=2).err
    )  # MiniLM has none


def test_models_are_compared(cli, data):
    found = evaluate(cli, data, "--models", "hash:32,hash:8")
    assert [(one["name"], one["dim"]) for one in found["runs"]] == [("hash:32", 32), ("hash:8", 8)]
    assert all(one["bytes"] > 0 and one["passages_per_second"] > 0 for one in found["runs"])
    assert found["differences"][0]["other"] == "hash:8"
    evaluate(cli, data, "--models", "hash:32,hash:8", "--ablate", "template", code=2)
    evaluate(cli, data, "--models", ",", code=2)


@pytest.mark.parametrize("suffix", ["parquet", "json"])
def test_a_run_is_compared_with_an_earlier_one(cli, data, suffix):
    path = data / f"run.{suffix}"
    first = evaluate(cli, data, *BARE, "--per-query", path)
    rows = pq.read_table(path).to_pylist() if suffix == "parquet" else json.loads(path.read_text())
    assert [row["query_id"] for row in rows] == [f"q{i}" for i in range(10)]
    assert all(row["best"][0] == row["query_id"].replace("q", "d") for row in rows)
    assert rows[0]["query"] == TEXTS[0]
    assert np.mean([row["MAP"] for row in rows]) == first["runs"][0]["measures"]["MAP"]["mean"]
    less = evaluate(cli, data, "--model", "hash:32", "--against", path)["differences"][0]
    assert (less["other"], less["queries"]) == (str(path), 10)
    assert less["measures"]["MAP"]["mean"] < -0.5
    assert evaluate(cli, data, *BARE, "--against", data / "none.json", code=66)
    (data / "x.json").write_text("[1]")
    assert evaluate(cli, data, *BARE, "--against", data / "x.json", code=65)
    assert evaluate(cli, data, *BARE, "--per-query", data / "x.csv", code=2)
    assert evaluate(cli, data, *BARE, "--per-query", data / "none" / "x.json", code=73)


def test_a_missing_library_is_said_before_anything_is_encoded(cli, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    ran = evaluate(cli, data, *BARE, "--keep", data / "kept", code=78)
    assert "pip install 'embedcli[eval]'" in ran.err
    assert not (data / "kept").exists()


def test_kept_vectors_are_used_again(cli, data):
    first = evaluate(cli, data, "--model", "hash:32", "--keep", data / "kept")
    files = sorted((data / "kept").glob("*.parquet"))
    assert [file.name.partition(".")[0] for file in files] == ["passage", "query"]
    before = [file.stat().st_ino for file in files]
    again = evaluate(cli, data, "--model", "hash:32", "--keep", data / "kept")
    assert [file.stat().st_ino for file in files] == before
    assert again["runs"][0]["measures"] == first["runs"][0]["measures"]


def test_a_query_may_be_kept_from_finding_itself(cli, data):
    queries = data / "c.jsonl"
    (data / "r.tsv").write_text("d1\td1\t1\nd1\td2\t1\n")
    both, other = (
        evaluate(cli, data, *BARE, *option, queries=queries)["runs"][0]["measures"]["MRR@10"][
            "mean"
        ]
        for option in ((), ("--ignore-identical-ids",))
    )
    assert both == 1 > other


def test_what_is_missing_is_said(cli, data):
    files = ("--corpus", data / "c.jsonl", "--queries", data / "q.jsonl", "--qrels", data / "r.tsv")
    assert "1 judged queries are not in" in cli("eval", *files, *BARE).err
    assert "no column 'key'" in evaluate(cli, data, *BARE, "--id-column", "key", code=65).err
    (data / "r.tsv").write_text("other\td1\t1\n")
    assert "none of the 12 queries" in evaluate(cli, data, *BARE, code=65).err
    assert "--passage-template" in evaluate(cli, data, "--template", "x {text}", code=2).err


@pytest.mark.heavy
def test_the_sample_is_evaluated_with_the_embedded_model_and_a_template_only_hurts_it(cli):
    files = [("--corpus", "corpus.jsonl"), ("--queries", "queries.jsonl"), ("--qrels", "qrels.tsv")]
    options = [part for name, file in files for part in (name, SAMPLE / file)]
    ran = cli(
        "eval",
        *options,
        "--template",
        "e5",
        "--ablate",
        "template",
        "--json",
        "-q",
        "--dtype",
        "float32",
    )
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["runs"][1]["measures"]["nDCG@10"]["mean"] > 0.8
    assert found["differences"][0]["measures"]["nDCG@10"]["mean"] < 0.01
