"""What a reindex costs, as ratios: `python -m tests.benchmarks.reindex [CASE...]`.

CPU seconds of all processes, the start of the program subtracted, each against a peer of the same
run: a first run of the same corpus, or pyarrow reading and writing the same files.
"""

import argparse
import functools
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

WORDS = [f"word{i}" for i in range(5000)]

READ_BOTH = """
import sys, pyarrow.parquet as pq
for path in sys.argv[1:]:
    pq.read_table(path)
"""
READ_AND_WRITE = """
import sys, pyarrow.parquet as pq
source, vectors, target = sys.argv[1:]
table = pq.read_table(source)
for column in pq.read_table(vectors, columns=["embedding"]).itercolumns():
    table = table.append_column("embedding", column)
pq.write_table(table, target, compression="zstd", use_byte_stream_split=["embedding.list.element"])
"""


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds of CPU and of time, bytes of memory."""

    cpu: float
    wall: float
    memory: int

    def __truediv__(self, other: "Cost") -> float:
        return self.cpu / other.cpu


# In a process between: Linux counts the memory of whoever starts a process as the process's own.
MEASURE = """
import resource, subprocess, sys, time
started = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, time.perf_counter() - started, used.ru_maxrss * 1024)
"""


def run(*command: object, python: str = sys.executable) -> Cost:
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, python, *map(str, command)],
        check=True,
        stdout=subprocess.PIPE,
    )
    cpu, wall, memory = map(float, measured.stdout.split())
    return Cost(cpu, wall, round(memory))


@dataclass(frozen=True)
class Bench:
    """Where a case works, how large corpora are (1: as in the table), and an older version's Python."""

    folder: Path
    scale: float
    baseline: str | None

    def rows(self, count: int) -> int:
        return max(1_000, round(count * self.scale))

    def encode(
        self, inputs: object, output: str, *options: object, python: str = sys.executable
    ) -> Cost:
        """The cost of a run, without that of starting and ending one that has nothing to do."""
        named = inputs if isinstance(inputs, list) else [inputs]
        command = ["-P", "-m", "embedcli", "encode", *named, "--role", "passage", "-q"]
        cost = run(*command, "-o", f"{self.folder}/{output}", *options, python=python)
        start = self.start_up(python)
        return Cost(max(0.01, cost.cpu - start.cpu), cost.wall - start.wall, cost.memory)

    @functools.cache  # noqa: B019 - one bench a case
    def start_up(self, python: str) -> Cost:
        """The cost of a run of one row: the least of five, since it is subtracted from others."""
        small = self.folder / "small.jsonl"
        small.write_text('{"text": "a"}\n')
        arguments = ["--role", "passage", "-q", "--model", "hash:64", "--fresh"]
        output = ["-o", self.folder / "small.parquet"]
        command = ["-P", "-m", "embedcli", "encode", small, *arguments, *output]
        runs = [run(*command, python=python) for _ in range(5)]
        return min(runs, key=lambda cost: cost.cpu)

    def output(self, name: str) -> Path:
        return self.folder / name


