"""What each of our processes does first."""

import ctypes
import gc
import multiprocessing.context
import os
import signal
import sys
import types
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

_PR_SET_PDEATHSIG = 1
_SAFE_PATH = "PYTHONSAFEPATH"


def prepare() -> None:
    """Set up the interpreter for rows: many objects, which hold no cycles."""
    # By default it looks for cycles after each 700 objects: 10 % of the time of reading JSON.
    gc.set_threshold(20_000, 10, 10)


class _Process(multiprocessing.context.SpawnProcess):
    def start(self) -> None:
        """Start it without the caller's script, which it would run again, for functions of its own; and
        so that it finds no module in the current folder.
        """
        main, safe_path = sys.modules["__main__"], os.environ.get(_SAFE_PATH, "")
        sys.modules["__main__"] = types.ModuleType("__main__")
        os.environ[_SAFE_PATH] = "1"
        try:
            super().start()
        finally:
            sys.modules["__main__"] = main
            os.environ[_SAFE_PATH] = safe_path  # empty: as if it weren't set


class _Context(multiprocessing.context.SpawnContext):
    Process = _Process


def pool(
    count: int, initializer: Callable[..., None] | None = None, *arguments: Any
) -> ProcessPoolExecutor:
    """Return a pool of processes that end with this one; each calls `initializer` first.

    Linux ends a process with the thread that started it, so the main one had better give them work.
    """
    # A new interpreter, not a fork: Arrow's threads don't survive one, nor does CUDA.
    return ProcessPoolExecutor(
        count,
        _Context(),
        initializer=_begin,
        initargs=(os.getpid(), initializer, arguments),
    )


def _begin(parent: int, initializer: Callable[..., None] | None, arguments: Sequence[Any]) -> None:
    follow_parent(parent)
    if initializer is not None:
        initializer(*arguments)


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
