"""Faults at random and at every moment: the output is the old one or the whole new one, and the
rerun completes.

In reduced numbers by default; `pytest -m heavy --full` runs the full ones and prints what it saw.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import run_process, start
from tests.runs import (
    HASH,
    children,
    content,
    is_alive,
    kill_group_after,
    staging_of,
    start_encode,
    wait_for,
    write_corpus,
)

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("crash") / "corpus.jsonl", rows=20_000)


@pytest.fixture(scope="module")
def whole(corpus):
    """The bytes of an undisturbed run, and how long it took."""
    started = time.monotonic()
    assert run_process("encode", corpus, *HASH, "-o", corpus.parent / "whole.parquet").code == 0
    return (corpus.parent / "whole.parquet").read_bytes(), time.monotonic() - started


def earlier_output(path, folder):
    """An output of three rows under the name that the runs are to replace."""
    small = write_corpus(folder / "small.jsonl", 3)
    assert run_process("encode", small, *HASH, "-o", path).code == 0


class Reader(threading.Thread):
    """Reads an output 50 times a second, as a program that uses it would."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.path, self.seen, self.looks, self.ended = path, set(), 0, threading.Event()

    def run(self):
        while not self.ended.wait(0.02):
            self.looks += 1
            try:
                # `read_table` opens a file twice, and might read the rows of one with the footer of another.
                folder = Path(self.path).is_dir()
                table = pq.read_table(self.path) if folder else pq.ParquetFile(self.path).read()
                self.seen.add(table.num_rows)
            except FileNotFoundError:
                self.seen.add("nothing")
            except Exception as error:
                # A directory may be exchanged between a reader's listing and its opening of a part: then it finds
                # parts of the new one, or none by that name, and looks again.
                self.seen.add(
                    "moved"
                    if Path(self.path).is_dir() and "No such file" in str(error)
                    else repr(error)
                )


@contextlib.contextmanager
def read_all_the_time(path):
    reader = Reader(path)
    reader.start()
    yield reader
    reader.ended.set()
    reader.join()


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("processes", [1, 3])
def test_kills_at_random(kind, processes, corpus, whole, tmp_path, full):
    output = tmp_path / "out"
    name = f"{output}/" if kind == "directory" else output
    earlier_output(name, tmp_path)
    expected = whole[0]
    if kind == "directory":
        assert run_process("encode", corpus, *HASH, "-o", f"{tmp_path}/whole/").code == 0
        expected = content(tmp_path / "whole")
    rounds, rng, completed = 200 if full else 8, random.Random(processes), 0
    with read_all_the_time(output) as reader:
        for _ in range(rounds):
            process = start_encode(
                corpus, name, "--num-processes", processes, start_new_session=True
            )
            completed += kill_group_after(process, rng.uniform(0.1, whole[1] * 1.2)) == 0
        ran = run_process("encode", corpus, *HASH, "-o", name, "--num-processes", processes)
        assert ran.code == 0, ran.err
        time.sleep(0.1)
    assert content(output) == expected
    assert reader.seen - {"moved"} == {3, 20_000}, reader.seen
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
    print(
        f"\n{rounds} kills of a {kind} by {processes} processes ({completed} came too late): bytes equal, {reader.looks} looks saw {reader.seen}"
    )


def test_kills_of_a_real_model(tmp_path, full):
    corpus = write_corpus(tmp_path / "c.jsonl", 4_000, "text {}, " + "x" * 80)
    options = ("encode", corpus, "--role", "passage", "--dtype", "float32", "--max-length", 16)
    started = time.monotonic()
    assert run_process(*options, "-o", tmp_path / "whole").code == 0
    took, rng, rounds = time.monotonic() - started, random.Random(0), 20 if full else 2
    for _ in range(rounds):
        process = start(*options, "-o", tmp_path / "out", start_new_session=True)
        kill_group_after(process, rng.uniform(took * 0.3, took))
    assert run_process(*options, "-o", tmp_path / "out").code == 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()
    print(f"\n{rounds} kills of MiniLM: bytes equal")


