"""From the names people give to files that can be read at any offset: globs, folders, magic bytes,
decompression.
"""

import errno
import glob
import gzip
import json
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa

from embedcli.config import STDIN, InputFormat
from embedcli.errors import DataError, InputMissingError, from_os_error
from embedcli.files import descriptor_of
from embedcli.records import InputFile
from embedcli.sources.formats import FORMATS, format_of_name, suffixes
from embedcli.sources.identity import changed, identity_of

_BLOCK = 2**20
# Enough to see that a file is no text.
_HEAD_BYTES = 4096
# Text is packed to a tenth or a fiftieth; what says the same again and again, to a thousandth.
_MAX_RATIO = 200
_FREE_BYTES = 2**26
_ZSTD_SKIPPABLE = tuple(bytes([0x50 + i]) + b"\x2a\x4d\x18" for i in range(16))
_ARROW_STREAM = b"\xff\xff\xff\xff"
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


@dataclass(frozen=True)
class FoundFiles:
    """The files that the inputs' names stand for, in order.

    left_out: what embedcli wrote itself, in folders and among what patterns match.
    """

    names: list[str]
    left_out: list[str] = field(default_factory=list)


def find(paths: Sequence[str], is_output: Callable[[str], bool] = lambda path: False) -> FoundFiles:
    """Expand folders and globs into file names, sorted within each; `-` stays.

    What `is_output` tells to be embedcli's own is left out, unless it is named itself. Raises
    InputMissingError where a name matches nothing, DataError where a file is named twice.
    """
    left_out: list[str] = []
    names = [name for path in paths for name in _expand(path, is_output, left_out)]
    seen: dict[object, str] = {}
    for name in names:
        key: object = STDIN
        if name != STDIN:
            status = os.stat(name)
            key = (status.st_dev, status.st_ino)
        if key in seen:
            raise DataError(f"{seen[key]} and {name} are the same file", "name each input once")
        seen[key] = name
    return FoundFiles(names, left_out)


def _expand(path: str, is_output: Callable[[str], bool], left_out: list[str]) -> list[str]:
    if path == STDIN:
        return [path]
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        matches = _matches(path, is_output, left_out)
        return [name for match in matches for name in _expand(match, is_output, left_out)]
    except OSError as error:
        raise from_os_error(error, path) from None
    if not stat.S_ISDIR(mode):
        return [path]
    outputs: list[str] = []
    inside = [] if is_output(path) else sorted(_walk(path, is_output, outputs))
    if inside:
        left_out += outputs
        return inside
    # A folder of embedcli's own files alone is named on purpose.
    inside = sorted(_walk(path, lambda inner: False, outputs))
    if not inside:
        raise InputMissingError(
            f"{path}: the folder holds no input file", f"looked for *{', *'.join(suffixes())}"
        )
    return inside


def _matches(pattern: str, is_output: Callable[[str], bool], left_out: list[str]) -> list[str]:
    """Return what a pattern matches, without embedcli's own files unless it matches only those.

    Raises InputMissingError.
    """
    matches = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else []
    if not matches:
        raise InputMissingError(f"{pattern}: no such file") from None
    outputs = list(filter(is_output, matches))
    inputs = [match for match in matches if match not in outputs]
    if not inputs:
        return matches
    left_out += outputs
    return inputs


def _walk(folder: str, is_output: Callable[[str], bool], left_out: list[str]) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise from_os_error(error, folder)

    for where, folders, names in os.walk(folder, onerror=fail):
        visible = [name for name in folders if not name.startswith((".", "_"))]
        outputs = [name for name in visible if is_output(os.path.join(where, name))]
        left_out += [os.path.join(where, name) for name in outputs]
        folders[:] = [name for name in visible if name not in outputs]
        for name in names:
            if not name.endswith(suffixes()) or name.startswith((".", "_")):
                continue
            path = os.path.join(where, name)
            if is_output(path):
                left_out.append(path)
            else:
                yield path


def open_input(
    name: str, spool: Path, limit: int | None = None, text_format: InputFormat = "auto"
) -> InputFile:
    """Look into a file and make it readable at any offset; pipes and compressed files are written
    under `spool`.

    The content decides the format; of files of lines their name does, unless `text_format` says it.
    Raises AccessError, InputMissingError,
    StorageError; DataError where it has more than `limit` bytes.
    """
    shown = "<stdin>" if name == STDIN else name
    try:
        # A descriptor is another one in a worker, and a pipe can be read once: both are copied.
        is_plain = descriptor_of(name) is None and stat.S_ISREG(os.stat(name).st_mode)
        path = name if is_plain else _copy(name, spool, limit)
        _check_size(shown, os.stat(path).st_size, limit)
        identity = identity_of(os.stat(path))
        head = _head(path)
        if _is_compressed(head):
            unpacked = _decompress(path, shown, head, f"{spool}.plain", identity, limit)
            path, head, is_plain = unpacked, _head(unpacked), False
        if head.startswith(_ARROW_STREAM):
            path = _as_arrow_file(path, shown, f"{spool}.arrow")
            head, is_plain = _head(path), False
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)  # the disk of the copy
        raise from_os_error(error, str(spool) if is_full else shown) from None
    return _input_file(shown, path, head, identity if is_plain else (), text_format)


