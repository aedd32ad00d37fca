"""Arrow tables with our columns, in memory."""

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa

from embedcli.config import InputOptions
from embedcli.errors import RowFault
from embedcli.records import Records
from embedcli.sources import in_memory
from embedcli.store.parts import EmbeddingColumns

# Gives the columns of a unit's texts, and why rows of them have no vector.
EmbedRecords = Callable[[Records], tuple[EmbeddingColumns, Mapping[int, RowFault]]]


def embed_table(
    table: pa.Table, dim: int, options: InputOptions, embed: EmbedRecords
) -> tuple[EmbeddingColumns, dict[int, RowFault]]:
    """Return our columns of a table's rows, those of a row without a vector zeros, and why it has
    none, by row. Raises what `embed` raises, and DataError where the table has no such columns.
    """
    columns = EmbeddingColumns.zeros(np.zeros(len(table), "V16"), dim)
    faults: dict[int, RowFault] = {}
    for records in in_memory.units_of(table, options):
        rows = records.places.numbers - 1
        unit, unit_faults = embed(records)
        columns.vectors[rows] = unit.vectors
        columns.hashes[rows] = unit.hashes
        columns.tokens[rows] = unit.tokens
        columns.truncated[rows] = unit.truncated
        faults.update({reject.number - 1: reject.fault for reject in records.rejects})
        faults.update({int(rows[row]): fault for row, fault in unit_faults.items()})
    return columns, faults


def assemble(
    table: pa.Table,
    columns: EmbeddingColumns,
    faults: Mapping[int, RowFault],
    schema: pa.Schema,
    vector_type: pa.DataType,
    options: InputOptions,
) -> pa.Table:
    """Return a table in `schema`: its carried columns, then ours, which are null where a row has no
    vector, then the reasons, if `schema` has one column more.
    """
    arrays = columns.to_arrays(vector_type)
    if faults:
        rows = pa.array([None if row in faults else row for row in range(len(table))], pa.int64())
        arrays = [array.take(rows) for array in arrays]
    reasons = [faults[row].reason if row in faults else None for row in range(len(table))]
    arrays.append(pa.array(reasons, pa.string()))
    not_utf8 = [row for row, fault in faults.items() if fault.code == "not-utf8"]
    carried = in_memory.carried(table, options, not_utf8)
    added = arrays[: len(schema.names) - carried.num_columns]
    return pa.table([*carried.columns, *added], schema=schema)


def as_batch(table: pa.Table) -> pa.RecordBatch:
    """Return a table as one record batch."""
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
