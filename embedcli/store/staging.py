"""The staging directory beside an output: its lock, the finished parts it keeps, and what only one run needs.

    .<output name>.embedcli/
        signature      the input that the parts belong to
        output/        durable parts: a dataset directory once it is renamed
        rejected/      per unit, the rows that the model gave no vector for
        earlier/       parts of an input that has changed since: their vectors are looked up
        attempts/      per unit, how often it was begun and not finished
        run-<token>/   of one run: spooled inputs, unfinished parts, claims

Nothing half-made is ever visible: files are written in the run's directory, checked, and renamed.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcli.errors import AccessError, EmbedcliError, LockedError, OutputError, from_os_error
from embedcli.store import parts

MANIFEST = "_embedcli.json"
_KEPT = ("output", "rejected", "earlier", "attempts")


@dataclass(frozen=True)
class Staging:
    """An open staging directory. `output` is None where the vectors go to a stream.

    `token` is that of the run; `version` stands for the output that it makes, and is the same in equal runs.
    """

    path: Path
    output: Path | None
    token: str
    version: str = ""

    @property
    def run(self) -> Path:
        """What only this run needs."""
        return self.path / f"run-{self.token}"

    @property
    def parts(self) -> Path:
        """The directory of durable parts."""
        return self.path / "output"

    @property
    def earlier(self) -> Path:
        """The directory of parts that belong to the input as it was before."""
        return self.path / "earlier"

    def part(self, index: int) -> Path:
        """The name of a unit's part once it is durable."""
        return self.parts / parts.part_name(index, self.version)

    def rejected(self, index: int) -> Path:
        """The file of a unit's rows that the model gave no vector for."""
        return self.path / "rejected" / f"{index:06d}.json"

    def attempts(self, index: int) -> Path:
        """The file that counts how often a unit was begun."""
        return self.path / "attempts" / f"{index:06d}"

    def unfinished(self) -> Path:
        """A new name for a file that is being written; nobody else's."""
        return self.run / f"{secrets.token_hex(8)}.tmp"

    @property
    def finished(self) -> int:
        """How many parts are kept."""
        return sum(1 for folder in (self.parts, self.earlier) for _ in folder.glob("part-*.parquet"))

    @property
    def is_worth_keeping(self) -> bool:
        """Is there a finished part, or a unit that ended the process which began it?"""
        return self.finished > 0 or any((self.path / "attempts").glob("*"))

    def belongs_to(self, signature: str) -> bool:
        """Do the parts belong to this input?"""
        try:
            return (self.path / "signature").read_text() == signature
        except FileNotFoundError:
            return False

    def adopt(self, signature: str) -> None:
        """Say which input the parts belong to from now on; parts of another one are set aside for lookups."""
        if self.belongs_to(signature):
            return
        for part in sorted(self.parts.iterdir()):
            os.rename(part, self.earlier / f"{part.stem}.{secrets.token_hex(4)}{part.suffix}")
        sync(self.earlier)
        for folder in ("rejected", "attempts"):
            _clear(self.path / folder)
        write_durably(self.unfinished(), self.path / "signature", signature.encode())


def check_output(output: Path, inputs: Sequence[str], directory: bool = False) -> None:
    """Refuse early what can't be published: an input's own name, a file or folder that is not ours.

    Raises OutputError, AccessError; takes no time and needs no model.
    """
    if output.parent.is_dir() and not os.access(output.parent, os.W_OK):
        raise AccessError(f"{output}: its folder can't be written")
    if directory and output.exists() and not output.is_dir():
        raise OutputError(f"{output}: is a file, and a directory was asked for", "remove it, or choose another name")
    suffixes = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".arrow", ".feather", ".txt")
    if not directory and output.suffix.lower() in suffixes:
        raise OutputError(f"{output}: files are written as Parquet", f"-o - --format jsonl > {output.name}")
    if not output.exists():
        return
    if any(_holds(output, name) for name in inputs if os.path.exists(name)):
        raise OutputError(f"{output}: is or holds one of the inputs", "choose another name with -o")
    if not is_ours(output):
        raise OutputError(
            f"{output}: exists and was not written by embedcli", "remove it, or choose another name with -o"
        )


