"""The staging directory beside an output: its lock, the finished parts it keeps, and what only one
run needs.

    .<output name>.embedcli/
        embedcli-staging   the marker: embedcli made this directory
        signature      the input that the parts belong to
        parts/         finished parts, numbered by unit
        new/           links to parts, as a directory that takes the output's place
        rejected/      per unit, the rows that the model gave no vector for
        earlier/       parts of an input that has changed since: their vectors are looked up
        attempts/      per unit, how often it was begun and not finished
        publishing     the digest of an output that was about to be published
        former/        the output before it, where directories can't be exchanged
        owner-*        who writes it, or wants to (see lease)
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
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedcli.errors import (
    AccessError,
    EmbedcliError,
    Interrupted,
    LockedError,
    OutputError,
    from_os_error,
)
from embedcli.files import rename, sync
from embedcli.store import lease, manifest, parts

# The file that makes a directory ours to write in and to remove.
MARKER = "embedcli-staging"
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OPEN_DIRECTORY = _OPEN_FOLDER | os.O_NOFOLLOW
_KEPT = ("parts", "rejected", "earlier", "attempts")
_PUBLISHING = "publishing"


@dataclass(frozen=True)
class Staging:
    """An open staging directory. `output` is None where the vectors go to a stream.

    `path` leads to it by its descriptor, `name` is what people call it, `handle` the descriptor
    that workers inherit. `token` is that of the run.
    """

    path: Path
    output: Path | None
    token: str
    name: Path = Path()
    handle: int = -1

    @property
    def run(self) -> Path:
        """What only this run needs."""
        return self.path / f"run-{self.token}"

    @property
    def parts(self) -> Path:
        """The directory of finished parts."""
        return self.path / "parts"

    @property
    def new(self) -> Path:
        """What is to take the place of an output directory."""
        return self.path / "new"

    @property
    def earlier(self) -> Path:
        """The directory of parts that belong to the input as it was before."""
        return self.path / "earlier"

    @property
    def former(self) -> Path:
        """Where an output is put for the moment in which the next one takes its place."""
        return self.path / "former"

    def part(self, index: int, sha256: str) -> Path:
        """Return the name of a unit's part once it is durable."""
        return self.parts / parts.part_name(index, sha256)

    def parts_by_unit(self) -> dict[int, Path]:
        """List the durable parts. Of two of one unit, which a killed worker may leave, either will do."""
        return {parts.order_of_part(path.name): path for path in self.parts.glob("part-*.parquet")}

    def rejected(self, index: int) -> Path:
        """Return the file of a unit's rows that the model gave no vector for."""
        return self.path / "rejected" / f"{index:06d}.json"

    def attempts(self, index: int) -> Path:
        """Return the file that counts how often a unit was begun."""
        return self.path / "attempts" / f"{index:06d}"

    def unfinished(self) -> Path:
        """Return a new name for a file that is being written; nobody else's."""
        return self.run / f"{secrets.token_hex(8)}.tmp"

    @property
    def finished(self) -> int:
        """How many parts are kept."""
        return sum(
            1 for folder in (self.parts, self.earlier) for _ in folder.glob("part-*.parquet")
        )

    @property
    def is_worth_keeping(self) -> bool:
        """Is there a finished part, or a unit that ended the process which began it?"""
        return self.finished > 0 or any((self.path / "attempts").glob("*"))

    def intend(self, sha256: str | None) -> None:
        """Write down the digest of what is about to be published."""
        write_durably(self.unfinished(), self.path / _PUBLISHING, (sha256 or "").encode())

    @property
    def has_published(self) -> bool:
        """Is the output what an earlier run of this directory was about to publish?"""
        try:
            intended = (self.path / _PUBLISHING).read_text(errors="replace")
        except FileNotFoundError:
            return False
        return self.output is not None and manifest.digest_of(self.output) == intended

    def belongs_to(self, signature: str) -> bool:
        """Do the parts belong to this input?"""
        try:
            return (self.path / "signature").read_text(errors="replace") == signature
        except FileNotFoundError:
            return False

    def forget_parts(self, folders: Sequence[str] = _KEPT) -> None:
        """Throw away what is kept for the next run."""
        for folder in folders:
            _clear(self.path / folder)

    def adopt(self, signature: str) -> None:
        """Say which input the parts belong to from now on; parts of another one are set aside for
        lookups.
        """
        if self.belongs_to(signature):
            return
        for part in sorted(self.parts.iterdir()):
            os.rename(part, self.earlier / f"{part.stem}.{secrets.token_hex(4)}{part.suffix}")
        sync(self.earlier)
        for folder in ("rejected", "attempts"):
            _clear(self.path / folder)
        write_durably(self.unfinished(), self.path / "signature", signature.encode())


def place_of(output: Path) -> Path:
    """Return the staging directory of an output."""
    return output.parent / f".{output.name}.embedcli"


def output_of(place: Path) -> Path:
    """Return the output that a staging directory belongs to."""
    return place.parent / place.name.removeprefix(".").removesuffix(".embedcli")


