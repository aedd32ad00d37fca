"""Who coordinates the writing of an output: one process at a time, and after its death the next.

A lease is a file that is made exclusively, `lease-000001`; who takes over makes the next one. So of
many that come at once one wins, on any file system that makes files exclusively, however late it
shows them to others. None is removed but with the whole directory. Before it publishes, the holder
makes the next one itself: if somebody else did, it was taken for dead, and publishes nothing.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from embedcli.errors import LockedError
from embedcli.store import life

_PREFIX = "lease-"
_NAME = re.compile(r"lease-(\d{6,})$")


def is_ours(name: str) -> bool:
    """Tell whether a file in a staging directory belongs to a lease."""
    return name.startswith(_PREFIX)


class HolderWatch:
    """Watches whoever holds the last lease of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._watch = life.Watch()

    def deserted(self) -> int | None:
        """Return the number of the last lease where its holder is dead, or shows nothing for too long,
        as one that hangs; 0 where nobody took one. None while the holder lives.
        """
        number = _last(self._folder)
        if not number:
            return 0
        file = _file(self._folder, number)
        return number if self._watch.is_dead(file) or self._watch.is_silent(file) else None


@dataclass(frozen=True)
class Lease:
    """The lease of a number, which this process holds."""

    folder: Path
    output: Path
    number: int
    process: life.Process
    signs: life.Signs

    def check(self) -> None:
        """See that nobody took over, and that nobody can who hasn't yet. Raises LockedError."""
        following = _file(self.folder, self.number + 1)
        try:
            if life.make(following, self.process):
                self.signs.add(following)
                return
        except FileNotFoundError:  # whoever took over has published, and removed the directory
            raise LockedError(f"{self.output}: another run took over", "try again") from None
        owner = life.read(following)
        if owner is None or owner.token != self.process.token:
            raise LockedError(f"{self.output}: another run took over: {owner}", "try again")


@contextlib.contextmanager
def held(folder: Path, output: Path, token: str, deserted: int = 0) -> Iterator[Lease]:
    """Be the one who coordinates the writing of an output while the block runs.

    The holder of the lease `deserted` is known to be gone. Raises LockedError where another holds
    one.
    """
    process = life.this_process(token)
    number = _take(folder, output, process, deserted)
    with life.Signs(_file(folder, number)) as signs:
        yield Lease(folder, output, number, process, signs)


def _take(folder: Path, output: Path, process: life.Process, deserted: int) -> int:
    """Take the next lease; return its number. Raises LockedError where the holder of the last lives."""
    number = _last(folder)
    while True:
        last = _file(folder, number)
        if number > deserted and life.lives(last):
            owner = life.read(last)
            raise LockedError(
                f"{output}: another run is writing it{f': {owner}' if owner else ''}",
                "wait for it, or choose another -o",
            )
        number += 1
        # Where it is there already, it may be seen late, and its holder is to be looked at.
        if life.make(_file(folder, number), process):
            return number


def _last(folder: Path) -> int:
    """Return the number of the last lease that can be seen, 0 where there is none."""
    names = (_NAME.match(path.name) for path in folder.iterdir())
    return max((int(name[1]) for name in names if name), default=0)


def _file(folder: Path, number: int) -> Path:
    return folder / f"{_PREFIX}{number:06d}"