def _holds(output: Path, name: str) -> bool:
    return os.path.samefile(name, output) or (output.is_dir() and output.resolve() in Path(name).resolve().parents)


def check_folder(path: Path) -> None:
    """Refuse a file whose folder isn't there or can't be written. Raises OutputError, AccessError."""
    if not path.parent.is_dir():
        raise OutputError(f"{path}: no such folder", "create it first")
    if path.is_dir():
        raise OutputError(f"{path}: is a directory", "name a file")
    if not os.access(path.parent, os.W_OK):
        raise AccessError(f"{path}: its folder can't be written")


def is_ours(path: Path) -> bool:
    """Did embedcli write this file or directory? An empty directory may be taken, too."""
    if path.is_dir():
        return (path / MANIFEST).is_file() or not any(path.iterdir())
    try:
        with parts.open_file(path) as file:
            return parts.METADATA_KEY in (file.schema_arrow.metadata or {})
    except Exception:
        return False


def place_of(output: Path) -> Path:
    """The staging directory of an output."""
    return output.parent / f".{output.name}.embedcli"


@contextlib.contextmanager
def open_staging(output: Path, token: str, fresh: bool = False, keep: bool = False) -> Iterator[Staging]:
    """Lock an output's staging directory, made if need be; `fresh` throws away what an interrupted run left.

    It is removed when the block ends, unless the block raises, or `keep` is asked for, and finished parts are in it.
    Raises LockedError where another run holds it, OutputError or AccessError where it can't be created.
    """
    path = place_of(output)
    lock = _lock(path, output)
    stage = Staging(path, output, token)
    try:
        try:
            _prepare(stage, fresh)
            yield stage
        except BaseException:
            keep = True
            raise
        finally:
            shutil.rmtree(stage.run if keep and stage.is_worth_keeping else path, ignore_errors=True)
    finally:
        os.close(lock)


@contextlib.contextmanager
def open_temporary(directory: Path, token: str) -> Iterator[Staging]:
    """A staging directory for a stream: nothing outlives the run."""
    stage = Staging(directory, None, token)
    _prepare(stage, fresh=True)
    try:
        yield stage
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _prepare(stage: Staging, fresh: bool) -> None:
    for name in os.listdir(stage.path):
        if fresh or name not in (*_KEPT, "signature"):  # what a run that was killed left
            _remove(stage.path / name)
    for name in (*_KEPT, stage.run.name):
        (stage.path / name).mkdir(mode=0o777 if name == "output" else 0o700, exist_ok=True)
    sync(stage.path)


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


def _cannot_create(path: Path, error: OSError) -> EmbedcliError:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return from_os_error(error, str(path))
    if error.errno == errno.ENOENT:
        return OutputError(f"{path.parent}: no such folder", "create it first")
    return OutputError(f"{path}: can't be created: {error.strerror}", "choose another name with -o")


def remove_leftovers(path: Path) -> tuple[int, int]:
    """Remove a staging directory that no run holds; gives the finished parts and the bytes that were in it.

    Raises LockedError where a run holds it, AccessError where it belongs to another user.
    """
    lock = _lock(path, path)
    try:
        finished = Staging(path, None, "").finished
        size = sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
        shutil.rmtree(path)
    finally:
        os.close(lock)
    return finished, size


def _clear(path: Path) -> None:
    for name in os.listdir(path):
        _remove(path / name)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def name_full_disk(error: BaseException, path: Path) -> None:
    """Where a full disk isn't named, since a write to an open file met it, it is that of the run's own directory."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
        error.filename = str(path)


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


def write_durably(unfinished: Path, target: Path, content: bytes) -> None:
    """Write a small file under its name, whole and durable, or not at all."""
    with open(unfinished, "xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    move(unfinished, target)


def write_json(unfinished: Path, target: Path, value: Any) -> None:
    """Write a JSON file under its name, whole and durable, or not at all."""
    write_durably(unfinished, target, as_json(value))


def as_json(value: Any) -> bytes:
    """A line of JSON."""
    return json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
