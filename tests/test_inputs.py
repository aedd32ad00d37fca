"""The inputs people really have, good and bad: what the program says of each, its exit code, and
never a traceback.

Numbers are those of the project's list of input cases. Run with `-s` for a table of what was said.
"""

import gzip
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.test_parquet import invalid

GOOD = b'{"text": "a"}\n{"text": "b"}\n'


def zstd(content):
    return pa.compress(content, codec="zstd", asbytes=True)


def parquet(**columns):
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table(columns), sink, write_page_checksum=True, compression="none", use_dictionary=False
    )
    return sink.getvalue().to_pybytes()


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DATA = parquet(text=["a", "inner row", "z"])

# case: (file name, content, exit code, texts that come out or a part of the message)
CASES = {
    "1 BOM at the start": ("a.jsonl", b"\xef\xbb\xbf" + GOOD, 0, ["a", "b"]),
    "2 BOM at a later line": ("a.jsonl", GOOD + b"\xef\xbb\xbf" + GOOD, 0, ["a", "b", "a", "b"]),
    "3 CRLF": ("a.jsonl", GOOD.replace(b"\n", b"\r\n"), 0, ["a", "b"]),
    "4 CR only": ("a.jsonl", GOOD.replace(b"\n", b"\r"), 65, "lines that end in a lone CR"),
    "5 blank lines": ("a.jsonl", b'\n  \n{"text": "a"}\n\t\n\n{"text": 3}\n', 65, "a.jsonl:6:"),
    "6 no final newline": ("a.jsonl", GOOD[:-1], 0, ["a", "b"]),
    "7 truncated last line": ("a.jsonl", GOOD + b'{"text": "c', 65, "a.jsonl:3: not valid JSON: Unterminated string starting at byte offset 37"),
    "8 two objects on a line": ("a.jsonl", b'{"text": "a"} {"text": "b"}\n', 65, "a.jsonl:1: not valid JSON: Extra data"),
    "9 pretty-printed": ("a.jsonl", json.dumps({"text": "a"}, indent=1).encode(), 65, "pretty-printed JSON"),
    "10 one array": ("a.jsonl", b'[{"text": "a"},\n{"text": "b"}]\n', 65, "a JSON array"),
    "10 one array on a line": ("a.jsonl", b'[{"text": "a"}, {"text": "b"}]', 65, "a JSON array"),
    "11 a scalar": ("a.jsonl", GOOD + b"3\n", 65, "a.jsonl:3: a number, not an object"),
    "11 a list": ("a.jsonl", GOOD + b"[3]\n", 65, "a.jsonl:3: a list, not an object"),
    "12 other line ends in a string": ("a.jsonl", '{"text": "a\u2028b\u2029c\x85d"}\n'.encode(), 0, ["a\u2028b\u2029c\x85d"]),
    "13 a raw control character": ("a.jsonl", b'{"text": "a\0b"}\n', 65, "a.jsonl:1: not valid JSON: Invalid control character"),
    "14 an escaped NUL": ("a.jsonl", b'{"text": "a\\u0000b"}\n', 0, ["a\0b"]),
    "15 not UTF-8": ("a.jsonl", GOOD + b'{"text": "\xff"}\n', 65, "a.jsonl:3: byte 0xff at offset 38 is not UTF-8"),
    "16 UTF-16 with a mark": ("a.jsonl", GOOD.decode().encode("utf-16"), 65, "not UTF-8"),
    "16 UTF-16 without": ("a.jsonl", GOOD.decode().encode("utf-16-le"), 65, "not UTF-8"),
    "16 UTF-32": ("a.jsonl", GOOD.decode().encode("utf-32-be"), 65, "not UTF-8"),
    "17 overlong UTF-8": ("a.jsonl", b'{"text": "\xc0\xaf"}\n', 65, "is not UTF-8"),
    "17 a surrogate in UTF-8": ("a.jsonl", b'{"text": "\xed\xa0\x80"}\n', 65, "is not UTF-8"),
    "18 a lone surrogate": ("a.jsonl", b'{"text": "\\ud800"}\n', 65, "a.jsonl:1: lone surrogate \\ud800"),
    "18 a lone surrogate elsewhere": ("a.jsonl", b'{"text": "a", "n": ["\\uDfff"]}\n', 65, "lone surrogate"),
    "19 pairs, joiners, right to left": ("a.jsonl", '{"text": "\\ud83d\\ude00 👩‍👩‍👧 עברית e\u0301"}\n'.encode(), 0, ["😀 👩‍👩‍👧 עברית e\u0301"]),
    "20 NaN": ("a.jsonl", b'{"text": "a", "n": NaN}\n', 65, "a.jsonl:1: NaN is not JSON"),
    "20 -Infinity": ("a.jsonl", b'{"text": "a", "n": -Infinity}\n', 65, "-Infinity is not JSON"),
    "21 1e400": ("a.jsonl", b'{"text": "a", "n": 1e400}\n', 65, "a.jsonl:1: number 1e400 is out of range"),
    "22 5,000 digits": ("a.jsonl", b'{"text": "a", "n": ' + b"9" * 5000 + b"}\n", 65, "too many digits"),
    "23 100,000 deep": ("a.jsonl", b'{"text": "a", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", 65, "nested more than"),
    "23 300 deep": ("a.jsonl", b'{"text": "a", "n": ' + b"[" * 300 + b"]" * 300 + b"}\n", 65, "nested more than"),
    "24 a key twice": ("a.jsonl", b'{"text": "a", "text": "b"}\n', 65, "a.jsonl:1: duplicate key 'text'"),
    "25 no text": ("a.jsonl", GOOD + b'{"body": "c", "id": 3}\n', 65, "a.jsonl:3: no column 'text' (columns here: body, id)"),
    "26 a null": ("a.jsonl", GOOD + b'{"text": null}\n', 65, "a.jsonl:3: column 'text' is null"),
    "27 a number": ("a.jsonl", GOOD + b'{"text": 3}\n', 65, "a.jsonl:3: column 'text' is a number, not a string"),
    "27 a list": ("a.jsonl", GOOD + b'{"text": ["a"]}\n', 65, "a.jsonl:3: column 'text' is a list, not a string"),
    "28 an empty string": ("a.jsonl", b'{"text": ""}\n', 0, [""]),
    "29 blanks": ("a.jsonl", b'{"text": " \\n "}\n', 0, [" \n "]),
    "35 a long line": ("a.jsonl", GOOD + b'{"text": "' + b"x" * 20_000_000 + b'"}\n' + GOOD, 65, "a.jsonl:3: the line is longer than 16777216 bytes"),
    "37 nothing": ("a.jsonl", b"", 65, "the input has no rows"),
    "37 blank lines alone": ("a.jsonl", b"\n  \n\n", 65, "the input has no rows"),
    "41 gz, checksum cut off": ("a.jsonl.gz", gzip.compress(GOOD)[:-4], 65, "damaged gzip stream"),
    "41 gz, cut in the middle": ("a.jsonl.gz", gzip.compress(GOOD * 100)[:40], 65, "damaged gzip stream"),
    "42 gz of two members": ("a.jsonl.gz", gzip.compress(GOOD) + gzip.compress(GOOD), 0, ["a", "b", "a", "b"]),
    "42 gz with zeros behind": ("a.jsonl.gz", gzip.compress(GOOD) + b"\0" * 512, 0, ["a", "b"]),
    "42 gz with junk behind": ("a.jsonl.gz", gzip.compress(GOOD) + b"junk", 65, "damaged gzip stream"),
    "43 gz with a wrong checksum": ("a.jsonl.gz", flipped(gzip.compress(GOOD), -6), 65, "damaged gzip stream"),
    "43 gz damaged inside": ("a.jsonl.gz", flipped(gzip.compress(GOOD * 100), 20), 65, "damaged gzip stream"),
    "45 zst": ("a.jsonl.zst", zstd(GOOD), 0, ["a", "b"]),
    "45 zst of two frames": ("a.jsonl.zst", zstd(GOOD) + zstd(GOOD), 0, ["a", "b", "a", "b"]),
    "45 zst cut off": ("a.jsonl.zst", zstd(GOOD)[:-2], 65, "damaged zstd stream"),
    "45 zst damaged": ("a.jsonl.zst", b"\x28\xb5\x2f\xfd" + b"\xff" * 20, 65, "damaged zstd stream"),
    "46 gz named .jsonl": ("a.jsonl", gzip.compress(GOOD), 0, ["a", "b"]),
    "46 Parquet named .jsonl": ("a.jsonl", parquet(text=["a"]), 0, ["a"]),
    "46 JSONL named .parquet": ("a.parquet", GOOD, 0, ["a", "b"]),
    "46 Parquet in gz": ("a.parquet.gz", gzip.compress(parquet(text=["a"])), 0, ["a"]),
    "46 gz in gz": ("a.jsonl.gz", gzip.compress(gzip.compress(GOOD)), 65, "compressed twice"),
    "46 zip": ("a.jsonl", b"PK\x03\x04....", 65, "zip archive"),
    "49 Parquet cut off": ("a.parquet", parquet(text=["a"] * 100)[:-9], 65, "not a readable Parquet file"),
    "49 Parquet footer damaged": ("a.parquet", parquet(text=["a"] * 100)[:-60] + b"\xff" * 52 + b"PAR1", 65, "not a readable Parquet file"),
    "50 no Parquet": ("a.parquet", b"hello, world", 65, "not a Parquet file"),
    "50 no footer": ("a.parquet", b"PAR1", 65, "not a readable Parquet file"),
    "50 nothing": ("a.parquet", b"", 65, "not a Parquet file"),
    "51 a page with a wrong checksum": ("a.parquet", flipped(DATA, DATA.index(b"inner row")), 65, "CRC checksum verification failed"),
    "53 not UTF-8 in Parquet": ("a.parquet", parquet(text=invalid([b"a", b"\xff"])), 65, "a.parquet: row 2: column 'text' is not UTF-8"),
    "54 an encrypted footer": ("a.parquet", b"PARE" + parquet(text=["a"])[4:-4] + b"PARE", 65, "encrypted"),
    "55 bytes as text": ("a.parquet", parquet(text=[b"a"]), 65, "has type binary"),
    "56 a dictionary": ("a.parquet", parquet(text=pa.array(["a", "a"]).dictionary_encode()), 0, ["a", "a"]),
    "56 large strings": ("a.parquet", parquet(text=pa.array(["a", "b"], pa.large_string())), 0, ["a", "b"]),
    "57 a null in Parquet": ("a.parquet", parquet(text=["a", None]), 65, "a.parquet: row 2: column 'text' is null"),
    "58 a list": ("a.parquet", parquet(text=[["a"]]), 65, "has type list<"),
    "58 a struct": ("a.parquet", parquet(text=[{"inner": "a"}]), 65, "--text-column text.inner"),
    "59 odd types beside": ("a.parquet", parquet(text=["a"], n=pa.array([1.5], pa.float16()), d=pa.array([1], pa.decimal256(50))), 0, ["a"]),
    "61 no such column": ("a.parquet", parquet(body=["a"], id=[1]), 65, "no column 'text' for --text-column (columns: body, id)"),
    "61 another case": ("a.parquet", parquet(Text=["a"]), 65, "did you mean 'Text'?"),
    "63 no rows": ("a.parquet", parquet(text=pa.array([], pa.string())), 65, "the input has no rows"),
}  # fmt: skip


@pytest.fixture(scope="module")
def said():
    lines = []
    yield lines
    print(*lines, sep="\n")


@pytest.mark.parametrize("case", CASES)
def test_case(case, cli, tmp_path, said):
    name, content, code, expected = CASES[case]
    (tmp_path / name).write_bytes(content)
    ran = cli(
        "encode",
        tmp_path / name,
        "--role",
        "passage",
        "--model",
        "hash:8",
        "-o",
        tmp_path / "out.parquet",
    )
    message = next(
        (line for line in ran.err.splitlines() if "error" in line or "warning" in line), "done"
    )
    said.append(f"{case:35} {ran.code:3}  {message.replace(str(tmp_path), '')}")
    assert ran.code == code, ran.err
    assert "Traceback" not in ran.err
    if isinstance(expected, str):
        assert expected in ran.err
        assert os.listdir(tmp_path) == [name], "something was left behind"
    else:
        table = pq.read_table(tmp_path / "out.parquet")
        assert table["text"].to_pylist() == expected
        assert table["embedding"].type == pa.list_(pa.float32(), 8)


def test_the_late_byte_order_mark_is_mentioned(cli, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(CASES["2 BOM at a later line"][1])
    assert (
        "1 lines start with a byte order mark"
        in cli("encode", tmp_path / "a.jsonl", "--role", "query", "--model", "hash:8").err
    )


def test_an_encrypted_column_is_called_encrypted(cli, tmp_path):
    # 54: written with pyarrow's own encryption, its key kept in this test.
    pe = pytest.importorskip("pyarrow.parquet.encryption")

    class Keys(pe.KmsClient):
        def __init__(self, connection):
            super().__init__()

        def wrap_key(self, key, master):
            return key.hex()

        def unwrap_key(self, wrapped, master):
            return bytes.fromhex(wrapped)

    factory, connection = pe.CryptoFactory(Keys), pe.KmsConnectionConfig()
    for plain in (True, False):
        wanted = pe.EncryptionConfiguration(
            footer_key="f", column_keys={"c": ["text"]}, plaintext_footer=plain
        )
        path = tmp_path / f"{plain}.parquet"
        table = pa.table({"text": ["a"] * 10})
        properties = factory.file_encryption_properties(connection, wanted)
        with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
            writer.write_table(table)
        ran = cli("encode", path, "--role", "query", "--model", "hash:8")
        assert ran.code == 65, ran.err
        assert "encrypted" in ran.err


def test_ids_of_any_kind_come_through(cli, tmp_path):
    # 31-34: row identity is file and row; ids are only carried.
    ids = ["7", 7, 2**63, 123456789012345678901234567890, "2024-01-31T00:00:00Z", "7"]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"id": i, "text": "t"}) + "\n" for i in ids)
    )
    assert cli("encode", tmp_path / "a.jsonl", "--role", "query", "--model", "hash:8").code == 0
    assert pq.read_table(tmp_path / "a.query.parquet")["id"].to_pylist() == [str(i) for i in ids]


