"""The staging directory beside an output: its lock, its parts, and publishing under the visible name.

Nothing half-made is ever visible: files are written under names in staging, checked, and renamed.
"""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedcli.errors import AccessError, LockedError, OutputError, from_os_error
from embedcli.store import parts


@dataclass(frozen=True)
class Staging:
    """An open staging directory: holds the output's lock."""

    path: Path
    output: Path

    def part(self, index: int) -> Path:
        """The name of a part once it is durable."""
        return self.path / f"part-{index:06d}.parquet"

    @property
    def parts(self) -> list[Path]:
        """The durable parts, in order."""
        return sorted(self.path.glob("part-*.parquet"))


def check_output(output: Path, inputs: Sequence[str]) -> None:
    """Refuse early what can't be published: a folder, an input's own name, a file that is not ours.

    Raises OutputError; takes no time and needs no model.
    """
    if output.parent.is_dir() and not os.access(output.parent, os.W_OK):
        raise AccessError(f"{output}: its folder can't be written")
    if output.is_dir():
        raise OutputError(f"{output}: is a directory", "name a file, such as out.parquet")
    if output.suffix.lower() in (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".arrow", ".feather", ".txt"):
        raise OutputError(f"{output}: files are written as Parquet", f"-o - --format jsonl > {output.name}")
    if not output.exists():
        return
    if any(os.path.samefile(name, output) for name in inputs if os.path.exists(name)):
        raise OutputError(f"{output}: is one of the inputs", "choose another name with -o")
    if not _is_ours(output):
        raise OutputError(
            f"{output}: exists and was not written by embedcli", "remove it, or choose another name with -o"
        )


def check_folder(path: Path) -> None:
    """Refuse a file whose folder isn't there or can't be written. Raises OutputError, AccessError."""
    if not path.parent.is_dir():
        raise OutputError(f"{path}: no such folder", "create it first")
    if path.is_dir():
        raise OutputError(f"{path}: is a directory", "name a file")
    if not os.access(path.parent, os.W_OK):
        raise AccessError(f"{path}: its folder can't be written")


def _is_ours(path: Path) -> bool:
    try:
        with parts.open_file(path) as file:
            return parts.METADATA_KEY in (file.schema_arrow.metadata or {})
    except Exception:
        return False


@contextlib.contextmanager
def open_staging(output: Path) -> Iterator[Staging]:
    """Create and lock the staging directory of an output; it is removed when the block ends.

    Raises LockedError where another run holds it, OutputError or AccessError where it can't be created.
    """
    path = output.parent / f".{output.name}.embedcli"
    lock = _lock(path, output)
    try:
        _clear(path)  # left by a run that was killed
        yield Staging(path, output)
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _lock(path: Path, output: Path) -> int:
    """Lock the directory, made if need be; gives the descriptor that holds the lock.

    The lock is the kernel's: it ends with the process, however that ends, and isn't inherited.
    """
    while True:
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise _cannot_create(path, error) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_uid != os.geteuid():
                raise AccessError(f"{path}: belongs to another user", "remove it, or choose another name with -o")
            if path.exists() and os.path.samestat(os.fstat(lock), os.stat(path)):
                return lock
        except BlockingIOError:
            os.close(lock)
            raise LockedError(f"{output}: another run is writing it", "wait for it, or choose another -o") from None
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # its holder removed the directory between our opening and locking it


def _cannot_create(path: Path, error: OSError) -> Exception:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return from_os_error(error, str(path))
    if error.errno == errno.ENOENT:
        return OutputError(f"{path.parent}: no such folder", "create it first")
    return OutputError(f"{path}: can't be created: {error.strerror}", "choose another name with -o")


def _clear(path: Path) -> None:
    for name in os.listdir(path):
        entry = path / name
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def sync(path: Path) -> None:
    """Make a directory's entries durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move(source: Path, target: Path) -> None:
    """Rename a file whose content is durable, durably."""
    os.rename(source, target)
    sync(target.parent)
