"""CSV, TSV, lines of text, Arrow streams: strict as JSONL, with the lines people count."""

import csv
import io
import json
import subprocess
import sys

import datasets
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcli.sources import csv_rows
from tests.runs import HASH, encode, table

FIELDS = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\r\0"), max_size=8
)
TABLES = st.lists(st.tuples(FIELDS.filter(bool), FIELDS), max_size=8)


@given(TABLES, st.sampled_from([",", "\t"]), st.sampled_from(["\n", "\r\n"]), st.integers(1, 40))
def test_what_csv_writes_is_read(rows, delimiter, end, step):
    written = io.StringIO(newline="")
    csv.writer(written, delimiter=delimiter, lineterminator=end).writerows(rows)
    content = written.getvalue().encode()
    records, start = [], 0
    while start < len(content):  # as it comes, some bytes at a time
        stop = start + step
        found, length = csv_rows.split(content[start:stop], delimiter, stop >= len(content))
        while not length:
            stop += step
            found, length = csv_rows.split(content[start:stop], delimiter, stop >= len(content))
        records += found
        start += length
    assert b"".join(records) == content
    parsed = csv_rows.parse_all(records, ["a", "b"], delimiter) if rows else []
    assert parsed == [{"a": a, "b": b} for a, b in rows]


CSV = 'id,text,title\n1,plain,x\n2,"with, comma","a ""quote"""\n\n3,"two\nlines",y\n4,last,z\n'
ROWS = [
    {"id": "1", "text": "plain", "title": "x"},
    {"id": "2", "text": "with, comma", "title": 'a "quote"'},
    {"id": "3", "text": "two\nlines", "title": "y"},
    {"id": "4", "text": "last", "title": "z"},
]


def carried(path, *names):
    return table(path).select(names or ["id", "text", "title"]).to_pylist()


@pytest.mark.parametrize("change", ["", "\r\n", "bom", "no end", "tsv", "gz"])
def test_csv_is_read_as_it_is_meant(cli, tmp_path, change):
    content, name = CSV.encode(), "c.csv"
    if change == "\r\n":
        content = CSV.replace("\n", "\r\n").replace("two\r\n", "two\n").encode()
    elif change == "bom":
        content = b"\xef\xbb\xbf" + content
    elif change == "no end":
        content = content.rstrip()
    elif change == "tsv":
        content, name = CSV.replace(",", "\t").replace("with\t", "with,").encode(), "c.tsv"
    corpus = tmp_path / name
    corpus.write_bytes(content)
    if change == "gz":
        subprocess.run(["gzip", corpus], check=True)
        corpus = tmp_path / "c.csv.gz"
    ran, report = encode(cli, corpus, tmp_path / "o.parquet")
    assert ran.code == 0, ran.err
    assert report["counts"]["rows_in"] == 4
    assert carried(tmp_path / "o.parquet") == ROWS
    assert table(tmp_path / "o.parquet").schema.field("id").type == pa.string()


def test_bad_records_are_named_by_their_line(cli, tmp_path):
    corpus = tmp_path / "c.csv"
    corpus.write_text('id,text\n1,"two\nlines"\n2\n3,a,b\n4,"x"y\n5,good\n')
    ran, _ = encode(cli, corpus, tmp_path / "o.parquet")
    assert (ran.code, "c.csv:4: 1 fields, where the first line names 2" in ran.err) == (65, True)
    ran, _ = encode(cli, corpus, tmp_path / "o.parquet", "--on-error", "reject")
    assert ran.code == 3, ran.err
    lines = (tmp_path / "o.parquet.rejects.jsonl").read_text().splitlines()
    rejects = list(map(json.loads, lines))
    assert [(row["line"], row["code"]) for row in rejects] == [
        (4, "fields"),
        (5, "fields"),
        (6, "not-csv"),
    ]
    assert carried(tmp_path / "o.parquet", "id") == [{"id": "1"}, {"id": "5"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('id,text\n1,a\n2,"never closed\n3,c\n', "c.csv:3: a quote isn't closed within"),
        ("id,text,id\n1,a,b\n", "c.csv:1: two columns 'id'"),
        ("id,,text\n1,a,b\n", "c.csv:1: column 2 has no name"),
        ("id,txt\n1,a\n", "no column 'text' for --text-column (columns: id, txt)"),
        ("id,txt\n1,a\n", "did you mean 'txt'?"),
        (b"id,text\n1,a\xff\n", "c.csv:2: byte 0xff at offset 11 is not UTF-8"),
    ],
)
def test_what_is_wrong_is_said(cli, tmp_path, content, message):
    corpus = tmp_path / "c.csv"
    corpus.write_bytes(content if isinstance(content, bytes) else content.encode())
    ran, _ = encode(cli, corpus, tmp_path / "o.parquet")
    assert (ran.code, message in ran.err) == (65, True), ran.err


