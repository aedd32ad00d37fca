"""What an update changed: told by ids where there are ids, and written down for those who follow."""

import json
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcli.store.changes import partners
from tests.runs import HASH, encode, table

SMALL = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=20)


def columns(rows):
    return [np.array([row[column] for row in rows], np.uint64) for column in range(2)]


@given(SMALL, SMALL)
def test_each_row_is_the_partner_of_one(left, right):
    ours, theirs = partners(columns(left), columns(right))
    shared = Counter(left) & Counter(right)
    assert Counter(row for row, has in zip(left, ours, strict=True) if has) == shared
    assert Counter(row for row, has in zip(right, theirs, strict=True) if has) == shared


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def changes(path):
    lines = map(json.loads, path.read_text().splitlines())
    return [(line["operation"], line["id"], line.get("row")) for line in lines]


@pytest.mark.parametrize("name", ["o.parquet", "o/"])
def test_changes_are_told_and_written(cli, tmp_path, name):
    rows = [{"id": f"a{i}", "text": f"text {i}", "title": "t"} for i in range(3000)]
    output, follow = f"{tmp_path}/{name}", tmp_path / "changes.jsonl"

    def update():
        corpus = write(tmp_path / "c.jsonl", rows)
        ran, report = encode(cli, corpus, output, "--update", "--changes", follow, "-q")
        assert ran.code == 0, ran.err
        counts = report["counts"]
        return [counts[key] for key in ("new", "changed", "deleted", "unchanged")]

    assert update() == [3000, 0, 0, 0]
    assert changes(follow) == [("new", f"a{i}", i) for i in range(3000)]
    assert update() == [0, 0, 0, 3000]
    assert changes(follow) == []
    rows[7]["text"] = "another"
    rows[8]["title"] = "another"
    del rows[100]
    rows.append({"id": "b", "text": "text 100", "title": "t"})  # its text is known, its id new
    assert update() == [1, 1, 1, 2998]
    assert changes(follow) == [
        ("deleted", "a100", None),
        ("changed", "a7", 7),
        ("columns", "a8", 8),
        ("new", "b", 2999),
    ]
    ids = table(output)["id"].to_pylist()
    assert [ids[row] for _, _, row in changes(follow)[1:]] == ["a7", "a8", "b"]


@pytest.mark.parametrize("name", ["o.parquet", "o/"])
def test_rows_of_whole_units_go(cli, tmp_path, name):
    """What is left stays as it lies: nothing takes the place of the deleted rows."""
    rows = [{"id": i, "text": f"text {i}"} for i in range(20_000)]
    corpus, follow = tmp_path / "c.jsonl", tmp_path / "changes.jsonl"
    output = f"{tmp_path}/{name}"
    write(corpus, rows)
    assert encode(cli, corpus, output)[0].code == 0
    first = pq.ParquetFile(output) if name.endswith("parquet") else None
    kept = first.metadata.row_group(0).num_rows if first else 10_000
    write(corpus, rows[:kept])
    ran, report = encode(cli, corpus, output, "--update", "--changes", follow)
    assert ran.code == 0, ran.err
    assert (report["counts"]["deleted"], report["counts"]["unchanged"]) == (20_000 - kept, kept)
    assert [change[:2] for change in changes(follow)] == [
        ("deleted", number) for number in range(kept, 20_000)
    ]


def test_without_ids_texts_tell(cli, tmp_path):
    corpus, output = tmp_path / "c.jsonl", tmp_path / "o.parquet"
    write(corpus, [{"text": "a"}, {"text": "b"}, {"text": "b"}])
    assert encode(cli, corpus, output, "--update")[0].code == 0
    write(corpus, [{"text": "b"}, {"text": "c"}])
    ran, report = encode(cli, corpus, output, "--update")
    counts = report["counts"]
    assert [counts[key] for key in ("new", "changed", "deleted", "unchanged")] == [1, 0, 2, 1]
    assert "1 new, 0 changed, 2 deleted, 1 unchanged" in ran.err
    ran = cli("encode", corpus, *HASH, "-o", output, "--update", "--changes", tmp_path / "x.jsonl")
    assert (ran.code, "--id-column" in ran.err) == (65, True)


def test_changes_take_no_file_of_somebody_else(cli, tmp_path):
    corpus = write(tmp_path / "c.jsonl", [{"id": 1, "text": "a"}])
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    ran = cli("encode", corpus, *HASH, "-o", tmp_path / "o.parquet", "--update", "--changes", notes)
    assert (ran.code, notes.read_text()) == (73, "mine")
    for place in (corpus, tmp_path / "o.parquet"):
        ran = cli(
            "encode", corpus, *HASH, "-o", tmp_path / "o.parquet", "--update", "--changes", place
        )
        assert ran.code == 73
