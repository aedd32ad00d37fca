"""Publishing: all at once under the visible name, a file by a rename, a directory by a rename or an
exchange.
"""

import ctypes
import errno
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from embedcli import files
from embedcli.config import REJECTS_NAME
from embedcli.errors import DataError, StorageError
from embedcli.records import Reject
from embedcli.store import digest, lease, manifest, ownership, parts, staging
from embedcli.store.provenance import Provenance
from embedcli.store.vector_file import RowGroup, RowGroupCache

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def publish_file(
    stage: staging.Staging, schema: pa.Schema, provenance: Provenance, groups: Sequence[RowGroup]
) -> None:
    """Join row groups into one file and rename it to the output's name.

    Raises StorageError, DataError, OutputError.
    """
    assert stage.output is not None
    cache = RowGroupCache()
    joined = stage.unfinished()
    written = parts.write(joined, schema, provenance, (cache.table(group) for group in groups))
    expected = sum(group.rows for group in groups)
    if written.rows != expected:
        raise DataError(f"{stage.name}: {written.rows} rows were joined of {expected}")
    _put_in_place(stage, joined, stage.output)


def publish_directory(
    stage: staging.Staging,
    schema: pa.Schema,
    provenance: Provenance,
    entries: Sequence[manifest.PartEntry],
    rejects: bytes = b"",
) -> None:
    """Put the directory of parts in the output's place, with the list of its rejected rows.

    An existing directory is exchanged in one step where the file system can, so that its name always
    leads to a whole one.
    """
    assert stage.output is not None
    if not entries:  # an empty corpus still has columns
        entries = [put_part(stage, 0, schema, provenance, [])]
    listed = {entry.file for entry in entries}
    for path in stage.parts.iterdir():
        if path.name not in listed:
            path.unlink()
    if rejects:
        staging.write_durably(stage.unfinished(), stage.parts / REJECTS_NAME, rejects)
    content = manifest.to_bytes(provenance, entries)
    staging.write_durably(stage.unfinished(), stage.parts / manifest.NAME, content)
    _put_in_place(stage, stage.parts, stage.output)


def _put_in_place(stage: staging.Staging, new: Path, output: Path) -> None:
    """Publish a file or a directory in one step; what it replaces is gone, or in staging.

    What is about to be published is written down before: whoever finds the staging directory knows
    whether that had happened. Raises StorageError where the output's folder is gone.
    """
    if not output.parent.is_dir():
        raise StorageError(
            f"{output.parent}: the folder is gone",
            "if it was renamed, the same command continues under its new name",
        )
    # Once more: hours may have passed.
    ownership.check_vectors(output)
    lease.check(stage.path, output, stage.token)
    stage.intend(manifest.digest_of(new))
    if not new.is_dir() or not output.exists():
        files.rename(new, output)
    elif _exchange(new, output):
        files.sync(output.parent)
    else:
        # In two steps: for a moment there is none. Killed then, the next run puts the former back.
        files.rename(output, stage.former)
        files.rename(new, output)


def can_exchange(folder: Path) -> bool:
    """Tell whether a file system can swap directories in one step, by two empty ones."""
    names = [folder / f"exchange-{secrets.token_hex(8)}" for _ in range(2)]
    for name in names:
        name.mkdir()
    try:
        return _exchange(*names)
    finally:
        for name in names:
            name.rmdir()


def _exchange(path: Path, second_path: Path) -> bool:
    """Swap two directories in one step (Linux, renameat2); False where the file system can't.

    Raises OSError.
    """
    library = ctypes.CDLL(None, use_errno=True)
    failed = library.renameat2(
        _AT_FDCWD, os.fsencode(path), _AT_FDCWD, os.fsencode(second_path), _RENAME_EXCHANGE
    )
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(second_path))


def put_part(
    stage: staging.Staging,
    index: int,
    schema: pa.Schema,
    provenance: Provenance,
    tables: Sequence[pa.Table],
) -> manifest.PartEntry:
    """Write a unit's part. Its rename makes the unit done. Raises StorageError."""
    unfinished = stage.unfinished()
    written = parts.write(unfinished, schema, provenance, tables, stage.output is not None)
    target = stage.part(index, written.sha256)
    files.rename(unfinished, target)
    return manifest.PartEntry(target.name, written.rows, written.sha256)


def keep_part(stage: staging.Staging, index: int, source: Path, rows: int) -> manifest.PartEntry:
    """Make a part that stays as it is a unit's: linked where the file system can, else copied.

    Raises DataError where it carries no digest.
    """
    sha256 = digest.read(source, parts.DIGEST_MARK)
    if sha256 is None:
        raise DataError(f"{source}: no seal: rewritten by another program, or damaged")
    target = stage.part(index, sha256)
    if target != source:
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
            files.sync(target.parent)
        except OSError:
            unfinished = stage.unfinished()
            shutil.copyfile(source, unfinished)
            with open(unfinished, "rb") as stream:
                os.fsync(stream.fileno())
            files.rename(unfinished, target)
    return manifest.PartEntry(target.name, rows, sha256)


def rejects_as_bytes(rejects: Sequence[Reject]) -> bytes:
    """Return rejected rows as JSON lines."""
    return "".join(json.dumps(_as_json(reject)) + "\n" for reject in rejects).encode()


def write_rejects(content: bytes, path: str) -> None:
    """Write what `rejects_as_bytes` gives; without any rows, remove the file of an earlier run."""
    if not content:
        if not files.is_stream(path) and ownership.are_rejects(path):
            Path(path).unlink()
        return
    ownership.check_replaceable(path, "--rejects", ownership.are_rejects)
    files.write_atomically(path, content)


def _as_json(reject: Reject) -> dict[str, object]:
    value = {
        ownership.KIND: ownership.REJECT,
        "file": reject.file,
        reject.place: reject.number,
        "offset": reject.offset,
        "code": reject.fault.code,
        "reason": reject.fault.reason,
        "excerpt": reject.excerpt,
    }
    return {key: entry for key, entry in value.items() if entry not in (None, "")}
