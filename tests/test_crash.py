"""Faults at random and at every moment: the output is the old one or the whole new one, and the
rerun completes.

In reduced numbers by default; `pytest -m heavy --full` runs the full ones and prints what it saw.
"""

import contextlib
import gzip
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
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import run_process, start
from tests.runs import (
    HASH,
    bytes_of_a_run,
    children,
    content,
    is_alive,
    kill_group_after,
    poisoned,
    remove,
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
    return bytes_of_a_run(corpus), time.monotonic() - started


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


class VersionReader(threading.Thread):
    """Reads the texts of an output again and again, and keeps of each look which versions they are of.

    A look that finds a file gone is kept as `moved`.
    """

    def __init__(self, path):
        super().__init__(daemon=True)
        self.path, self.looks, self.ended = path, [], threading.Event()

    def run(self):
        while not self.ended.wait(0.002):
            try:
                texts = self.texts()
                self.looks.append((len(texts), {text.split()[1] for text in texts}))
            except FileNotFoundError:
                self.looks.append("moved")
            except Exception as error:
                self.looks.append(repr(error))

    def texts(self):
        if not self.path.is_dir():
            return pq.ParquetFile(self.path).read(["text"])["text"].to_pylist()
        parts = sorted(self.path.glob("part-*"))
        return [text for part in parts for text in pq.ParquetFile(part).read()["text"].to_pylist()]


@pytest.mark.parametrize("kind", ["out", "out/"])
def test_a_reader_sees_one_version_at_a_time(kind, tmp_path, full):
    rows, versions = 3_000, 100 if full else 30
    output = tmp_path / "out"
    command = ("encode", tmp_path / "c.jsonl", *HASH, "-o", f"{tmp_path}/{kind}", "--update", "-q")
    reader = VersionReader(output)
    for version in range(versions):
        text = f"version {version} of the text {{}}, with words enough to fill units, " + "x" * 300
        write_corpus(tmp_path / "c.jsonl", rows, text)
        ran = run_process(*command)
        assert ran.code == 0, ran.err
        if version == 0:
            reader.start()
    time.sleep(0.2)
    reader.ended.set()
    reader.join()
    looks = reader.looks
    moved = [at for at, look in enumerate(looks) if look == "moved"]
    whole = [look for look in looks if look != "moved"]
    assert all(len(look) == 2 for look in whole), set(map(str, whole))
    assert {count for count, _ in whole} == {rows}
    assert all(len(seen) == 1 for _, seen in whole), "versions were mixed"
    assert len(set.union(*(seen for _, seen in whole))) > versions / 2, "the reader was too slow"
    # A directory's reader may have listed what is exchanged now: then it lists again.
    assert not moved or kind == "out/"
    assert not any(at + 1 in moved for at in moved)
    print(f"\n{len(looks)} looks at {versions} versions of {kind}: {len(moved)} had to be repeated")


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


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def catches(pid, number):
    """Whether a process handles a signal (Python itself handles SIGINT, so SIGTERM stands for it)."""
    number = signal.SIGTERM if number == signal.SIGINT else number
    with contextlib.suppress(OSError):
        mask = re.search(r"SigCgt:\s+(\w+)", Path(f"/proc/{pid}/status").read_text())[1]
        return bool(int(mask, 16) >> (number - 1) & 1)
    return True  # it ended meanwhile


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_at_random(number, corpus, whole, tmp_path, full):
    rounds, rng, longest, codes = 50 if full else 4, random.Random(number), 0.0, {}
    output = tmp_path / "o"
    for _ in range(rounds):
        process = start_encode(
            corpus, output, "--num-processes", rng.choice([1, 3]), start_new_session=True
        )
        wait_for(lambda pid=process.pid: catches(pid, number))  # from here on it is up
        time.sleep(rng.uniform(0, whole[1]))
        sent = time.monotonic()
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=10)
        longest = max(longest, time.monotonic() - sent)
        # As a shell says it: an interpreter that ends after all is done dies of the signal itself.
        code = 128 + number if process.returncode == -number else process.returncode
        codes[code] = codes.get(code, 0) + 1
        assert code in (128 + number, 0), err
        assert process.returncode >= 0 or output.exists(), err
        assert b"Traceback" not in err
        assert not output.exists() or output.read_bytes() == whole[0]
        output.unlink(missing_ok=True)
    assert run_process("encode", corpus, *HASH, "-o", output).code == 0
    assert output.read_bytes() == whole[0]
    print(f"\n{rounds} {number.name}: longest {longest:.2f} s, exit codes {codes}; bytes equal")


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_before_the_program_is_up_leave_nothing(number, corpus, tmp_path, full):
    rounds, rng, codes = 50 if full else 4, random.Random(number), {}
    for _ in range(rounds):
        process = start_encode(corpus, tmp_path / "o", start_new_session=True)
        time.sleep(rng.uniform(0, 0.3))
        os.killpg(process.pid, number)
        process.communicate(timeout=10)
        codes[process.returncode] = codes.get(process.returncode, 0) + 1
        # Before its first words Python dies of a signal, or ends with the traceback of an import.
        assert process.returncode in (128 + number, -number, 1)
        assert os.listdir(tmp_path) == []
    print(f"\n{rounds} early {number.name}: exit codes {codes}")


