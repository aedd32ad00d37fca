"""The carried columns as loaders want them: renamed, in one string of JSON; hashes as hex, or none."""

import json

import pytest

from tests.runs import HASH, counts, encode, staging_of, start_encode, table, wait_for, write_corpus

ROWS = [
    {"id": i, "text": f"text {i}", "title": f"t{i}", "dc:x": [1, {"a": None}]} for i in range(9)
]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("name", ["o.parquet", "o/"])
def test_columns_are_renamed(cli, corpus, tmp_path, name):
    output = f"{tmp_path}/{name}"
    options = ("--columns", "id:key,title:headline,dc\\:x:dc", "--update")
    ran, _ = encode(cli, corpus, output, *options)
    assert ran.code == 0, ran.err
    assert table(output).column_names[:3] == ["key", "headline", "dc"]
    assert table(output)["headline"].to_pylist() == [row["title"] for row in ROWS]
    ran, report = encode(cli, corpus, output, *options)
    assert (counts(report, "embedded"), report["published"]) == ((0,), False)


@pytest.mark.parametrize(
    ("columns", "code", "message"),
    [
        ("id,title:id", 65, "two carried columns are named 'id'"),
        ("a:b:c", 2, "neither a name nor old:new"),
        ("titel", 65, "no row has the column 'titel'"),
        ("title:embedding", 78, "already has a column 'embedding'"),
    ],
)
def test_names_that_do_not_go_together_are_refused(cli, corpus, tmp_path, columns, code, message):
    ran, _ = encode(cli, corpus, tmp_path / "o.parquet", "--columns", columns)
    assert (ran.code, message in ran.err) == (code, True), ran.err


def test_carried_columns_become_one_string_of_json(cli, corpus, tmp_path):
    output = tmp_path / "o.parquet"
    ran, _ = encode(cli, corpus, output, "--metadata-column", "metadata", "--columns", "id,title:t,dc\\:x")  # fmt: skip
    assert ran.code == 0, ran.err
    assert table(output).column_names[:3] == ["id", "metadata", "embedding"]
    values = list(map(json.loads, table(output)["metadata"].to_pylist()))
    assert values == [{"t": row["title"], "dc:x": row["dc:x"]} for row in ROWS]


@pytest.mark.parametrize("name", ["o.parquet", "o/"])
def test_hashes_as_hex_are_as_good(cli, corpus, tmp_path, name):
    plain, output = f"{tmp_path}/plain-{name}", f"{tmp_path}/{name}"
    encode(cli, corpus, plain)
    ran, _ = encode(cli, corpus, output, "--hash", "hex")
    assert ran.code == 0, ran.err
    expected = [value.hex() for value in table(plain)["embedding_hash"].to_pylist()]
    assert table(output)["embedding_hash"].to_pylist() == expected
    assert cli("verify", output).code == 0
    assert cli("compare", output, plain).code == 0
    _, report = encode(cli, corpus, output, "--hash", "hex", "--update")
    assert (counts(report, "embedded"), report["published"]) == ((0,), False)
    _, report = encode(cli, corpus, output, "--update")
    assert counts(report, "embedded") == (0,)
    assert table(output).equals(table(plain))


def test_without_hashes_there_is_no_update(cli, corpus, tmp_path):
    output = tmp_path / "o.parquet"
    ran, _ = encode(cli, corpus, output, "--hash", "none")
    assert ran.code == 0, ran.err
    assert "embedding_hash" not in table(output).column_names
    assert cli("inspect", output).code == 0
    assert cli("search", output, "text 3", "--role", "passage", "--json").code == 0
    ran, _ = encode(cli, corpus, output, "--hash", "none", "--update")
    assert (ran.code, "--hash none leaves none" in ran.err) == (2, True)
    _, report = encode(cli, corpus, output, "--update")  # it finds none, and embeds all
    assert counts(report, "embedded") == (9,)


def test_a_killed_run_without_hashes_continues(cli, tmp_path):
    corpus = write_corpus(tmp_path / "c.jsonl", rows=40_000)
    output = tmp_path / "o.parquet"
    process = start_encode(corpus, output, "--hash", "none")
    wait_for(lambda: len(list((staging_of(output) / "parts").glob("part-*"))) > 1)
    process.kill()
    process.communicate()
    ran, report = encode(cli, corpus, output, "--hash", "none")
    assert ran.code == 0, ran.err
    assert counts(report, "resumed")[0] > 0
    assert cli("encode", corpus, *HASH, "-o", tmp_path / "whole", "--hash", "none").code == 0
    assert output.read_bytes() == (tmp_path / "whole").read_bytes()
