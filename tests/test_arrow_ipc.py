"""Arrow IPC files: they give what the same rows give as Parquet, and damaged ones are refused."""

import os
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.runs import HASH, content, table

ROWS = [
    {
        "id": i,
        "title": None if i % 3 else f"title {i}",
        "text": f"text {i} " * (1 + i % 9),
        "tags": ["a"] * (i % 4),
    }
    for i in range(5_000)
]


def write(path, rows=ROWS, batch=700, compression=None):
    options = pa.ipc.IpcWriteOptions(compression=compression)
    arrow = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(str(path), arrow.schema, options=options) as writer:
        writer.write_table(arrow, max_chunksize=batch)
    return path


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize(
    "options", [(), ("--columns", "id,tags"), ("--template", "{title|none}: {text}")]
)
def test_rows_are_those_of_parquet(compression, options, tmp_path, cli):
    arrow, parquet = write(tmp_path / "c.arrow", compression=compression), tmp_path / "p.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), parquet)
    for source, output in ((arrow, "a"), (parquet, "b")):
        ran = cli("encode", source, *HASH, "-o", tmp_path / output, *options)
        assert ran.code == 0, ran.err
    assert table(tmp_path / "a").equals(table(tmp_path / "b"))


def test_any_number_of_processes_gives_the_same_bytes(tmp_path, cli):
    write(tmp_path / "c.feather")
    for name, processes in (("one", "1"), ("two", "2")):
        options = ("--num-processes", processes, "--device", "cpu")
        assert (
            cli("encode", tmp_path / "c.feather", *HASH, "-o", tmp_path / name, *options).code == 0
        )
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_the_default_name_and_folders(tmp_path, cli):
    write(tmp_path / "in.arrow")
    ran = cli("encode", tmp_path / "in.arrow", *HASH)
    assert ran.lines[-1] == f"{tmp_path}/in.passage.parquet"
    os.remove(ran.lines[-1])
    assert cli("encode", tmp_path, *HASH, "-o", tmp_path / "o.parquet").code == 0
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n')
    os.remove(tmp_path / "o.parquet")
    ran = cli("encode", tmp_path, *HASH, "-o", tmp_path / "o.parquet")
    assert ran.code == 65
    assert "b.jsonl is JSONL" in ran.err
    assert "in.arrow is Arrow IPC" in ran.err


def test_bad_rows_are_named(tmp_path, cli):
    write(tmp_path / "c.arrow", [{"text": "a"}, {"text": None}])
    ran = cli("encode", tmp_path / "c.arrow", *HASH)
    assert (ran.code, "c.arrow: row 2: column 'text' is null" in ran.err) == (65, True)
    invalid = pa.Array.from_buffers(pa.string(), 2, pa.array([b"a", b"\xff"]).buffers())
    with pa.ipc.new_file(str(tmp_path / "u.arrow"), pa.schema([("text", pa.string())])) as writer:
        writer.write_table(pa.table({"text": invalid}))
    ran = cli("encode", tmp_path / "u.arrow", *HASH)
    assert (ran.code, "u.arrow: row 2: column 'text' is not UTF-8" in ran.err) == (65, True)


def test_damaged_files_are_refused_or_read_as_they_are(tmp_path, cli):
    """A flipped bit in a value can't be noticed, the format has no checksums; anything else is 65,
    never a crash.
    """
    whole = write(tmp_path / "c.arrow", ROWS[:200]).read_bytes()
    rng = random.Random(0)
    for number in range(60):
        damaged = bytearray(whole)
        if number % 3 == 0:
            damaged = damaged[: rng.randrange(9, len(whole))]
        else:
            position = rng.randrange(8, len(whole))
            damaged[position] ^= 1 << rng.randrange(8)
        (tmp_path / "d.arrow").write_bytes(damaged)
        ran = cli(
            "encode",
            tmp_path / "d.arrow",
            *HASH,
            "-o",
            tmp_path / "o.parquet",
            "--update",
            "--overwrite",
        )
        assert ran.code in (0, 65, 78), ran.err
        assert "internal" not in ran.err
        assert "Traceback" not in ran.err


@pytest.mark.parametrize("way", ["replaced", "rewritten", "truncated", "gone"])
def test_a_file_that_changes_is_never_published(way, tmp_path, cli, meanwhile):
    corpus = write(tmp_path / "c.arrow")

    def change():
        if way == "replaced":
            os.replace(write(tmp_path / "new", ROWS[::-1]), corpus)
        elif way == "rewritten":
            write(corpus, ROWS[::-1])
        elif way == "truncated":
            os.truncate(corpus, 5_000)
        else:
            corpus.unlink()

    meanwhile(change)
    ran = cli("encode", corpus, *HASH, "-o", tmp_path / "o.parquet")
    assert ran.code == 75, ran.err
    assert not (tmp_path / "o.parquet").exists()