# strace counts the calls of each thread by itself: what other threads would do is done in the main one.
ONE_THREAD = """
import concurrent.futures

class Inline:
    def __init__(self, *args, **options):
        pass

    def submit(self, function, *args):
        future = concurrent.futures.Future()
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)
        return future

    def map(self, function, *arguments):
        return map(function, *arguments)

    def shutdown(self, *args, **options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

concurrent.futures.ThreadPoolExecutor = Inline
"""


def strace(command, *options, log, folder=None):
    """Run a command under strace; with a folder for it, in one thread."""
    environment = os.environ if folder is None else poisoned(folder, ONE_THREAD)
    command = ["strace", "-f", "-qq", "-o", log, *options, *map(str, command)]
    done = subprocess.run(
        command,
        env={**environment, "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    return done.returncode, done.stderr.decode()


CALLS = "openat,write,pwrite64,fsync,rename,renameat2,mkdir,rmdir,unlink,unlinkat,link,ftruncate"
NAMES = {"EIO": "Input/output error", "ENOSPC": "No space left on device"}
FAULTS = {
    "killed": "signal=KILL:when={}",
    "EIO": "error=EIO:when={}",
    "ENOSPC": "error=ENOSPC:when={}",
    "ENOSPC for ever": "error=ENOSPC:when={}+",
}
KINDS = {
    "file": ("out", ()),
    "directory": ("out/", ()),
    "directory update": ("out/", ("--update",)),
    "file with rejects": ("out", ("--on-error", "reject")),
}


def calls_that_write(log):
    """Return (name, number among the thread's calls of this name) of the calls of the first thread
    that change something.
    """
    main, counts, points = log.split(maxsplit=1)[0], {}, []
    for line in log.splitlines():
        thread, _, call = line.partition(" ")
        name = call.strip().partition("(")[0]
        if thread != main or not name.isalnum():
            continue
        counts[name] = counts.get(name, 0) + 1
        if name != "openat" or "O_CREAT" in call:
            points.append((name, counts[name]))
    return points


@pytest.fixture
def place(request, tmp_path):
    """A folder with an output of three rows and the command that replaces it; what stands there
    before and after.
    """
    name, options = KINDS[request.param]
    corpus = write_corpus(tmp_path / "corpus.jsonl", rows=4_500)
    if "reject" in options:
        corpus.write_text(corpus.read_text() + '{"id": 4500, "text": null}\n')
    place = tmp_path / "place"
    place.mkdir()
    earlier_output(f"{place}/{name}", tmp_path)
    shutil.copytree(place, tmp_path / "kept")
    command = [sys.executable, "-m", "embedcli", "encode", corpus, *HASH]
    command += ["-o", f"{place}/{name}", "-q", *options]
    before = content(place / "out")
    assert run_process(*command[3:]).code in (0, 3)
    after = everything(place)
    return Place(place, tmp_path / "kept", command, before, content(place / "out"), after)


@dataclass(frozen=True)
class Place:
    folder: Path
    kept: Path
    command: list
    before: object
    after: object
    everything: dict

    def reset(self):
        shutil.rmtree(self.folder)
        shutil.copytree(self.kept, self.folder)

    def run(self, *options, log):
        return strace(self.command, *options, log=log, folder=self.folder.parent)

    def points(self, log):
        self.reset()
        self.run("-e", f"trace={CALLS}", log=log)
        return calls_that_write(log.read_text())

    def check(self, point):
        """See that the output is the old one or the new one, and that the same command completes."""
        assert content(self.folder / "out") in (self.before, self.after), point
        ran = run_process(*self.command[3:])
        assert ran.code in (0, 3), (point, ran.err)
        assert everything(self.folder) == self.everything, point


def everything(folder):
    """The content of all that stands in a folder."""
    return {path.name: content(path) for path in folder.iterdir()}


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@needs_strace
@pytest.mark.parametrize("place", KINDS, indirect=True)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_call_that_writes_may_fail(place, fault, tmp_path, full):
    log = tmp_path / "log"
    points = place.points(log)
    chosen = points if full else random.Random(len(points)).sample(points, 4)
    codes = {}
    for point in chosen:
        call, number = point
        place.reset()
        code, err = place.run("-e", f"inject={call}:{FAULTS[fault].format(number)}", log=log)
        codes[code] = codes.get(code, 0) + 1
        assert code == -signal.SIGKILL or "(INJECTED)" in log.read_text(), point
        assert "Traceback" not in err, (point, err)
        if fault != "killed" and code not in (0, 3):
            assert code == 74, (point, err)
            # Where nothing can be written any more, nothing can be said.
            is_dumb = call == "write" and "for ever" in fault
            assert is_dumb or NAMES[fault.split()[0]] in err, (point, err)
        place.check(point)
    print(f"\n{len(chosen)} of {len(points)} calls, {fault}: exit codes {codes}, all whole")


@needs_strace
@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_a_run_that_goes_on_may_be_killed_in_turn(place, tmp_path, full):
    log = tmp_path / "log"
    points, rng = place.points(log), random.Random(5)
    for _ in range(100 if full else 3):
        place.reset()
        kills = [rng.choice(points) for _ in range(2)]
        for call, number in kills:
            place.run("-e", f"inject={call}:signal=KILL:when={number}", log=log)
        place.check(kills)


@needs_strace
@pytest.mark.parametrize("error", ["EINVAL", "ENOSYS"])
def test_a_system_that_cannot_exchange_directories_is_told_of_before_the_work(error, tmp_path):
    corpus, output = write_corpus(tmp_path / "c.jsonl", 3), tmp_path / "out"
    command = ["encode", corpus, *HASH, "-o", f"{output}/", "--update"]
    assert run_process(*command).code == 0
    write_corpus(corpus, 3_000)
    injected = ["-e", "trace=renameat2,rename,write", "-e", f"inject=renameat2:error={error}"]
    program = [sys.executable, "-m", "embedcli", *command]
    code, err = strace(program, "-s", "200", *injected, log=tmp_path / "log")
    assert (code, "can't exchange directories" in err) == (0, True), err
    log = (tmp_path / "log").read_text()
    assert "(INJECTED)" in log
    assert log.index("exchange directories") < log.index("/parts/part-000000000000-")
    assert pq.read_table(output)["id"].to_pylist() == list(range(3_000))
    assert not staging_of(output).exists()


# A run's output, its options, whether it replaces an earlier output, and what it makes visible or
# keeps: parts of staging, what the new directory gets, and the rest.
OF_EACH_RUN = {"parts/part", "publishing", "signature", "out"}
OF_A_DIRECTORY = {*OF_EACH_RUN, "new/part", "new/_embedcli.json"}
DURABLE = {
    "a file": ("out", "", False, OF_EACH_RUN),
    "a file and rejects": ("out", "--on-error reject", True, {*OF_EACH_RUN, "out.rejects.jsonl"}),
    "a directory": ("out/", "", False, OF_A_DIRECTORY),
    "a directory over another": ("out/", "", True, OF_A_DIRECTORY),
    "a directory with rejects": (
        "out/",
        "--on-error reject",
        True,
        {*OF_A_DIRECTORY, "new/_rejects.jsonl"},
    ),
    "a directory that is updated": ("out/", "--update", True, OF_A_DIRECTORY),
}
KEPT_NAMES = re.compile(
    r"/(parts/part|new/part|new/_\w+\.jsonl?|signature|publishing|out(?:\.rejects\.jsonl)?)"
    r"(?:-[\w-]+\.parquet)?$"
)


@needs_strace
@pytest.mark.parametrize("case", DURABLE)
def test_what_is_renamed_is_durable_before_and_after(case, tmp_path):
    """The content of what is renamed or linked is synced before, its folder after: at once, or for
    what the new directory gets before that takes the output's place. The names of parts in staging
    need not be: those units are done again.
    """
    kind, options, over_another, expected = DURABLE[case]
    corpus = write_corpus(tmp_path / "corpus.jsonl", rows=9_000)
    command = ["encode", corpus, *HASH, "-o", f"{tmp_path}/{kind}", "-q", *options.split()]
    if over_another:
        assert run_process(*command).code == 0
    with corpus.open("a") as lines:  # in the last unit: an update links the parts of the others
        lines.write('{"id": 9000, "text": "new"}\n' + '{"id": 9001}\n' * ("reject" in options))
    traced = ["-y", "-e", "trace=fsync,rename,renameat2,link"]
    strace([sys.executable, "-m", "embedcli", *command], *traced, log=tmp_path / "log")
    log = (tmp_path / "log").read_text()
    # The staging directory is reached by its descriptor; strace shows by what name a descriptor was opened.
    log = re.sub(r"/proc/self/fd/\d+", str(tmp_path / ".out.embedcli"), log)
    # Of what the content is durable, which folders have entries that aren't, and what was seen.
    durable, waiting, seen = set(), set(), set()
    for line in log.splitlines():
        if call := re.search(r"fsync\(\d+<([^>]*)>", line):
            durable.add(call[1])
            waiting.discard(call[1])
        elif call := re.search(r'(rename|renameat2|link)\([^"]*"([^"]*)",[^"]*"([^"]*)"', line):
            _, source, target = call.groups()
            name = KEPT_NAMES.search(target)
            if name is None:
                continue  # what only this run reads
            folder = str(Path(target).parent)
            assert not waiting - {folder if name[1].startswith("new/") else ""}, line
            # What is linked may be an earlier output's.
            assert source in durable or source.startswith(f"{tmp_path}/out/"), line
            durable.add(target)
            if name[1] != "parts/part":
                waiting.add(folder)
            seen.add(name[1])
    assert not waiting
    assert seen == expected
    assert name[1] == "out", "something was to be made durable after publishing"


def test_eight_runs_at_once_have_one_winner(corpus, whole, tmp_path, full):
    rounds = 20 if full else 2
    for _ in range(rounds):
        (tmp_path / "o").unlink(missing_ok=True)
        runs = [start_encode(corpus, tmp_path / "o") for _ in range(8)]
        ended = []  # in their order
        while len(ended) < 8:
            ended += [run for run in runs if run not in ended and run.poll() is not None]
            time.sleep(0.01)
        said = [run.communicate() for run in runs]
        # Nobody waits: who comes too late is told so while the winner works.
        assert [run.returncode for run in ended] == [75] * 7 + [0], said
        assert (tmp_path / "o").read_bytes() == whole[0]
        assert run_process("encode", corpus, *HASH, "-o", tmp_path / "o").code == 0
    print(f"\n{rounds} times eight runs: one winner each, which ended last")


@pytest.mark.parametrize("kind", ["o", "o/"])
def test_where_locks_do_nothing_one_run_wins(kind, corpus, whole, tmp_path, full):
    rounds, codes = 20 if full else 1, {}
    environment = poisoned(tmp_path, "import fcntl\nfcntl.flock = lambda *a: None\n")
    output = tmp_path / "o"
    for _ in range(rounds):
        remove(output)
        runs = [start_encode(corpus, f"{tmp_path}/{kind}", env=environment) for _ in range(8)]
        said = [run.communicate()[1].decode() for run in runs]
        for run in runs:
            codes[run.returncode] = codes.get(run.returncode, 0) + 1
            assert run.returncode in (0, 75), said
        assert 0 in [run.returncode for run in runs], said
        again = run_process("encode", corpus, *HASH, "-o", f"{tmp_path}/{kind}", env=environment)
        assert again.code == 0, again.err
        assert not staging_of(output).exists()
        if kind == "o":
            assert output.read_bytes() == whole[0]
        else:
            assert pq.read_table(output).equals(pq.read_table(pa.BufferReader(whole[0])))
    print(f"\n{rounds} times eight runs without locks: exit codes {codes}")


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


@pytest.mark.parametrize("size", [100, 1000, 4000])
def test_a_full_disk_ends_a_command_that_joins(size, small_disk, corpus):
    ran = run_process("encode", corpus, *HASH, "-o", small_disk(size) / "o", "--join")
    assert (ran.code, "No space left on device" in ran.err) == (74, True), ran.err


@pytest.mark.parametrize("output", ["-", "o"])
def test_a_full_disk_for_what_comes_by_a_pipe_is_named(output, small_disk, corpus, tmp_path):
    """A stream's rows are kept in TMPDIR, a file's beside it."""
    place = small_disk(500)
    environment = {**os.environ, "TMPDIR": str(place if output == "-" else tmp_path)}
    target = "-" if output == "-" else place / "o"
    command = ("encode", "-", *HASH, "-o", target)
    ran = run_process(*command, input=corpus.read_bytes(), env=environment)
    assert (ran.code, ran.out) == (74, b""), ran.err
    assert "No space left on device" in ran.err
    assert str(place) in ran.err
    assert os.listdir(place) == []


def peak_memory(command, units):
    """Peak resident bytes of a run when so many units are done, and at its end."""
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    parts, early, last = staging_of(command[-1]) / "parts", None, 0
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
        2_000 if full else 450,
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
    share = 10 if full else 3
    command = [sys.executable, "-m", "embedcli", "encode", corpus, *HASH, "-o", tmp_path / "o"]
    early, last = peak_memory(command, corpus.stat().st_size / 2**24 / share)
    print(
        f"\n{corpus.stat().st_size / 1e6:.0f} MB of {kind}: peak {early / 1e6:.0f} MB at 1/{share}, {last / 1e6:.0f} MB in all"
    )
    # How many units of 8 MiB are parsed, encoded and written at the same time differs from run to run.
    assert last - early <= 200e6


def tree_memory(command, **options):
    """Run a command; gives its exit code, what it said, and the peak of the resident bytes of it and its children."""
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options
    )
    most = 0
    while process.poll() is None:
        most = max(most, sum(map(resident, [process.pid, *children(process.pid)])))
        time.sleep(0.01)
    return process.returncode, process.communicate()[1].decode(), most


def resident(pid):
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


MOST_MEMORY = 600_000_000


def dictionary_encoded(folder):
    """A Parquet file of a few megabytes: 16,384 rows of 20 texts of 40 kB, and a short text each."""
    path, texts = folder / "c.parquet", [f"{i} " + "x" * 40_000 for i in range(20)]
    columns = {
        "long": [texts[i % 20] for i in range(16_384)],
        "short": [f"text {i}" for i in range(16_384)],
    }
    pq.write_table(pa.table(columns), path, row_group_size=16_384, compression="zstd")
    assert path.stat().st_size < 5_000_000
    return path


@pytest.mark.parametrize("text", ["long", "short"])
def test_texts_that_are_stored_once_fit_into_memory(text, tmp_path):
    corpus = dictionary_encoded(tmp_path)
    command = [sys.executable, "-m", "embedcli", "encode", corpus, *HASH, "--text-column", text]
    command += ["-o", tmp_path / "o"]
    code, err, most = tree_memory(command)
    print(f"\n655 MB, the {text} column as text: peak {most / 1e6:.0f} MB")
    assert code == 0, err
    assert most <= MOST_MEMORY
    assert pq.read_metadata(tmp_path / "o").num_rows == 16_384


@pytest.mark.parametrize("options", [(), ("--on-error", "reject", "--allow-empty")])
def test_a_gigabyte_without_a_line_end_fits_into_memory(options, tmp_path):
    command = [sys.executable, "-m", "embedcli", "encode", "-", *HASH, "-o", tmp_path / "o"]
    with subprocess.Popen(
        f"head -c {2**30} /dev/zero | tr '\\0' x", shell=True, stdout=subprocess.PIPE
    ) as line:
        code, err, most = tree_memory([*command, *options], stdin=line.stdout)
        line.stdout.close()
    print(f"\na line of 1 GiB: exit code {code}, peak {most / 1e6:.0f} MB")
    assert (code, "line is longer than" in err) == (3 if options else 65, True), err
    assert most <= MOST_MEMORY


def test_a_gigabyte_of_zeros_in_a_megabyte_fits_into_memory(tmp_path):
    with gzip.open(tmp_path / "c.jsonl.gz", "wb", compresslevel=1) as stream:
        for _ in range(1_000):
            stream.write(bytes(10**6))
    command = [sys.executable, "-m", "embedcli", "encode", tmp_path / "c.jsonl.gz", *HASH]
    code, err, most = tree_memory([*command, "-o", tmp_path / "o"])
    print(f"\na gzip file of 1 GB of zeros: peak {most / 1e6:.0f} MB")
    assert (code, "Traceback" in err) == (65, False), err
    assert most <= MOST_MEMORY
