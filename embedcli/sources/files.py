"""From the names people give to files that can be read at any offset: globs, folders, magic bytes,
decompression.
"""

import glob
import gzip
import os
import stat
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from embedcli.config import STDIN
from embedcli.errors import DataError, InputMissingError, from_os_error
from embedcli.files import descriptor_of
from embedcli.records import InputFile
from embedcli.sources.formats import FORMATS, suffixes
from embedcli.sources.identity import changed, identity_of

_BLOCK = 2**20
_ZSTD_SKIPPABLE = tuple(bytes([0x50 + i]) + b"\x2a\x4d\x18" for i in range(16))
_REFUSED = {
    b"PARE": "it is an encrypted Parquet file",
    b"BZh": "it is compressed with bzip2: decompress it first",
    b"\xfd7zXZ": "it is compressed with xz: decompress it first",
    b"PK\x03\x04": "it is a zip archive: unpack it first",
    b"\x1f\x8b": "it is compressed twice: decompress it once first",
    b"\x28\xb5\x2f\xfd": "it is compressed twice: decompress it once first",
    b"\xff\xfe": "it is not UTF-8 (it starts with a UTF-16 or UTF-32 mark): convert it with iconv -t UTF-8",
    b"\xfe\xff": "it is not UTF-8 (it starts with a UTF-16 mark): convert it with iconv -t UTF-8",
    b"\x00\x00\xfe\xff": "it is not UTF-8 (it starts with a UTF-32 mark): convert it with iconv -t UTF-8",
}


def find(paths: Sequence[str]) -> list[str]:
    """Expand folders and globs into file names, sorted within each; `-` stays.

    Raises InputMissingError where a name matches nothing, DataError where a file is named twice.
    """
    names = [name for path in paths for name in _expand(path)]
    seen: dict[object, str] = {}
    for name in names:
        key: object = STDIN
        if name != STDIN:
            status = os.stat(name)
            key = (status.st_dev, status.st_ino)
        if key in seen:
            raise DataError(f"{seen[key]} and {name} are the same file", "name each input once")
        seen[key] = name
    return names


def _expand(path: str) -> list[str]:
    if path == STDIN:
        return [path]
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        matches = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else []
        if not matches:
            raise InputMissingError(f"{path}: no such file") from None
        return [name for match in matches for name in _expand(match)]
    except OSError as error:
        raise from_os_error(error, path) from None
    if not stat.S_ISDIR(mode):
        return [path]
    inside = sorted(_walk(path))
    if not inside:
        raise InputMissingError(
            f"{path}: the folder holds no input file", f"looked for *{', *'.join(suffixes())}"
        )
    return inside


def _walk(folder: str) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise from_os_error(error, folder)

    for where, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        yield from (
            os.path.join(where, n)
            for n in names
            if n.endswith(suffixes()) and not n.startswith((".", "_"))
        )


def open_input(name: str, spool: Path) -> InputFile:
    """Look into a file and make it readable at any offset; pipes and compressed files are written
    under `spool`.

    The content decides the format, never the name. Raises AccessError, InputMissingError,
    StorageError, DataError.
    """
    shown = "<stdin>" if name == STDIN else name
    try:
        # A descriptor is another one in a worker, and a pipe can be read once: both are copied.
        is_plain = descriptor_of(name) is None and stat.S_ISREG(os.stat(name).st_mode)
        path = name if is_plain else _copy(name, spool)
        identity = identity_of(os.stat(path))
        head = _head(path)
        if _is_compressed(head):
            unpacked = _decompress(path, shown, head, f"{spool}.plain", identity)
            return _input_file(shown, unpacked, _head(unpacked), ())
    except OSError as error:
        raise from_os_error(error, shown) from None
    return _input_file(shown, path, head, identity if is_plain else ())


def _input_file(name: str, path: str, head: bytes, identity: tuple[int, ...]) -> InputFile:
    format_name = _format(head, name)
    return InputFile(name, path, format_name, FORMATS[format_name].place, identity)


def _copy(name: str, spool: Path) -> str:
    if name == STDIN and sys.stdin is None:
        raise InputMissingError("<stdin>: standard input is closed")
    with open(sys.stdin.fileno() if name == STDIN else name, "rb", closefd=name != STDIN) as stream:
        return _write(iter(lambda: stream.read(_BLOCK), b""), str(spool))


def _write(blocks: Iterable[bytes], path: str) -> str:
    with open(path, "xb") as target:
        for block in blocks:
            target.write(block)
    return path


def _head(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read(8)


def _is_compressed(head: bytes) -> bool:
    return head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", *_ZSTD_SKIPPABLE))


def _decompress(path: str, name: str, head: bytes, target: str, identity: tuple[int, ...]) -> str:
    """Write out what a gzip or zstd file holds; damage becomes DataError, never a traceback or a
    short corpus.

    Raises InputChangedError where the file changes meanwhile, which looks like damage.
    """
    kind = "gzip" if head.startswith(b"\x1f\x8b") else "zstd"
    try:
        with open(path, "rb") as stream:
            source = (
                gzip.GzipFile(fileobj=stream)
                if kind == "gzip"
                else pa.CompressedInputStream(stream, "zstd")
            )
            _write(iter(lambda: source.read(_BLOCK), b""), target)
            if identity_of(os.fstat(stream.fileno())) != identity:
                raise changed(InputFile(name, path, kind, "line"), "while it was decompressed")
            return target
    except (EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if identity_of(os.stat(path)) != identity:
            raise changed(
                InputFile(name, path, kind, "line"), "while it was decompressed"
            ) from None
        raise DataError(
            f"{name}: damaged {kind} stream: {error}", "the file is cut off or was changed"
        ) from None


def _format(head: bytes, name: str) -> str:
    for magic, reason in _REFUSED.items():
        if head.startswith(magic):
            raise DataError(f"{name}: {reason}")
    for format_name, row in FORMATS.items():
        if row.magic and head.startswith(row.magic):
            return format_name
    if name.endswith(".parquet") and not head.lstrip().startswith(b"{"):
        raise DataError(f"{name}: it is not a Parquet file (no PAR1 at its start)")
    if b"\0" in head[:4]:
        raise DataError(
            f"{name}: it is not UTF-8 text (NUL bytes at its start)",
            "convert it with iconv -t UTF-8",
        )
    return "jsonl"
