"""Guards: a run that would reject or remove too much changes nothing; bad input costs bounded time and space."""

import gzip
import json
import os
import random
import shlex
import string
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import run_process
from tests.runs import HASH, content, encode, poisoned, table


def write(path, texts):
    path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts)))
    return path


@pytest.mark.parametrize(
    ("limit", "code"), [("1", 65), ("2", 3), ("9%", 65), ("20%", 3), ("0", 65), ("100%", 3)]
)
def test_more_rejected_rows_than_allowed_change_nothing(cli, tmp_path, limit, code):
    corpus = write(tmp_path / "c.jsonl", ["a", None, "b", None, *"cdefghijklmnop"])
    output = tmp_path / "o.parquet"
    ran, _ = encode(cli, corpus, output, "--on-error", "reject", "--max-rejected", limit)
    assert ran.code == code, ran.err
    assert output.exists() == (code == 3)
    assert (tmp_path / "o.parquet.rejects.jsonl").exists() == (code == 3)
    if code == 65:
        assert f"2 of 18 rows would be rejected, more than --max-rejected {limit}" in ran.err
        ran, _ = encode(cli, corpus, output, "--on-error", "reject")
        assert ran.code == 3
        assert table(output).num_rows == 16


@pytest.mark.parametrize("kind", ["o.parquet", "o/"])
@pytest.mark.parametrize(("limit", "code"), [("49%", 65), ("50%", 0), ("4", 65), ("5", 0)])
def test_more_removed_rows_than_allowed_change_nothing(cli, tmp_path, kind, limit, code):
    output = f"{tmp_path}/{kind}"
    corpus = write(tmp_path / "c.jsonl", [f"text {i}" for i in range(10)])
    assert encode(cli, corpus, output)[0].code == 0
    before = content(output)
    write(corpus, [f"text {i}" for i in range(5)])
    ran, _ = encode(cli, corpus, output, "--update", "--max-removed", limit)
    assert ran.code == code, ran.err
    if code:
        assert f"5 of 10 rows would be removed, more than --max-removed {limit}" in ran.err
        assert content(output) == before
    else:
        assert table(output).num_rows == 5


@pytest.mark.parametrize("value", ["x", "-1", "101%", "1.5", "%", ""])
def test_a_limit_is_a_number_of_rows_or_a_share(cli, tmp_path, value):
    corpus = write(tmp_path / "c.jsonl", ["a"])
    ran = cli("encode", corpus, *HASH, "-o", tmp_path / "o.parquet", f"--max-rejected={value}")
    assert ran.code == 2
    assert "neither a number of rows nor a share" in ran.err


def test_removed_rows_are_of_an_output_that_is_updated(cli, tmp_path):
    corpus = write(tmp_path / "c.jsonl", ["a"])
    ran = cli("encode", corpus, *HASH, "-o", tmp_path / "o.parquet", "--max-removed", "1")
    assert (ran.code, "--max-removed goes with --update" in ran.err) == (2, True)


def test_a_duplicate_key_is_found_in_linear_time():
    from embedcli.sources.json_rows import BadRowError, Line, parse

    # Searched for in a list of names, the last of them would take minutes.
    keys = ", ".join(f'"k{i}": 1' for i in range(300_000))
    content = f'{{{keys}, "k299999": 2}}\n'.encode()
    with pytest.raises(BadRowError, match="k299999"):
        parse(Line(1, 0, len(content), content, b""), 2**26)


def test_rows_with_a_column_each_are_refused_before_they_are_counted(cli, tmp_path):
    corpus = tmp_path / "c.jsonl"
    corpus.write_text("".join(f'{{"text": "a", "k{i}": {i}}}\n' for i in range(16_000)))
    ran = cli("encode", corpus, *HASH, "-o", tmp_path / "o.parquet")
    assert (ran.code, "more than 1000 columns" in ran.err) == (65, True)


