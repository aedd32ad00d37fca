"""The sample data keeps its promises."""

import json
from collections import Counter, defaultdict

import pyarrow.parquet as pq

from tests.conftest import SAMPLE


def rows(name):
    return [json.loads(line) for line in (SAMPLE / name).read_text(encoding="utf-8").splitlines()]


def test_the_corpus():
    corpus = rows("corpus.jsonl")
    assert len(corpus) >= 240
    assert (
        len({row["_id"] for row in corpus}) == len({row["text"] for row in corpus}) == len(corpus)
    )
    assert min(Counter(row["subject"] for row in corpus).values()) >= 20
    assert len({row["subject"] for row in corpus}) >= 8
    assert all(row["title"] and 20 < len(row["text"].split()) < 90 for row in corpus)
    assert pq.read_table(SAMPLE / "corpus.parquet").to_pylist() == corpus


def test_the_judgements():
    known = {row["_id"] for row in rows("corpus.jsonl")}
    queries = {row["_id"] for row in rows("queries.jsonl")}
    header, *lines = (SAMPLE / "qrels.tsv").read_text().splitlines()
    assert header == "query-id\tcorpus-id\tscore"
    grades = defaultdict(dict)
    for line in lines:
        query, passage, score = line.split("\t")
        assert passage in known
        grades[query][passage] = int(score)
    assert len(queries) == 60
    assert set(grades) == queries
    assert all(2 in found.values() for found in grades.values())
    assert {score for found in grades.values() for score in found.values()} == {1, 2}


def test_pairs_and_words():
    pairs = rows("pairs.jsonl")
    assert len({pair["de"] for pair in pairs}) == len({pair["en"] for pair in pairs}) == 60
    assert [row["text"] for row in rows("words.jsonl")] == ["warm", "hot", "cold", "philosophy"]