def test_a_long_line_costs_no_memory_and_can_be_set_aside(cli, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "' + b"x" * 5000 + b'"}\n' + GOOD)
    ran = cli(
        "encode",
        tmp_path / "a.jsonl",
        "--role",
        "query",
        "--model",
        "hash:8",
        "--max-row-bytes",
        1000,
        "--on-error",
        "reject",
    )
    assert ran.code == 3
    assert pq.read_table(tmp_path / "a.query.parquet")["text"].to_pylist() == ["a", "b"]


@pytest.mark.parametrize("how", ["stdin", "fifo"])
def test_pipes(how, tmp_path):
    # 38
    out = tmp_path / "out.parquet"
    command = [
        sys.executable,
        "-m",
        "embedcli",
        "encode",
        "-",
        "--role",
        "query",
        "--model",
        "hash:8",
        "-o",
        str(out),
    ]
    if how == "fifo":
        os.mkfifo(tmp_path / "pipe")
        command[4] = str(tmp_path / "pipe")
        feeder = subprocess.Popen(["sh", "-c", f"printf '%s' '{GOOD.decode()}' > {tmp_path}/pipe"])
        done = subprocess.run(command, capture_output=True, timeout=60)
        feeder.wait()
    else:
        done = subprocess.run(command, input=gzip.compress(GOOD), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert pq.read_table(out)["text"].to_pylist() == ["a", "b"]


def test_stdin_may_hold_parquet(tmp_path):
    command = [
        sys.executable,
        "-m",
        "embedcli",
        "encode",
        "-",
        "--role",
        "query",
        "--model",
        "hash:8",
        "-o",
        str(tmp_path / "o"),
    ]
    assert subprocess.run(command, input=parquet(text=["a"]), capture_output=True).returncode == 0
    assert pq.read_table(tmp_path / "o")["text"].to_pylist() == ["a"]


def test_inputs_that_are_not_there(cli, tmp_path):
    # 39: before any model is looked for: this one does not exist either
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("none.jsonl", "no such file"),
        ("empty", "holds no input file"),
        ("*.none", "no such file"),
    ):
        ran = cli(
            "encode",
            tmp_path / name,
            "--role",
            "query",
            "--model",
            "./no-model",
            "-o",
            tmp_path / "o",
        )
        assert (ran.code, message in ran.err) == (66, True), ran.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_inputs_that_may_not_be_read(cli, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "a.jsonl").chmod(0)
    assert cli("encode", tmp_path / "a.jsonl", "--role", "query", "--model", "hash:8").code == 77


