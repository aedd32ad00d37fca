"""Schemas of engines that have their own: Spark's, which drop a schema's metadata, and keep a
column's.
"""

from typing import Any

import pyarrow as pa

from embedcli.errors import ConfigurationError
from embedcli.store import parts


def to_arrow(schema: Any) -> pa.Schema:
    """Return a pyspark StructType as Arrow's. Raises TypeError where it is none."""
    if not type(schema).__module__.startswith("pyspark."):
        raise TypeError(
            f"schema takes a pyarrow.Schema or a pyspark StructType, not {type(schema).__name__}"
        )
    from pyspark.sql.pandas.types import to_arrow_schema

    return to_arrow_schema(schema)


def of_variable_length(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a record batch without fixed-size types, which Spark takes from no one."""
    columns = []
    for column in batch.columns:
        if pa.types.is_fixed_size_list(column.type):
            column = column.cast(pa.list_(pa.field("element", column.type.value_type)))
        elif pa.types.is_fixed_size_binary(column.type):
            column = column.cast(pa.binary())
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def to_spark(output: pa.Schema, before: Any) -> Any:
    """Return an output's schema as a StructType, of which the columns of `before` are carried; the
    vector column holds the provenance. Raises ConfigurationError where Spark has no such type.
    """
    from pyspark.sql import types

    kinds = {
        pa.binary(16): types.BinaryType(),
        pa.int32(): types.IntegerType(),
        pa.bool_(): types.BooleanType(),
        pa.string(): types.StringType(),
    }
    fields = [before[name] for name in output.names if name in before.names]
    provenance = output.metadata[parts.METADATA_KEY].decode()
    for column in output:
        if column.name in before.names:
            continue
        if column.type in kinds:
            fields.append(types.StructField(column.name, kinds[column.type]))
        elif column.type.value_type == pa.float32():
            kind = types.ArrayType(types.FloatType(), containsNull=False)
            metadata = {parts.METADATA_KEY.decode(): provenance}
            fields.append(types.StructField(column.name, kind, metadata=metadata))
        else:
            raise ConfigurationError(
                f"Spark has no {column.type.value_type}", "--vector-type float32"
            )
    return types.StructType(fields)
