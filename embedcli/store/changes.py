"""What an update changed, row by row: new, changed and deleted rows, told by their ids where there
are ids, else by their texts alone.

Rows are sorted by id on disk, share by share, so that memory grows with the changed rows by some bytes
each. Row groups that stay as they are need no look.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcli.store import ownership
from embedcli.store.reuse import hash_prefixes
from embedcli.store.sorted_keys import Keys, Positions, SortedKeys
from embedcli.store.vector_file import RowGroup, RowGroupCache

UNCHANGED, COLUMNS, CHANGED, NEW, DELETED = range(5)
OPERATIONS = ("", "columns", "changed", "new", "deleted")
Marks = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Placed:
    """A row group, and the number of its first row in its output."""

    group: RowGroup
    first: int = 0


@dataclass
class Changes:
    """The operations on rows: `before` on those of some groups of the output as it was, `after` on
    those of groups of the new one, in their order.
    """

    before: Marks
    after: Marks

    def count(self, operation: int) -> int:
        """Count the rows of an operation: of those as they are now; deleted ones as they were."""
        marks = self.before if operation == DELETED else self.after
        return int((marks == operation).sum())


@dataclass
class _Rows:
    """What tells rows of some groups from others: by position, 8 bytes each. `payloads` tell the
    carried columns apart, where that is asked.
    """

    keys: SortedKeys
    texts: list[Keys] = field(default_factory=list)
    payloads: list[Keys] = field(default_factory=list)

    def arrays(self, with_columns: bool) -> list[Keys]:
        """Return what tells rows apart beside their keys; as many arrays where there are no rows."""
        columns = [self.texts, self.payloads] if with_columns else [self.texts]
        return [np.concatenate([np.empty(0, np.uint64), *parts]) for parts in columns]


def compare(
    before: Sequence[RowGroup],
    after: Sequence[RowGroup],
    id_column: str | None,
    directory: Path,
    with_columns: bool = False,
) -> Changes:
    """Compare row groups of an output as it was with those that take their place.

    A row is the partner of one: of the same id and text it is unchanged, of the same id alone
    changed. `with_columns` tells unchanged texts of other carried columns apart. `directory` holds
    what doesn't fit into memory.
    """
    cache = RowGroupCache()
    count = max(sum(group.rows for group in groups) for groups in (before, after))
    sides = [
        _read(groups, cache, id_column, SortedKeys(directory / name, count), with_columns)
        for name, groups in (("before", before), ("after", after))
    ]
    values = [side.arrays(with_columns) for side in sides]
    changes = Changes(
        np.full(len(values[0][0]), DELETED, np.uint8), np.full(len(values[1][0]), NEW, np.uint8)
    )
    shares = zip(sides[0].keys.shares(), sides[1].keys.shares(), strict=True)
    for (old_keys, old_rows), (new_keys, new_rows) in shares:
        old = [old_keys, *(column[old_rows] for column in values[0])]
        new = [new_keys, *(column[new_rows] for column in values[1])]
        _mark(changes, old, old_rows, new, new_rows)
    return changes


def _mark(
    changes: Changes, old: list[Keys], old_rows: Positions, new: list[Keys], new_rows: Positions
) -> None:
    """Mark a share's rows: first those that are equal in all, then in less and less."""
    marks = {1: CHANGED, 2: UNCHANGED} if len(old) == 2 else {1: CHANGED, 2: COLUMNS, 3: UNCHANGED}
    for width in range(len(old), 0, -1):
        old_partners, new_partners = partners(old[:width], new[:width])
        changes.before[old_rows[old_partners]] = marks[width]
        changes.after[new_rows[new_partners]] = marks[width]
        old = [column[~old_partners] for column in old]
        new = [column[~new_partners] for column in new]
        old_rows, new_rows = old_rows[~old_partners], new_rows[~new_partners]


def partners(
    left: Sequence[Keys], right: Sequence[Keys]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Tell which rows of two tables have a partner in the other one: a row equal in all columns that
    is nobody else's.
    """
    size = len(left[0])
    # Equal rows are numbered, so that the second of one side is the partner of the other's second.
    columns = [
        np.concatenate([a, b])
        for a, b in zip([*left, _ranks(left)], [*right, _ranks(right)], strict=True)
    ]
    order = np.lexsort(columns[::-1])
    is_same = np.ones(max(0, len(order) - 1), np.bool_)
    for column in columns:
        is_same &= column[order[1:]] == column[order[:-1]]
    have_partner = np.zeros(len(order), np.bool_)
    have_partner[order[1:][is_same]] = True
    have_partner[order[:-1][is_same]] = True
    return have_partner[:size], have_partner[size:]


def _ranks(columns: Sequence[Keys]) -> Keys:
    """Number equal rows from 0, in their order."""
    order = np.lexsort(columns[::-1])
    begins = np.zeros(len(order), np.bool_)
    begins[:1] = True
    for column in columns:
        begins[1:] |= column[order[1:]] != column[order[:-1]]
    ranks = np.empty(len(order), np.uint64)
    positions = np.arange(len(order))
    ranks[order] = positions - np.maximum.accumulate(np.where(begins, positions, 0))
    return ranks


def _read(
    groups: Sequence[RowGroup],
    cache: RowGroupCache,
    id_column: str | None,
    keys: SortedKeys,
    with_columns: bool,
) -> _Rows:
    rows = _Rows(keys)
    for group in groups:
        texts = hash_prefixes(cache.hashes(group))
        rows.texts.append(texts)
        keys.add(texts if id_column is None else _digests(ids_of(group, id_column, cache)))
        if with_columns:
            rows.payloads.append(_digests(_payloads(group, cache)))
    return rows


def ids_of(group: RowGroup, id_column: str, cache: RowGroupCache) -> list[Any]:
    """Read the ids of a row group."""
    values: list[Any] = cache.table(group, [id_column]).column(id_column).to_pylist()
    return values


def _payloads(group: RowGroup, cache: RowGroupCache) -> Iterator[tuple[Any, ...]]:
    names = cache.carried(group)
    if not names:
        return iter([()] * group.rows)
    columns = cache.table(group, names).columns
    return zip(*(column.to_pylist() for column in columns), strict=True)


def _digests(values: Any) -> Keys:
    """Return eight bytes for each value: of 1 and "1" the same, as ids are often written both ways."""
    blake2b = hashlib.blake2b
    digests = [
        blake2b(str(value).encode("utf-8", "surrogatepass"), digest_size=8) for value in values
    ]
    return np.frombuffer(b"".join(digest.digest() for digest in digests), "<u8")


def as_lines(
    changes: Changes, before: Sequence[RowGroup], after: Sequence[Placed], id_column: str
) -> Iterator[bytes]:
    """Yield a line of JSON for each row that isn't as it was: deleted rows first, then the others in
    the order of the output.
    """
    cache = RowGroupCache()
    placed_before = [Placed(group) for group in before]
    for placed, marks in ((placed_before, changes.before), (after, changes.after)):
        is_before = placed is placed_before
        start = 0
        for place in placed:
            here = marks[start : start + place.group.rows]
            start += place.group.rows
            rows = np.flatnonzero(here == DELETED if is_before else here != UNCHANGED)
            if not len(rows):
                continue
            ids = ids_of(place.group, id_column, cache)
            for row in rows.tolist():
                value = {
                    ownership.KIND: ownership.CHANGE,
                    "id": ids[row],
                    "operation": OPERATIONS[here[row]],
                }
                if not is_before:
                    value["row"] = place.first + row
                yield json.dumps(value, default=str).encode() + b"\n"
