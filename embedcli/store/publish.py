"""Publishing: all at once under the visible name, a file by a rename, a directory by a rename or an
exchange.
"""

import bisect
import ctypes
import errno
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from embedcli import files
from embedcli.config import REJECTS_NAME
from embedcli.errors import DataError, StorageError, from_os_error
from embedcli.records import Reject
from embedcli.store import digest, joining, manifest, ownership, parts, staging
from embedcli.store.provenance import Provenance
from embedcli.store.vector_file import RowGroup

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def publish_file(
    stage: staging.Staging, schema: pa.Schema, provenance: Provenance, groups: Sequence[RowGroup]
) -> None:
    """Join row groups into one file and rename it to the output's name.

    Raises StorageError, DataError, OutputError.
    """
    assert stage.output is not None
    joined = stage.unfinished()
    try:
        with parts.sealed(joined) as stream:
            rows = joining.join(stream, parts.empty_file(schema, provenance), groups)
    except OSError as error:
        raise from_os_error(error, str(joined)) from None
    parts.check_written(joined, rows)
    _put_in_place(stage, joined, stage.output)


class PartSource(NamedTuple):
    """A part of a new directory: where it lies, its rows, and its place in the earlier directory if
    it is a part of that.
    """

    path: Path
    rows: int
    order: int | None = None


def publish_directory(
    stage: staging.Staging,
    schema: pa.Schema,
    provenance: Provenance,
    sources: Sequence[PartSource],
    rejects: bytes = b"",
) -> None:
    """Put a directory of these parts in the output's place, with the list of its rejected rows.

    Parts are linked: one that stays is neither read nor written, and keeps its name. An existing
    directory is exchanged in one step where the file system can, so that its name always leads to a
    whole one. Raises DataError where a part carries no digest, StorageError.
    """
    assert stage.output is not None
    if not sources:  # an empty corpus still has columns
        part = put_part(stage, 0, schema, provenance, [])
        sources = [PartSource(stage.parts / part.file, 0)]
    new = stage.new
    new.mkdir()
    orders = order_keys([source.order for source in sources])
    entries = [
        _link_part(stage, source.path, new, order, source.rows)
        for source, order in zip(sources, orders, strict=True)
    ]
    if rejects:
        staging.write_durably(stage.unfinished(), new / REJECTS_NAME, rejects)
    content = manifest.to_bytes(provenance, entries)
    staging.write_durably(stage.unfinished(), new / manifest.NAME, content)
    _put_in_place(stage, new, stage.output)


# Between new parts lies room for as many more.
_ORDER_STEP = 100_000


def order_keys(earlier: Sequence[int | None]) -> list[int]:
    """Return a number for each part, each greater than the one before.

    `earlier` has those of parts that stay: as many as are in order keep theirs, so that a part that
    is inserted renames no other. Where there is no room between two, all are numbered anew.
    """
    kept = _longest_increasing(earlier)
    keys: list[int] = []
    last, start = 0, 0
    for index in [*kept, len(earlier)]:
        count = index - start
        key = earlier[index] if index < len(earlier) else last + (count + 1) * _ORDER_STEP
        assert key is not None
        if key - last <= count:
            return [(number + 1) * _ORDER_STEP for number in range(len(earlier))]
        keys += [last + (key - last) * (number + 1) // (count + 1) for number in range(count)]
        keys.append(key)
        last, start = key, index + 1
    return keys[:-1]


def _longest_increasing(values: Sequence[int | None]) -> list[int]:
    """Return the indexes of a longest increasing selection of the values that are there."""
    # The least value that ends a selection of each length, its index, and the index before it.
    ends: list[int] = []
    indexes: list[int] = []
    before: dict[int, int | None] = {}
    for index, value in enumerate(values):
        if value is None:
            continue
        length = bisect.bisect_left(ends, value)
        before[index] = indexes[length - 1] if length else None
        ends[length:] = [value]
        indexes[length:] = [index]
    selection: list[int] = []
    index_or_none = indexes[-1] if indexes else None
    while index_or_none is not None:
        selection.append(index_or_none)
        index_or_none = before[index_or_none]
    return selection[::-1]


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
    assert stage.lease is not None
    stage.lease.check()
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
    # Its content is durable, its name soon: the folder isn't synced, which halves the syncs of a
    # run. A power cut may cost the names of the last seconds; those units are done again. What is
    # published is synced with its folders.
    os.rename(unfinished, target)
    return manifest.PartEntry(target.name, written.rows, written.sha256)


def keep_part(stage: staging.Staging, index: int, source: Path, rows: int) -> manifest.PartEntry:
    """Make a part of an interrupted run a unit's. Raises DataError where it carries no digest."""
    return _link_part(stage, source, stage.parts, index, rows)


def _link_part(
    stage: staging.Staging, source: Path, folder: Path, order: int, rows: int
) -> manifest.PartEntry:
    """Put a part into a folder as it is: linked where the file system can, else copied.

    Raises DataError where it carries no digest.
    """
    sha256 = digest.read(source, parts.DIGEST_MARK)
    if sha256 is None:
        raise DataError(f"{source}: no seal: rewritten by another program, or damaged")
    target = folder / parts.part_name(order, sha256)
    if target != source:
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
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
        "id": reject.id,
        "code": reject.fault.code,
        "reason": reject.fault.reason,
        "excerpt": reject.excerpt,
    }
    return {key: entry for key, entry in value.items() if entry not in (None, "")}