def is_marked(path: Path) -> bool:
    """Tell whether a folder carries the mark of our staging directories."""
    return (path / MARKER).is_file()


@contextlib.contextmanager
def open_staging(
    output: Path, token: str, fresh: bool = False, keep: bool = False
) -> Iterator[Staging]:
    """Lock an output's staging directory, made if need be; `fresh` throws away what an interrupted
    run left.

    It is removed when the block ends, unless the block raises, or `keep` is asked for, and finished
    parts are in it. Raises LockedError where another run holds it, OutputError or AccessError where
    it can't be created or isn't ours.
    """
    name = place_of(output)
    with (
        _removed_if_unused(name),
        _locked(name, output) as (path, handle),
        lease.held(path, output, token),
    ):
        stage = Staging(path, output, token, name=name, handle=handle)
        try:
            _prepare(stage, fresh)
            yield stage
        except BaseException as error:
            keep = True
            name_places(error, stage)
            raise
        finally:
            if keep and stage.is_worth_keeping:
                shutil.rmtree(stage.run, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    _remove_all(path, name)


@contextlib.contextmanager
def open_temporary(directory: Path, token: str) -> Iterator[Staging]:
    """Open a staging directory for a stream: nothing outlives the run."""
    descriptor = os.open(directory, _OPEN_DIRECTORY)
    try:
        with _held(directory, descriptor) as (path, handle):
            stage = Staging(path, None, token, name=directory, handle=handle)
            try:
                _prepare(stage, fresh=True)
                yield stage
            finally:
                with contextlib.suppress(OSError):
                    _remove_all(path, directory)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def open_joined(output: Path, token: str) -> Iterator[Staging | None]:
    """Open the staging directory that another process of the same run holds; None while that has not
    prepared it.

    Raises AccessError where another user made it.
    """
    name = place_of(output)
    try:
        descriptor = os.open(name, _OPEN_DIRECTORY)
    except FileNotFoundError:
        yield None
        return
    try:
        with _held(name, descriptor) as (path, handle):
            stage = Staging(path, output, token, name=name, handle=handle)
            if not stage.run.is_dir():
                yield None
                return
            with contextlib.suppress(FileNotFoundError):  # rank 0 is through, and removes it
                _check_trust(descriptor, stage.unfinished(), name)
            yield stage
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _held(name: Path, descriptor: int) -> Iterator[tuple[Path, int]]:
    """Give a path that leads to an opened directory whatever its name leads to, and a descriptor
    for workers.

    Whoever may rename in the folder could put another directory under the name while a run goes on.
    The descriptor that workers inherit isn't the one that holds the lock: the lock must end with
    this process.
    """
    by_descriptor = Path(f"/proc/self/fd/{descriptor}")
    handle = os.open(by_descriptor if by_descriptor.exists() else name, _OPEN_FOLDER)
    path = path_of(handle)
    try:
        yield (path if path.exists() else name), handle
    finally:
        os.close(handle)


def path_of(handle: int) -> Path:
    """Return the path that leads to an open directory."""
    return Path(f"/proc/self/fd/{handle}")


def _prepare(stage: Staging, fresh: bool) -> None:
    if stage.output is not None:
        _put_back(stage.former, stage.output)
    # What a run had published before it was killed is no unfinished work.
    fresh = fresh or stage.has_published
    kept_names = {MARKER}
    if not fresh:
        kept_names |= {"signature", *_KEPT}
    for name in os.listdir(stage.path):
        if name not in kept_names and not lease.is_ours(name):  # what a killed run left
            _remove(stage.path / name)
    (stage.path / MARKER).touch()  # a run that ended just now may have removed it
    for name in _KEPT:
        if (stage.path / name).is_symlink():  # whatever it leads to is not ours
            (stage.path / name).unlink()
    for name in (*_KEPT, stage.run.name):
        (stage.path / name).mkdir(mode=0o700, exist_ok=True)
    sync(stage.path)


def _put_back(former: Path, output: Path) -> None:
    """Put an output back that a run was killed about to replace, between its two renames."""
    if former.is_dir() and not output.exists():
        rename(former, output)


@contextlib.contextmanager
def _locked(name: Path, output: Path) -> Iterator[tuple[Path, int]]:
    """Hold the lock of a staging directory; give a path that leads to it, and a descriptor."""
    lock = _lock(name, output)
    try:
        with _held(name, lock) as held:
            yield held
    finally:
        os.close(lock)


def _lock(path: Path, output: Path) -> int:
    """Lock the directory, made and marked if need be; gives the descriptor that holds the lock.

    The lock is the kernel's: it ends with the process, however that ends, and isn't inherited.
    """
    while True:
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            lock = os.open(path, _OPEN_DIRECTORY)
        except OSError as error:
            raise _cannot_create(path, error) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(lock), os.stat(path)):
                with _held(path, lock) as (held, _):
                    _check_marker(lock, held, path)
                return lock
        except BlockingIOError:
            os.close(lock)
            owner = lease.read(path)
            raise LockedError(
                f"{output}: another run is writing it{f': {owner}' if owner else ''}",
                "wait for it, or choose another -o",
            ) from None
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # its holder removed the directory between our opening and locking it


