"""Whether a process lives, as others see it: by a file of its own that it keeps changing.

Clocks of machines are never compared. A process of this machine is looked up; one of another
lives as long as its file changes while it is watched, however late a change is seen.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from embedcli.files import make_exclusively, replace_content

_BEAT_SECONDS = 2.0
# A process elsewhere whose file hasn't changed for so long is gone. Network file systems may show
# two changes in a row ten seconds late.
WATCHED_SECONDS = 60.0
_POLL_SECONDS = 0.25


@dataclass(frozen=True)
class Process:
    """A process that takes part in a run.

    boot, namespace: which boot of the host, and which of its spaces of process numbers (containers
    have their own); started: which process of that number. has_ended: it said so itself.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    started: str
    since: str
    token: str
    has_ended: bool = False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def this_process(token: str) -> Process:
    """Describe this process; `token` is that of its run."""
    return Process(
        host=socket.gethostname(),
        boot=boot(),
        namespace=_namespace(),
        pid=os.getpid(),
        started=_started(os.getpid()),
        since=datetime.now(UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S"),
        token=token,
    )


def boot() -> str:
    """Return what tells this machine, since it was started, from all others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process started, in ticks since the boot; empty where there is none.

    A zombie is none: it has ended.
    """
    try:
        # The name in parentheses may hold anything, also spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def read(path: Path) -> Process | None:
    """Read whose file this is; None where there is none, or it doesn't say it."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Process)
    except (OSError, msgspec.DecodeError):
        return None


def make(path: Path, process: Process) -> bool:
    """Make a process's file, if there is none of the name: False where there is."""
    return make_exclusively(path, json.dumps(asdict(process)).encode())


class Signs:
    """Files of this process that are changed again and again while the block runs; at its end they
    say that the process is through.
    """

    def __init__(self, path: Path) -> None:
        self._paths: list[Path] = []
        self._stack = contextlib.ExitStack()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="signs of life", daemon=True)
        self.add(path)

    def add(self, path: Path) -> None:
        """Take one more file of this process."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._stack.callback(os.close, descriptor)
        with contextlib.suppress(OSError):  # locks may do nothing here
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._paths.append(path)

    def __enter__(self) -> "Signs":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for path in self._paths:
            _say_the_end(path)
        self._stack.close()

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT_SECONDS):
            for path in self._paths:
                with contextlib.suppress(OSError):
                    os.utime(path)


def _say_the_end(path: Path) -> None:
    process = read(path)
    if process is None:
        return
    with contextlib.suppress(OSError):  # removed with the rest by whoever published
        replace_content(path, json.dumps(asdict(replace(process, has_ended=True))).encode())


class Watch:
    """Watches files of processes over time."""

    def __init__(self) -> None:
        # When a file was changed, by its own clock, and since when that has been seen, by ours.
        self._seen: dict[Path, tuple[int, float]] = {}

    def is_dead(self, path: Path) -> bool:
        """Tell whether the process of a file is known to be dead, or has shown nothing for too long.

        A file that can't be seen may be seen late.
        """
        process = read(path)
        lives = None if process is None else lives_here(process, path)
        return self.is_silent(path) if lives is None else not lives

    def is_silent(self, path: Path) -> bool:
        """Tell whether a process has shown nothing for too long: dead, hung, or stopped."""
        changed, clock = _changed(path), time.monotonic()
        if path not in self._seen or changed != self._seen[path][0]:
            self._seen[path] = (changed, clock)
        return clock - self._seen[path][1] > WATCHED_SECONDS


def lives(path: Path) -> bool:
    """Tell whether the process of a file lives; waits until that is known, a minute at most."""
    return any_lives([path])


def any_lives(paths: Sequence[Path]) -> bool:
    """Tell whether the process of any of these files lives; waits until that is known, a minute at
    most for all of them.
    """
    watch, first = Watch(), {path: _changed(path) for path in paths}
    while not all([watch.is_dead(path) for path in paths]):
        if any(_shows_life(path, first[path]) for path in paths):
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _shows_life(path: Path, first: int) -> bool:
    """Tell whether this machine knows that a process lives, or its file has changed since `first`."""
    process = read(path)
    if process is not None and lives_here(process, path) is not None:
        return bool(lives_here(process, path))
    return _changed(path) not in (-1, first) and first != -1


def lives_here(process: Process, path: Path) -> bool | None:
    """Tell whether a process lives, where this machine knows it; None where it doesn't."""
    if process.has_ended:
        return False
    if (process.boot, process.host if not process.boot else "") != _machine():
        return None
    if process.started and process.namespace == _namespace():
        return _started(process.pid) == process.started
    return _is_locked(path)  # another space of process numbers, or a system without /proc


def _machine() -> tuple[str, str]:
    """Return this machine's boot; its name where the system doesn't tell the boot."""
    return (boot(), "") if boot() else ("", socket.gethostname())


def _is_locked(path: Path) -> bool | None:
    """Tell whether a process holds the lock of its file: it ends with the process. None where locks
    do nothing.
    """
    try:
        with open(path, "rb") as stream, open(path, "rb") as second:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
    except OSError:
        pass
    return None


def _changed(path: Path) -> int:
    """Return when a file was changed, by its own clock; -1 where it is gone."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return -1
