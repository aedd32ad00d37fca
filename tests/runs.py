"""Runs of the program on corpora of several units, and ways to disturb them."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq

from tests.conftest import run_process, start

HASH = ("--role", "passage", "--model", "hash:64")


def write_corpus(
    path,
    rows=12_000,
    text="text number {} of the corpus, with words enough to fill its unit to the brim",
):
    """JSONL of `rows` rows; the default makes about five units."""
    path.write_text(
        "".join(json.dumps({"id": i, "text": text.format(i)}) + "\n" for i in range(rows))
    )
    return path


def bytes_of_a_run(corpus):
    """The output of one undisturbed process, which stays beside the corpus."""
    path = corpus.parent / "whole.parquet"
    ran = run_process("encode", corpus, *HASH, "-o", path)
    assert ran.code == 0, ran.err
    return path.read_bytes()


def encode(cli, corpus, output, *options):
    """Run `encode` in this process; gives the run and its report."""
    report = Path(f"{corpus}.report.json")
    report.unlink(missing_ok=True)
    ran = cli("encode", corpus, *HASH, "-o", output, "--report", report, *options)
    return ran, json.loads(report.read_text()) if report.exists() else None


def counts(report, *names):
    return tuple(report["counts"][name] for name in names)


def content(path):
    """All bytes of an output: a file's, or a directory's by name."""
    path = Path(path)
    if path.is_dir():
        return {file.name: file.read_bytes() for file in sorted(path.iterdir())}
    return path.read_bytes()


def table(path):
    return pq.read_table(path)


def provenance_of(path):
    """The provenance of a file or folder, as JSON."""
    path = Path(path)
    if path.is_dir():
        return json.loads((path / "_embedcli.json").read_bytes())
    return json.loads(pq.read_metadata(path).metadata[b"embedcli"])


def made_of(path):
    """How the one vector column of a file or folder was made, as JSON."""
    (column,) = provenance_of(path)["columns"].values()
    return column


def staging_of(output):
    return Path(output).parent / f".{Path(output).name}.embedcli"


def workers_at(output):
    """The files of the processes that take part in a run; none where it is over."""
    try:
        return os.listdir(staging_of(output) / "run" / "workers")
    except FileNotFoundError:
        return []


def children(pid):
    """The process ids of a process's children."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, task.read_text().split())
        except OSError:
            continue
    return found


def is_alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def wait_for(what, seconds=60):
    """Wait until `what()` is true, and give what it gave."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def start_encode(corpus, output, *options, **more):
    return start("encode", corpus, *HASH, "-o", output, *options, **more)


def join(corpus, output, *options, **more):
    return start_encode(corpus, output, "--join", *options, start_new_session=True, **more)


def end_of(process, seconds=60):
    """A process's exit code and what it said."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out.decode(), err.decode()


def kill_group_after(process, seconds):
    """SIGKILL for a process and all its children, which share its group."""
    time.sleep(seconds)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return process.returncode


def remove(output):
    """Remove an output, of whatever kind, if it is there."""
    if Path(output).is_dir():
        shutil.rmtree(output)
    else:
        Path(output).unlink(missing_ok=True)


def damage(path, rng):
    """Flip a bit of a file, or cut it off; an empty one gets a byte."""
    sound = bytearray(path.read_bytes())
    if not sound:
        path.write_bytes(b"\xff")
    elif rng.random() < 0.3:
        path.write_bytes(sound[: rng.randrange(len(sound))])
    else:
        sound[rng.randrange(len(sound))] ^= 1 << rng.randrange(8)
        path.write_bytes(sound)


POISON = """
import hashlib, os, time
real = hashlib.shake_128
def shake(data=b"", **options):
    if b"POISON" in data:
        os._exit(9)
    if b"ENDLESS" in data:
        time.sleep(1000)
    return real(data, **options)
hashlib.shake_128 = shake
"""


def poisoned(folder, code=POISON):
    """An environment in which the pseudo-model dies of some texts."""
    (folder / "sitecustomize.py").write_text(code)
    return {**os.environ, "PYTHONPATH": str(folder)}


# The pseudo-model takes this long for a thousand texts.
SLOW = """
import hashlib, itertools, time
real, calls = hashlib.shake_128, itertools.count()
def shake(data):
    if next(calls) % 1000 == 0:
        time.sleep({seconds})
    return real(data)
hashlib.shake_128 = shake
"""


def slowed(folder, seconds=0.1):
    return poisoned(folder, SLOW.format(seconds=seconds))
