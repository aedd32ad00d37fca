"""Verbs of the command line for Python programs."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, TypedDict, TypeVar, Unpack

from embedcli import run
from embedcli.analysis.search import Hit
from embedcli.api.errors import in_python
from embedcli.api.vectors import Vectors
from embedcli.config import (
    STDOUT,
    Backend,
    Compile,
    DType,
    HashType,
    InputFormat,
    InputOptions,
    Limit,
    OnError,
    OutputOptions,
    RunOptions,
    VectorType,
)
from embedcli.errors import UsageError
from embedcli.models.request import ModelRequest
from embedcli.run import Summary, request
from embedcli.sources import presenting
from embedcli.store.claims import Heartbeat


class EncodeOptions(TypedDict, total=False):
    """The options of `embedcli encode` by their names, with the same defaults; `embedcli encode
    --help` describes them.
    """

    model: str
    revision: str
    trust_remote_code: bool
    template: str
    task: str
    max_length: int
    dim: int
    normalize: bool
    like: str
    device: str
    dtype: DType
    backend: Backend
    compile: Compile
    batch_tokens: int
    engine: str
    num_processes: int
    watchdog: float
    join: bool
    no_wait: bool
    update: bool
    overwrite: bool
    fresh: bool
    text_column: str
    columns: Sequence[str]
    embedding_column: str
    vector_type: VectorType
    hash: HashType
    metadata_column: str
    on_error: OnError
    input_format: InputFormat
    rejects: str
    min_rows: int
    allow_empty: bool
    max_rejected: str
    max_removed: str
    id_column: str
    keep_stale: bool
    changes: str
    max_row_bytes: int
    max_input_bytes: int
    binary_as_utf8: bool


_Options = TypeVar("_Options")


def encode(
    inputs: str | Sequence[str],
    *,
    role: str,
    output: str | None = None,
    **options: Unpack[EncodeOptions],
) -> Summary:
    """Encode a corpus into a file or folder of vectors, as `embedcli encode` does; return what was
    done. What is finished when it is interrupted is kept: the same call goes on from there.

    inputs: JSONL, Parquet or Arrow files, folders, globs. output: a file, a folder/, or None: beside
    the one input. Warnings come by Python's `warnings`. Raises EmbedcliError, TypeError for an
    option that there isn't.
    """
    names = [inputs] if isinstance(inputs, str) else list(inputs)
    _check_names(options)
    given: dict[str, Any] = {**options, "path": ""}
    if "columns" in options:
        given["columns"], given["renames"] = presenting.parse_columns(options["columns"])
    with in_python():
        for name in given.keys() & {"max_rejected", "max_removed"}:
            given[name] = Limit.parse(given[name], name)
        output_options = _pick(OutputOptions, given)
        input_options = _pick(InputOptions, given)
        run_options = _pick(RunOptions, given)
        request.check_options(run_options, output, input_options, output_options)
        files = request.find_inputs(names)
        path = request.output_path(names, files, role) if output is None else output
        if path == STDOUT:
            raise UsageError("output '-' is standard output, which is the program's own")
        output_options = request.with_places(
            output_options, path, options.get("rejects"), input_options.on_error
        )
        run.check_places(output_options, files.names)
        model, like = _pick(ModelRequest, given), options.get("like")
        job, notes = request.make_job(
            files, role, model, like, input_options, output_options, run_options
        )
        for note in notes:
            warnings.warn(note, stacklevel=2)
        return run.encode_corpus(job, _Listener())


def search(
    index: str,
    texts: Sequence[str],
    k: int = 10,
    *,
    role: str | None = None,
    where: str | None = None,
    columns: Sequence[str] | None = None,
) -> list[list[Hit]]:
    """Return for each text the k nearest rows of a file of vectors: see `Vectors.search`."""
    return Vectors(index).search(texts, k, role=role, where=where, columns=columns)


def open(  # noqa: A001 - embedcli.open
    path: str, embedding_column: str | None = None, *, like: str | None = None
) -> Vectors:
    """Open a file or folder of vectors. Raises EmbedcliError where it says nothing of its making, and
    no file `like` it says that.
    """
    return Vectors(path, embedding_column, like)


class _Listener:
    """Passes warnings on; shows nothing."""

    def warn(self, message: str) -> None:
        warnings.warn(message, stacklevel=2)

    def stage(self, name: str) -> None:
        """Ignored."""

    def begin(self, rows: int) -> None:
        """Ignored."""

    def advance(self, rows: int, tokens: int) -> None:
        """Ignored."""

    def workers(self, heartbeats: Sequence[Heartbeat]) -> None:
        """Ignored."""


def _check_names(options: Mapping[str, Any]) -> None:
    known = EncodeOptions.__annotations__
    for name in options:
        if name not in known:
            close = get_close_matches(name, known, 1)
            hint = f": did you mean {close[0]}?" if close else ""
            raise TypeError(f"encode has no option {name!r}{hint}")


def _names(kind: type) -> set[str]:
    return {field.name for field in fields(kind)}


def _pick(kind: type[_Options], options: Mapping[str, Any]) -> _Options:
    """Return options of a kind, of which some are given by name."""
    return kind(**{name: value for name, value in options.items() if name in _names(kind)})
