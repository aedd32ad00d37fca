"""From what people ask for, by the names of `encode`'s options, to a Job: for the command line and
for Python alike.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from embedcli import sources
from embedcli.config import (
    STDIN,
    STDOUT,
    InputOptions,
    Limit,
    OnError,
    OutputOptions,
    RunOptions,
    rejects_beside,
)
from embedcli.errors import UsageError
from embedcli.models.request import ModelRequest
from embedcli.models.resolve import resolve, resolve_like
from embedcli.run import ray_engine
from embedcli.run.job import Job
from embedcli.sources import FoundFiles
from embedcli.store import ownership
from embedcli.store.vector_file import open_ours


def find_inputs(inputs: Sequence[str]) -> FoundFiles:
    """Find the files of an input: names, folders, globs. Raises InputMissingError, AccessError."""
    return sources.find(inputs, ownership.is_output)


def _check_text_column(text_column: str) -> None:
    """See that one column is named. Raises UsageError that says how several are joined."""
    if "," in text_column:
        names = text_column.split(",")
        fields = " ".join(f"{{{name.strip()}}}" for name in names)
        raise UsageError(
            f"--text-column {text_column}: one column is embedded",
            f"to join several: --text-column {names[-1].strip()} --template '{fields}'",
        )


def check_options(
    run: RunOptions, path: str | None, given: InputOptions, output: OutputOptions
) -> None:
    """See that options go together. Raises UsageError; ConfigurationError where the engine isn't
    installed.
    """
    if run.engine and run.engine != "ray" and not run.engine.startswith("ray://"):
        raise UsageError(f"--engine {run.engine!r} is neither ray nor ray://HOST:PORT")
    if run.engine and run.join:
        raise UsageError("--engine and --join exclude each other", "Ray has machines of its own")
    if run.engine:
        ray_engine.check_installed()
    if run.update and run.fresh:
        raise UsageError(
            "--update and --fresh exclude each other", "without both, everything is embedded anew"
        )
    for name, is_given in (
        ("--max-removed", output.max_removed != Limit()),
        ("--changes", output.changes is not None),
        ("--keep-stale", given.keep_stale),
        ("--id-column", given.id_column is not None and given.metadata_column is None),
    ):
        if is_given and not run.update:
            raise UsageError(f"{name} goes with --update")
    if given.keep_stale and given.on_error != "reject":
        raise UsageError("--keep-stale goes with --on-error reject")
    _check_text_column(given.text_column)
    if run.update and output.hash == "none":
        raise UsageError("--update finds vectors by their hashes: --hash none leaves none")
    if run.update and path == STDOUT:
        raise UsageError("--update needs an output to update: -o - has none")


def output_path(inputs: Sequence[str], files: FoundFiles, role: str) -> str:
    """Return where vectors go that nobody named a place for: beside the one input file.

    Raises UsageError where there are several, or the role can't be part of a file's name.
    """
    if len(inputs) > 1 or files.names != list(inputs) or files.names == [STDIN]:
        subject = "several inputs" if len(inputs) > 1 else f"the input {inputs[0]!r}"
        raise UsageError(
            f"cannot derive an output name from {subject}", "name it: -o vectors.parquet"
        )
    if not re.fullmatch(r"[\w.-]+", role):
        raise UsageError(
            f"role {role!r} can't be part of a file name", "name the output: -o vectors.parquet"
        )
    path = Path(inputs[0])
    return str(path.with_name(f"{sources.without_suffix(path.name)}.{role}.parquet"))


def with_places(
    options: OutputOptions, path: str, rejects: str | None, on_error: OnError
) -> OutputOptions:
    """Return an output's options with its place and that of its rejects. Raises UsageError."""
    is_directory = path != STDOUT and (path.endswith("/") or Path(path).is_dir())
    inside = is_directory and on_error == "reject" and rejects is None
    return replace(
        options,
        path=path.rstrip("/") or path,
        directory=is_directory,
        rejects=None if inside else _rejects(path, rejects, on_error),
        rejects_inside=inside,
    )


def _rejects(path: str, requested: str | None, on_error: OnError) -> str | None:
    if on_error == "fail":
        if requested is not None:
            raise UsageError("--rejects goes with --on-error reject")
        return None
    if requested is None and path == STDOUT:
        raise UsageError(
            "with -o - the rejected rows need a file", "name it: --rejects rejects.jsonl"
        )
    return requested or rejects_beside(path)


def make_job(
    files: FoundFiles,
    role: str,
    request: ModelRequest,
    like: str | None,
    input_options: InputOptions,
    output_options: OutputOptions,
    run_options: RunOptions,
) -> tuple[Job, Sequence[str]]:
    """Return the job, and what people should know of its model and template.

    Fetches models of the hub. Raises ConfigurationError, and what opening `like` raises.
    """
    if like is None:
        resolved = resolve(request, role)
    else:
        resolved = resolve_like(request, role, open_ours(like).made, like)
    job = Job(
        inputs=tuple(files.names),
        spec=resolved.spec,
        template=resolved.template,
        input=replace(input_options, fields=resolved.template.fields),
        output=output_options,
        run=run_options,
        left_out=tuple(files.left_out),
    )
    return job, resolved.warnings
