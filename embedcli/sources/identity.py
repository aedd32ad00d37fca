"""Is an input still what it was when the run was planned?"""

import os

from embedcli.errors import InputChangedError
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


def open_planned(file: InputFile) -> int:
    """Open an input for reading; give its descriptor. Raises InputChangedError where there is no file any more."""
    try:
        return os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise changed(file, "it is gone") from None
