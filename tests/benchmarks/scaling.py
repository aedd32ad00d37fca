"""How the time of a run grows with its rows and falls with its processes: `python -m
tests.benchmarks.scaling`.

Whole processes of `encode`, start to end, on JSONL and on Parquet; MB are those of the texts.
`--model` and `--corpus` take another model, and texts that are repeated, each time altered, as
often as is needed.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def texts_of(corpus, rows):
    """So many different texts: of the corpus, else of 12 random words each."""
    if corpus is None:
        words, rng = [f"word{i}" for i in range(5000)], random.Random(0)
        return [f"{i} {' '.join(rng.choices(words, k=12))}" for i in range(rows)]
    own = [json.loads(line)["text"] for line in corpus.open(encoding="utf-8")]
    return [f"{row // len(own)} {own[row % len(own)]}" for row in range(rows)]


def write(texts, path):
    if path.suffix == ".parquet":
        pq.write_table(
            pa.table({"id": range(len(texts)), "text": texts}), path, row_group_size=100_000
        )
    else:
        path.write_text(
            "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts))
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--formats", nargs="+", default=["jsonl", "parquet"])
    parser.add_argument("--model", default="hash:64")
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--options", default="", help="further options of encode")
    wanted = parser.parse_args()
    print(
        "| input | rows | processes | seconds | limited by | rows/s | MB/s |\n|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        output, report = Path(folder) / "out.parquet", Path(folder) / "report.json"
        for rows in wanted.rows:
            texts = texts_of(wanted.corpus, rows)
            for form in wanted.formats:
                corpus = Path(folder) / f"corpus.{form}"
                write(texts, corpus)
                for processes in wanted.processes:
                    options = [
                        "--model",
                        wanted.model,
                        "--num-processes",
                        processes,
                        *wanted.options.split(),
                    ]
                    command = [
                        "encode",
                        corpus,
                        "--role",
                        "passage",
                        "-o",
                        output,
                        "--report",
                        report,
                        "-q",
                        *options,
                    ]
                    started = time.perf_counter()
                    call = [sys.executable, "-m", "embedcli", *map(str, command)]
                    subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
                    seconds, size = time.perf_counter() - started, sum(map(len, texts)) / 1e6
                    limit = json.loads(report.read_text())["limited_by"]
                    print(
                        f"| {form} | {rows:,} | {processes} | {seconds:.2f} | {limit} | {rows / seconds:,.0f} "
                        f"| {size / seconds:.1f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
