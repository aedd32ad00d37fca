"""Ctrl-C and its kin: the first one ends the run in order, the second one at once, and nothing
takes longer than 10 s.

Python runs a signal's handler only between two of its own steps, and one step may be a matrix
product of a minute. So a thread listens, too: the interpreter writes each signal's number to a pipe
the moment it comes.
"""

import contextlib
import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from functools import cache
from types import FrameType
from typing import NoReturn

from embedcli.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GRACE_SECONDS = 8.0
_FIRST_OWN_DESCRIPTOR = 32
_received = 0


def watch() -> None:
    """From now on a signal raises Interrupted in the main thread; where that takes too long, the
    process ends. A signal that is ignored stays so.
    """
    global _received
    _received = 0
    for number in SIGNALS:
        # What the caller has us ignore stays ignored: SIGHUP under nohup, SIGINT behind a script's `&`.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    _start_listening()


def ignore() -> None:
    """From now on no signal counts: the exit code is known."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def outrank_errors() -> Iterator[None]:
    """Raise Interrupted in the place of any error of the block that comes after a signal.

    Interrupted may rise anywhere, and break what it passes through: a lock of `threading` is released
    twice, Arrow tells of an input that can't be read. The signal is the reason nevertheless.
    """
    try:
        yield
    except Exception as error:
        if not _received:
            raise
        interrupted = Interrupted(_received)
        for note in getattr(error, "__notes__", ()):
            interrupted.add_note(note)
        raise interrupted from error


@cache
def _start_listening() -> None:
    # Out of the way of numbers that a user may name: `--report /dev/fd/3`.
    reading, writing = (_moved_up(descriptor) for descriptor in os.pipe())
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(reading,), name="interruptions", daemon=True).start()
    # What a forked process of a library gets is not meant for this one.
    os.register_at_fork(after_in_child=_leave_signals)


def _leave_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_DFL)


def _moved_up(descriptor: int) -> int:
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _FIRST_OWN_DESCRIPTOR)
    os.close(descriptor)
    return moved


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    global _received
    _received = number
    raise Interrupted(number)


def _listen(reading: int) -> None:
    first_signal = 0
    while received := os.read(reading, 1):
        number = received[0]
        if number not in SIGNALS:
            continue
        if first_signal:
            os._exit(128 + number)  # workers end with their parent
        first_signal = number
        timer = threading.Timer(_GRACE_SECONDS, _end_by_force, (number,))
        timer.daemon = True
        timer.start()


def _end_by_force(number: int) -> None:
    name = signal.Signals(number).name
    os.write(
        2,
        f"error: ended by {name}, by force after {_GRACE_SECONDS:g} s; finished work is kept\n".encode(),
    )
    os._exit(128 + number)