def test_file_names_of_any_bytes_are_escaped(cli, tmp_path):
    # 47
    for name in (
        b"new\nline.jsonl",
        b"esc\x1b[31m.jsonl",
        b"not-utf8-\xff.jsonl",
        b"[red][link=x][bold.jsonl",
        "bidi\u202e.jsonl".encode(),
    ):
        path = os.path.join(os.fsencode(tmp_path), name)
        with open(path, "wb") as stream:
            stream.write(GOOD + b"bad\n")
        ran = cli("encode", os.fsdecode(path), "--role", "query", "--model", "hash:8")
        assert ran.code == 65
        assert not set(ran.err) & {"\x1b", "\u202e", "\xff"}
        assert ran.err.count("\n") == 2, ran.err
        with open(path, "wb") as stream:
            stream.write(GOOD)
        ran = cli("encode", os.fsdecode(path), "--role", "query", "--model", "hash:8")
        assert (ran.code, ran.out) == (0, path.removesuffix(b".jsonl") + b".query.parquet\n")


def test_the_same_file_twice_is_refused(cli, tmp_path):
    # 48
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
    ran = cli(
        "encode",
        tmp_path / "a.jsonl",
        tmp_path / "b.jsonl",
        "--role",
        "query",
        "--model",
        "hash:8",
        "-o",
        tmp_path / "o",
    )
    assert ran.code == 65
    assert "a.jsonl" in ran.err
    assert "b.jsonl are the same file" in ran.err


