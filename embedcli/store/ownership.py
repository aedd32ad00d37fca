"""What embedcli may replace: files that it wrote itself, by the mark that each kind carries, and
empty ones.

vectors          the key `embedcli` in the Parquet metadata
dataset folder   a whole, sealed manifest, and nothing beside the parts that it names
report           "kind": "embedcli report"
rejects          "kind": "embedcli reject" in the first line
changes          "kind": "embedcli change" in the first line
results          the key `embedcli.results`, or JSON rows with our columns
picture          the name of the program among its properties
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from embedcli import files
from embedcli.config import REJECTS_NAME
from embedcli.errors import DataError, OutputError
from embedcli.store import manifest, parts
from embedcli.store.vector_file import engine_files, holds_provenance

KIND = "kind"
REPORT = "embedcli report"
REJECT = "embedcli reject"
CHANGE = "embedcli change"
# A report and a line of rejects are far smaller than this; nothing larger is read to find out.
_MOST_BYTES = 2**24
_MOST_LINE_BYTES = 2**16
_PART_NAME = re.compile(r"part-\d{6,}-[0-9a-f]+\.parquet")
_NAMED_AT_MOST = 10
# Of Hadoop's committers.
_ENGINES_OWN = {"_SUCCESS", "._SUCCESS.crc"}
# As matplotlib writes the property in PNG, PDF and SVG.
_PICTURE_MARKS = (b"Software\0embedcli", b"/Creator (embedcli)", b"<dc:title>embedcli</dc:title>")


def check_replaceable(path: str, option: str, is_ours: Callable[[str], bool]) -> None:
    """Refuse a file that can't be written, or that embedcli did not write. Streams are never replaced.

    Raises OutputError, AccessError.
    """
    files.check_folder(path)
    if files.is_stream(path) or not Path(path).exists() or files.is_empty(path) or is_ours(path):
        return
    raise OutputError(
        f"{option} {path}: exists and was not written by embedcli",
        "remove it, or choose another name",
    )


def check_vectors(path: Path) -> None:
    """Refuse to put vectors in the place of a file or folder that embedcli did not write.

    Raises OutputError.
    """
    if path.is_dir():
        _check_directory(path)
    elif files.is_stream(str(path)):
        raise OutputError(
            f"{path}: is a pipe or a device, and Parquet needs a file",
            "-o - writes to standard output",
        )
    elif path.exists() and not files.is_empty(str(path)) and not is_vector_file(str(path)):
        raise OutputError(
            f"{path}: exists and was not written by embedcli",
            "remove it, or choose another name with -o",
        )


def _check_directory(path: Path) -> None:
    """Refuse a folder that holds anything which its own manifest doesn't name."""
    names = sorted(entry.name for entry in path.iterdir())
    foreign = sorted(set(names) - (named_by_manifest(path) or named_by_engine(path)))
    if not foreign:
        return
    listed = ", ".join(foreign[:_NAMED_AT_MOST]) + _more(len(foreign) - _NAMED_AT_MOST)
    raise OutputError(
        f"{path}: holds files that embedcli did not write there: {listed}",
        "move them away, or choose another name with -o",
    )


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def named_by_manifest(directory: Path) -> set[str]:
    """Return the names in a dataset folder that its manifest accounts for; none where the manifest
    isn't whole.
    """
    try:
        if not manifest.is_whole(directory):
            return set()
        value = json.loads((directory / manifest.NAME).read_bytes())
        listed = [part["file"] for part in value["parts"]]
        has_rejects = bool(value["counts"]["rejects_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {
        manifest.NAME,
        *([REJECTS_NAME] if has_rejects else []),
        *(name for name in listed if isinstance(name, str) and _PART_NAME.fullmatch(name)),
    }


def named_by_engine(directory: Path) -> set[str]:
    """Return the names of the files that an engine wrote into a folder with our provenance, and of
    what it keeps beside them; none where another file is among them.
    """
    names = {path.name for path in engine_files(directory)}
    kept = {f".{name}.crc" for name in names} | _ENGINES_OWN
    return names | {entry.name for entry in directory.iterdir() if names and entry.name in kept}


def is_vector_file(path: str) -> bool:
    """Tell whether a file is Parquet that carries our provenance, of whatever format version."""
    # Few of an input's thousands of files have it, and most can be told without opening them.
    return parts.METADATA_KEY in _footer(path) and holds_provenance(path)


def is_report(path: str) -> bool:
    """Tell whether a file is a report of a run."""
    return _kind_of(_head(path)) == REPORT


def are_rejects(path: str) -> bool:
    """Tell whether a file holds rejected rows."""
    return _kind_of_lines(path) == REJECT


def are_changes(path: str) -> bool:
    """Tell whether a file holds what an update changed."""
    return _kind_of_lines(path) == CHANGE


def _kind_of_lines(path: str) -> Any:
    try:
        with open(path, "rb") as stream:
            return _kind_of(stream.readline(_MOST_LINE_BYTES))
    except OSError:
        return None


def are_results(path: str) -> bool:
    """Tell whether a file is a table of results."""
    if _has_key(path, parts.RESULTS_KEY):
        return True
    rows = _json(_head(path))
    return (
        isinstance(rows, list)
        and bool(rows)
        and _has_columns(rows[0], ("query_id", "query", "best"))
    )


def is_picture(path: str) -> bool:
    """Tell whether a file is a picture that we drew, by the property that names the program."""
    content = _head(path)
    return any(mark in content for mark in _PICTURE_MARKS)


def is_output(path: str) -> bool:
    """Tell whether a file or folder is what a run writes: vectors, rejected rows, a report."""
    if Path(path).is_dir():
        return bool(named_by_manifest(Path(path)) or named_by_engine(Path(path)))
    if path.endswith(".parquet"):
        return is_vector_file(path)
    return _kind_of_lines(path) in (REJECT, CHANGE) or (path.endswith(".json") and is_report(path))


def _has_key(path: str, key: bytes) -> bool:
    if key not in _footer(path):
        return False
    try:
        with files.open_parquet(path) as file:
            return key in (file.schema_arrow.metadata or {})
    except (DataError, OSError):
        return False


def _footer(path: str) -> bytes:
    """Return the footer of a Parquet file; nothing where it is none."""
    try:
        with open(path, "rb") as stream:
            start, length = files.parquet_footer(stream.fileno()) or (0, 0)
            return os.pread(stream.fileno(), length, start)
    except OSError:
        return b""


def _head(path: str, count: int = _MOST_BYTES) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(count)
    except OSError:
        return b""


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _kind_of(content: bytes) -> Any:
    value = _json(content)
    return value.get(KIND) if isinstance(value, dict) else None


def _has_columns(row: object, names: Sequence[str]) -> bool:
    return isinstance(row, dict) and all(name in row for name in names)
