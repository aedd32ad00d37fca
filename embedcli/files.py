"""Files that people name for results: may they be written, and written whole or not at all.

A regular file is replaced by a rename, so that its name always leads to a whole one. A pipe, a
device or a descriptor (`/dev/stderr`, `>(command)`) is written to as it is.
"""

import os
import re
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from embedcli.errors import AccessError, DataError, EmbedcliError, OutputError, from_os_error

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")
_STANDARD = {"-": 1, "/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
# Beside the name of a file stands its unfinished version, for which the name gets longer.
_LONGEST_NAME = 255 - len("..embedcli-tmp")


def descriptor_of(path: str) -> int | None:
    """Return the number of the open descriptor that a path such as `/dev/stderr` means, or None."""
    if match := _DESCRIPTOR.fullmatch(path):
        return int(match.group(1))
    return _STANDARD.get(path)


def is_stream(path: str) -> bool:
    """Tell whether a path is written to as it is: a descriptor, a pipe, a socket or a device."""
    if descriptor_of(path) is not None:
        return True
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def are_same(path: str, second_path: str) -> bool:
    """Tell whether two names lead to one file, also where it isn't there yet, or one stream.

    Standard input may be a redirected file, so that a descriptor and a name can be the same.
    """
    descriptors = descriptor_of(path), descriptor_of(second_path)
    if None not in descriptors and descriptors[0] == descriptors[1]:
        return True
    status, other_status = _status(path), _status(second_path)
    if status is not None and other_status is not None:
        return stat.S_ISREG(status.st_mode) and os.path.samestat(status, other_status)
    return descriptors == (None, None) and os.path.realpath(path) == os.path.realpath(second_path)


def _status(path: str) -> os.stat_result | None:
    descriptor = descriptor_of(path)
    try:
        return os.stat(path) if descriptor is None else os.fstat(descriptor)
    except (OSError, OverflowError):
        return None


def is_inside(path: str, folder: str) -> bool:
    """Tell whether a path lies inside a folder, at any depth. Neither needs to exist."""
    return Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents


def is_empty(path: str) -> bool:
    """Tell whether a path is a regular file without content, as `mktemp` makes it."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == 0


def check_folder(path: str) -> None:
    """Refuse a file whose folder can't take it. Raises OutputError, AccessError."""
    if descriptor_of(path) is not None and _status(path) is None:
        raise OutputError(f"{path}: is not open")
    if is_stream(path):
        return
    target = Path(path)
    if not target.parent.is_dir():
        raise OutputError(f"{path}: no such folder", "create it first")
    if target.is_dir():
        raise OutputError(f"{path}: is a directory", "name a file")
    if _unfinished_name(target).is_dir():
        raise OutputError(
            f"{_unfinished_name(target)}: is in the way", "remove it, or choose another name"
        )
    if len(os.fsencode(target.name)) > _LONGEST_NAME:
        raise OutputError(f"{path}: the file name is too long", f"at most {_LONGEST_NAME} bytes")
    if not os.access(target.parent, os.W_OK):
        raise AccessError(f"{path}: its folder can't be written")
    check_sticky(target)


def check_sticky(path: Path) -> None:
    """Refuse what only another user may replace: in folders like /tmp its owner, or the folder's.

    Raises AccessError.
    """
    try:
        status, folder = os.lstat(path), os.stat(path.parent)
    except FileNotFoundError:
        return
    may_replace = (0, status.st_uid, folder.st_uid)
    if folder.st_mode & stat.S_ISVTX and os.geteuid() not in may_replace:
        raise AccessError(
            f"{path}: belongs to another user, and nobody else can replace it in this folder",
            "choose another name",
        )


def check_distinct(path: str, option: str, taken_paths: Sequence[tuple[str, str]]) -> None:
    """Refuse a file that another option names, too.

    `others` are (what it is, path). Raises OutputError.
    """
    for purpose, taken_path in taken_paths:
        if are_same(path, taken_path):
            raise OutputError(f"{option} {path}: is {purpose}", f"choose another name for {option}")


def write_atomically(path: str, content: bytes) -> None:
    """Replace a file by new content, durably: its name leads to the old or to the new one.

    Streams are written to.

    Raises StorageError, AccessError, InputMissingError with the file's name.
    """
    try:
        if is_stream(path):
            _write_to_stream(path, content)
        else:
            _replace(Path(path), content)
    except OSError as error:
        raise _named(error, path) from None


def _named(error: OSError, path: str) -> EmbedcliError:
    error.filename = path  # not the unfinished file's
    return from_os_error(error)


def _write_to_stream(path: str, content: bytes) -> None:
    number = descriptor_of(path)
    # Opening /dev/stderr anew would fail for a socket, and start at offset 0 of a redirected file.
    stream = os.dup(number) if number is not None else os.open(path, os.O_WRONLY | os.O_APPEND)
    with open(stream, "wb") as opened:
        opened.write(content)


def _replace(target: Path, content: bytes) -> None:
    unfinished = unfinished_of(target)
    with open(unfinished, "xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    rename(unfinished, target)


def unfinished_of(target: Path) -> Path:
    """Return the name that a file has while it is written, in the same folder; what a killed run
    left there is removed.

    Open it exclusively: anybody who may write in the folder could put a link there.
    """
    unfinished = _unfinished_name(target)
    unfinished.unlink(missing_ok=True)
    return unfinished


def _unfinished_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.embedcli-tmp")


def make_exclusively(path: Path, content: bytes) -> bool:
    """Make a file, if there is none of the name: False where there is.

    It appears with its content: a link of a finished file. Where there are no links it is made
    empty, and filled.
    """
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    unfinished.write_bytes(content)
    try:
        os.link(unfinished, path)
    except FileExistsError:
        return False
    except OSError:
        try:
            with open(path, "xb") as stream:
                stream.write(content)
        except FileExistsError:
            return False
    finally:
        unfinished.unlink()
    return True


def replace_content(path: Path, content: bytes) -> None:
    """Write a small file so that readers see the old content or the new; not durable."""
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)


def rename(source: Path, target: Path) -> None:
    """Rename a file whose content is durable, durably."""
    os.rename(source, target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Make a directory's entries durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parquet_footer(descriptor: int) -> tuple[int, int] | None:
    """Return where the footer of a Parquet file lies, offset and length; None where it has none.

    Such a file ends in its footer, the footer's length (4 bytes, little-endian), and "PAR1". Raises
    OSError.
    """
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, 8, max(0, size - 8))
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or length > size - 8:
        return None
    return size - 8 - length, length


def open_parquet(
    path: Path | str, name: str | None = None, dictionaries: Sequence[str] = ()
) -> "pq.ParquetFile":
    """Open a Parquet file with checksums verified as pages are read; `name` is what people call it.

    Columns in `dictionaries` (paths of leaves, of byte arrays) are read as dictionaries. Pages are
    streamed, so that memory doesn't depend on the size of a row group. Raises DataError where it
    is no Parquet file, encrypted or damaged; OSError as the system gives it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not stat.S_ISREG(os.stat(path).st_mode):  # a FIFO would be waited for
        raise DataError(f"{name or path}: not a regular file")
    try:
        source = pa.OSFile(os.fsencode(path))  # bytes: a file name need not be UTF-8
        return pq.ParquetFile(
            source,
            read_dictionary=list(dictionaries),
            page_checksum_verification=True,
            pre_buffer=False,
            buffer_size=2**20,
        )
    except (pa.ArrowException, OSError, ValueError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise unreadable_parquet(name or str(path), error) from None


def _begins_as_parquet(path: str) -> bool:
    try:
        with open(path, "rb") as stream:
            return stream.read(4) == b"PAR1"
    except OSError:
        return False


def unreadable_parquet(name: str, error: Exception) -> DataError:
    """Return the error for a Parquet file that can't be read."""
    message = " ".join(str(error).split())
    if "ncrypt" in message or "rypto" in message:
        return DataError(f"{name}: the Parquet file is encrypted", "decrypt it first")
    if "magic bytes" in message and not _begins_as_parquet(name):
        return DataError(f"{name}: is no Parquet file", "encode writes files of vectors")
    return DataError(
        f"{name}: not a readable Parquet file: {message}", "the file is damaged or cut off"
    )
