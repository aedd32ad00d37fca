"""The store: nothing half-made is ever seen, one writer at a time, damage is noticed."""

import fcntl
import json
import os
import random
import signal
import stat
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedcli.config import OutputOptions
from embedcli.errors import DataError, LockedError, StorageError
from embedcli.recipe import Recipe, Space, TemplateSource
from embedcli.store import digest, parts, staging
from embedcli.store.provenance import ColumnProvenance, Provenance
from embedcli.store.vector_file import VectorFile
from tests.conftest import run_process, start

SCHEMA = parts.output_schema(pa.schema([("text", pa.string())]), 8, OutputOptions("x"))
SPACE = Space("m", "", "", "", "", ("hash",), 8, True)
COLUMN = ColumnProvenance(
    Recipe(SPACE, "query", "{text}", 8), TemplateSource("option"), "float32", ()
)
PROVENANCE = Provenance({"embedding": COLUMN}, "0", {})


def some_table(rows=100):
    rng = np.random.default_rng(0)
    carried = pa.table({"text": [f"text {i}" for i in range(rows)]})
    vectors = rng.normal(size=(rows, 8)).astype(np.float32)
    hashes = np.frombuffer(rng.bytes(16 * rows), "V16")
    columns = parts.EmbeddingColumns(
        vectors, hashes, np.arange(rows, dtype=np.int32), np.zeros(rows, bool)
    )
    return parts.assemble(carried, SCHEMA, parts.ColumnNames.of("embedding"), columns)


def test_what_is_written_is_read(tmp_path):
    table = some_table()
    written = parts.write(tmp_path / "p", SCHEMA, PROVENANCE, [table, table.slice(0, 0), table])
    assert written == (200, digest.read(tmp_path / "p", parts.DIGEST_MARK))
    assert pa.concat_tables(parts.read_row_groups(tmp_path / "p")).equals(
        pa.concat_tables([table, table])
    )
    assert VectorFile(str(tmp_path / "p")).provenance == PROVENANCE


def test_a_later_format_is_refused(tmp_path):
    for version in (1, 99):
        value = json.dumps({**PROVENANCE.to_json(), "format_version": version})
        table = some_table().replace_schema_metadata({"embedcli": value})
        pq.write_table(table, tmp_path / "p")
        with pytest.raises(DataError, match=f"format version {version}"):
            VectorFile(str(tmp_path / "p"))


def test_every_flipped_bit_of_a_page_is_noticed_or_harmless(tmp_path):
    path = tmp_path / "p"
    table = some_table()
    parts.write(path, SCHEMA, PROVENANCE, [table])
    sound = path.read_bytes()
    rng = random.Random(0)
    noticed = 0
    pages = len(sound) - 8 - int.from_bytes(sound[-8:-4], "little")
    for _ in range(150):
        place, bit = rng.randrange(pages), rng.randrange(8)
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << bit]) + sound[place + 1 :])
        try:
            found = pa.concat_tables(parts.read_row_groups(path))
        except DataError:
            noticed += 1
            continue
        assert found.to_pydict() == table.to_pydict()
    assert noticed > 75


def test_what_reads_back_otherwise_is_the_disks_fault_not_the_datas(tmp_path, monkeypatch):
    real, rng = parts._write, random.Random(0)
    parts.write(tmp_path / "whole", SCHEMA, PROVENANCE, [some_table()])
    size = (tmp_path / "whole").stat().st_size

    def damaging(path, *arguments):
        written = real(path, *arguments)
        content = bytearray(path.read_bytes())
        content[place] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        return written

    monkeypatch.setattr(parts, "_write", damaging)
    for place in [0, size - 1, *(rng.randrange(size) for _ in range(100))]:
        with pytest.raises(StorageError):
            parts.write(tmp_path / f"p{place}", SCHEMA, PROVENANCE, [some_table()])


def test_what_reads_back_short_is_the_disks_fault(tmp_path, monkeypatch):
    real = parts._write

    def shorten(path, *arguments):
        written = real(path, *arguments)
        return written._replace(rows=written.rows + 1)

    monkeypatch.setattr(parts, "_write", shorten)
    with pytest.raises(StorageError, match="can't be read back whole"):
        parts.write(tmp_path / "p", SCHEMA, PROVENANCE, [some_table()])


