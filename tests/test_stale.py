"""`--keep-stale`: a row whose text turned bad keeps the vector that the output has of it."""

import json

import pytest

from tests.runs import content, counts, encode, table

UPDATE = ("--update", "--on-error", "reject")
KEEP = (*UPDATE, "--keep-stale")


def write(path, texts):
    rows = ({"id": number, "text": text} for number, text in enumerate(texts) if text != "gone")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(params=["o.parquet", "o/"])
def output(request, tmp_path):
    return f"{tmp_path}/{request.param}"


def rows(path):
    return {row["id"]: row for row in table(path).to_pylist()}


TEXTS = [f"text {number}" for number in range(8)]


def test_a_row_that_turns_bad_stays_as_it_was_until_it_is_good_or_gone(cli, tmp_path, output):
    corpus = write(tmp_path / "c.jsonl", TEXTS)
    encode(cli, corpus, output)
    before = rows(output)
    write(corpus, [*TEXTS[:3], None, *TEXTS[4:7], "gone"])
    ran, report = encode(cli, corpus, output, *KEEP)
    assert ran.code == 3, ran.err
    assert counts(report, "stale", "deleted", "rejected", "rows_out") == (1, 1, 1, 6)
    assert rows(output) == {number: row for number, row in before.items() if number != 7}
    assert cli("verify", output).code == 0
    assert "6 out + 1 rejected; 1 stale kept" in cli("inspect", output).out.decode()
    # Again, and nothing changes.
    whole = content(output)
    ran, report = encode(cli, corpus, output, *KEEP)
    assert (ran.code, content(output), "stays as it is" in ran.err) == (3, whole, True)
    # Good again: its new vector takes the place.
    write(corpus, [*TEXTS[:3], "new", *TEXTS[4:7], "gone"])
    _, report = encode(cli, corpus, output, *KEEP)
    assert counts(report, "stale", "changed", "unchanged") == (0, 1, 6)
    assert [row["text"] for row in rows(output).values()] == [*TEXTS[:3], "new", *TEXTS[4:7]]
    # Bad, and then gone: its vector goes with it.
    write(corpus, [*TEXTS[:3], None, *TEXTS[4:7], "gone"])
    encode(cli, corpus, output, *KEEP)
    write(corpus, [*TEXTS[:3], "gone", *TEXTS[4:7], "gone"])
    ran, report = encode(cli, corpus, output, *KEEP)
    assert (ran.code, 3 in rows(output)) == (0, False)
    assert counts(report, "stale", "deleted") == (0, 1)


def test_without_it_the_run_says_that_a_vector_goes(cli, tmp_path, output):
    corpus = write(tmp_path / "c.jsonl", TEXTS)
    encode(cli, corpus, output)
    write(corpus, [None, *TEXTS[1:]])
    ran, report = encode(cli, corpus, output, *UPDATE)
    assert "1 rejected row had a vector, which goes: --keep-stale keeps it" in ran.err
    assert (counts(report, "stale", "deleted"), 0 in rows(output)) == ((0, 1), False)


def test_changes_tell_nothing_of_it_and_columns_may_come_and_go(cli, tmp_path, output):
    corpus = write(tmp_path / "c.jsonl", TEXTS)
    encode(cli, corpus, output)
    lines = [
        json.loads(line) for line in write(corpus, [*TEXTS[:7], None]).read_text().splitlines()
    ]
    corpus.write_text("".join(json.dumps({**line, "more": 1.5}) + "\n" for line in lines))
    changes = tmp_path / "changes.jsonl"
    ran, _ = encode(cli, corpus, output, *KEEP, "--changes", changes)
    assert ran.code == 3, ran.err
    listed = [json.loads(line) for line in changes.read_text().splitlines()]
    assert [line["operation"] for line in listed] == ["columns"] * 7
    assert [row["more"] for row in rows(output).values()] == [1.5] * 7 + [None]


def test_parquet_and_renamed_ids(cli, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def save(texts):
        columns = {"doc": [str(number) for number in range(len(texts))], "text": texts}
        pq.write_table(
            pa.table(columns, pa.schema({"doc": pa.string(), "text": pa.string()})), corpus
        )

    corpus, output = tmp_path / "c.parquet", tmp_path / "o.parquet"
    names = ("--columns", "doc:id,text")
    save(TEXTS)
    encode(cli, corpus, output, *names)
    before = rows(output)
    save([None, *TEXTS[1:]])
    ran, report = encode(cli, corpus, output, *names, *KEEP)
    assert (counts(report, "stale", "rejected"), ran.code) == ((1, 1), 3), ran.err
    assert rows(output) == before


def test_it_needs_ids_and_goes_with_what_it_is_for(cli, tmp_path):
    corpus, output = tmp_path / "c.jsonl", tmp_path / "o.parquet"
    corpus.write_text('{"text": "a"}\n{"text": "b"}\n')
    encode(cli, corpus, output)
    ran, _ = encode(cli, corpus, output, *KEEP)
    assert (ran.code, "--keep-stale needs ids" in ran.err) == (65, True)
    assert encode(cli, corpus, output, "--keep-stale", "--on-error", "reject")[0].code == 2
    assert encode(cli, corpus, output, "--keep-stale", "--update")[0].code == 2
