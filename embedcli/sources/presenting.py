"""The carried columns as the output has them: renamed, or all in one string of JSON."""

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import replace

import pyarrow as pa

from embedcli.config import InputOptions
from embedcli.errors import DataError, UsageError

# A colon of a name itself is written with a backslash.
_COLON = re.compile(r"(?<!\\):")


def parse_columns(
    names: Iterable[str] | None,
) -> tuple[tuple[str, ...] | None, tuple[tuple[str, str], ...]]:
    """Return the columns to carry, and those of them that get another name: `title:headline`.

    Raises UsageError.
    """
    if names is None:
        return None, ()
    columns, renames = [], []
    for item in names:
        pieces = [piece.replace("\\:", ":") for piece in _COLON.split(item)]
        if len(pieces) > 2 or not all(pieces):
            raise UsageError(f"--columns {item!r} is neither a name nor old:new")
        columns.append(pieces[0])
        if len(pieces) == 2:
            renames.append((pieces[0], pieces[1]))
    return tuple(columns), tuple(renames)


def schema_of(schema: pa.Schema, options: InputOptions) -> pa.Schema:
    """Return the schema that carried columns of a schema have in the output. Raises DataError."""
    names = _renamed(schema.names, options)
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"two carried columns are named {name!r}", "--columns old:new renames")
    renamed = pa.schema([schema.field(at).with_name(name) for at, name in enumerate(names)])
    if options.metadata_column is None:
        return renamed
    ids = _ids(names, options)
    if options.metadata_column in ids:
        raise DataError(f"--metadata-column {options.metadata_column}: is the name of the ids")
    fields = [renamed.field(name) for name in ids]
    return pa.schema([*fields, pa.field(options.metadata_column, pa.string())])


def present(table: pa.Table, options: InputOptions, json_columns: Collection[str]) -> pa.Table:
    """Return carried columns as the output has them; `json_columns` hold JSON already."""
    if not options.renames and options.metadata_column is None:
        return table
    table = table.rename_columns(_renamed(table.column_names, options))
    if options.metadata_column is None:
        return table
    ids = _ids(table.column_names, options)
    others = [name for name in table.column_names if name not in ids]
    rows = table.select(others).to_pylist() if others else [{}] * len(table)
    nested = set(_renamed(json_columns, options)) & set(others)
    for row in rows:
        for name in nested:
            row[name] = None if row[name] is None else json.loads(row[name])
    lines = [json.dumps(row, ensure_ascii=False, default=str) for row in rows]
    schema = schema_of(table.schema, replace(options, renames=()))
    return pa.table([*table.select(ids).columns, pa.array(lines, pa.string())], schema=schema)


def _renamed(names: Iterable[str], options: InputOptions) -> list[str]:
    new_names = dict(options.renames)
    return [new_names.get(name, name) for name in names]


def _ids(names: Iterable[str], options: InputOptions) -> list[str]:
    """Return the column that tells rows apart, if there is one."""
    return [name for name in names if name in options.id_columns][:1]
