"""The options of a run, as frozen values that are passed whole.

What changes a vector is no option: see `Recipe`. `RunOptions` holds what only changes the speed.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from embedcli.errors import UsageError

STDIN = STDOUT = "-"
# The rejected rows of a dataset directory, which appear with it. Readers pass over such names.
REJECTS_NAME = "_rejects.jsonl"
# Columns that tell rows apart, unless another one is named.
ID_COLUMNS = ("_id", "id")
# A summary names so many files and rejected rows, and counts the others.
NAMED_FILES = 10
Backend = Literal["auto", "torch", "openvino"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
Compile = Literal["auto", "on", "off"]
# An interrupted run that was compiled goes on so, without insisting on it.
CompileMode = Literal["auto", "on", "off", "if-possible"]
InputFormat = Literal["auto", "jsonl", "csv", "tsv", "lines"]
OnError = Literal["fail", "reject"]
HashType = Literal["binary", "hex", "none"]
VectorType = Literal["float32", "float16"]


def rejects_beside(output: str) -> str:
    """Return the file that lists an output's rejected rows, unless another is named."""
    return f"{output.rstrip('/')}.rejects.jsonl"


@dataclass(frozen=True)
class Limit:
    """A number of rows, or a share of them, that may not be exceeded."""

    rows: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, string: str, option: str) -> "Limit":
        """Read a number of rows, or a share in percent: `100`, `2.5%`. Raises UsageError."""
        number = string.removesuffix("%")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if string.endswith("%") and 0 <= value <= 100:
            return cls(share=value / 100)
        if string.isdecimal():
            return cls(rows=int(string))
        raise UsageError(f"{option} {string!r} is neither a number of rows nor a share, such as 2%")

    def allows(self, count: int, rows: int) -> bool:
        """Tell whether `count` of so many rows is within the limit."""
        if self.rows is not None:
            return count <= self.rows
        return self.share is None or count <= self.share * rows

    def __str__(self) -> str:
        return str(self.rows) if self.share is None else f"{100 * self.share:g}%"


@dataclass(frozen=True)
class RunOptions:
    """What changes the speed, not the vector (beyond the rounding of `dtype`).

    `num_processes` None takes one for each device. `update` reuses the vectors of the output as it
    is, `overwrite` replaces an output of another recipe, `fresh` forgets what an interrupted run
    left. `join` works on an output together with others that run the same command; `no_wait` ends
    with 75 rather than wait for them without work of its own. `engine` has the units done elsewhere: `ray`, or
    `ray://host:port`. `watchdog` is in seconds: how long a worker may show
    no progress; 0 is for ever, None for some minutes, or longer where batches take longer.
    `batch_tokens` None takes what suits the device. `compile` auto compiles the model where that
    pays for about `expected_tokens`, which are None until that is known. `plain` runs padded
    batches as the model's class does.
    """

    device: str = "auto"
    dtype: DType = "auto"
    backend: Backend = "auto"
    batch_tokens: int | None = None
    engine: str = ""
    num_processes: int | None = None
    update: bool = False
    overwrite: bool = False
    fresh: bool = False
    join: bool = False
    no_wait: bool = False
    watchdog: float | None = None
    compile: CompileMode = "auto"
    expected_tokens: int | None = None
    plain: bool = False

    @classmethod
    def reference(cls, device: str) -> "RunOptions":
        """Return the plainest path, by which others are judged: one text at a time, in float32, padded,
        not compiled.
        """
        return cls(device, "float32", backend="torch", batch_tokens=1, compile="off", plain=True)


@dataclass(frozen=True)
class InputOptions:
    """How records are taken from files.

    `columns` None carries all; `renames` are (name in the input, name in the output) of some of
    them; `metadata_column` takes all carried columns but the one of the ids as one JSON string;
    `id_column` None takes `_id` or `id`. `fields` are columns that the template names;
    `max_input_bytes` counts all files, decompressed; `keep_stale`: rejected rows keep the vectors
    that the output has of them; `input_format` is that of files of lines: auto goes by their names.
    """

    text_column: str = "text"
    columns: tuple[str, ...] | None = None
    renames: tuple[tuple[str, str], ...] = ()
    metadata_column: str | None = None
    id_column: str | None = None
    fields: tuple[str, ...] = ()
    max_row_bytes: int = 16 * 2**20
    max_input_bytes: int | None = None
    binary_as_utf8: bool = False
    on_error: OnError = "fail"
    keep_stale: bool = False
    input_format: InputFormat = "auto"

    @property
    def id_columns(self) -> tuple[str, ...]:
        """The columns of the output that may tell rows apart, best first."""
        return ID_COLUMNS if self.id_column is None else (self.id_column,)

    @property
    def input_id_columns(self) -> tuple[str, ...]:
        """The same columns by their names in the input."""
        old_names = {new: old for old, new in self.renames}
        return tuple(old_names.get(name, name) for name in self.id_columns)

    def id_of(self, row: Mapping[str, object]) -> str:
        """Return the id of a row of the input; empty where it has none."""
        ids = (row.get(name) for name in self.input_id_columns)
        return next((str(value) for value in ids if value is not None), "")


@dataclass(frozen=True)
class OutputOptions:
    """Where vectors go.

    `path` is a file name or `-`; `rejects` the file for rejected rows, if any are set aside;
    `rejects_inside`: they go into the output, a directory.

    `directory`: the output is a dataset directory of parts. `allow_empty`: an output without rows
    is wanted, too. `max_rejected`, `max_removed`: how many rows of the input may be rejected, and
    how many of the output that is updated may go. `hash` is how the texts' hashes are stored;
    `changes` is the file for what an update changed.
    """

    path: str
    directory: bool = False
    format: Literal["parquet", "arrow", "jsonl"] = "parquet"
    rejects: str | None = None
    rejects_inside: bool = False
    embedding_column: str = "embedding"
    vector_type: VectorType = "float32"
    hash: HashType = "binary"
    min_rows: int = 0
    allow_empty: bool = False
    max_rejected: Limit = Limit()
    max_removed: Limit = Limit()
    changes: str | None = None

    @property
    def rejects_file(self) -> str:
        """The file that lists the rejected rows; empty where they end the run."""
        if self.rejects_inside:
            return os.path.join(self.path, REJECTS_NAME)
        return self.rejects or ""
