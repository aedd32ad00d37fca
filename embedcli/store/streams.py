"""Streams of vectors on standard output, as Arrow IPC or JSON lines.

A stream is opened once a run with the schema and the provenance, takes the table of each unit in order, and is closed.
"""

import base64
import json
import math
from collections.abc import Callable
from datetime import date, time, timedelta
from typing import Any, BinaryIO, Protocol

import pyarrow as pa

from embedcli.store import parts


class Stream(Protocol):
    """Takes the tables of units, in order."""

    def write(self, table: pa.Table) -> None:
        """Send a unit's table."""

    def close(self) -> None:
        """All units are in."""


class ArrowStream:
    """An Arrow IPC stream."""

    def __init__(self, stream: BinaryIO, schema: pa.Schema, provenance: dict[str, Any]) -> None:
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


class JsonlStream:
    """JSON lines: vectors as arrays of numbers that give back the same float32, hashes in hex."""

    def __init__(self, stream: BinaryIO, schema: pa.Schema) -> None:
        self._stream = stream
        self._vector, self._hash, *_ = parts.own_columns(schema.names[-4])

    def write(self, table: pa.Table) -> None:
        """Send a unit's rows."""
        vectors = parts.vectors_of(table.column(self._vector))
        # Nine digits distinguish all float32, and give them back.
        numbers = f"[{', '.join(['%.9g'] * vectors.shape[1])}]"
        for row, vector in zip(table.drop_columns([self._vector]).to_pylist(), vectors, strict=True):
            row[self._hash] = row[self._hash].hex()
            line = f"{json_of(row)[:-1]}, {json.dumps(self._vector)}: {numbers % tuple(vector.tolist())}}}\n"
            self._stream.write(line.encode())
        self._stream.flush()

    def close(self) -> None:
        """All is sent already."""


def json_of(row: dict[str, Any]) -> str:
    """A row as JSON: what JSON lacks becomes strings (times in ISO 8601, bytes in base64), NaN becomes null."""
    try:
        return json.dumps(row, ensure_ascii=False, default=_plain, allow_nan=False)
    except ValueError:  # JSON has no NaN and no infinity
        return json.dumps(_without_nan(row), ensure_ascii=False, default=_plain)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    """What JSON lacks: times in ISO 8601, decimals as strings, bytes in base64."""
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


STREAMS: dict[str, Callable[[BinaryIO, pa.Schema, dict[str, Any]], Stream]] = {
    "arrow": ArrowStream,
    "jsonl": lambda stream, schema, _: JsonlStream(stream, schema),
}
