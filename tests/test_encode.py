"""`embedcli encode`, from the command line to the Parquet file: what is in it, and that each option
does something.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import SAMPLE, run_process

HASH = ("--model", "hash:16")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def corpus(tmp_path):
    rows = [
        {"id": i, "title": f"t{i % 3}", "text": f"text number {i} " + "word " * (i % 7)}
        for i in range(50)
    ]
    return write_rows(tmp_path / "corpus.jsonl", rows)


def table_of(ran):
    assert ran.code == 0, ran.err
    return pq.read_table(ran.lines[-1])


def provenance(path):
    return json.loads(pq.read_metadata(path).metadata[b"embedcli"])


def test_the_files_columns_and_their_types(cli, corpus):
    table = table_of(cli("encode", corpus, "--role", "passage", *HASH))
    assert table.schema.remove_metadata() == pa.schema(
        [
            ("id", pa.int64()),
            ("title", pa.string()),
            ("text", pa.string()),
            ("embedding", pa.list_(pa.float32(), 16)),
            ("embedding_hash", pa.binary(16)),
            ("embedding_tokens", pa.int32()),
            ("embedding_truncated", pa.bool_()),
        ]
    )
    assert table["id"].to_pylist() == list(range(50))
    assert [json.loads(line)["text"] for line in corpus.read_text().splitlines()] == table[
        "text"
    ].to_pylist()
    norms = np.linalg.norm(np.array(table["embedding"].to_pylist()), axis=1)
    assert np.allclose(norms, 1, atol=1e-6)


def test_the_hash_is_of_the_rendered_text_and_can_be_made_elsewhere(cli, corpus):
    table = table_of(cli("encode", corpus, "--role", "passage", *HASH))
    wanted = [
        hashlib.blake2b(f"passage: {t}".encode(), digest_size=16).digest()
        for t in table["text"].to_pylist()
    ]
    assert table["embedding_hash"].to_pylist() == wanted


def test_jsonl_and_parquet_give_the_same_bytes(cli, tmp_path):
    for kind in ("jsonl", "parquet"):
        ran = cli(
            "encode", SAMPLE / f"corpus.{kind}", "--role", "passage", *HASH, "-o", tmp_path / kind
        )
        assert ran.code == 0
    files = [tmp_path / kind for kind in ("jsonl", "parquet")]
    said = [provenance(file) for file in files]
    # What they were made from isn't the same bytes.
    assert said[0].pop("signature") != said[1].pop("signature")
    assert said[0] == said[1]
    tables = [pq.read_table(file).replace_schema_metadata(None) for file in files]
    assert tables[0].equals(tables[1])
    assert pq.read_schema(files[0]).equals(pq.read_schema(files[1]))


def test_the_same_run_gives_the_same_bytes_from_any_place(cli, corpus, tmp_path):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        assert (
            cli("encode", corpus, "--role", "query", *HASH, "-o", tmp_path / place / "o").code == 0
        )
    assert (tmp_path / "a" / "o").read_bytes() == (tmp_path / "b" / "o").read_bytes()


def test_provenance_says_all_and_betrays_nothing(cli, corpus):
    path = cli("encode", corpus, "--role", "document", *HASH).lines[-1]
    said = provenance(path)
    recipe = said["columns"]["embedding"]["recipe"]
    assert recipe["role"] == "passage"
    assert recipe["template"] == "passage: {text}"
    assert recipe["space"]["model"] == "hash:16"
    assert said["counts"] == {
        "rejects_sha256": "",
        "rows_in": 50,
        "rows_out": 50,
        "rejected": 0,
        "truncated": 0,
        "blank": 0,
        "tokens": said["counts"]["tokens"],
    }
    assert set(said["libraries"]) == {"numpy", "pyarrow"}
    assert str(corpus.parent) not in json.dumps(said)


def column(provenance):
    """How the one vector column was made."""
    (made,) = provenance["columns"].values()
    return made


# option -> what is seen of it in the output
EFFECTS = {
    "--role query": lambda t, p: column(p)["recipe"]["role"] == "query",
    "--template <{text}>": lambda t, p: column(p)["recipe"]["template"] == "<{text}>",
    "--template {title}|{text}": lambda t, p: column(p)["recipe"]["template"] == "{title}|{text}",
    "--max-length 4": lambda t, p: (
        max(t["embedding_tokens"].to_pylist()) == 4
        and sum(t["embedding_truncated"].to_pylist()) > 40
    ),
    "--dim 4": lambda t, p: t.schema.field("embedding").type.list_size == 4 and norms_are_one(t),
    "--no-normalize": lambda t, p: (
        not norms_are_one(t) and not column(p)["recipe"]["space"]["normalized"]
    ),
    "--text-column title": lambda t, p: len(set(t["embedding_hash"].to_pylist())) == 3,
    "--columns id": lambda t, p: t.column_names[0] == "id" and len(t.column_names) == 5,
    "--columns ": lambda t, p: len(t.column_names) == 4,
    "--embedding-column e": lambda t, p: (
        t.column_names[-4:] == ["e", "e_hash", "e_tokens", "e_truncated"]
    ),
    "--vector-type float16": lambda t, p: (
        t.schema.field("embedding").type.value_type == pa.float16()
    ),
    "--model hash:8": lambda t, p: t.schema.field("embedding").type.list_size == 8,
}


def norms_are_one(table):
    return np.allclose(
        np.linalg.norm(np.array(table["embedding"].to_pylist()), axis=1), 1, atol=1e-5
    )


@pytest.mark.parametrize("option", EFFECTS)
def test_each_option_is_honoured(option, cli, corpus):
    arguments = ["encode", corpus, "--role", "passage", *HASH]
    plain = table_of(cli(*arguments))
    path = cli(*arguments, *option.split(" ", 1), "-o", corpus.parent / "o").lines[-1]
    changed = pq.read_table(path)
    assert EFFECTS[option](changed, provenance(path))
    assert not changed.equals(plain)


def test_options_come_from_the_environment_too(cli, corpus, monkeypatch):
    monkeypatch.setenv("EMBEDCLI_MODEL", "hash:8")
    monkeypatch.setenv("EMBEDCLI_ROLE", "query")
    table = table_of(cli("encode", corpus))
    assert table.schema.field("embedding").type.list_size == 8


def test_template_columns_may_be_left_out_of_the_output(cli, corpus):
    arguments = ("--template", "{title}: {text}", "--columns", "id")
    table = table_of(cli("encode", corpus, "--role", "passage", *HASH, *arguments))
    assert table.column_names[0] == "id"
    wanted = hashlib.blake2b(b"t0: text number 0 ", digest_size=16).digest()
    assert table["embedding_hash"][0].as_py() == wanted


USAGE = {
    "no role": (["corpus.jsonl"], 2, "Missing option '--role'"),
    "stdin without a name": (["-", "--role", "query"], 2, "-o vectors.parquet"),
    "several inputs without a name": (["corpus.jsonl", "notes", "--role", "query"], 2, "-o vectors.parquet"),
    "format for a file": (["corpus.jsonl", "--role", "query", "--format", "jsonl"], 2, "goes with -o -"),
    "Parquet into a pipe": (["corpus.jsonl", "--role", "query", "-o", "-", "--format", "parquet"], 2, "can't be written to a pipe"),
    "JSONL into a file": (["corpus.jsonl", "--role", "query", "-o", "x.jsonl"], 73, "files are written as Parquet"),
    "a folder as output": (["corpus.jsonl", "--role", "query", "-o", "."], 73, "is the current folder"),
    "a folder that isn't there": (["corpus.jsonl", "--role", "query", "-o", "no/x.parquet"], 73, "no such folder"),
    "a report in no folder": (["corpus.jsonl", "--role", "query", "--report", "no/r.json"], 73, "no such folder"),
    "rejects in no folder": (["corpus.jsonl", "--role", "query", "--on-error", "reject", "--rejects", "no/r"], 73, "no such folder"),
    "the input as output": (["corpus.jsonl", "--role", "query", "-o", "corpus.jsonl2"], 73, "is a symbolic link"),
    "somebody's file as output": (["corpus.jsonl", "--role", "query", "-o", "notes"], 73, "was not written by embedcli"),
    "rejects without rejecting": (["corpus.jsonl", "--role", "query", "--rejects", "r"], 2, "--on-error reject"),
    "rejects without a file": (["corpus.jsonl", "--role", "query", "-o", "-", "--on-error", "reject"], 2, "--rejects rejects.jsonl"),
    "an odd device": (["corpus.jsonl", "--role", "query", "--device", "tpu"], 2, "not auto, cpu, cuda"),
    "a device that isn't there": (["corpus.jsonl", "--role", "query", "--device", "cuda:63"], 69, "CUDA devices"),
    "a role of no template": (["corpus.jsonl", "--role", "sts"], 78, "known roles: passage, query"),
    "a task for nothing": (["corpus.jsonl", "--role", "query", "--task", "x"], 78, "has no {task}"),
    "too large a dimension": (["corpus.jsonl", "--role", "query", "--dim", "999"], 78, "has 384 dimensions"),
    "too large a length": (["corpus.jsonl", "--role", "query", "--max-length", "999"], 78, "has 512 positions"),
    "a template longer than a text": (["corpus.jsonl", "--role", "query", "--max-length", "3", "--template", "a b c {text}"], 78, "takes all 3 tokens"),
    "no such model": (["corpus.jsonl", "--role", "query", "--model", "nope"], 78, "is not a model"),
    "a column that isn't there": (["corpus.jsonl", "--role", "query", "--columns", "id,no"], 65, "no row has the column 'no'"),
    "a template's column that isn't there": (["corpus.jsonl", "--role", "query", "--template", "{no} {text}"], 65, "no row has the column 'no'"),
    "a taken name": (["corpus.jsonl", "--role", "query", "--embedding-column", "title"], 78, "already has a column 'title'"),
    "too long a name": (["corpus.jsonl", "--role", "query", "-o", "n" * 250], 73, "File name too long"),
    "too few rows": (["corpus.jsonl", "--role", "query", "--min-rows", "51"], 65, "50 rows, fewer than --min-rows 51"),
}  # fmt: skip


NEEDS_TORCH = "a device that isn't there"


@pytest.mark.parametrize(
    "case",
    [
        *(case for case in USAGE if case != NEEDS_TORCH),
        pytest.param(NEEDS_TORCH, marks=pytest.mark.torch),
    ],
)
def test_what_cannot_be_done_is_said_with_its_code(case, cli, corpus, monkeypatch):
    arguments, code, message = USAGE[case]
    monkeypatch.chdir(corpus.parent)
    (corpus.parent / "notes").write_text("mine")
    (corpus.parent / "corpus.jsonl2").symlink_to(corpus)
    needs_real_model = case in (
        "too large a dimension",
        "too large a length",
        "no such model",
        "a device that isn't there",
    )
    model = () if needs_real_model else HASH
    if case == "a device that isn't there":
        pytest.importorskip("torch")
    ran = cli("encode", *arguments, *model)
    assert ran.code == code, ran.err
    assert message in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == b""
    assert sorted(path.name for path in corpus.parent.iterdir()) == [
        "corpus.jsonl",
        "corpus.jsonl2",
        "notes",
    ]


def test_rejected_rows_are_accounted_for(cli, tmp_path):
    rows = [{"text": "a", "t": "x"}, {"text": 3}, {"text": "b", "t": None}, {"text": "c", "t": "y"}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    arguments = (
        "encode",
        path,
        "--role",
        "query",
        *HASH,
        "--template",
        "{t} {text}",
        "--on-error",
        "reject",
        "--report",
        tmp_path / "r.json",
    )
    ran = cli(*arguments)
    assert ran.code == 3
    assert pq.read_table(tmp_path / "a.query.parquet")["text"].to_pylist() == ["a", "c"]
    rejects = [
        json.loads(line)
        for line in (tmp_path / "a.query.parquet.rejects.jsonl").read_text().splitlines()
    ]
    assert [(reject["line"], reject["code"]) for reject in rejects] == [
        (2, "text-type"),
        (3, "field-missing"),
    ]
    assert rejects[0]["file"] == str(path)
    counts = json.loads((tmp_path / "r.json").read_text())["counts"]
    assert (counts["rows_in"], counts["rows_out"], counts["rejected"]) == (4, 2, 2)
    # a clean run takes the old list of rejects away
    write_rows(path, rows[:1])
    assert cli(*arguments).code == 0
    assert not (tmp_path / "a.query.parquet.rejects.jsonl").exists()


def test_rejects_may_go_to_another_file_system(tmp_path):
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no other file system here")
    path = write_rows(tmp_path / "a.jsonl", [{"text": "a"}, {"text": 3}])
    with tempfile.TemporaryDirectory(dir=shm) as other:
        arguments = (
            "-o",
            "-",
            "--format",
            "jsonl",
            "--on-error",
            "reject",
            "--rejects",
            f"{other}/r.jsonl",
        )
        ran = run_process("encode", path, "--role", "query", *HASH, *arguments)
        assert ran.code == 3, ran.err
        assert [entry.name for entry in Path(other).iterdir()] == ["r.jsonl"]


def test_a_missing_field_ends_the_run_by_default(cli, tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [{"text": "a", "t": "x"}, {"text": "b"}])
    ran = cli("encode", path, "--role", "query", *HASH, "--template", "{t} {text}")
    assert (ran.code, ran.out) == (65, b"")
    assert "a.jsonl:2: column 't' of the template has no value" in ran.err
    assert "{t|none}" in ran.err


def test_texts_that_carry_the_prefix_already_are_noticed(cli, tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [{"text": "passage: a"}, {"text": "b"}])
    assert (
        "texts already start with 'passage:'" in cli("encode", path, "--role", "passage", *HASH).err
    )


def test_blank_texts_are_embedded_and_counted(cli, tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [{"text": ""}, {"text": " "}, {"text": "b"}])
    ran = cli("encode", path, "--role", "passage", *HASH)
    assert "blank" in ran.err
    assert provenance(ran.lines[-1])["counts"]["blank"] == 2


def test_an_older_output_is_replaced_and_nothing_is_left_behind(cli, corpus):
    for model in ("hash:8", "hash:16"):
        path = cli("encode", corpus, "--role", "query", "--model", model, "--overwrite").lines[-1]
    assert column(provenance(path))["recipe"]["space"]["dim"] == 16
    assert sorted(entry.name for entry in corpus.parent.iterdir()) == [
        "corpus.jsonl",
        "corpus.query.parquet",
    ]


def test_quiet_says_nothing_and_stdout_has_only_the_path(cli, corpus):
    ran = cli("encode", corpus, "--role", "query", *HASH, "--quiet")
    assert (ran.err, ran.lines) == ("", [str(corpus.parent / "corpus.query.parquet")])


def test_streams_hold_what_the_file_holds(corpus, cli):
    file = table_of(cli("encode", corpus, "--role", "query", *HASH))
    arrow = run_process("encode", corpus, "--role", "query", *HASH, "-o", "-")
    stream = pa.ipc.open_stream(arrow.out).read_all()
    assert stream.equals(file)
    assert column(json.loads(stream.schema.metadata[b"embedcli"]))["recipe_id"]
    lines = [
        json.loads(line)
        for line in run_process(
            "encode", corpus, "--role", "query", *HASH, "-o", "-", "--format", "jsonl"
        ).lines
    ]
    wanted = file.to_pylist()
    for line, row in zip(lines, wanted, strict=True):
        assert np.array_equal(
            np.array(line.pop("embedding"), np.float32), np.array(row.pop("embedding"), np.float32)
        )
        assert line.pop("embedding_hash") == row.pop("embedding_hash").hex()
        assert line == row


def test_jsonl_output_of_types_that_json_lacks(tmp_path):
    import datetime
    import decimal

    columns = {
        "text": ["a"],
        "nan": [float("nan")],
        "when": [datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC)],
        "exact": [decimal.Decimal("1.10")],
        "bytes": [b"\xff"],
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    line = json.loads(
        run_process(
            "encode",
            tmp_path / "a.parquet",
            "--role",
            "query",
            *HASH,
            "-o",
            "-",
            "--format",
            "jsonl",
        ).out
    )
    assert (line["nan"], line["when"], line["exact"], line["bytes"]) == (
        None,
        "2024-01-02T00:00:00+00:00",
        "1.10",
        "/w==",
    )


def test_a_reader_that_closes_the_pipe_ends_the_run_quietly(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [{"text": f"t {i}"} for i in range(20_000)])
    shell = f"cat {path} | {sys.executable} -m embedcli encode - --role passage -o - --format jsonl --model hash:64 -q | head -2; echo ${{PIPESTATUS[1]}}"
    import subprocess

    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    *lines, code = done.stdout.splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["t 0", "t 1"]
    assert (code, done.stderr) == ("141", "")