def _check_marker(descriptor: int, path: Path, name: Path) -> None:
    """See that embedcli made the directory for this user; an empty one is marked.

    Raises AccessError where it is another user's, OutputError where somebody's files are in it.
    """
    try:
        names = sorted(os.listdir(path))
    except PermissionError:
        raise _foreign(name) from None
    if MARKER in names:
        _check_trust(descriptor, path / f"probe-{secrets.token_hex(8)}", name)
    elif not all(map(lease.is_ours, names)):  # which a run leaves last
        raise OutputError(
            f"{name}: was not made by embedcli: it holds {', '.join(names[:10])}",
            "move it away, or choose another name with -o",
        )
    else:
        _check_trust(descriptor, path / MARKER, name, keep=True)


def _check_trust(descriptor: int, probe: Path, name: Path, keep: bool = False) -> None:
    """See that this user made the directory, and that nobody else can write in it. Raises AccessError.

    The owner of a file that is made there now is compared, not the process's user: over NFS they
    may differ.
    """
    try:
        probe_descriptor = os.open(
            probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600
        )
    except PermissionError:
        if os.fstat(descriptor).st_uid == os.geteuid():
            raise AccessError(
                f"{name}: can't be written", "remove it, or choose another name with -o"
            ) from None
        raise _foreign(name) from None
    status, probed = os.fstat(descriptor), os.fstat(probe_descriptor)
    os.close(probe_descriptor)
    is_foreign = probed.st_uid != status.st_uid
    # Some file systems know no modes: there a file made for its owner alone is open to others, too.
    has_modes = not probed.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    is_open = has_modes and bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    if is_foreign or is_open or not keep:
        os.unlink(probe)
    if is_foreign:
        raise _foreign(name)
    if is_open:
        raise AccessError(
            f"{name}: other users can write in it", "remove it, or choose another name with -o"
        )


def _foreign(name: Path) -> AccessError:
    return AccessError(
        f"{name}: belongs to another user", "remove it, or choose another name with -o"
    )


def _cannot_create(path: Path, error: OSError) -> EmbedcliError:
    if error.errno in (
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EIO,
    ):
        return from_os_error(error, str(path))
    if error.errno == errno.ENOENT:
        return OutputError(f"{path.parent}: no such folder", "create it first")
    return OutputError(f"{path}: can't be created: {error.strerror}", "choose another name with -o")


def remove_leftovers(path: Path) -> tuple[int, int]:
    """Remove a staging directory that no run holds; gives the finished parts and the bytes that
    were in it.

    Raises LockedError where a run holds it, AccessError where it belongs to another user,
    OutputError where embedcli did not make it.
    """
    with _locked(path, path) as (held, handle):
        stage = Staging(held, None, "", handle=handle)
        _put_back(stage.former, output_of(path))
        finished = stage.finished
        size = sum(file.lstat().st_size for file in held.rglob("*") if not file.is_dir())
        _remove_all(held, path)
    return finished, size


def _remove_all(path: Path, name: Path) -> None:
    """Remove what is in a directory that is held as `path`, the marker and the owner last, and its
    name if that is empty then.

    Removing all by name could meet a folder that somebody else put there.
    """
    for entry in sorted(os.listdir(path), key=lambda name: (lease.is_ours(name), name == MARKER)):
        _remove(path / entry)
    os.rmdir(name)


@contextlib.contextmanager
def _removed_if_unused(name: Path) -> Iterator[None]:
    """Remove a staging directory where the block is interrupted before there is anything in it."""
    try:
        yield
    except Interrupted:
        _remove_unused(name)
        raise


def _remove_unused(name: Path) -> None:
    """Remove a staging directory that holds nothing yet, unless another run has it."""
    with contextlib.suppress(OSError):
        lock = os.open(name, _OPEN_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.listdir(name) in ([], [MARKER]):
                _remove_all(name, name)
        finally:
            os.close(lock)


def _clear(path: Path) -> None:
    for name in os.listdir(path):
        _remove(path / name)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def name_places(error: BaseException, stage: Staging) -> None:
    """Say in an error's message what people call the staging directory, and where a full disk is.

    A write to an open file that meets a full disk doesn't say where: it is that of the run's own
    directory.
    """
    held, name = str(stage.path), str(stage.name)
    if isinstance(error, EmbedcliError):
        error.message = error.message.replace(held, name)
    if not isinstance(error, OSError):
        return
    if error.filename is not None:
        error.filename = os.fsdecode(error.filename).replace(held, name)
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        error.filename = name


def write_durably(unfinished: Path, target: Path, content: bytes) -> None:
    """Write a small file under its name, whole and durable, or not at all."""
    with open(unfinished, "xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    rename(unfinished, target)


def write_json(unfinished: Path, target: Path, value: object) -> None:
    """Write a JSON file under its name, whole and durable, or not at all."""
    write_durably(unfinished, target, as_json(value))


def as_json(value: object) -> bytes:
    """Return a line of JSON."""
    return json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
