"""Digests of what runs of every kind write: `python -m tests.golden > before`, change the code,
again, and `diff`.

A digest covers the schema and the columns, not the metadata: versions and provenance may change,
values may not. Digests aren't kept in the repository: the last bit of a float differs between
processors.
"""

import argparse
import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SAMPLE = Path(__file__).parent.parent / "sample_data"
HASH = ["--model", "hash:64"]
# Name: input, output, options. `{text}` in a template needs no quoting: no shell is involved.
RUNS = {
    "jsonl": ("c.jsonl", "o.parquet", []),
    "gzip": ("c.jsonl.gz", "o.parquet", []),
    "parquet": ("c.parquet", "o.parquet", []),
    "folder of files": ("folder", "o.parquet", []),
    "standard input": ("-", "o.parquet", []),
    "directory": ("c.jsonl", "d/", []),
    "directory from parquet": ("c.parquet", "d/", []),
    "two processes": ("c.jsonl", "o.parquet", ["--num-processes", "2", "--device", "cpu"]),
    "arrow stream": ("c.jsonl", "-", ["--format", "arrow"]),
    "jsonl stream": ("c.jsonl", "-", ["--format", "jsonl"]),
    "float16": ("c.jsonl", "o.parquet", ["--vector-type", "float16"]),
    "dim": ("c.jsonl", "o.parquet", ["--dim", "16"]),
    "max length": ("c.jsonl", "o.parquet", ["--max-length", "6"]),
    "not normalized": ("c.jsonl", "o.parquet", ["--no-normalize"]),
    "template of two columns": (
        "c.jsonl",
        "o.parquet",
        ["--template", "{title|none}: {text} (end)"],
    ),
    "another text column": ("c.jsonl", "o.parquet", ["--text-column", "inside.text"]),
    "some columns": ("c.jsonl", "o.parquet", ["--columns", "id,score"]),
    "no columns": ("c.parquet", "o.parquet", ["--columns", ""]),
    "another name": ("c.jsonl", "o.parquet", ["--embedding-column", "v"]),
    "rejects": ("bad.jsonl", "o.parquet", ["--on-error", "reject", "--rejects", "r.jsonl"]),
}
NEW_ROW = (
    '{"id": 1, "title": "t", "text": "new", "score": 1.5, "inside": {"text": "new", "tags": []}}\n'
)
MINILM = {
    "MiniLM": ("sample.jsonl", "o.parquet", ["--dtype", "float32", "--compile", "off"]),
    "MiniLM, query": (
        "sample.jsonl",
        "o.parquet",
        ["--dtype", "float32", "--compile", "off", "--template", "e5"],
    ),
}


def write_inputs(place: Path) -> None:
    rows = [
        {
            "id": number,
            "title": None if number % 7 == 0 else f"title {number}",
            "text": f"text number {number % 4_900} of the corpus: "
            + "words enough to fill a unit " * (number % 5),
            "score": number / 8,
            "inside": {"text": f"inner {number}", "tags": ["a", "b"][: number % 3]},
        }
        for number in range(5_000)
    ]
    lines = [json.dumps(row) + "\n" for row in rows]
    (place / "c.jsonl").write_text("".join(lines))
    (place / "c.jsonl.gz").write_bytes(gzip.compress("".join(lines).encode()))
    pq.write_table(pa.Table.from_pylist(rows), place / "c.parquet", row_group_size=700)
    (place / "folder" / "deep").mkdir(parents=True)
    (place / "folder" / "a.jsonl").write_text("".join(lines[:2_000]))
    (place / "folder" / "deep" / "b.jsonl").write_text("".join(lines[2_000:]))
    lines[99] = '{"id": 99, "text": null}\n'
    lines[3_000] = "not JSON\n"
    (place / "bad.jsonl").write_text("".join(lines))
    (place / "sample.jsonl").write_bytes((SAMPLE / "corpus.jsonl").read_bytes())


def digest_of(table: pa.Table) -> str:
    sha256 = hashlib.sha256(str(table.schema.remove_metadata()).encode())
    for column in table.columns:
        for value in column.to_pylist():
            sha256.update(repr(value).encode())
    return f"{sha256.hexdigest()[:24]} {table.num_rows:6} rows {table.num_columns} columns"


def run(place: Path, source: str, output: str, options: list[str]) -> bytes:
    command = [
        sys.executable,
        "-m",
        "embedcli",
        "encode",
        source,
        "--role",
        "passage",
        "-q",
        "-o",
        output,
        *options,
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), os.getcwd()])),
    }
    with open(place / "c.jsonl", "rb") as stdin:
        done = subprocess.run(
            command, cwd=place, env=environment, stdin=stdin, capture_output=True, check=False
        )
    if done.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(command)}\n{done.stderr.decode()}")
    return done.stdout


def result_of(place: Path, source: str, output: str, options: list[str]) -> str:
    out = run(place, source, output, options)
    if output != "-":
        return digest_of(pq.read_table(place / output))
    if "jsonl" in options:
        return hashlib.sha256(out).hexdigest()[:24]
    return digest_of(pa.ipc.open_stream(out).read_all())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minilm", action="store_true", help="also the bundled model, in float32")
    arguments = parser.parse_args()
    runs = {
        name: (source, output, [*HASH, *options])
        for name, (source, output, options) in RUNS.items()
    }
    if arguments.minilm:
        runs |= MINILM
    for name, (source, output, options) in runs.items():
        with tempfile.TemporaryDirectory() as folder:
            write_inputs(Path(folder))
            print(f"{name:28} {result_of(Path(folder), source, output, options)}", flush=True)
            if output != "-":  # an update of a changed corpus
                lines = (Path(folder) / "c.jsonl").read_text().splitlines(keepends=True)
                (Path(folder) / "c.jsonl").write_text(
                    "".join([*lines[2_500:], *lines[:2_000], NEW_ROW])
                )
                print(
                    f"{'  and updated':28} {result_of(Path(folder), source, output, [*options, '--update'])}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
