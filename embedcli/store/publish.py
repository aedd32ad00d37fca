"""Publishing: all at once under the visible name, a file by a rename, a directory by a rename or an
exchange.
"""

import ctypes
import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from embedcli import files
from embedcli.errors import DataError, OutputError
from embedcli.records import Reject
from embedcli.store import manifest, ownership, parts, staging
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
    rows = parts.write(joined, schema, provenance, (cache.table(group) for group in groups))
    expected = sum(group.rows for group in groups)
    if rows != expected:
        raise DataError(f"{stage.name}: {rows} rows were joined of {expected}")
    ownership.check_vectors(stage.output)  # once more: hours may have passed
    files.rename(joined, stage.output)


def publish_directory(
    stage: staging.Staging,
    schema: pa.Schema,
    provenance: Provenance,
    rows_by_part: Mapping[str, int],
) -> None:
    """Put the directory of parts in the output's place.

    An existing directory is exchanged in one step, so that its name always leads to a whole one.
    Raises OutputError where the file system can't exchange directories.
    """
    assert stage.output is not None
    if not rows_by_part:  # an empty corpus still has columns
        parts.write(stage.part(0), schema, provenance, [])
        rows_by_part = {stage.part(0).name: 0}
    for path in stage.parts.iterdir():
        if path.name not in rows_by_part:
            path.unlink()
    content = manifest.to_bytes(provenance, rows_by_part)
    staging.write_durably(stage.unfinished(), stage.parts / manifest.NAME, content)
    ownership.check_vectors(stage.output)  # once more: hours may have passed
    if stage.output.exists():
        _exchange(stage.parts, stage.output)
    else:
        os.rename(stage.parts, stage.output)
    files.sync(stage.output.parent)


def _exchange(path: Path, second_path: Path) -> None:
    """Swap two directories in one step (Linux, renameat2)."""
    library = ctypes.CDLL(None, use_errno=True)
    failed = library.renameat2(
        _AT_FDCWD, os.fsencode(path), _AT_FDCWD, os.fsencode(second_path), _RENAME_EXCHANGE
    )
    if not failed:
        return
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        raise OutputError(
            f"{second_path}: this file system can't exchange directories",
            f"remove {second_path}, and run the same command again",
        )
    raise OSError(number, os.strerror(number), str(second_path))


def keep_part(source: Path, target: Path) -> None:
    """Put a part that stays as it is under another name: linked where the file system can, else
    copied.
    """
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


def write_rejects(rejects: Sequence[Reject], path: str) -> None:
    """Write rejected rows as JSON lines; without any, remove the file of an earlier run."""
    if not rejects:
        if not files.is_stream(path) and ownership.are_rejects(path):
            Path(path).unlink()
        return
    ownership.check_replaceable(path, "--rejects", ownership.are_rejects)
    lines = [json.dumps(_as_json(reject)) + "\n" for reject in rejects]
    files.write_atomically(path, "".join(lines).encode())


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
