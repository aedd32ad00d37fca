"""Rows whose text turned bad: what the output that is updated has of them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from embedcli.errors import DataError
from embedcli.store import parts
from embedcli.store.changes import DELETED, UNCHANGED, Changes, ids_of
from embedcli.store.parts import ColumnNames
from embedcli.store.provenance import Provenance
from embedcli.store.vector_file import RowGroup, RowGroupCache


@dataclass(frozen=True)
class StaleRows:
    """Some rows of a row group, by their numbers in it, and where the group's rows begin among those
    of `Changes.before`.
    """

    group: RowGroup
    rows: Sequence[int]
    first: int


def stale_rows(
    changes: Changes, before: Sequence[RowGroup], id_column: str, rejected_ids: Collection[str]
) -> list[StaleRows]:
    """Return the rows of an output that an update would delete although their ids are in the input:
    of rejected rows.
    """
    cache = RowGroupCache()
    stale = []
    first = 0
    for group in before:
        deleted = np.flatnonzero(changes.before[first : first + group.rows] == DELETED)
        if len(deleted):
            ids = ids_of(group, id_column, cache)
            rows = [row for row in deleted.tolist() if str(ids[row]) in rejected_ids]
            if rows:
                stale.append(StaleRows(group, rows, first))
        first += group.rows
    return stale


def keep(
    stale: Sequence[StaleRows],
    changes: Changes,
    schema: pa.Schema,
    provenance: Provenance,
    path: Path,
) -> RowGroup:
    """Write stale rows into a file of their own with the schema of the output; they count as unchanged.

    A row group that holds just these rows already is returned as it is. Raises DataError where
    their columns don't fit any more, StorageError.
    """
    for entry in stale:
        changes.before[entry.first + np.asarray(entry.rows)] = UNCHANGED
    cache = RowGroupCache()
    group = stale[0].group
    is_whole = len(stale) == 1 and len(stale[0].rows) == group.rows
    if is_whole and cache.table(group).schema.remove_metadata() == schema:
        return group
    names = ColumnNames.of(next(iter(provenance.columns)))
    tables = [_table(entry, schema, names, cache) for entry in stale]
    written = parts.write(path, schema, provenance, [pa.concat_tables(tables)])
    return RowGroup(path, 0, written.rows)


def _table(
    stale: StaleRows, schema: pa.Schema, names: ColumnNames, cache: RowGroupCache
) -> pa.Table:
    """Return stale rows with the columns of the output as it becomes."""
    group, rows = stale.group, np.asarray(stale.rows, np.intp)
    table = cache.table(group).take(rows)
    columns = {}
    for column in schema:
        if column.name in names:
            continue
        if column.name not in table.column_names:
            columns[column.name] = pa.nulls(len(rows), column.type)
            continue
        try:
            columns[column.name] = table.column(column.name).cast(column.type)
        except pa.ArrowException as error:
            raise DataError(
                f"--keep-stale: column {column.name!r} of the earlier output doesn't fit: {error}",
                "run it once without --keep-stale",
            ) from None
    vectors = cache.embedding_columns(group).select(rows)
    return parts.assemble(pa.table(columns), schema, names, vectors)
