"""Small tables of results: Parquet or JSON, by the file's name."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embedcli import files
from embedcli.errors import DataError, UsageError, from_os_error
from embedcli.store import ownership, parts


def check_name(path: str) -> None:
    """See that a name says its format. Raises UsageError."""
    if Path(path).suffix not in (".parquet", ".json"):
        raise UsageError(f"{path}: results are written as .parquet or .json")


def check_place(path: str) -> None:
    """See that results can be written there. Raises UsageError, OutputError, AccessError."""
    check_name(path)
    ownership.check_replaceable(path, "--per-query", ownership.are_results)


def write(path: str, columns: Mapping[str, Sequence[object]]) -> None:
    """Write columns under a name, all at once. Raises UsageError, StorageError."""
    check_name(path)
    table = pa.table(dict(columns)).replace_schema_metadata({parts.RESULTS_KEY: b""})
    if Path(path).suffix == ".parquet":
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        content = buffer.getvalue()
    else:
        content = (json.dumps(table.to_pylist(), indent=1, ensure_ascii=False) + "\n").encode()
    files.write_atomically(path, content)


def read(path: str) -> dict[str, list[Any]]:
    """Read the columns of such a file. Raises InputMissingError, DataError."""
    check_name(path)
    try:
        if Path(path).suffix == ".parquet":
            with open(path, "rb") as stream:
                columns: dict[str, list[Any]] = pq.read_table(stream).to_pydict()
                return columns
        rows = json.loads(Path(path).read_bytes())
        return pa.Table.from_pylist(rows).to_pydict()
    except OSError as error:
        if error.errno is not None:
            raise from_os_error(error, path) from None
        raise DataError(f"{path}: not readable: {error}") from None
    except (pa.ArrowException, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not readable: {' '.join(str(error).split())}") from None