def test_bytes_are_read_as_text_where_asked(cli, tmp_path):
    # 55
    (tmp_path / "a.parquet").write_bytes(parquet(text=[b"a", "ä".encode(), b"\xff"]))
    ran = cli(
        "encode",
        tmp_path / "a.parquet",
        "--role",
        "query",
        "--model",
        "hash:8",
        "--binary-as-utf8",
        "--on-error",
        "reject",
    )
    assert ran.code == 3
    assert pq.read_table(tmp_path / "a.query.parquet")["text"].to_pylist() == ["a", "ä"]


def test_paths_into_structs(cli, tmp_path):
    # 58
    (tmp_path / "a.parquet").write_bytes(
        parquet(doc=[{"text": "a", "n": 1}, {"text": "b", "n": 2}])
    )
    ran = cli(
        "encode",
        tmp_path / "a.parquet",
        "--role",
        "query",
        "--model",
        "hash:8",
        "--text-column",
        "doc.text",
    )
    assert ran.code == 0, ran.err
    table = pq.read_table(tmp_path / "a.query.parquet")
    assert table["doc"].to_pylist() == [{"text": "a", "n": 1}, {"text": "b", "n": 2}]
    assert table["embedding_tokens"].to_pylist() == [2, 2]


def test_files_whose_schemas_differ_are_refused(cli, tmp_path):
    # 62
    (tmp_path / "a.parquet").write_bytes(parquet(text=["a"], n=[1]))
    (tmp_path / "b.parquet").write_bytes(parquet(text=["b"], n=["x"]))
    arguments = ("encode", tmp_path, "--role", "query", "--model", "hash:8", "-o", tmp_path / "o")
    ran = cli(*arguments)
    assert ran.code == 65
    assert "a.parquet" in ran.err
    assert "b.parquet differ in their schema: 'n: int64' against 'n: string'" in ran.err
    assert cli(*arguments, "--columns", "text").code == 0


