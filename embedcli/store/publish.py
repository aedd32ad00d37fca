"""All at once under the visible name: a file by a rename, a directory by a rename or an exchange."""

import ctypes
import errno
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from embedcli import files
from embedcli.errors import DataError, OutputError
from embedcli.records import Reject
from embedcli.store import ownership, parts, seal, staging
from embedcli.store.reuse import Block, Shelf

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def publish_file(
    stage: staging.Staging, schema: pa.Schema, provenance: dict[str, Any], blocks: Sequence[Block]
) -> None:
    """Join row groups into one file and rename it to the output's name. Raises StorageError, DataError."""
    assert stage.output is not None
    shelf, whole = Shelf(), stage.unfinished()
    rows = parts.write(whole, schema, provenance, (shelf.table(block) for block in blocks))
    if rows != sum(block.rows for block in blocks):
        raise DataError(f"{stage.path}: {rows} rows were joined of {sum(block.rows for block in blocks)}")
    ownership.check_vectors(stage.output)  # once more: hours may have passed
    files.rename(whole, stage.output)


def publish_directory(
    stage: staging.Staging, schema: pa.Schema, provenance: dict[str, Any], wanted: dict[str, int]
) -> None:
    """Put the directory of parts in the output's place; `wanted` gives the rows of each part by its name.

    An existing directory is exchanged in one step, so that its name always leads to a whole one.
    Raises OutputError where the file system can't exchange directories.
    """
    assert stage.output is not None
    if not wanted:  # an empty corpus still has columns
        parts.write(stage.part(0), schema, provenance, [])
        wanted = {stage.part(0).name: 0}
    for found in stage.parts.iterdir():
        if found.name not in wanted:
            found.unlink()
    manifest = {**provenance, "parts": [{"file": name, "rows": rows} for name, rows in wanted.items()]}
    content = seal.sealed(staging.as_json({**manifest, "sha256": seal.EMPTY}), parts.MANIFEST_MARK)
    staging.write_durably(stage.unfinished(), stage.parts / parts.MANIFEST, content)
    ownership.check_vectors(stage.output)  # once more: hours may have passed
    if stage.output.exists():
        _exchange(stage.parts, stage.output)
    else:
        os.rename(stage.parts, stage.output)
    files.sync(stage.output.parent)


def _exchange(one: Path, other: Path) -> None:
    """Swap two directories in one step (Linux, renameat2)."""
    library = ctypes.CDLL(None, use_errno=True)
    done = library.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    if done == 0:
        return
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        raise OutputError(
            f"{other}: this file system can't exchange directories", f"remove {other}, and run the same command again"
        )
    raise OSError(number, os.strerror(number), str(other))


def manifest_of(directory: Path) -> dict[str, Any]:
    """What a dataset directory says of its making. Raises DataError where it is none of ours."""
    try:
        found = json.loads((directory / parts.MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{directory}: no readable {parts.MANIFEST}: {error}") from None
    return parts.checked(found)


def keep(source: Path, target: Path) -> None:
    """A part that stays as it is, under another name: linked where the file system can, else copied."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
        files.sync(target.parent)
    except OSError:
        unfinished = target.with_suffix(".tmp")
        shutil.copyfile(source, unfinished)
        with open(unfinished, "rb") as stream:
            os.fsync(stream.fileno())
        files.rename(unfinished, target)


def write_rejects(rejects: Sequence[Reject], target: Path) -> None:
    """Put rejected rows under a name, as JSON lines; without any, an older run's file is removed."""
    path = str(target)
    if not rejects:
        if not files.is_stream(path) and ownership.are_rejects(path):
            target.unlink()
        return
    ownership.check_replaceable(path, "--rejects", ownership.are_rejects)
    lines = (json.dumps({k: v for k, v in _as_dict(one).items() if v not in (None, "")}) for one in rejects)
    files.write_atomically(path, "".join(f"{line}\n" for line in lines).encode())


def _as_dict(reject: Reject) -> dict[str, Any]:
    return {
        ownership.KIND: ownership.REJECT,
        "file": reject.file,
        reject.place: reject.number,
        "offset": reject.offset,
        "code": reject.fault.code,
        "reason": reject.fault.reason,
        "excerpt": reject.excerpt,
    }
