"""The staging directory beside an output: who coordinates, the finished parts it keeps, and what only
one run needs.

    .<output name>.embedcli/
        embedcli-staging   the marker: embedcli made this directory
        lease-000001       who plans and publishes (see lease)
        signature      the input that the parts belong to
        parts/         finished parts, numbered by unit
        results/       per worker, a line for each unit that it finished
        earlier/       parts of an input that has changed since: their vectors are looked up
        attempts/      per unit, how often it was begun and not finished
        run/           of one run: its plan, spooled inputs, claims, signs of life, index
        tmp-<worker>/  of one process: unfinished files
        new/           links to parts, as a directory that takes the output's place
        publishing     the digest of an output that was about to be published
        over           the run is over: others are to leave
        former/        the output before it, where directories can't be exchanged

Nothing half-made is ever visible: files are written in a process's own directory, checked, and renamed.
"""

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedcli.errors import (
    AccessError,
    ConfigurationError,
    EmbedcliError,
    Interrupted,
    LockedError,
    OutputError,
    from_os_error,
)
from embedcli.files import rename, sync
from embedcli.store import lease, life, manifest, parts

# The file that makes a directory ours to write in and to remove.
MARKER = "embedcli-staging"
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OPEN_DIRECTORY = _OPEN_FOLDER | os.O_NOFOLLOW
_KEPT = ("parts", "results", "earlier", "attempts")
_OF_A_RUN = ("claims", "workers", "beats", "failed")
_TEMPORARY = "tmp-"
_PROBE = "probe-"
_PUBLISHING = "publishing"
_OVER = "over"
_END_SECONDS, _POLL_SECONDS = 5.0, 0.1


@dataclass(frozen=True)
class Staging:
    """An open staging directory. `output` is None where the vectors go to a stream.

    `path` leads to it by its descriptor, `name` is what people call it, `handle` the descriptor
    that workers inherit. `token` is this process's own. `lease` is None where another process
    coordinates.
    """

    path: Path
    output: Path | None
    token: str
    name: Path = Path()
    handle: int = -1
    lease: "lease.Lease | None" = None

    @property
    def run(self) -> Path:
        """What only this run needs."""
        return self.path / "run"

    @property
    def temporary(self) -> Path:
        """What only this process needs."""
        return self.path / f"{_TEMPORARY}{self.token}"

    @property
    def spool(self) -> Path:
        """Where this process writes inputs that can't be read as they are, for all who take part."""
        return self.run / f"inputs-{self.token}"

    @property
    def workers(self) -> list[Path]:
        """The files of all processes that have taken part in the run."""
        folder = self.run / "workers"
        return [path for path in folder.glob("*") if path.suffix != ".tmp"]

    @property
    def parts(self) -> Path:
        """The directory of finished parts."""
        return self.path / "parts"

    @property
    def results(self) -> Path:
        """The directory of what became of units, a file for each worker."""
        return self.path / "results"

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

    def attempts(self, index: int) -> Path:
        """Return the file that counts how often a unit was begun."""
        return self.path / "attempts" / f"{index:06d}"

    def unfinished(self) -> Path:
        """Return a new name for a file that is being written; nobody else's."""
        return self.temporary / f"{secrets.token_hex(8)}.tmp"

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

    def begin_run(self) -> None:
        """Make the folders of a run."""
        for name in _OF_A_RUN:
            (self.run / name).mkdir(mode=0o700, exist_ok=True)

    def forget_run(self) -> None:
        """Throw away what only a run needed that is over, but for this process's own inputs."""
        for entry in os.listdir(self.run):
            if entry != self.spool.name:
                _remove(self.run / entry)
        self.begin_run()

    def adopt(self, signature: str) -> None:
        """Say which input the parts belong to from now on; parts of another one are set aside for
        lookups.

        Raises ConfigurationError where others are still at that other one.
        """
        if self.belongs_to(signature):
            return
        if life.any_lives(self.workers):
            raise ConfigurationError(
                f"{self.output}: others are at it, with an input of other content",
                "wait until they are through, or choose another -o",
            )
        for part in sorted(self.parts.iterdir()):
            os.rename(part, self.earlier / f"{part.stem}.{secrets.token_hex(4)}{part.suffix}")
        sync(self.earlier)
        for folder in ("results", "attempts"):
            _clear(self.path / folder)
        self.forget_run()
        write_durably(self.unfinished(), self.path / "signature", signature.encode())