def texts_of(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [f"{number} {' '.join(rng.choices(WORDS, k=12))}" for number in range(count)]


def write(path: Path, rows: list[tuple[int, str]]) -> Path:
    if path.suffix == ".parquet":
        ids, texts = zip(*rows, strict=True)
        pq.write_table(pa.table({"id": ids, "text": texts}), path, row_group_size=100_000)
    else:
        with path.open("w") as stream:
            for number, text in rows:
                stream.write(json.dumps({"id": number, "text": text}) + "\n")
    return path


def edited(rows: list[tuple[int, str]]) -> Iterator[tuple[str, list[tuple[int, str]], int]]:
    """Yield changes: what was done, the corpus then, and how many rows of it are new."""
    count = len(rows)
    percent = count // 100
    yield "1 row at the front", [(count, "a new text"), *rows], 1
    new = list(enumerate(texts_of(percent, seed=1), count))
    yield "1 % appended", [*rows, *((n, f"new {text}") for n, text in new)], percent
    middle = count // 2
    yield "1 % deleted in one place", [*rows[:middle], *rows[middle + percent :]], 0


def parts_of(output: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in output.glob("part-*")}


def rewritten(bench: Bench) -> None:
    """Parts that are written though they hold no change."""
    for kind in ("jsonl", "parquet"):
        rows = list(enumerate(texts_of(bench.rows(60_000))))
        for what, changed, _ in edited(rows):
            corpus = write(bench.folder / f"c.{kind}", rows)
            bench.encode(corpus, "o/", "--model", "hash:384", "--fresh", "--overwrite")
            before = parts_of(bench.output("o"))
            write(corpus, changed)
            bench.encode(corpus, "o/", "--model", "hash:384", "--update")
            after = parts_of(bench.output("o"))
            new = len(after.keys() - before.keys())
            print(f"{kind}, {what}: {new} of {len(after)} parts are new (wanted: 3 and the change)")


def changed(bench: Bench) -> None:
    """What a change costs in a directory."""
    rows = list(enumerate(texts_of(bench.rows(1_000_000))))
    for kind in ("parquet", "jsonl"):
        corpus = write(bench.folder / f"c.{kind}", rows)
        first = bench.encode(corpus, "o/", "--model", "hash:384", "--fresh", "--overwrite")
        for what, changed_rows, _ in edited(rows):
            before = parts_of(bench.output("o"))
            write(corpus, changed_rows)
            cost = bench.encode(corpus, "o/", "--model", "hash:384", "--update")
            after = parts_of(bench.output("o"))
            written = sum(size for name, size in after.items() if name not in before)
            share = written / sum(after.values())
            print(
                f"{kind}, {what}: {cost / first:.2f} of a first run ({first.cpu:.1f} s; wanted: "
                f"0.35), {share:.1%} of the bytes written (wanted: 5 % beside the change), "
                f"{cost.memory / 1e6:.0f} MB"
            )


def unchanged(bench: Bench) -> None:
    """A run that finds nothing to do."""
    corpus = write(bench.folder / "c.parquet", list(enumerate(texts_of(bench.rows(1_000_000)))))
    bench.encode(corpus, "o.parquet", "--model", "hash:384")
    cost = bench.encode(corpus, "o.parquet", "--model", "hash:384", "--update")
    peer = run("-c", READ_BOTH, corpus, bench.output("o.parquet"))
    print(
        f"nothing changed: {cost / peer:.2f} of pyarrow reading both ({peer.cpu:.1f} s; wanted: 0.8)"
    )


def shuffled(bench: Bench) -> None:
    """The same rows in another order."""
    for count in (100_000, 300_000, 1_000_000):
        rows = list(enumerate(texts_of(bench.rows(count))))
        corpus = write(bench.folder / "c.parquet", rows)
        first = bench.encode(corpus, "o/", "--model", "hash:384", "--fresh", "--overwrite")
        random.Random(0).shuffle(rows)
        write(corpus, rows)
        cost = bench.encode(corpus, "o/", "--model", "hash:384", "--update")
        print(
            f"{len(rows):,} rows shuffled: {cost / first:.2f} of a first run ({first.cpu:.1f} s; "
            f"wanted: 1.2), {cost.memory / 1e6:.0f} MB"
        )


def first_run(bench: Bench) -> None:
    """A first run against pyarrow reading the corpus and writing what came of it."""
    corpus = write(bench.folder / "c.parquet", list(enumerate(texts_of(bench.rows(3_000_000)))))
    for output, wanted in (("o/", 1.7), ("o.parquet", 2.4)):
        cost = bench.encode(corpus, output, "--model", "hash:64")
        vectors = bench.output(output.rstrip("/"))
        peer = run("-c", READ_AND_WRITE, corpus, vectors, bench.output("peer.parquet"))
        print(
            f"{output}: {cost / peer:.2f} of pyarrow reading and writing ({peer.cpu:.1f} s; wanted: "
            f"{wanted}), {cost.memory / 1e6:.0f} MB"
        )


def processes(bench: Bench) -> None:
    """JSONL by two processes, against the older version."""
    corpus = write(bench.folder / "c.jsonl", list(enumerate(texts_of(bench.rows(1_000_000)))))
    options = ("--model", "hash:64", "--num-processes", "2")
    cost = bench.encode(corpus, "o.parquet", *options)
    if bench.baseline is None:
        print(
            f"JSONL, two processes: {cost.wall:.1f} s (--baseline names the Python of an older one)"
        )
        return
    peer = bench.encode(corpus, "old.parquet", *options, python=bench.baseline)
    print(
        f"JSONL, two processes: {cost.wall / peer.wall:.2f} of the older version's time "
        f"({peer.wall:.1f} s; wanted: 0.6), CPU {cost / peer:.2f}"
    )


def small_files(bench: Bench) -> None:
    """Many small files against one."""
    rows = list(enumerate(texts_of(bench.rows(20_000))))
    for kind in ("jsonl", "parquet"):
        one = write(bench.folder / f"one.{kind}", rows)
        folder = bench.folder / f"many-{kind}"
        folder.mkdir()
        for first in range(0, len(rows), 10):
            write(folder / f"{first:06d}.{kind}", rows[first : first + 10])
        # Of runs as short as these the least of several.
        peer, cost = (
            min(
                (bench.encode(source, "o.out", "--model", "hash:64", "--fresh") for _ in range(5)),
                key=lambda cost: cost.cpu,
            )
            for source in (one, folder)
        )
        print(
            f"{len(rows) // 10:,} {kind} files: {cost / peer:.1f} of one file "
            f"({peer.cpu:.2f} s; wanted: 3)"
        )


CASES: dict[str, Callable[[Bench], None]] = {
    case.__name__: case
    for case in (rewritten, changed, unchanged, shuffled, first_run, processes, small_files)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], default=[])
    parser.add_argument("--scale", type=float, default=1.0, help="of the corpora's rows")
    parser.add_argument("--baseline", help="Python that has an older version")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in options.cases or CASES:
        with tempfile.TemporaryDirectory() as folder:
            CASES[name](Bench(Path(folder), options.scale, options.baseline))


if __name__ == "__main__":
    main()
