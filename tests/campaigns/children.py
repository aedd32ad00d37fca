"""Runs of the program in forked children: cheap, limited, and nothing that happens there outlives them."""

import contextlib
import io
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SECONDS = 20
BYTES = 2**30


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit code, negative where a signal ended it, and what it took."""

    code: int
    seconds: float
    bytes: int
    words: str

    def faults(self, codes: tuple[int, ...]) -> list[str]:
        """What a run must never do, whatever it is given."""
        found = []
        if self.code not in codes:
            found.append(f"exit code {self.code}")
        if self.seconds > SECONDS:
            found.append(f"{self.seconds:.0f} s of CPU")
        if self.bytes > BYTES:
            found.append(f"{self.bytes / 1e9:.1f} GB")
        if "Traceback" in self.words:
            found.append("a traceback")
        if len(self.words) > 2**17:
            found.append(f"{len(self.words):,} characters of messages")
        return found


def run(arguments: list[str], folder: Path) -> Ended:
    """Run `embedcli` in a child of this process, in a folder."""
    output = folder / "child-output"
    child = os.fork()
    if not child:
        code = 1
        try:
            code = _in_child(arguments, folder, output)
        finally:  # whatever happens: a child may not run the parent's clean-up
            os._exit(code)
    deadline = time.monotonic() + 6 * SECONDS  # wall: for what waits without working
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    seconds = usage.ru_utime + usage.ru_stime
    if time.monotonic() > deadline:
        seconds = max(seconds, 6 * SECONDS)
    words = output.read_text(errors="replace") if output.exists() else ""
    output.unlink(missing_ok=True)
    return Ended(os.waitstatus_to_exitcode(status), seconds, usage.ru_maxrss * 1024, words)


def _in_child(arguments: list[str], folder: Path, output: Path) -> int:
    from embedcli.cli import app

    os.chdir(folder)
    stream = os.open(output, os.O_CREAT | os.O_WRONLY, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), write_through=True)
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), write_through=True)
    resource.setrlimit(resource.RLIMIT_CPU, (2 * SECONDS, 3 * SECONDS))
    code = 1
    with contextlib.suppress(BaseException):
        try:
            app(arguments, prog_name="embedcli")
        except SystemExit as end:
            code = int(end.code or 0)
    return code
