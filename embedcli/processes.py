"""What each of our processes does first."""

import ctypes
import gc
import os
import signal

_PR_SET_PDEATHSIG = 1


def prepare() -> None:
    """Set up the interpreter for rows: many objects, which hold no cycles."""
    # By default it looks for cycles after each 700 objects: 10 % of the time of reading JSON.
    gc.set_threshold(20_000, 10, 10)


def follow_parent(parent: int) -> None:
    """Set up a process that another one of ours started, and that ends with it."""
    prepare()
    _die_with_parent(parent)


def _die_with_parent(parent: int) -> None:
    """End this process when its parent ends, however that ends (Linux, prctl).

    Ctrl-C is the parent's business.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it had ended before we asked
        os._exit(1)
