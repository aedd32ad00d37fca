"""Planning on all cores: a function over parts of the input, its results in order."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import TypeVar

from embedcli.errors import DeviceError
from embedcli.processes import pool as new_pool
from embedcli.records import InputFile

Task = TypeVar("Task")
Result = TypeVar("Result")

# Of less input the processes would hardly have started before it is read.
_PARALLEL_BYTES = 2**26


@contextlib.contextmanager
def map_in_order(
    function: Callable[[Task], Result], tasks: Sequence[Task], total_bytes: int
) -> Iterator[Iterator[Result]]:
    """Give an iterator over the function's results, in the order of the tasks; they come from
    several processes where there is enough to do.

    The iterator raises what the function raises, DeviceError where a process dies.
    """
    processes = min(len(os.sched_getaffinity(0)), len(tasks))
    if processes < 2 or total_bytes < _PARALLEL_BYTES:
        yield map(function, tasks)
        return
    pool = new_pool(processes)
    try:
        yield _results(pool, function, tasks)
        pool.shutdown()
    finally:
        # Where something went wrong, what they are at is of no use to anybody.
        for process in (pool._processes or {}).values():  # Python 3.14 has kill_workers for it
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)


def for_children(file: InputFile) -> InputFile:
    """Return a file by a path that leads to it in other processes, too.

    The staging directory, where copies of the input lie, is reached by a descriptor.
    """
    if not file.path.startswith("/proc/self/"):
        return file
    return replace(file, path=file.path.replace("self", str(os.getpid()), 1))


def _results(
    pool: ProcessPoolExecutor, function: Callable[[Task], Result], tasks: Sequence[Task]
) -> Iterator[Result]:
    try:
        yield from pool.map(function, tasks)
    except BrokenProcessPool:
        raise DeviceError(
            "a process that read the input died", "is there too little memory?"
        ) from None
