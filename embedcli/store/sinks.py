"""Where finished units go: into a file published at the end, or straight to standard output.

A sink is opened once a run, takes the table of each unit in order, and is finished with the run's provenance.
"""

import base64
import json
import math
import os
import shutil
from collections.abc import Callable
from datetime import date, time, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pyarrow as pa

from embedcli.errors import DataError
from embedcli.records import Reject
from embedcli.store import parts, staging


class Sink(Protocol):
    """Takes the tables of units, in order."""

    def write(self, index: int, table: pa.Table) -> None:
        """Take a unit's table."""

    def finish(self, provenance: dict[str, Any]) -> None:
        """All units are in: make the output visible."""


class FileSink:
    """One Parquet file: each unit a durable part in staging, then all of them under the visible name at once."""

    def __init__(self, stage: staging.Staging, schema: pa.Schema) -> None:
        self._stage, self._schema = stage, schema
        self._rows = 0

    def write(self, index: int, table: pa.Table) -> None:
        """Make a unit's table durable."""
        target = self._stage.part(index)
        unfinished = target.with_suffix(".tmp")
        self._rows += parts.write(unfinished, self._schema, {"format_version": parts.FORMAT_VERSION}, [table])
        staging.move(unfinished, target)

    def finish(self, provenance: dict[str, Any]) -> None:
        """Join the parts and rename the result to the output's name."""
        whole = self._stage.path / "output.parquet"
        tables = (table for part in self._stage.parts for table in parts.read_tables(part))
        rows = parts.write(whole, self._schema, provenance, tables)
        if rows != self._rows:
            raise DataError(f"{self._stage.path}: {rows} rows in the parts, {self._rows} were written")
        staging.move(whole, self._stage.output)


class ArrowSink:
    """An Arrow IPC stream."""

    def __init__(self, stream: BinaryIO, schema: pa.Schema, provenance: dict[str, Any]) -> None:
        self._stream = stream
        metadata = {parts.METADATA_KEY: json.dumps(provenance, sort_keys=True, ensure_ascii=False).encode()}
        self._writer = pa.ipc.new_stream(stream, schema.with_metadata(metadata))

    def write(self, index: int, table: pa.Table) -> None:
        """Send a unit's table."""
        self._writer.write_table(table)
        self._stream.flush()

    def finish(self, provenance: dict[str, Any]) -> None:
        """End the stream."""
        self._writer.close()
        self._stream.flush()


class JsonlSink:
    """JSON lines: vectors as arrays of numbers that give back the same float32, hashes in hex."""

    def __init__(self, stream: BinaryIO, schema: pa.Schema) -> None:
        self._stream = stream
        self._vector, self._hash, *_ = parts.own_columns(schema.names[-4])

    def write(self, index: int, table: pa.Table) -> None:
        """Send a unit's rows."""
        vectors = table.column(self._vector).combine_chunks().flatten().to_numpy(zero_copy_only=False)
        vectors = vectors.reshape(len(table), -1)
        # Nine digits distinguish all float32, and give them back.
        numbers = f"[{', '.join(['%.9g'] * vectors.shape[1])}]"
        for row, vector in zip(table.drop_columns([self._vector]).to_pylist(), vectors, strict=True):
            row[self._hash] = row[self._hash].hex()
            line = f"{_json(row)[:-1]}, {json.dumps(self._vector)}: {numbers % tuple(vector.tolist())}}}\n"
            self._stream.write(line.encode())
        self._stream.flush()

    def finish(self, provenance: dict[str, Any]) -> None:
        """All is sent already."""


def _json(row: dict[str, Any]) -> str:
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


class RejectLog:
    """Rejected rows as JSON lines, written as they come, published with the output."""

    def __init__(self, path: Path, target: str | None) -> None:
        self._path, self._target = path, Path(target) if target else None
        self.count = 0

    def write(self, rejects: list[Reject]) -> None:
        """Add rejected rows."""
        if not rejects:
            return
        with open(self._path, "ab") as stream:
            for reject in rejects:
                line = {
                    "file": reject.file,
                    reject.place: reject.number,
                    "offset": reject.offset,
                    "code": reject.fault.code,
                    "reason": reject.fault.reason,
                    "excerpt": reject.excerpt,
                }
                stream.write(json.dumps({k: v for k, v in line.items() if v not in (None, "")}).encode() + b"\n")
        self.count += len(rejects)

    def finish(self) -> None:
        """Put the log under its name; without rejected rows, an older run's is removed."""
        if self._target is None:
            return
        if self.count:
            # It may be wanted on another file system, where a rename doesn't reach.
            unfinished = self._target.with_name(f".{self._target.name}.tmp")
            shutil.copyfile(self._path, unfinished)
            with open(unfinished, "rb") as stream:
                os.fsync(stream.fileno())
            staging.move(unfinished, self._target)
        else:
            self._target.unlink(missing_ok=True)


StreamSink = Callable[[BinaryIO, pa.Schema, dict[str, Any]], Sink]

STREAMS: dict[str, StreamSink] = {
    "arrow": ArrowSink,
    "jsonl": lambda stream, schema, _: JsonlSink(stream, schema),
}