def test_a_long_csv_is_cut_and_resumed_as_jsonl_is(cli, tmp_path):
    rows = [{"id": str(i), "text": f'text "{i}",\n' + "words " * (i % 50)} for i in range(5000)]
    with open(tmp_path / "c.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, ["id", "text"])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("csv", "jsonl"):
        assert encode(cli, tmp_path / f"c.{name}", tmp_path / name)[0].code == 0
    assert table(tmp_path / "csv").equals(table(tmp_path / "jsonl"))
    ran, report = encode(cli, tmp_path / "c.csv", tmp_path / "csv", "--update")
    assert (ran.code, report["counts"]["embedded"], report["published"]) == (0, 0, False)


def test_lines_of_text(cli, tmp_path):
    corpus = tmp_path / "c.txt"
    corpus.write_bytes(b'one\r\n\n{"text": "no JSON"}\n  spaces stay \nlast')
    ran, _ = encode(cli, corpus, tmp_path / "o.parquet", "--input-format", "lines")
    assert ran.code == 0, ran.err
    texts = ["one", '{"text": "no JSON"}', "  spaces stay ", "last"]
    assert table(tmp_path / "o.parquet")["text"].to_pylist() == texts
    corpus.write_bytes(b"one\n\xff\n")
    ran, _ = encode(cli, corpus, tmp_path / "o.parquet")
    assert (ran.code, "c.txt:2: byte 0xff at offset 4" in ran.err) == (65, True)


def test_standard_input_says_its_format(tmp_path):
    command = [sys.executable, "-m", "embedcli", "encode", "-", *HASH, "-o", "-", "-q"]
    options = ["--format", "jsonl", "--input-format", "lines"]
    done = subprocess.run([*command, *options], input=b"a\nb\n", capture_output=True)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["a", "b"]


def test_what_encode_streams_can_be_read_again(tmp_path):
    corpus = tmp_path / "c.jsonl"
    corpus.write_text('{"id": 1, "text": "a"}\n{"id": 2, "text": "b"}\n')
    command = [sys.executable, "-m", "embedcli", "encode", *HASH, "-q"]
    first = subprocess.run([*command, corpus, "-o", "-"], capture_output=True, check=True)
    again = [*command, "-", "--columns", "id,text", "-o", tmp_path / "o.parquet"]
    done = subprocess.run(again, input=first.stdout, capture_output=True)
    assert done.returncode == 0, done.stderr
    stream = pa.ipc.open_stream(first.stdout).read_all()
    assert table(tmp_path / "o.parquet").equals(stream.cast(table(tmp_path / "o.parquet").schema))
    cut = subprocess.run(again, input=first.stdout[:-100], capture_output=True)
    assert (cut.returncode, b"not a readable stream of Arrow" in cut.stderr) == (65, True)


def test_a_folder_of_datasets_is_read(cli, tmp_path):
    rows = [{"id": i, "text": f"text {i}"} for i in range(50)]
    dataset = datasets.Dataset.from_list(rows).filter(lambda row: row["id"] % 2 == 0)
    dataset.save_to_disk(tmp_path / "saved")
    ran, _ = encode(cli, tmp_path / "saved", tmp_path / "o.parquet")
    assert ran.code == 0, ran.err
    assert table(tmp_path / "o.parquet")["id"].to_pylist() == list(range(0, 50, 2))
    state = json.loads((tmp_path / "saved" / "state.json").read_text())
    (tmp_path / "saved" / "state.json").write_text(json.dumps({**state, "_indices_files": [{}]}))
    ran, _ = encode(cli, tmp_path / "saved", tmp_path / "o.parquet")
    assert (ran.code, "flatten_indices" in ran.err) == (65, True)
