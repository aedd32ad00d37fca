"""Runs that are killed, under one recipe or another: nothing is lost, nothing is doubled, and the same
command goes on; inputs that change while they are read: no output mixes two versions.
"""

import contextlib
import itertools
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import Ran, run_process, start
from tests.runs import HASH, content, kill_group_after, staging_of, table

ROWS = 6_000
# An earlier text of about five units.
WORDS = " of the corpus, with words enough to fill its unit to the brim"


@dataclass(frozen=True)
class Mode:
    """A way to run: what kind of output, how many processes, with rejected rows, from a pipe."""

    kind: str
    update: bool = False
    processes: int = 1
    rejects: bool = False
    is_piped: bool = False

    def arguments(self, folder: Path) -> list[str]:
        output = f"{folder}/out/" if self.kind == "directory" else f"{folder}/out.parquet"
        return ["-o", output, "--num-processes", str(self.processes), *self.options]

    @property
    def options(self) -> list[str]:
        rejecting = ["--on-error", "reject"] if self.rejects else []
        return [*rejecting, *(["--update"] * self.update)]

    def output(self, folder: Path) -> Path:
        return folder / ("out" if self.kind == "directory" else "out.parquet")

    def run(self, corpus: Path, *arguments: object) -> Ran:
        with self._opened(corpus) as (name, stdin):
            return run_process("encode", name, *HASH, *arguments, stdin=stdin)

    def start(self, corpus: Path, *arguments: object, **options: Any) -> "subprocess.Popen[bytes]":
        with self._opened(corpus) as (name, stdin):
            return start(
                "encode", name, *HASH, *arguments, stdin=stdin, start_new_session=True, **options
            )

    @contextlib.contextmanager
    def _opened(self, corpus: Path) -> Iterator[tuple[str, Any]]:
        """Give the name of the input, and what is to be the standard input."""
        if not self.is_piped:
            yield str(corpus), subprocess.DEVNULL
            return
        cat = subprocess.Popen(["cat", corpus], stdout=subprocess.PIPE)
        assert cat.stdout is not None
        with cat.stdout:
            yield "-", cat.stdout


WHOLE_INPUTS = [
    Mode(kind, update, processes)
    for kind in ("file", "directory")
    for update in (False, True)
    for processes in (1, 3)
]
MODES = [
    *WHOLE_INPUTS,
    Mode("file", rejects=True),
    Mode("file", update=True, processes=3, rejects=True),
    Mode("directory", rejects=True),
    Mode("file", is_piped=True),
]


def write_rows(path: Path, rng: random.Random, bad: int = 0) -> None:
    """A corpus of numbered rows, of which some have a text of their own each time, and some none."""
    changed = set(rng.sample(range(ROWS), 60))
    without_text = set(rng.sample(range(ROWS), bad))
    with open(path, "w") as stream:
        for number in range(ROWS):
            text = f"text {number}{WORDS}" + (f" {rng.random()}" if number in changed else "")
            row = {"id": number, "text": None if number in without_text else text}
            stream.write(json.dumps(row) + "\n")


def kill_runs(number: int | None, seed: int) -> tuple[int, list[str]]:
    """Kill runs at random moments, half of them towards their end; return how many, and the faults."""
    rng = random.Random(seed)
    count = 300 if number is None else number
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folders = {mode: Path(name) / str(turn) for turn, mode in enumerate(MODES)}
        for mode, folder in folders.items():
            folder.mkdir()
            write_rows(folder / "c.jsonl", rng, bad=7 * mode.rejects)
        for turn in range(count):
            mode = MODES[turn % len(MODES)]
            faults += _kill(folders[mode], mode, rng, turn)
    return count, faults


def _kill(folder: Path, mode: Mode, rng: random.Random, turn: int) -> list[str]:
    """Kill one run, of another recipe than the one before it now and then; let it go on."""
    corpus, output = folder / "c.jsonl", mode.output(folder)
    if rng.random() < 0.5:
        write_rows(corpus, rng, bad=7 * mode.rejects)
    recipe = ("--max-length", rng.choice(["12", "14"]), "--overwrite")
    arguments = [*mode.arguments(folder), *recipe]
    fresh, took = _run_undisturbed(folder, mode, corpus, recipe)
    before = content(output) if output.exists() else None
    process = mode.start(corpus, *arguments)
    share = rng.uniform(0.7, 1.1) if rng.random() < 0.5 else rng.uniform(0.1, 1.0)
    kill_group_after(process, took * share)
    faults = []
    after = content(output) if output.exists() else None
    if not (after is None or after == before or table(output).equals(table(fresh))):
        faults.append("what is visible is neither the old nor the new")
    ran = mode.run(corpus, *arguments)
    if ran.code not in (0, 3 * mode.rejects):
        faults.append(f"the same command ends with {ran.code}: {ran.err.strip()[-200:]}")
    elif not table(output).equals(table(fresh)) or rejected(output) != rejected(fresh):
        faults.append("rows were lost, doubled or others")
    elif table(output).num_rows + len(rejected(output)) != ROWS:
        faults.append("rows are neither output nor rejected, or both")
    elif staging_of(str(output)).exists():
        faults.append("its staging directory stayed")
    return [f"kill {turn} of {mode}, {recipe[1]}: {fault}" for fault in faults]