def test_row_groups_without_rows(cli, tmp_path):
    # 63
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema([("text", pa.string())])) as writer:
        for texts in ([], ["a"], [], ["b"]):
            writer.write_table(pa.table({"text": pa.array(texts, pa.string())}))
    assert cli("encode", tmp_path / "a.parquet", "--role", "query", "--model", "hash:8").code == 0
    assert pq.read_table(tmp_path / "a.query.parquet")["text"].to_pylist() == ["a", "b"]


def test_folders_globs_and_several_files_keep_their_order(cli, tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name, text in (
        ("b.jsonl", "b"),
        ("a.jsonl", "a"),
        ("deep/c.jsonl", "c"),
        (".hidden.jsonl", "no"),
        ("notes.md", "no"),
    ):
        (tmp_path / "in" / name).write_text(json.dumps({"text": text}) + "\n")
    for given, texts in (
        ([tmp_path / "in"], ["a", "b", "c"]),
        ([tmp_path / "in" / "*.jsonl"], ["a", "b"]),
        ([tmp_path / "in" / "deep", tmp_path / "in" / "a.jsonl"], ["c", "a"]),
    ):
        ran = cli("encode", *given, "--role", "query", "--model", "hash:8", "-o", tmp_path / "o")
        assert ran.code == 0, ran.err
        assert pq.read_table(tmp_path / "o")["text"].to_pylist() == texts
