"""Reindex: an updated output is what a fresh one would be, and only new and changed texts are
encoded for it.
"""

import json
import random
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import SAMPLE
from tests.runs import HASH, content, encode, table
from tests.runs import counts as counts_of

CHANGES = ("reused", "embedded", "gone", "rejected")


def counts(report, *names):
    """Counts of a report; rows whose old vector went are `gone`, deleted or changed."""
    with_gone = {**report["counts"]}
    with_gone["gone"] = with_gone["deleted"] + with_gone["changed"]
    return counts_of({"counts": with_gone}, *names)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def rows():
    return [
        {"id": i, "title": f"title {i}", "text": f"text number {i}, " + "words " * 10}
        for i in range(9_000)
    ]


@pytest.fixture(params=["out.parquet", "out/"])
def output(request, tmp_path):
    return f"{tmp_path}/{request.param}"


@pytest.fixture
def check(cli, tmp_path):
    """Update an output by a corpus, and see that it is then what a fresh run makes of it."""

    def run(corpus_rows, output, *options):
        corpus = write(tmp_path / "corpus.jsonl", corpus_rows)
        ran, report = encode(cli, corpus, output, "--update", *options)
        assert ran.code == 0, ran.err
        fresh = f"{tmp_path}/fresh{'/' if output.endswith('/') else ''}"
        assert encode(cli, corpus, fresh, *options)[0].code == 0
        assert table(output).equals(table(fresh))
        return counts(report, *CHANGES), ran

    return run


def test_nothing_changed(check, rows, output):
    assert check(rows, output)[0] == (0, 9_000, 0, 0)  # there was nothing to update yet
    before = content(output)
    done, ran = check(rows, output)
    assert done == (9_000, 0, 0, 0)
    assert (
        "0 new, 0 changed, 0 deleted, 9,000 unchanged; 0 embedded; the output stays as it is"
        in ran.err
    )
    assert content(output) == before


def test_one_percent_changed(check, rows, output):
    check(rows, output)
    changed = [{**row, "text": row["text"] + "!"} if row["id"] % 100 == 7 else row for row in rows]
    assert check(changed, output)[0] == (8_910, 90, 90, 0)


def test_rows_added_removed_and_moved(check, rows, output):
    check(rows, output)
    edited = [*rows[5_000:], {"id": -1, "title": "", "text": "a new one"}, *rows[100:4_000]]
    assert check(edited, output)[0] == (7_900, 1, 1_100, 0)
    random.Random(0).shuffle(edited)
    assert check(edited, output)[0] == (7_901, 0, 0, 0)


def test_two_rows_swap_their_texts(check, rows, output):
    check(rows, output)
    rows[10]["text"], rows[8_000]["text"] = rows[8_000]["text"], rows[10]["text"]
    assert check(rows, output)[0] == (9_000, 0, 2, 0)
    found = table(output).select(["id", "text", "embedding"]).to_pylist()
    assert (found[10]["text"], found[8_000]["text"]) == (rows[10]["text"], rows[8_000]["text"])


def test_changed_columns_are_refreshed_without_encoding(check, rows, output):
    check(rows, output)
    rows[4_000]["title"] = "another title"
    assert check(rows, output)[0] == (9_000, 0, 0, 0)
    assert table(output)["title"][4_000].as_py() == "another title"


def test_the_text_need_not_be_in_the_output(check, rows, output):
    check(rows, output, "--columns", "id")
    rows[5]["text"] = "changed"
    assert check(rows, output, "--columns", "id")[0] == (8_999, 1, 1, 0)
    assert "text" not in table(output).column_names


def test_other_columns_and_names_are_no_other_vectors(check, rows, output):
    check(rows, output, "--columns", "id")
    assert check(rows, output, "--embedding-column", "v")[0] == (9_000, 0, 0, 0)


@pytest.mark.parametrize("order", ["the vectors first", "the vectors within", "backwards"])
def test_columns_that_another_program_reordered(order, check, rows, tmp_path):
    output = f"{tmp_path}/out.parquet"
    check(rows, output)
    found = table(output)
    carried = [name for name in found.column_names if not name.startswith("embedding")]
    vectors = [name for name in found.column_names if name.startswith("embedding")]
    names = {
        "the vectors first": [*vectors, *carried],
        "the vectors within": [carried[0], *vectors, *carried[1:]],
        "backwards": found.column_names[::-1],
    }[order]
    pq.write_table(found.select(names), output)  # with its metadata, so it is still ours
    assert check([*rows, {"id": -1, "title": "", "text": "new"}], output)[0] == (9_000, 1, 0, 0)


def test_the_last_row_goes_and_the_corpus_becomes_empty(check, rows, output):
    check(rows[:3], output)
    assert check(rows[:2], output)[0] == (2, 0, 1, 0)
    assert check([], output, "--allow-empty")[0] == (0, 0, 2, 0)
    assert check(rows[:1], output)[0] == (0, 1, 0, 0)


def test_repeated_texts_are_counted_one_by_one(check, output):
    row = {"text": "a"}
    check([row, row, {"text": "b"}], output)
    assert check([row], output)[0] == (1, 0, 2, 0)
    assert check([row, row, row], output)[0] == (3, 0, 0, 0)


def test_half_precision_stays_what_it_was(check, rows, output):
    check(rows, output, "--vector-type", "float16")
    rows[5]["text"] = "changed"
    assert check(rows, output, "--vector-type", "float16")[0] == (8_999, 1, 1, 0)