def _run_undisturbed(
    folder: Path, mode: Mode, corpus: Path, recipe: Sequence[str]
) -> tuple[Path, float]:
    """Run into a new output; return its name and how long it took, in seconds."""
    fresh = folder / ("fresh" if mode.kind == "directory" else "fresh.parquet")
    shutil.rmtree(fresh, ignore_errors=True)
    for name in (fresh, Path(f"{fresh}.rejects.jsonl")):
        if name.is_file():
            name.unlink()
    name = f"{fresh}/" if mode.kind == "directory" else str(fresh)
    rejecting = ["--on-error", "reject"] if mode.rejects else []
    started = time.monotonic()
    ran = run_process("encode", corpus, *HASH, "-o", name, *rejecting, *recipe)
    assert ran.code in (0, 3), ran.err
    return fresh, time.monotonic() - started


def rejected(output: Path) -> list[int]:
    """The lines of the rows that an output's list of rejected rows names."""
    inside = output / "_rejects.jsonl"
    path = inside if output.is_dir() else Path(f"{output}.rejects.jsonl")
    if not path.exists():
        return []
    return [json.loads(line)["line"] for line in path.read_text().splitlines()]


Change = Callable[[Path, Path], None]


def _replaced(path: Path, other: Path) -> None:
    os.replace(other, path)


def _rewritten(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


def _truncated(path: Path, other: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _appended(path: Path, other: Path) -> None:
    with open(path, "ab") as stream:
        stream.write(other.read_bytes().splitlines(keepends=True)[0])


def _edited(path: Path, other: Path) -> None:
    with open(path, "r+b") as stream:
        stream.seek(path.stat().st_size * 2 // 3)
        stream.write(b"X" * 5)


CHANGES: dict[str, Change] = {
    "replaced": _replaced,
    "rewritten": _rewritten,
    "truncated": _truncated,
    "appended to": _appended,
    "edited in place": _edited,
}


def change_inputs(number: int | None, seed: int) -> tuple[int, list[str]]:
    """Change inputs while runs read them, in five ways; return how many, and the faults."""
    rng = random.Random(seed)
    count = 40 if number is None else number
    faults = []
    ways = list(itertools.product(CHANGES, WHOLE_INPUTS))
    rng.shuffle(ways)
    with tempfile.TemporaryDirectory() as name:
        for turn, (way, mode) in zip(range(count), itertools.cycle(ways), strict=False):
            folder = Path(name) / str(turn)
            folder.mkdir()
            faults += [f"{way}, {mode}: {fault}" for fault in _change(folder, mode, way, rng)]
            shutil.rmtree(folder)
    return count, faults


def _change(folder: Path, mode: Mode, way: str, rng: random.Random) -> list[str]:
    """Change the input of one run at a random moment: what is published is of one version."""
    corpus, other = folder / "c.jsonl", folder / "other.jsonl"
    write_rows(corpus, rng)
    other.write_text(corpus.read_text().replace("brim", "edge"))
    fresh = folder / "fresh.parquet"
    started = time.monotonic()
    assert run_process("encode", corpus, *HASH, "-o", fresh).code == 0
    took = time.monotonic() - started
    process = mode.start(corpus, *mode.arguments(folder), stderr=subprocess.PIPE)
    time.sleep(took * rng.uniform(0.3, 1.0))
    CHANGES[way](corpus, other)
    _, err = process.communicate()
    output = mode.output(folder)
    if process.returncode not in (0, 65, 75):
        return [f"exit code {process.returncode}: {err.decode()[-200:]}"]
    if process.returncode and output.exists():
        return ["an output was published all the same"]
    if process.returncode == 0:
        run_process("encode", corpus, *HASH, "-o", folder / "later.parquet")
        versions = [table(path) for path in (fresh, folder / "later.parquet") if path.exists()]
        if not any(table(output).equals(version) for version in versions):
            return ["what was published is of no one version"]
    return []
