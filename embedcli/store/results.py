"""Small tables of results: Parquet or JSON, by the file's name."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embedcli.errors import DataError, UsageError, from_os_error
from embedcli.store import staging


def check_name(path: str) -> None:
    """See that a name says its format. Raises UsageError."""
    if Path(path).suffix not in (".parquet", ".json"):
        raise UsageError(f"{path}: results are written as .parquet or .json")


def check_place(path: str) -> None:
    """See that results can be written there. Raises UsageError, OutputError, AccessError."""
    check_name(path)
    staging.check_folder(Path(path))


def write(path: str, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write columns under a name, all at once. Raises UsageError, StorageError."""
    check_name(path)
    unfinished = Path(path).with_name(f".{Path(path).name}.tmp")
    table = pa.table(dict(columns))
    try:
        if Path(path).suffix == ".parquet":
            pq.write_table(table, unfinished)
        else:
            unfinished.write_text(json.dumps(table.to_pylist(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        raise from_os_error(error, path) from None


def read(path: str) -> dict[str, list[Any]]:
    """The columns of such a file. Raises InputMissingError, DataError."""
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