def _as_arrow_file(path: str, name: str, target: str) -> str:
    """Write a stream of Arrow, as `-o -` and datasets' save_to_disk write it, as a file of Arrow,
    which can be read at any row. Raises DataError.
    """
    _check_dataset(Path(name).parent)
    options = pa.ipc.IpcWriteOptions(unify_dictionaries=True)
    try:
        with (
            pa.OSFile(path) as source,
            pa.ipc.open_stream(source) as stream,
            pa.ipc.new_file(target, stream.schema, options=options) as writer,
        ):
            for batch in stream:
                writer.write_batch(batch)
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split())
        raise DataError(
            f"{name}: not a readable stream of Arrow: {reason}", "it is damaged or cut off"
        ) from None
    return target


def _check_dataset(folder: Path) -> None:
    """Refuse a folder of datasets' save_to_disk whose rows are chosen by a list beside them.

    Raises DataError.
    """
    try:
        state = json.loads((folder / "state.json").read_bytes())
        chosen = bool(state.get("_indices_files") or state.get("_indices_data_files"))
    except (OSError, ValueError, AttributeError):
        return
    if chosen:
        raise DataError(
            f"{folder}: holds more rows than the dataset, which names some of them",
            "write them: datasets.load_from_disk(FOLDER).flatten_indices().save_to_disk(OTHER)",
        )


def _input_file(
    name: str, path: str, head: bytes, identity: tuple[int, ...], text_format: InputFormat
) -> InputFile:
    format_name = _format(head, _tail(path), name)
    if format_name == "jsonl" and text_format != "auto":
        format_name = text_format
    elif format_name == "jsonl" and not head.lstrip().startswith(b"{"):
        format_name = format_of_name(name)
    return InputFile(name, path, format_name, FORMATS[format_name].place, identity)


def _check_size(name: str, size: int, limit: int | None) -> None:
    if limit is not None and size > limit:
        raise DataError(
            f"{name}: the input has more bytes than --max-input-bytes allows",
            "raise it, or give fewer files",
        )


def _copy(name: str, spool: Path, limit: int | None) -> str:
    if name == STDIN and sys.stdin is None:
        raise InputMissingError("<stdin>: standard input is closed")
    with open(sys.stdin.fileno() if name == STDIN else name, "rb", closefd=name != STDIN) as stream:
        return _write(_blocks(stream.read, partial(_check_size, name, limit=limit)), str(spool))


def _write(blocks: Iterable[bytes], path: str) -> str:
    with open(path, "xb") as target:
        for block in blocks:
            target.write(block)
    return path


def _check_ratio(name: str, size: int, compressed: int) -> None:
    if size > max(_FREE_BYTES, _MAX_RATIO * compressed):
        raise DataError(
            f"{name}: {compressed:,} bytes hold more than {_MAX_RATIO} times as many",
            "if that is right, decompress the file first",
        )


def _blocks(read: Callable[[int], bytes], check: Callable[[int], None]) -> Iterator[bytes]:
    """Yield what `read` gives until it ends; `check` sees the bytes so far before each block."""
    total = 0
    while block := read(_BLOCK):
        total += len(block)
        check(total)
        yield block


def _head(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read(_HEAD_BYTES)


def _tail(path: str) -> bytes:
    with open(path, "rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - _HEAD_BYTES))
        return stream.read(_HEAD_BYTES)


def _is_compressed(head: bytes) -> bool:
    return head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", *_ZSTD_SKIPPABLE))


def _decompress(
    path: str,
    name: str,
    head: bytes,
    target: str,
    identity: tuple[int, ...],
    limit: int | None,
) -> str:
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
            compressed = os.fstat(stream.fileno()).st_size

            def check(size: int) -> None:
                _check_size(name, size, limit)
                _check_ratio(name, size, compressed)

            _write(_blocks(source.read, check), target)
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


def _format(head: bytes, tail: bytes, name: str) -> str:
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
    if tail.endswith(b"PAR1"):
        raise DataError(f"{name}: a damaged Parquet file (no PAR1 at its start)")
    return "jsonl"
