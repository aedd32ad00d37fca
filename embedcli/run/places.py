"""Where a run may write: checked before a model is looked for, so that nothing of the user's is
lost hours later.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from embedcli import files
from embedcli.config import STDIN, STDOUT, OutputOptions
from embedcli.errors import AccessError, OutputError
from embedcli.store import ownership, staging

_OTHER_FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".arrow", ".feather", ".txt")


def check_places(output: OutputOptions, inputs: Sequence[str], report: str | None = None) -> None:
    """See that the output, its rejects and the report can be written and destroy nothing.

    None of them may be an input, another of them, a file inside the output, or a file that embedcli
    did not write. Raises OutputError, AccessError.
    """
    taken_paths = [
        ("one of the inputs", "/dev/stdin" if name == STDIN else name) for name in inputs
    ]
    if output.path != STDOUT:
        _check_output(output, [name for _, name in taken_paths])
    taken_paths.append(("the output, too", output.path))
    if output.rejects is not None:
        _check_beside(output.rejects, "--rejects", output, taken_paths)
        ownership.check_replaceable(output.rejects, "--rejects", ownership.are_rejects)
        if not files.is_stream(output.rejects):  # messages of several kinds may share a terminal
            taken_paths.append(("that of the rejects, too", output.rejects))
    if output.changes is not None:
        _check_beside(output.changes, "--changes", output, taken_paths)
        ownership.check_replaceable(output.changes, "--changes", ownership.are_changes)
        if not files.is_stream(output.changes):
            taken_paths.append(("that of the changes, too", output.changes))
    if report is not None:
        _check_beside(report, "--report", output, taken_paths)
        ownership.check_replaceable(report, "--report", ownership.is_report)


def _check_output(options: OutputOptions, inputs: Sequence[str]) -> None:
    output = Path(options.path)
    if output.is_symlink():
        raise OutputError(
            f"{output}: is a symbolic link, which publishing would replace",
            f"-o {os.readlink(output)}",
        )
    if Path.cwd().is_relative_to(os.path.abspath(output)):
        raise OutputError(
            f"{output}: is the current folder, or holds it", "name a folder inside it"
        )
    if output.is_dir() and not os.access(output, os.W_OK):
        raise AccessError(f"{output}: can't be written")
    if output.parent.is_dir() and not os.access(output.parent, os.W_OK):
        raise AccessError(f"{output}: its folder can't be written")
    files.check_sticky(output)
    if options.directory and output.exists() and not output.is_dir():
        raise OutputError(
            f"{output}: is a file, and a directory was asked for",
            "remove it, or choose another name",
        )
    if not options.directory and output.suffix.lower() in _OTHER_FORMATS:
        raise OutputError(
            f"{output}: files are written as Parquet",
            f"-o {output.stem}.parquet; as JSON lines: -o - --format jsonl > {output.stem}.jsonl",
        )
    leftovers = str(staging.place_of(output))
    is_directory = output.is_dir()
    for name in inputs:
        if files.is_inside(name, leftovers):
            raise OutputError(
                f"{name}: lies in the staging directory of the output", "move it elsewhere"
            )
        if files.are_same(name, options.path) or (
            is_directory and files.is_inside(name, options.path)
        ):
            raise OutputError(
                f"{output}: is or holds one of the inputs", "choose another name with -o"
            )
    ownership.check_vectors(output)


def _check_beside(
    path: str, option: str, output: OutputOptions, taken_paths: Sequence[tuple[str, str]]
) -> None:
    """Refuse a file that is taken, or that publishing the output would remove."""
    files.check_distinct(path, option, taken_paths)
    if output.path == STDOUT:
        return
    for folder in (output.path, str(staging.place_of(Path(output.path)))):
        if not files.is_stream(path) and (
            files.is_inside(path, folder) or files.are_same(path, folder)
        ):
            raise OutputError(
                f"{option} {path}: lies inside the output", "put it beside the output"
            )
