"""Who is writing an output: a file of its own for each that wants to, with signs of life.

Where the kernel's locks work, they decide, and these files say who holds them. Where they do nothing
(some network file systems), they decide: whoever has shown itself and then sees no other is the
writer. Of two that see each other one withdraws: no file is made exclusively, and none is removed
but those of the dead, whose names nobody takes again. Clocks of machines are never compared: a
process on another machine lives if its file changes while it is watched.
"""

import contextlib
import json
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from embedcli.errors import LockedError

# The files of a process: `owner-ID` when it wants to write, `owner-ID.held` besides when it does.
_PREFIX = "owner-"
_HELD = ".held"
_BEAT_SECONDS = 2.0
# A writer elsewhere that has shown nothing for so long is gone, or can't reach the file system.
_WATCHED_SECONDS = 5 * _BEAT_SECONDS
_POLL_SECONDS = 0.25
# How long one waits for others that want to write, too, and how long at once.
_CONTENTION_SECONDS = 20.0
_STEP_SECONDS = 0.02


@dataclass(frozen=True)
class Owner:
    """A process that writes an output. boot, started: which boot of the host, and which process of
    that number.
    """

    host: str
    boot: str
    pid: int
    started: str
    since: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def is_here(self) -> bool:
        """Is it a process of this boot of this machine? Then it is known whether it lives."""
        return (self.host, self.boot) == (socket.gethostname(), boot())

    @property
    def lives_here(self) -> bool:
        """Is this process still running?"""
        return _started(self.pid) == self.started


def boot() -> str:
    """Return what tells this machine, since it was started, from all others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
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


def is_ours(name: str) -> bool:
    """Tell whether a file in a staging directory says who writes, or wants to."""
    return name.startswith(_PREFIX)


def read(folder: Path) -> Owner | None:
    """Return who writes into a staging directory; None where nobody says so."""
    for path in sorted(folder.glob(f"{_PREFIX}*{_HELD}")):
        if (owner := _read(path)) is not None:
            return owner
    return None


def _read(path: Path) -> Owner | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Owner)
    except (OSError, msgspec.DecodeError):
        return None


@contextlib.contextmanager
def held(folder: Path, output: Path, token: str) -> Iterator[None]:
    """Be the one writer of an output while the block runs. Raises LockedError where another is."""
    mine = folder / f"{_PREFIX}{secrets.token_hex(8)}"
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(_BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(_held_by(mine))

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    try:
        _take(mine, output, token)
        thread.start()
        yield
    finally:
        ended.set()
        if thread.is_alive():
            thread.join()
        _withdraw(mine)


def check(folder: Path, output: Path, token: str) -> None:
    """See that this run is still the writer. Raises LockedError where another took it for dead."""
    owner = read(folder)
    if owner is not None and owner.token != token:
        raise LockedError(f"{output}: another run took over: {owner}", "try again")


def _take(mine: Path, output: Path, token: str) -> None:
    """Become the writer, by a file that says so. Raises LockedError where another lives."""
    since = datetime.now(UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    pid = os.getpid()
    owner = Owner(socket.gethostname(), boot(), pid, _started(pid), since, token)
    folder = mine.parent
    deadline = time.monotonic() + _CONTENTION_SECONDS
    while time.monotonic() < deadline:
        _show(mine, owner)
        try:
            others = _others(folder, mine, output)
            # Only the least waits for the others to withdraw, which see it.
            while others and min(others) > mine and time.monotonic() < deadline:
                time.sleep(_STEP_SECONDS)
                others = _others(folder, mine, output)
        except BaseException:
            _withdraw(mine)
            raise
        if not others:
            _show(_held_by(mine), owner)
            return
        _withdraw(mine)
        time.sleep(_STEP_SECONDS * random.uniform(1, 5))
    raise LockedError(f"{output}: several runs want to write it", "try again")


def _show(path: Path, owner: Owner) -> None:
    """Make a file that appears with its content."""
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(json.dumps(asdict(owner)))
    unfinished.rename(path)


def _held_by(contender: Path) -> Path:
    return contender.with_name(contender.name + _HELD)


def _withdraw(mine: Path) -> None:
    for path in (_held_by(mine), mine):
        with contextlib.suppress(OSError):
            path.unlink()


def _others(folder: Path, mine: Path, output: Path) -> list[Path]:
    """Return the other processes that want to write, and live; remove what the dead left.

    Raises LockedError where one of them writes.
    """
    others = []
    for contender in sorted(folder.glob(f"{_PREFIX}*")):
        name = contender.name
        if name.endswith(".tmp") or name.removesuffix(_HELD) == mine.name:
            continue
        owner = _read(contender)
        if not _lives(owner, contender):
            with contextlib.suppress(OSError):
                contender.unlink()
        elif name.endswith(_HELD):
            raise LockedError(
                f"{output}: another run is writing it{f': {owner}' if owner else ''}",
                "wait for it, or choose another -o",
            )
        else:
            others.append(contender)
    return others


def _lives(owner: Owner | None, path: Path) -> bool:
    """Tell whether a process lives: by itself if it is one of this machine, else by its file."""
    if owner is not None and owner.is_here:
        return owner.lives_here and path.exists()
    before = _changed(path)
    deadline = time.monotonic() + _WATCHED_SECONDS
    while time.monotonic() < deadline and before >= 0:
        time.sleep(_POLL_SECONDS)
        now = _changed(path)
        if now != before:
            return now >= 0
    return False


def _changed(path: Path) -> int:
    """Return when a file was changed, by its own clock; -1 where it is gone."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return -1