def place_of(output: Path) -> Path:
    """Return the staging directory of an output."""
    return output.parent / f".{output.name}.embedcli"


def output_of(place: Path) -> Path:
    """Return the output that a staging directory belongs to."""
    return place.parent / place.name.removeprefix(".").removesuffix(".embedcli")


def is_over(stage: Staging) -> bool:
    """Tell whether the run is through, and its directory is removed, or about to be."""
    return (stage.path / _OVER).exists() or not is_marked(stage.path)


def is_marked(path: Path) -> bool:
    """Tell whether a folder carries the mark of our staging directories."""
    return (path / MARKER).is_file()


@contextlib.contextmanager
def open_staging(
    output: Path,
    token: str,
    fresh: bool = False,
    keep: bool = False,
    shared: bool = False,
    deserted: int = 0,
) -> Iterator[Staging]:
    """Take the lease of an output's staging directory, made if need be; `fresh` throws away what an
    interrupted run left, `shared` leaves alone what others may be at; the holder of the lease
    `deserted` is known to be gone.

    It is removed when the block ends, unless the block raises, or `keep` is asked for, and finished
    parts are in it. Raises LockedError where another run holds it, OutputError or AccessError where
    it can't be created or isn't ours.
    """
    name = place_of(output)
    with (
        _removed_if_unused(name, token),
        _leased(name, output, token, deserted) as (path, handle, held),
    ):
        stage = Staging(path, output, token, name=name, handle=handle, lease=held)
        try:
            if not shared:
                _check_deserted(stage)
            _prepare(stage, fresh, shared)
            yield stage
        except BaseException as error:
            keep = True
            name_places(error, stage)
            raise
        finally:
            if keep and (shared or stage.is_worth_keeping):
                for folder in (stage.temporary, *(() if shared else (stage.run,))):
                    shutil.rmtree(folder, ignore_errors=True)
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
                _prepare(stage, fresh=True, shared=False)
                yield stage
            finally:
                with contextlib.suppress(OSError):
                    _remove_all(path, directory)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def open_joined(output: Path, token: str) -> Iterator[Staging | None]:
    """Open the staging directory that another process coordinates; None while there is none.

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
            try:
                _check_trust(descriptor, path / f"{_PROBE}{secrets.token_hex(8)}", name)
                stage.temporary.mkdir(mode=0o700)
            except FileNotFoundError:  # the run is through, and it was removed
                yield None
                return
            try:
                yield stage
            finally:
                shutil.rmtree(stage.temporary, ignore_errors=True)
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


def _prepare(stage: Staging, fresh: bool, shared: bool) -> None:
    if stage.output is not None:
        _put_back(stage.former, stage.output)
    # What a run had published before it was killed is no unfinished work.
    fresh = fresh or stage.has_published
    kept_names = {MARKER} if fresh else {MARKER, "signature", *_KEPT}
    for name in os.listdir(stage.path):
        is_others = shared and (name == "run" or name.startswith(_TEMPORARY))
        if name not in kept_names and not is_others and not lease.is_ours(name):
            _remove(stage.path / name)  # what a killed run left
    (stage.path / MARKER).touch()  # a run that ended just now may have removed it
    for name in (*_KEPT, stage.run.name):
        if (stage.path / name).is_symlink():  # whatever it leads to is not ours
            (stage.path / name).unlink()
    for name in (*_KEPT, stage.run.name, stage.temporary.name):
        (stage.path / name).mkdir(mode=0o700, exist_ok=True)
    stage.begin_run()
    sync(stage.path)


def _check_deserted(stage: Staging) -> None:
    """See that nobody works on after the death of whoever coordinated. Raises LockedError.

    A process's own workers end with it, if not at once.
    """
    deadline = time.monotonic() + _END_SECONDS
    while life.any_lives(stage.workers):
        if time.monotonic() > deadline:
            raise LockedError(
                f"{stage.output or stage.name}: other machines are writing it",
                "--join helps them; or wait, or choose another -o",
            )
        time.sleep(_POLL_SECONDS)


def _put_back(former: Path, output: Path) -> None:
    """Put an output back that a run was killed about to replace, between its two renames."""
    if former.is_dir() and not output.exists():
        rename(former, output)


@contextlib.contextmanager
def _leased(
    name: Path, output: Path, token: str, deserted: int = 0
) -> Iterator[tuple[Path, int, lease.Lease]]:
    """Take the lease of a staging directory, made and marked if need be; give a path that leads to
    it, a descriptor, and the lease.
    """
    while True:
        with contextlib.ExitStack() as stack:
            descriptor = _open_directory(name)
            stack.callback(os.close, descriptor)
            path, handle = stack.enter_context(_held(name, descriptor))
            try:
                _check_marker(descriptor, path, name)
                held = stack.enter_context(lease.held(path, output, token, deserted))
                # Its name may lead elsewhere by now; what counts is that it wasn't removed.
                is_there = os.fstat(descriptor).st_nlink > 0
            except FileNotFoundError:
                is_there = False
            if is_there:
                yield path, handle, held
                return
        # Who held it removed it after we opened it.


def _open_directory(path: Path) -> int:
    """Open a staging directory, made if need be."""
    while True:
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            return os.open(path, _OPEN_DIRECTORY)
        except FileNotFoundError as error:
            if not path.parent.is_dir():
                raise _cannot_create(path, error) from None
        except OSError as error:
            raise _cannot_create(path, error) from None


def _check_marker(descriptor: int, path: Path, name: Path) -> None:
    """See that embedcli made the directory for this user; an empty one is marked.

    Raises AccessError where it is another user's, OutputError where somebody's files are in it.
    """
    try:
        names = sorted(os.listdir(path))
    except PermissionError:
        raise _foreign(name) from None
    # A run leaves its leases last; others may be about to mark it, too.
    foreign = [name for name in names if not _may_be_unmarked(name)]
    if MARKER not in names and foreign:
        raise OutputError(
            f"{name}: was not made by embedcli: it holds {', '.join(foreign[:10])}",
            "move it away, or choose another name with -o",
        )
    _check_trust(descriptor, path / f"{_PROBE}{secrets.token_hex(8)}", name)
    (path / MARKER).touch(0o600)


def _may_be_unmarked(name: str) -> bool:
    return lease.is_ours(name) or name == _OVER or name.startswith(_PROBE)


def _check_trust(descriptor: int, probe: Path, name: Path) -> None:
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
    token = secrets.token_hex(8)
    with _leased(path, path, token) as (held, handle, _):
        stage = Staging(held, None, token, name=path, handle=handle)
        _check_deserted(stage)
        _put_back(stage.former, output_of(path))
        finished = stage.finished
        files = (file for file in held.rglob("*") if not file.is_dir())
        size = sum(file.lstat().st_size for file in files)
        _remove_all(held, path)
    return finished, size


def _remove_all(path: Path, name: Path) -> None:
    """Remove what is in a directory that is held as `path`, the marker and the owner last, and its
    name if that is empty then.

    Removing all by name could meet a folder that somebody else put there.
    """
    (path / _OVER).touch()
    deadline = time.monotonic() + _END_SECONDS
    while True:
        try:
            for entry in sorted(os.listdir(path), key=_removal_order):
                _remove(path / entry)
            os.rmdir(name)
            return
        except OSError as error:  # others are leaving: what they make or remove meanwhile
            is_theirs = error.errno in (errno.ENOTEMPTY, errno.ENOENT) and path.exists()
            if not is_theirs or time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)


def _removal_order(name: str) -> tuple[bool, bool, bool]:
    """The marker goes last but for what tells others that the run is over."""
    return name == _OVER, lease.is_ours(name), name == MARKER


@contextlib.contextmanager
def _removed_if_unused(name: Path, token: str) -> Iterator[None]:
    """Remove a staging directory where the block is interrupted before there is anything in it."""
    try:
        yield
    except Interrupted:
        with contextlib.suppress(OSError):
            if all(_is_unused(name / entry, token) for entry in os.listdir(name)):
                _remove_all(name, name)
        raise


def _is_unused(path: Path, token: str) -> bool:
    """Tell whether a file in a staging directory is of use to nobody: a marker, the lease of a
    process that has ended or is this one.
    """
    if not lease.is_ours(path.name):
        return path.name in (MARKER, _OVER)
    process = life.read(path)
    return process is None or process.token == token or life.lives_here(process, path) is False


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
