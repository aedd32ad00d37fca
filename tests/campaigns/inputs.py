"""Input files that are damaged or odd: every format, changed at random, byte by byte.

A run ends with 0, 3 or 65, within 20 s of CPU and 1 GB; each row is output or rejected.
"""

import gzip
import io
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.campaigns.children import run

DONE, REJECTED, DATA = 0, 3, 65
ROWS = 300


def _json_lines() -> bytes:
    rng = random.Random(0)
    odd_texts = ["", " ", "é", "\u2028", "😀" * 9, 'a\\b"c', "\x7f", "日本語", "x" * 3000]
    rows = [
        {"text": rng.choice(odd_texts) + str(i), "n": i, "x": [i, {"a": None}], "f": i / 7}
        for i in range(ROWS)
    ]
    return "".join(
        json.dumps(row, ensure_ascii=i % 2 == 0) + "\n" for i, row in enumerate(rows)
    ).encode()


def _table() -> pa.Table:
    return pa.table(
        {
            "text": [f"text {i % 50}" for i in range(ROWS)],
            "n": pa.array([None if i % 9 == 0 else i for i in range(ROWS)], pa.int64()),
            "tags": [[f"t{i % 3}"] * (i % 4) for i in range(ROWS)],
            "inner": [{"a": i, "b": str(i)} for i in range(ROWS)],
            "bytes": [bytes([i % 256]) for i in range(ROWS)],
        }
    )


def _parquet(**options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(_table(), sink, row_group_size=100, **options)
    return sink.getvalue()


def _arrow(**options: object) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, _table().schema, options=pa.ipc.IpcWriteOptions(**options)) as file:
        file.write_table(_table(), max_chunksize=100)
    return sink.getvalue()


def _zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


BASES: dict[str, Callable[[], bytes]] = {
    "jsonl": _json_lines,
    "jsonl.gz": lambda: gzip.compress(_json_lines()),
    "jsonl.zst": lambda: _zstd(_json_lines()),
    "plain.parquet": lambda: _parquet(use_dictionary=False, compression="none"),
    "dictionary.parquet": lambda: _parquet(compression="zstd"),
    "v2.parquet": lambda: _parquet(data_page_version="2.0", compression="gzip"),
    "delta.parquet": lambda: _parquet(
        use_dictionary=False,
        column_encoding={"text": "DELTA_BYTE_ARRAY", "n": "DELTA_BINARY_PACKED"},
    ),
    "checked.parquet": lambda: _parquet(write_page_checksum=True),
    "arrow": _arrow,
    "lz4.arrow": lambda: _arrow(compression="lz4"),
}


def _flip(content: bytearray, rng: random.Random) -> None:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _cut(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content)) :]


def _remove(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    del content[start : start + rng.choice([1, 4, 50, 1000])]


def _insert(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    content[start:start] = rng.randbytes(rng.choice([1, 4, 50]))


def _overwrite(content: bytearray, rng: random.Random) -> None:
    start, length = rng.randrange(len(content)), rng.choice([1, 4, 50])
    content[start : start + length] = rng.choice([b"\0", b"\xff", b"\n", b'"', b"["]) * length


def _repeat(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    content[start:start] = content[start : start + rng.choice([10, 300])] * rng.choice([1, 20])


def _damage_footer(content: bytearray, rng: random.Random) -> None:
    """Change what a format keeps at its end: lengths, counts, offsets."""
    for _ in range(rng.choice([1, 3])):
        content[-rng.randint(1, min(len(content), 1500))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])


WAYS = (_flip, _cut, _remove, _insert, _overwrite, _repeat, _damage_footer)


def attack_inputs(number: int | None, seed: int) -> tuple[int, list[str]]:
    """Encode changed files; return how many, and the faults."""
    rng = random.Random(seed)
    count = 2_000 if number is None else number
    faults: list[str] = []
    bases = {name: make() for name, make in BASES.items()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for turn in range(count):
            kind = list(bases)[turn % len(bases)]
            content = bytearray(bases[kind])
            for _ in range(rng.choice([1, 1, 3])):
                if content:
                    rng.choice(WAYS)(content, rng)
            attack = f"attack {turn} on {kind}"
            faults += [f"{attack}: {fault}" for fault in _attack(folder, kind, content, rng)]
    return count, faults


def _attack(folder: Path, kind: str, content: bytes, rng: random.Random) -> list[str]:
    name = f"c.{kind}"
    (folder / name).write_bytes(content)
    on_error = rng.choice(["fail", "reject"])
    output = folder / "o.parquet"
    arguments = ["encode", name, "--role", "query", "--model", "hash:4", "-o", "o.parquet"]
    arguments += ["--overwrite", "--allow-empty", "--on-error", on_error, "--report", "r.json"]
    ended = run(arguments, folder)
    faults = ended.faults((DONE, DATA) if on_error == "fail" else (DONE, REJECTED, DATA))
    report = json.loads((folder / "r.json").read_bytes())
    if ended.code in (DONE, REJECTED):
        counts = report["counts"]
        rows = pq.read_table(output).num_rows
        if (rows, counts["rows_in"]) != (counts["rows_out"], rows + counts["rejected"]):
            faults.append(f"{rows} rows, {counts}")
        if kind == "jsonl" and counts["rows_in"] != _lines_of(content):
            faults.append(f"{_lines_of(content)} lines, {counts}")
    for path in folder.iterdir():
        path.unlink()
    return [f"{fault}: {ended.words.strip()[-300:]}" for fault in faults]


def _lines_of(content: bytes) -> int:
    """Count the lines that hold more than white space."""
    return sum(
        bool(line.strip()) for line in bytes(content).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    )
