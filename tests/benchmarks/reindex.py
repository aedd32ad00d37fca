"""A reindex with nothing to do, against what it can't do without: `python -m
tests.benchmarks.reindex`.

The peer reads both files whole with pyarrow and hashes the rendered texts, in a process of its own;
runs alternate.
"""

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

PEER = """
import hashlib, sys
import pyarrow.parquet as pq
corpus, output = pq.read_table(sys.argv[1]), pq.read_table(sys.argv[2])
for text in corpus["text"].to_pylist():
    hashlib.blake2b(("passage: " + text).encode(), digest_size=16).digest()
"""


def write_corpus(path, rows, changed=0.0):
    """About 100 characters a row; a share of the rows gets another text."""
    words, rng = [f"word{i}" for i in range(5000)], random.Random(0)
    texts = [f"{i} {' '.join(rng.choices(words, k=12))}" for i in range(rows)]
    for at in range(0, rows if changed else 0, round(1 / changed) if changed else 1):
        texts[at] += " changed"
    pq.write_table(pa.table({"id": range(rows), "text": texts}), path, row_group_size=100_000)
    return sum(map(len, texts)) / rows


def seconds(*command):
    started = time.perf_counter()
    subprocess.run([sys.executable, *map(str, command)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus, output, report = (
            Path(folder) / name for name in ("corpus.parquet", "out.parquet", "report.json")
        )
        length = write_corpus(corpus, wanted.rows)
        encode = [
            "-m",
            "embedcli",
            "encode",
            corpus,
            "--role",
            "passage",
            "--model",
            "hash:64",
            "-o",
            output,
            "-q",
        ]
        update = [*encode, "--update", "--report", report]
        print(
            f"{wanted.rows:,} rows of {length:.0f} characters, {platform.machine()}, {wanted.rounds} rounds in turn"
        )
        print(f"first run, everything embedded: {seconds(*encode):.2f} s")
        print(
            f"corpus {corpus.stat().st_size / 1e6:.0f} MB, output {output.stat().st_size / 1e6:.0f} MB"
        )
        times = [
            (seconds(*update), seconds("-c", PEER, corpus, output)) for _ in range(wanted.rounds)
        ]
        counts = json.loads(report.read_text())["counts"]
        ours, peer = (statistics.median(one) for one in zip(*times, strict=True))
        print(
            f"nothing changed: reused {counts['reused'] / counts['rows_out']:.0%}, embedded {counts['embedded']}"
        )
        print(
            f"embedcli {ours:.2f} s, pyarrow reading both and hashing {peer:.2f} s: {ours / peer:.2f} times"
        )
        write_corpus(corpus, wanted.rows, changed=0.01)
        took = seconds(*update)
        counts = json.loads(report.read_text())["counts"]
        print(
            f"1 % changed: {took:.2f} s, unchanged {counts['reused']:,}, embedded {counts['embedded']:,}, removed {counts['removed']:,}"
        )


if __name__ == "__main__":
    main()