def test_parquet(cli, rows, output, tmp_path):
    corpus = tmp_path / "c.parquet"
    pq.write_table(pa.Table.from_pylist(rows), corpus, row_group_size=1_000)
    encode(cli, corpus, output)
    assert counts(encode(cli, corpus, output, "--update")[1], *CHANGES) == (9_000, 0, 0, 0)
    rows[3]["text"] = "changed"
    pq.write_table(pa.Table.from_pylist(rows), corpus, row_group_size=1_000)
    assert counts(encode(cli, corpus, output, "--update")[1], *CHANGES) == (8_999, 1, 1, 0)


def test_rejected_rows_are_counted(cli, rows, output, tmp_path):
    corpus = write(tmp_path / "c.jsonl", [*rows[:50], {"id": 50, "text": None}])
    options = ("--on-error", "reject", "--rejects", tmp_path / "r.jsonl")
    assert encode(cli, corpus, output, *options)[0].code == 3
    ran, report = encode(cli, corpus, output, "--update", *options)
    assert (ran.code, counts(report, *CHANGES), report["published"]) == (3, (50, 0, 0, 1), False)
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 1
    write(corpus, rows[:50])  # the bad row is gone: the counts in the output have to change
    ran, report = encode(cli, corpus, output, "--update", *options)
    assert (ran.code, counts(report, *CHANGES), report["published"]) == (0, (50, 0, 0, 0), True)
    assert not (tmp_path / "r.jsonl").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("--role", "query"), ("--max-length", "9"), ("--dtype", "float16")]
)
def test_another_recipe_is_refused(option, value, cli, rows, output, tmp_path):
    corpus = write(tmp_path / "c.jsonl", rows[:50])
    encode(cli, corpus, output)
    before = content(output)
    ran, _ = encode(cli, corpus, output, "--update", option, value)
    assert (ran.code, f"{value!r} requested" in ran.err or f"{value} requested" in ran.err) == (
        78,
        True,
    )
    assert "--overwrite" in ran.err
    assert content(output) == before


def test_what_cannot_go_together(cli, tmp_path):
    corpus = write(tmp_path / "c.jsonl", [{"text": "a"}])
    for options in (["--update", "--fresh"], ["--update", "-o", "-"], ["--fresh", "--dry-run"]):
        assert cli("encode", corpus, *HASH, *options).code == 2


def test_a_part_s_name_stands_for_one_content(check, rows, tmp_path):
    # A reader that had listed the parts of one version finds the same bytes in the next, or no file.
    output = f"{tmp_path}/out/"
    check(rows, output)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("part-0*")}
    rows[0]["text"] = "changed"
    assert check(rows, output)[0] == (8_999, 1, 1, 0)
    after = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("part-0*")}
    shared = before.keys() & after.keys()
    assert len(before) > len(shared) > 0
    assert all(before[name] == after[name] for name in shared)


def test_somebody_elses_folder_is_left_alone(cli, tmp_path):
    corpus = write(tmp_path / "c.jsonl", [{"text": "a"}])
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "precious").write_text("x")
    (tmp_path / "file").write_text("x")
    assert encode(cli, corpus, tmp_path / "theirs")[0].code == 73
    assert encode(cli, corpus, f"{tmp_path}/file/")[0].code == 73
    (tmp_path / "empty").mkdir()
    assert encode(cli, corpus, tmp_path / "empty")[0].code == 0
    assert table(tmp_path / "empty").num_rows == 1


def test_with_nothing_to_encode_no_torch_is_imported(tmp_path):
    output, corpus = tmp_path / "o.parquet", tmp_path / "corpus.jsonl"
    corpus.write_bytes((SAMPLE / "corpus.jsonl").read_bytes())
    arguments = [
        "encode",
        str(corpus),
        "--role",
        "passage",
        "-o",
        str(output),
        "--update",
        "--quiet",
    ]
    code = f"import embedcli.cli, sys\ntry: embedcli.cli.app({arguments!r})\nexcept SystemExit as end: print(end.code, 'torch' in sys.modules)"
    said = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert [text.split()[-2:] for text in said] == [["0", "True"], ["0", "False"]]
    assert table(output).num_rows == 240


TEXTS = st.sampled_from([f"t{i}" for i in range(8)])


@settings(max_examples=40)
@given(before=st.lists(TEXTS, max_size=8), after=st.lists(TEXTS, max_size=8))
def test_updated_is_fresh(before, after, tmp_path_factory):
    from embedcli.cli import app

    place = tmp_path_factory.mktemp("update")

    def run(texts, name, *options):
        corpus = write(place / "c.jsonl", [{"n": n, "text": text} for n, text in enumerate(texts)])
        with pytest.raises(SystemExit) as end:
            app(
                [
                    "encode",
                    str(corpus),
                    *HASH,
                    "-o",
                    str(place / name),
                    "-q",
                    "--allow-empty",
                    "--report",
                    str(place / "r"),
                    *options,
                ]
            )
        assert end.value.code == 0
        return json.loads((place / "r").read_text())

    run(before, "o")
    report = run(after, "o", "--update")
    run(after, "fresh")
    assert table(place / "o").equals(table(place / "fresh"))
    new = [text for text in after if text not in before]
    gone = sum(max(0, before.count(text) - after.count(text)) for text in set(before))
    assert counts(report, *CHANGES) == (len(after) - len(new), len(new), gone, 0)