def test_one_run_at_a_time(tmp_path):
    with (
        staging.open_staging(tmp_path / "o", "t"),
        pytest.raises(LockedError),
        staging.open_staging(tmp_path / "o", "t"),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_locked_output_is_code_75_at_once(cli, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with staging.open_staging(tmp_path / "o", "t"):
        ran = cli(
            "encode",
            tmp_path / "a.jsonl",
            "--role",
            "query",
            "--model",
            "hash:8",
            "-o",
            tmp_path / "o",
        )
    assert ran.code == 75
    assert "another run is writing it" in ran.err


def test_leavings_of_a_killed_run_are_cleared(cli, tmp_path):
    leavings = tmp_path / ".o.embedcli"
    (leavings / "deep").mkdir(parents=True)
    (leavings / "part-000007.parquet").write_text("half")
    (leavings / "embedcli-staging").touch()
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    assert (
        cli(
            "encode",
            tmp_path / "a.jsonl",
            "--role",
            "query",
            "--model",
            "hash:8",
            "-o",
            tmp_path / "o",
        ).code
        == 0
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "o"]
    assert pq.read_table(tmp_path / "o").num_rows == 1


def test_a_planted_link_is_not_followed(cli, tmp_path):
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "precious").write_text("x")
    (tmp_path / ".o.embedcli").symlink_to(tmp_path / "victim")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    assert (
        cli(
            "encode",
            tmp_path / "a.jsonl",
            "--role",
            "query",
            "--model",
            "hash:8",
            "-o",
            tmp_path / "o",
        ).code
        == 73
    )
    assert (tmp_path / "victim" / "precious").exists()


def test_the_lock_is_not_inherited(tmp_path):
    with staging.open_staging(tmp_path / "o", "t") as stage:
        descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
        held = [
            fd
            for fd in descriptors
            if os.path.exists(f"/proc/self/fd/{fd}")
            and os.path.realpath(f"/proc/self/fd/{fd}") == str(stage.name)
        ]
        assert len(held) == 2  # the one that is locked, and the one that workers are given
        assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in held)
        assert stat.S_IMODE(stage.path.stat().st_mode) == 0o700


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
@pytest.mark.parametrize("kind", ["out", "out/"])
def test_the_output_has_the_modes_that_a_shell_would_give_it(kind, umask, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": null}\n')
    output = ("-o", f"{tmp_path}/{kind}", "--on-error", "reject", "--report", tmp_path / "report")
    command = ("encode", tmp_path / "a.jsonl", "--role", "query", "--model", "hash:8", *output)
    ran = run_process(*command, preexec_fn=lambda: os.umask(umask))
    assert ran.code == 3, ran.err
    written = sorted(path for path in tmp_path.rglob("*") if path.name != "a.jsonl")
    assert len(written) == (3 if kind == "out" else 5)  # rejects and report; a manifest and a part
    for path in written:
        mode = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == mode & ~umask, path


@pytest.fixture
def big(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "some words of a text"}\n' * 60_000)
    return path


def kill_at_random(big, output, number, seed, longest):
    process = start(
        "encode", big, "--role", "query", "--model", "hash:64", "-o", output, "--batch-tokens", 99
    )
    time.sleep(random.Random(seed).uniform(0.2, longest))
    process.send_signal(number)
    process.communicate()
    return process.returncode


@pytest.mark.heavy
@pytest.mark.parametrize("earlier", [False, True], ids=["no output before", "an output before"])
def test_killed_at_any_moment_the_output_is_whole_or_not_there(earlier, big, tmp_path):
    output = tmp_path / "out.parquet"
    old = tmp_path / "old.jsonl"
    old.write_text('{"text": "old"}\n')
    before = (
        run_process("encode", old, "--role", "query", "--model", "hash:64", "-o", output)
        if earlier
        else None
    )
    assert before is None or before.code == 0
    started = time.monotonic()
    assert (
        run_process(
            "encode", big, "--role", "query", "--model", "hash:64", "-o", tmp_path / "whole"
        ).code
        == 0
    )
    longest = time.monotonic() - started
    sizes = set()
    for seed in range(12):
        kill_at_random(big, output, signal.SIGKILL, seed, longest)
        sizes.add(pq.read_table(output).num_rows if output.exists() else None)
    assert sizes <= {1 if earlier else None, 60_000}
    assert (
        run_process("encode", big, "--role", "query", "--model", "hash:64", "-o", output).code == 0
    )
    assert output.read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_the_run_with_their_code(number, big, tmp_path):
    process = start("encode", big, "--role", "query", "--model", "hash:64", "-o", tmp_path / "o")
    while not (tmp_path / ".o.embedcli").exists():
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 128 + number, err
    assert b"Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]


def test_a_signal_that_the_caller_ignores_stays_ignored(big, tmp_path):
    def ignore():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    command = ["encode", big, "--role", "query", "--model", "hash:64", "-o", tmp_path / "o"]
    process = start(*command, preexec_fn=ignore)
    while not (tmp_path / ".o.embedcli").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert (tmp_path / "o").exists()


def test_a_full_disk_is_code_74(tmp_path):
    import resource

    big = tmp_path / "a.jsonl"  # of texts whose vectors don't compress
    big.write_text("".join(f'{{"text": "text {number} of many"}}\n' for number in range(20_000)))

    def small_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    ran = run_process(
        "encode",
        big,
        "--role",
        "query",
        "--model",
        "hash:64",
        "-o",
        tmp_path / "o",
        preexec_fn=small_files,
    )
    assert ran.code == 74, ran.err
    assert "File too large" in ran.err
    assert str(tmp_path) in ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]
    with open("/dev/full", "wb") as full:
        ran = run_process(
            "encode", big, "--role", "query", "--model", "hash:64", "-o", "-", stdout=full
        )
    assert ran.code == 74
    assert "No space left" in ran.err
