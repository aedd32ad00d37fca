"""Streams of vectors on standard output, as Arrow IPC or JSON lines.

A stream is opened once a run with the schema and the provenance, takes the table of each unit in
order, and is closed.
"""

import base64
import json
import math
from collections.abc import Callable
from datetime import date, time, timedelta
from typing import Any, BinaryIO, Protocol

import pyarrow as pa

from embedcli.errors import DataError
from embedcli.escaping import in_json
from embedcli.store import parts
from embedcli.store.parts import ColumnNames
from embedcli.store.provenance import Provenance


class StreamWriter(Protocol):
    """Takes the tables of units, in order."""

    def write(self, table: pa.Table) -> None:
        """Send a unit's table."""

    def close(self) -> None:
        """End the stream: all units are in."""


class ArrowWriter:
    """An Arrow IPC stream."""

    def __init__(self, stream: BinaryIO, schema: pa.Schema, provenance: Provenance) -> None:
        self._stream = stream
        self._writer = pa.ipc.new_stream(stream, parts.with_provenance(schema, provenance))

    def write(self, table: pa.Table) -> None:
        """Send a unit's table."""
        self._writer.write_table(table)
        self._stream.flush()

    def close(self) -> None:
        """End the stream."""
        self._writer.close()
        self._stream.flush()


class JsonlWriter:
    """JSON lines: vectors as arrays of numbers that give back the same float32, hashes in hex."""

    def __init__(self, stream: BinaryIO, provenance: Provenance) -> None:
        self._stream = stream
        name, made = next(iter(provenance.columns.items()))
        self._names, self._dim = ColumnNames.of(name), made.recipe.space.dim

    def write(self, table: pa.Table) -> None:
        """Send a unit's rows."""
        vectors = parts.vectors_of(table.column(self._names.vector), self._dim)
        # Nine digits distinguish all float32, and give them back.
        numbers = f"[{', '.join(['%.9g'] * vectors.shape[1])}]"
        for row, vector in zip(self._rows(table), vectors, strict=True):
            row[self._names.hash] = row[self._names.hash].hex()
            line = f"{json_of(row)[:-1]}, {json.dumps(self._names.vector)}: {numbers % tuple(vector.tolist())}}}\n"
            self._stream.write(line.encode())
        self._stream.flush()

    def _rows(self, table: pa.Table) -> list[dict[str, Any]]:
        """Return the values beside the vectors.

        Raises DataError where Python has no value for one, as for the year 10,000.
        """
        try:
            rows: list[dict[str, Any]] = table.drop_columns([self._names.vector]).to_pylist()
        except (OverflowError, ValueError, pa.ArrowException) as error:
            raise DataError(
                f"a carried column can't be written as JSON: {error}",
                "--columns leaves it out; --format arrow keeps it",
            ) from None
        return rows

    def close(self) -> None:
        """Do nothing: all is sent already."""


def json_of(row: dict[str, Any]) -> str:
    """Return a row as JSON: what JSON lacks becomes strings (times in ISO 8601, bytes in base64), NaN
    becomes null. Invisible characters are escaped.
    """
    try:
        line = json.dumps(row, ensure_ascii=False, default=_plain, allow_nan=False)
    except ValueError:  # JSON has no NaN and no infinity
        line = json.dumps(_without_nan(row), ensure_ascii=False, default=_plain)
    return in_json(line)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    """Convert what JSON lacks: times in ISO 8601, decimals as strings, bytes in base64."""
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


WRITERS: dict[str, Callable[[BinaryIO, pa.Schema, Provenance], StreamWriter]] = {
    "arrow": ArrowWriter,
    "jsonl": lambda stream, _, provenance: JsonlWriter(stream, provenance),
}
