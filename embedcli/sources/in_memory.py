"""A table in memory into units of records, as an Arrow file of it would be cut and read."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedcli.config import InputOptions
from embedcli.records import InputFile, Records
from embedcli.sources.cuts import grain_of
from embedcli.sources.tables import TableRows, as_strings, carried_schema, records_of
from embedcli.sources.units import UnitBuilder

_TABLE = InputFile(name="the table", path="", format="arrow", place="row")


def schema_of(schema: pa.Schema, options: InputOptions) -> pa.Schema:
    """Return the schema of the carried columns. Raises DataError where a column is missing, or of
    another type.
    """
    return carried_schema(_TABLE, schema, options)


def units_of(table: pa.Table, options: InputOptions) -> Iterator[Records]:
    """Yield a table's records, a unit at a time; rows are numbered from 1. Raises DataError."""
    schema = schema_of(table.schema, options)
    rows = TableRows(options.text_column)
    for batch in table.to_batches():
        rows.add(batch, None)
    builder = UnitBuilder(grain_of(table.nbytes))
    builder.add(rows.scanned(0, 0))
    for unit in builder.units():
        for segment in unit.segments:
            part = table.slice(segment.start, segment.rows)
            yield records_of(part, _TABLE, segment, schema, options)


def carried(table: pa.Table, options: InputOptions, not_utf8: Sequence[int]) -> pa.Table:
    """Return the carried columns of all rows; of rows that are not UTF-8 without their strings."""
    schema = schema_of(table.schema, options)
    is_utf8 = np.ones(len(table), np.bool_)
    is_utf8[list(not_utf8)] = False
    columns = []
    for field in schema:
        column = table.column(field.name)
        if field.name == options.text_column:
            column = as_strings(column)
        if not_utf8 and pa.types.is_string(column.type):
            column = pc.if_else(pa.array(is_utf8), column, pa.scalar(None, column.type))
        columns.append(column.cast(field.type))
    return pa.table(columns, schema=schema)
