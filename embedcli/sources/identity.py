"""Is an input still what it was when the run was planned?"""

import hashlib
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from embedcli.errors import DataError, InputChangedError
from embedcli.records import InputFile


def identity_of(status: os.stat_result) -> tuple[int, ...]:
    """Return what stays the same as long as a file's content does: device, inode, size and times."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def changed(file: InputFile, where: str) -> InputChangedError:
    """Return the error for an input that isn't what it was when the run was planned."""
    return InputChangedError(
        f"{file.name}: was changed while the run read it ({where}): nothing is published",
        "run the same command again: units that are finished and unchanged are kept",
    )


def check_listed(file: InputFile, descriptor: int) -> None:
    """See, once a file is planned, that it still is what was listed. Raises InputChangedError."""
    if file.identity and identity_of(os.fstat(descriptor)) != file.identity:
        raise changed(file, "while it was planned")


def path_of(descriptor: int, file: InputFile) -> str:
    """Return a path of what a descriptor leads to, whatever the file's name leads to by now."""
    by_descriptor = f"/proc/self/fd/{descriptor}"
    return by_descriptor if os.path.exists(by_descriptor) else str(file.path)


def combine_digests(digests: Iterable[str]) -> str:
    """Return 32 hex digits over digests in hex."""
    return hashlib.blake2b("".join(digests).encode(), digest_size=16).hexdigest()


class PlannedFile:
    """An input that is open for reading, by `descriptor`, and is to stay what was planned.

    `digest` computes from the descriptor what the plan recorded. Raises InputChangedError.
    """

    def __init__(self, file: InputFile, digest: Callable[[int], str]) -> None:
        self._file = file
        self._identity = file.identity
        self._digest = digest
        self.descriptor = _open(file)
        weakref.finalize(self, os.close, self.descriptor)
        self.check()

    def check(self) -> None:
        """See that the opened file still is what was planned. Raises InputChangedError.

        The file that was opened counts, not what its name leads to now.
        """
        if not self._file.identity:  # a copy of this run's own
            return
        try:
            identity = identity_of(os.fstat(self.descriptor))
            is_same = (
                identity == self._identity or self._digest(self.descriptor) == self._file.digest
            )
        except (DataError, OSError):  # damaged by now, or a directory, say
            is_same = False
        if not is_same:
            raise changed(self._file, "its content is another one")
        self._identity = identity

    @contextmanager
    def checked(self) -> Iterator[None]:
        """Check after reading, also where reading fails: a file that changed explains more than what it broke."""
        try:
            yield
        except DataError:
            self.check()
            raise
        self.check()


def _open(file: InputFile) -> int:
    """Open an input for reading. Raises InputChangedError where there is no file any more."""
    try:
        return os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise changed(file, "it is gone") from None