PACKERS = {
    "gz": lambda content: gzip.compress(content, 1),
    "zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}
BOMBS = {"lines": b"\n", "one line": b"x", "zeros": b"\0"}


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("content", BOMBS)
def test_a_compression_bomb_is_refused(cli, tmp_path, packer, content):
    corpus = tmp_path / f"c.jsonl.{packer}"
    corpus.write_bytes(PACKERS[packer](BOMBS[content] * 10**8))
    ran = cli("encode", corpus, *HASH, "-o", tmp_path / "o.parquet", "--on-error", "reject")
    assert (ran.code, "times as many" in ran.err) == (65, True), ran.err
    assert os.listdir(tmp_path) == [corpus.name]


@pytest.mark.parametrize("packer", PACKERS)
def test_a_compression_bomb_in_a_pipe_is_refused(tmp_path, packer):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    bomb = PACKERS[packer](b"\n" * 10**8)
    environment = {**os.environ, "TMPDIR": str(temporary)}
    command = ("encode", "-", *HASH, "-o", tmp_path / "o")
    ran = run_process(*command, input=bomb, env=environment)
    assert (ran.code, "times as many" in ran.err) == (65, True), ran.err
    assert os.listdir(tmp_path) == ["tmp"]
    assert os.listdir(temporary) == []


def test_a_parquet_file_without_its_start_is_no_text(cli, tmp_path):
    good = tmp_path / "c.parquet"
    pq.write_table(pa.table({"text": ["a"] * 100}), good)
    for name, damaged in (("start", b"XXXX" + good.read_bytes()[4:]), ("front", b"x" * 5000)):
        corpus = tmp_path / f"{name}.bin"
        corpus.write_bytes(damaged if name == "start" else damaged + good.read_bytes())
        ran = cli("encode", corpus, *HASH, "-o", tmp_path / "o.parquet", "--on-error", "reject")
        assert ran.code == 65
        assert "a damaged Parquet file" in ran.err or "NUL bytes" in ran.err


def garbage(size):
    """Lines of visible characters, none of them JSON."""
    characters = random.Random(0).choices(string.ascii_letters + string.punctuation, k=size)
    return b"\n".join("".join(characters[at : at + 60]).encode() for at in range(0, size, 60))


@pytest.mark.parametrize("named", ["c.parquet", "c.bin"])
@pytest.mark.parametrize("how", ["both marks", "both ends", "garbage"])
@pytest.mark.parametrize("options", [(), ("--on-error", "reject")], ids=["", "reject"])
def test_what_is_no_table_and_no_text_is_not_rejected_line_by_line(
    cli, tmp_path, how, named, options
):
    good = tmp_path / named
    texts = [random.Random(i).randbytes(30).hex() for i in range(5_000)]
    pq.write_table(pa.table({"text": texts}), good)
    content = good.read_bytes()
    damaged = {
        "both marks": b"XXXX" + content[4:-4] + b"XXXX",
        "both ends": content[10_000:-10_000],
        "garbage": garbage(20_000),
    }
    good.write_bytes(damaged[how])
    ran = cli("encode", good, *HASH, "-o", tmp_path / "o", *options)
    assert (ran.code, "Traceback" in ran.err) == (65, False), ran.err
    assert os.listdir(tmp_path) == [named]


def test_outputs_in_a_folder_of_inputs_are_left_out_and_named(cli, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "a.jsonl", ["a", None])
    write(folder / "b.jsonl", ["b"])
    encode(cli, folder / "a.jsonl", folder / "a.parquet", "--on-error", "reject")
    encode(cli, folder / "b.jsonl", f"{folder}/out/")
    report = tmp_path / "r.json"
    for inputs in (folder, folder / "*"):
        arguments = ("encode", inputs, *HASH, "-o", tmp_path / "o.parquet", "--report", report)
        ran = cli(*arguments, "--on-error", "reject", "--overwrite")
        assert ran.code == 3, ran.err
        assert "left out, since embedcli wrote them:" in ran.err
        for name in ("a.parquet", "a.parquet.rejects.jsonl", "out"):
            assert f"{folder}/{name}" in ran.err
        assert f"2 files: {folder}/a.jsonl, {folder}/b.jsonl" in ran.err
        said = json.loads(report.read_text())
        assert (said["input_files"], len(said["files"])) == (2, 2)
        assert f"{folder}/out" in said["left_out"]
        assert table(tmp_path / "o.parquet").num_rows == 2


def test_an_output_that_is_named_itself_is_an_input(cli, tmp_path):
    corpus = write(tmp_path / "c.jsonl", ["a", "b"])
    encode(cli, corpus, f"{tmp_path}/out/")
    again = ("--embedding-column", "second", "-o", tmp_path / "o.parquet")
    ran = cli("encode", f"{tmp_path}/out", "--columns", "id", *HASH, *again)
    assert ran.code == 0, ran.err
    assert table(tmp_path / "o.parquet")["id"].to_pylist() == [0, 1]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_column_in_a_folders_name_is_not_lost_without_a_word(cli, tmp_path, kind):
    folder = tmp_path / "hive" / "year=2024"
    folder.mkdir(parents=True)
    if kind == "jsonl":
        write(folder / "a.jsonl", ["a"])
    else:
        pq.write_table(pa.table({"id": [1], "text": ["a"]}), folder / "a.parquet")
    ran = cli("encode", tmp_path / "hive", *HASH, "-o", tmp_path / "o.parquet")
    assert (ran.code, "the column 'year' is in the name of its folder" in ran.err) == (65, True)
    ran = cli("encode", tmp_path / "hive", *HASH, "-o", tmp_path / "o.parquet", "--columns", "id")
    assert ran.code == 0, ran.err


def test_a_columns_metadata_is_carried(cli, tmp_path):
    field = pa.field("id", pa.int64(), metadata={b"unit": b"metre"})
    schema = pa.schema([field, pa.field("text", pa.string())])
    pq.write_table(pa.table({"id": [1], "text": ["a"]}, schema=schema), tmp_path / "a.parquet")
    assert encode(cli, tmp_path / "a.parquet", tmp_path / "o.parquet")[0].code == 0
    carried = pq.read_schema(tmp_path / "o.parquet").field("id").metadata
    assert carried[b"unit"] == b"metre"


def test_nothing_invisible_is_written_into_lines_of_json(cli, tmp_path):
    odd = "a\u202eb\x9b\x7f\u200b\ufeff\U000e0041"
    corpus = write(tmp_path / "c.jsonl", [odd])
    ran = cli("encode", corpus, *HASH, "-o", "-", "--format", "jsonl")
    line = ran.out.decode()
    assert line.rstrip("\n").isprintable()
    assert json.loads(line)["text"] == odd


def test_help_into_a_full_disk_ends_cleanly():
    with open("/dev/full", "wb") as full:
        ran = run_process("--help", stdout=full)
    assert (ran.code, "Traceback" in ran.err) == (74, False)


def test_an_options_name_is_repeated_without_what_it_hides():
    ran = run_process("encode", "--x\u202ey", "a.jsonl")
    assert (ran.code, "\u202e" in ran.err, "\\u202e" in ran.err) == (2, False, True)


@pytest.mark.parametrize("kind", ["plain", "gzip", "pipe"])
def test_an_input_of_more_bytes_than_allowed_is_refused(tmp_path, kind):
    corpus = write(tmp_path / "c.jsonl", ["text"] * 1000)
    size = corpus.stat().st_size
    name, piped = corpus, None
    if kind == "gzip":
        name = tmp_path / "c.jsonl.gz"
        name.write_bytes(gzip.compress(corpus.read_bytes()))
    elif kind == "pipe":
        name, piped = "-", corpus.read_bytes()
    for limit, code in ((size, 0), (size - 1, 65)):
        output = tmp_path / f"{limit}.parquet"
        options = ("-o", output, "--max-input-bytes", limit)
        ran = run_process("encode", name, *HASH, *options, input=piped)
        assert ran.code == code, ran.err
        assert ("--max-input-bytes" in ran.err) == bool(code)


def test_a_machine_without_memory_is_no_internal_error(tmp_path):
    corpus = write(tmp_path / "c.jsonl", ["a"])
    command = [sys.executable, "-m", "embedcli", "encode", corpus, *HASH, "-o", tmp_path / "o"]
    limited = f"ulimit -v 300000; exec {shlex.join(map(str, command))}"
    ran = subprocess.run(["sh", "-c", limited], capture_output=True, text=True, check=False)
    assert (ran.returncode, "out of memory" in ran.stderr) == (69, True), ran.stderr


CANARY = "hf_CANARYcanaryCANARYcanaryCANARYca"
CRASH = """
import hashlib, time
real = hashlib.shake_128
def shake(data):
    if b"CRASH" in data:
        time.sleep(1)  # so that other units are finished
        raise RuntimeError("a defect")
    return real(data)
hashlib.shake_128 = shake
"""
# Of each run: what its last text is, its options, its exit code.
RUNS = {
    "done": ("text", ("-o", "o/"), 0),
    "with rejects": (None, ("-o", "o.parquet", "--on-error", "reject"), 3),
    "crashed": ("CRASH", ("-o", "o.parquet"), 70),
    "crashed in a worker": ("CRASH", ("-o", "o.parquet", "--num-processes", "2"), 70),
}


@pytest.mark.parametrize("case", RUNS)
def test_a_secret_of_the_environment_is_written_nowhere(tmp_path, case):
    last, options, code = RUNS[case]
    write(tmp_path / "c.jsonl", [*("words of a text " * 5 + str(i) for i in range(6_000)), last])
    secrets = dict.fromkeys(("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY"), CANARY)
    environment = {**poisoned(tmp_path, CRASH), **secrets}
    command = ("--debug", "encode", "c.jsonl", *HASH, *options, "--report", "report.json")
    ran = run_process(*command, env=environment, cwd=tmp_path)
    assert ran.code == code, ran.err
    assert ("Traceback" in ran.err) == (code == 70)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(".parquet" in path.name for path in written), "there is nothing to look at"
    assert CANARY not in ran.out.decode() + ran.err
    assert [path for path in written if CANARY.encode() in path.read_bytes()] == []


def test_a_traceback_is_shown_on_demand_only(tmp_path):
    corpus, environment = write(tmp_path / "c.jsonl", ["CRASH"]), poisoned(tmp_path, CRASH)
    command = ("encode", corpus, *HASH, "-o", tmp_path / "o.parquet")
    ran = run_process(*command, env=environment)
    assert (ran.code, "Traceback" in ran.err, "--debug" in ran.err) == (70, False, True)
    assert "RuntimeError: a defect" in ran.err