def test_kills_of_a_worker(corpus, whole, tmp_path, full):
    rounds, rng, hit = 50 if full else 5, random.Random(0), 0
    for number in range(rounds):
        output = tmp_path / str(number)
        process = start_encode(corpus, output, "--num-processes", 4)
        wait_for(lambda pid=process.pid: len(children(pid)) == 4)
        time.sleep(rng.uniform(0, 0.6))
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(rng.choice(children(process.pid)), signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        hit += b"restarting it" in err
        assert output.read_bytes() == whole[0]
    print(f"\n{rounds} workers killed, {hit} while they had work: all complete, bytes equal")


def test_parents_killed_leave_no_worker(corpus, tmp_path, full):
    rounds, rng = 20 if full else 4, random.Random(0)
    for number in range(rounds):
        process = start_encode(corpus, tmp_path / str(number), "--num-processes", 4)
        workers = wait_for(lambda pid=process.pid: children(pid))
        time.sleep(rng.uniform(0, 0.5))
        workers = {*workers, *children(process.pid)}
        process.kill()
        wait_for(lambda workers=workers: not any(map(is_alive, workers)), seconds=5)
        process.communicate()
    print(f"\n{rounds} parents killed: no worker left")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_at_random(number, corpus, whole, tmp_path, full):
    rounds, rng, longest, odd = 50 if full else 4, random.Random(number), 0.0, 0
    for _ in range(rounds):
        process = start_encode(
            corpus, tmp_path / "o", "--num-processes", rng.choice([1, 3]), start_new_session=True
        )
        time.sleep(rng.uniform(0.3, whole[1]))
        sent = time.monotonic()
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=10)
        longest = max(longest, time.monotonic() - sent)
        # Before its first words Python dies of a signal, or ends with the traceback of an import.
        odd += process.returncode not in (128 + number, 0)
        assert process.returncode in (128 + number, 0, -number, 1), err
        (tmp_path / "o").unlink(missing_ok=True)
    assert run_process("encode", corpus, *HASH, "-o", tmp_path / "o").code == 0
    assert (tmp_path / "o").read_bytes() == whole[0]
    print(
        f"\n{rounds} {number.name}: longest {longest:.2f} s, {odd} before the program was up; bytes equal"
    )


def strace(command, *options, log):
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = ["strace", "-f", "-qq", "-o", log, *options, *map(str, command)]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    return done.returncode, done.stderr.decode()


