"""The options of a run, as frozen values that are passed whole.

What changes a vector is no option: see `Recipe`. `RunOptions` holds what only changes the speed.
"""

from dataclasses import dataclass
from typing import Literal

STDIN = STDOUT = "-"
DType = Literal["auto", "float32", "bfloat16", "float16"]
Compile = Literal["auto", "on", "off"]
# An interrupted run that was compiled goes on so, without insisting on it.
CompileMode = Literal["auto", "on", "off", "if-possible"]
OnError = Literal["fail", "reject"]
VectorType = Literal["float32", "float16"]


@dataclass(frozen=True)
class RunOptions:
    """What changes the speed, not the vector (beyond the rounding of `dtype`).

    `num_processes` None takes one for each device. `update` reuses the vectors of the output as it
    is, `overwrite` replaces an output of another recipe, `fresh` forgets what an interrupted run
    left. `watchdog` is in seconds: how long a worker may show no progress; 0 is for ever.
    `batch_tokens` None takes what suits the device. `compile` auto compiles the model where that
    pays for about `expected_tokens`, which are None until that is known. `plain` runs padded
    batches as the model's class does.
    """

    device: str = "auto"
    dtype: DType = "auto"
    batch_tokens: int | None = None
    num_processes: int | None = None
    update: bool = False
    overwrite: bool = False
    fresh: bool = False
    watchdog: float = 1800.0
    compile: CompileMode = "auto"
    expected_tokens: int | None = None
    plain: bool = False

    @classmethod
    def reference(cls, device: str) -> "RunOptions":
        """Return the plainest path, by which others are judged: one text at a time, in float32, padded,
        not compiled.
        """
        return cls(device=device, dtype="float32", batch_tokens=1, compile="off", plain=True)


@dataclass(frozen=True)
class InputOptions:
    """How records are taken from files.

    `columns` None carries all; `fields` are columns that the template names.
    """

    text_column: str = "text"
    columns: tuple[str, ...] | None = None
    fields: tuple[str, ...] = ()
    max_row_bytes: int = 16 * 2**20
    binary_as_utf8: bool = False
    on_error: OnError = "fail"


@dataclass(frozen=True)
class OutputOptions:
    """Where vectors go.

    `path` is a file name or `-`; `rejects` the file for rejected rows, if any are set aside.

    `directory`: the output is a dataset directory of parts. `allow_empty`: an output without rows
    is wanted, too.
    """

    path: str
    directory: bool = False
    format: Literal["parquet", "arrow", "jsonl"] = "parquet"
    rejects: str | None = None
    embedding_column: str = "embedding"
    vector_type: VectorType = "float32"
    min_rows: int = 0
    allow_empty: bool = False