CALLS = "write,fsync,rename,renameat2,mkdir,unlink,link,ftruncate"
NAMES = {"EIO": "Input/output error", "ENOSPC": "No space left on device"}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("fault", ["signal=KILL", "error=EIO", "error=ENOSPC"])
def test_every_call_that_writes_may_fail(kind, fault, tmp_path, full):
    corpus = write_corpus(tmp_path / "corpus.jsonl", rows=4_500)
    output = tmp_path / "place" / "out"
    name = f"{output}/" if kind == "directory" else output
    output.parent.mkdir()
    earlier_output(name, tmp_path)
    before = content(output)
    whole = f"{tmp_path}/whole/" if kind == "directory" else tmp_path / "whole"
    assert run_process("encode", corpus, *HASH, "-o", whole).code == 0
    after = content(whole)
    command = [sys.executable, "-m", "embedcli", "encode", corpus, *HASH, "-o", name, "-q"]
    kept = tmp_path / "kept"
    shutil.copytree(output.parent, kept)
    strace(command, "-e", f"trace={CALLS}", log=tmp_path / "log")
    calls = re.findall(r"^\d+ +(\w+)\(", (tmp_path / "log").read_text(), re.MULTILINE)
    points = [(call, calls[: at + 1].count(call)) for at, call in enumerate(calls)]
    step = 1 if full else max(1, len(points) // 8)
    codes = {}
    for call, number in points[::step]:
        shutil.rmtree(output.parent)
        shutil.copytree(kept, output.parent)
        code, err = strace(
            command, "-e", f"inject={call}:{fault}:when={number}", log=tmp_path / "log2"
        )
        codes[code] = codes.get(code, 0) + 1
        assert content(output) in (before, after), (call, number, code, err)
        assert "Traceback" not in err, (call, number, err)
        if fault != "signal=KILL" and code != 0 and content(output) == before:
            assert (code, NAMES[fault.removeprefix("error=")] in err) == (74, True), (
                call,
                number,
                code,
                err,
            )
        ran = run_process(*command[3:])
        assert ran.code == 0, (call, number, ran.err)
        assert content(output) == after, (call, number)
        assert [path.name for path in output.parent.iterdir()] == ["out"]
    print(
        f"\n{len(points[::step])} of {len(points)} calls of a {kind} with {fault}: exit codes {codes}, all whole"
    )


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_what_is_renamed_is_durable_before_and_after(tmp_path):
    corpus = write_corpus(tmp_path / "corpus.jsonl", rows=9_000)
    command = [
        sys.executable,
        "-m",
        "embedcli",
        "encode",
        corpus,
        *HASH,
        "-o",
        tmp_path / "out",
        "-q",
    ]
    strace(command, "-y", "-e", "trace=fsync,rename", log=tmp_path / "log")
    synced, waiting, checked = set(), None, 0
    log = (tmp_path / "log").read_text()
    # The staging directory is reached by its descriptor; strace shows by what name a descriptor was opened.
    for line in re.sub(r"/proc/self/fd/\d+", str(tmp_path / ".out.embedcli"), log).splitlines():
        if call := re.search(r"fsync\(\d+<([^>]*)>", line):
            synced.add(call[1])
            if call[1] == waiting:
                waiting = None
        elif call := re.search(r'rename\("([^"]*)", "([^"]*)"\) = 0', line):
            if not re.search(r"/(output/part|signature|out$)", call[2]):
                continue  # what only this run reads
            assert waiting is None, f"{waiting} was not synced before {line}"
            assert call[1] in synced, line
            waiting, checked = str(Path(call[2]).parent), checked + 1
    assert waiting is None
    assert checked == 2 + 4  # the signature, four parts, the output


def test_eight_runs_at_once_have_one_winner(corpus, whole, tmp_path, full):
    rounds, slowest = 20 if full else 2, 0.0
    for _ in range(rounds):
        (tmp_path / "o").unlink(missing_ok=True)
        started = time.monotonic()
        runs = [start_encode(corpus, tmp_path / "o") for _ in range(8)]
        ended = {}
        while len(ended) < 8:
            for number, process in enumerate(runs):
                if number not in ended and process.poll() is not None:
                    ended[number] = time.monotonic() - started
            time.sleep(0.01)
        said = [process.communicate() for process in runs]
        codes = sorted(process.returncode for process in runs)
        assert codes == [0] + [75] * 7, said
        slowest = max(
            slowest, max(after for number, after in ended.items() if runs[number].returncode == 75)
        )
        assert (tmp_path / "o").read_bytes() == whole[0]
    print(
        f"\n{rounds} times eight runs: one winner each; the others ended after {slowest:.1f} s at most (8 started at once on {os.cpu_count()} cores)"
    )


def test_without_locks_nothing_is_corrupt(corpus, whole, tmp_path):
    code = "import fcntl\nfcntl.flock = lambda *a: None\n"
    (tmp_path / "sitecustomize.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    runs = [start_encode(corpus, tmp_path / "o", env=environment) for _ in range(4)]
    for process in runs:
        process.communicate()
    if (tmp_path / "o").exists():
        assert (tmp_path / "o").read_bytes() == whole[0]
    ran = run_process("encode", corpus, *HASH, "-o", tmp_path / "o")
    assert ran.code == 0, ran.err
    assert (tmp_path / "o").read_bytes() == whole[0]


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a tmpfs of so many kilobytes, and grows it."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(kilobytes, *more):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"{''.join(more)}size={kilobytes}k", "none", place],
            capture_output=True,
        )
        if done.returncode:
            pytest.skip("a tmpfs can't be mounted here")
        return place

    yield mount
    subprocess.run(["umount", place], capture_output=True, check=False)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk(processes, small_disk, corpus, whole, full):
    needed = len(whole[0]) // 1024
    sizes = [100, *range(needed // 4, 2 * needed, needed // (8 if full else 2))]
    codes = []
    for size in sizes:
        place = small_disk(size)
        ran = run_process("encode", corpus, *HASH, "-o", place / "o", "--num-processes", processes)
        codes.append(ran.code)
        if ran.code:
            assert ran.code == 74, ran.err
            assert "No space left on device" in ran.err
            assert str(place) in ran.err
            assert not (place / "o").exists()
            small_disk(10 * needed, "remount,")
            ran = run_process(
                "encode", corpus, *HASH, "-o", place / "o", "--num-processes", processes
            )
            assert ran.code == 0, ran.err
        assert (place / "o").read_bytes() == whole[0]
        assert [path.name for path in place.iterdir()] == ["o"]
        subprocess.run(["umount", place], check=True)
    assert codes.count(74) >= len(sizes) // 2
    print(
        f"\ndisks of {sizes} kB for {processes} processes: exit codes {codes}; all complete after space was made"
    )


def peak_memory(command, units):
    """Peak resident bytes of a run when so many units are done, and at its end."""
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    parts, early, last = staging_of(command[-1]) / "output", None, 0
    while process.poll() is None:
        with contextlib.suppress(OSError, TypeError):
            last = (
                int(
                    re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1]
                )
                * 1024
            )
            if early is None and parts.exists() and len(os.listdir(parts)) >= units:
                early = last
        time.sleep(0.02)
    assert process.returncode == 0
    return early, last


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_memory_does_not_depend_on_the_corpus(kind, tmp_path, full):
    megabytes, line = (
        2_000 if full else 300,
        json.dumps({"id": 0, "text": "words of a passage " * 50}),
    )
    rows = megabytes * 1_000_000 // len(line)
    corpus = tmp_path / f"corpus.{kind}"
    if kind == "jsonl":
        with corpus.open("w") as stream:
            for _ in range(rows // 1000):
                number = random.getrandbits(64)
                stream.write(
                    "".join(
                        f'{{"id": {i}, "text": "{number} {i} {"words of a passage " * 50}"}}\n'
                        for i in range(1000)
                    )
                )
    else:
        schema = pa.schema({"id": pa.int64(), "text": pa.string()})
        with pq.ParquetWriter(corpus, schema, use_dictionary=False, compression="none") as writer:
            for _ in range(rows // 10_000):
                number = random.getrandbits(64)
                texts = [f"{number} {i} {'words of a passage ' * 50}" for i in range(10_000)]
                writer.write_table(pa.table({"id": range(10_000), "text": texts}, schema=schema))
    share, most = (
        (10, 1.1) if full else (3, 1.2)
    )  # of few units a tenth is no measure, and allocators take a while
    command = [sys.executable, "-m", "embedcli", "encode", corpus, *HASH, "-o", tmp_path / "o"]
    early, last = peak_memory(command, corpus.stat().st_size / 2**24 / share)
    print(
        f"\n{corpus.stat().st_size / 1e6:.0f} MB of {kind}: peak {early / 1e6:.0f} MB at 1/{share}, {last / 1e6:.0f} MB in all"
    )
    assert last <= most * early
