"""`embedcli run`: jobs of a TOML file, each the options of one `embedcli encode`."""

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

from embedcli import console
from embedcli.commands.encode import encode
from embedcli.commands.help import GroupedCommand
from embedcli.errors import (
    EXIT_OK,
    ConfigurationError,
    Interrupted,
    UsageError,
    ending_of,
    from_os_error,
)

_TABLES = ("defaults", "jobs")
_INPUTS = "inputs"


@dataclass(frozen=True)
class Job:
    """A job: its name, and the values of `encode`'s parameters."""

    name: str
    values: Mapping[str, Any]


def run_jobs(
    file: Annotated[str, typer.Argument(help="A TOML file of jobs.", metavar="FILE")],
    names: Annotated[
        list[str] | None, typer.Argument(help="Jobs to run. Default: all.", metavar="NAMES")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Embed nothing: show what each job would do.")
    ] = False,
    reports: Annotated[
        str | None,
        typer.Option(
            "--reports", metavar="FOLDER", help="Write each job's report there: NAME.json."
        ),
    ] = None,
    log: Annotated[
        bool, typer.Option("--log", help="For a log: lines with the time, one for each job.")
    ] = False,
) -> int:
    """Run jobs of a file one after the other; paths in it are relative to its folder.

    Example: embedcli run /etc/embedcli.toml nightly

    A job is a table [jobs.NAME] of encode's options by their names, and inputs; [defaults] holds
    options of all jobs. All jobs are checked before the first one starts, and one that fails
    keeps no other from running.

    Exit codes: 0 all jobs are done; 2 an option that there isn't; 66 no such file; 78 not a file
    of jobs; else the highest of the jobs' codes.
    """
    jobs = _read(file)
    chosen = _choose(jobs, names or [], file)
    if reports is not None:
        Path(reports).mkdir(parents=True, exist_ok=True)
        reports = os.path.abspath(reports)
    os.chdir(Path(file).resolve().parent)
    command = _encode_command()
    contexts = [_check(command, job, file, _given(job, dry_run, log, reports)) for job in chosen]
    codes = [
        _run(job, context, len(chosen) > 1) for job, context in zip(chosen, contexts, strict=True)
    ]
    return max(codes, default=EXIT_OK)


def _read(file: str) -> dict[str, Job]:
    """Read jobs. Raises InputMissingError, ConfigurationError, UsageError."""
    try:
        with open(file, "rb") as stream:
            content = tomllib.load(stream)
    except OSError as error:
        raise from_os_error(error, file) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: not TOML: {error}") from None
    _check_keys(content, _TABLES, f"{file}:")
    tables, defaults = content.get("jobs", {}), content.get("defaults", {})
    if not tables or not all(isinstance(table, dict) for table in (defaults, *tables.values())):
        raise ConfigurationError(
            f"{file}: names no jobs", "a job is a table: [jobs.nightly] with inputs and role"
        )
    jobs = {}
    for name, table in tables.items():
        values = {key.replace("-", "_"): value for key, value in {**defaults, **table}.items()}
        _check_keys(values, _parameters(), f"{file}: [jobs.{name}]:")
        jobs[name] = Job(name, values)
    return jobs


def _choose(jobs: Mapping[str, Job], names: Sequence[str], file: str) -> list[Job]:
    _check_keys(names, list(jobs), f"{file}:", "job")
    return [jobs[name] for name in names] if names else list(jobs.values())


def _check_keys(
    keys: Sequence[str] | Mapping[str, Any], known: Sequence[str], where: str, kind: str = "key"
) -> None:
    """See that there are no other keys than those that are known. Raises UsageError."""
    for key in keys:
        if key not in known:
            close = get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            raise UsageError(f"{where} unknown {kind} {key!r}", hint)


def _parameters() -> list[str]:
    """Return the names that a job may set: `json` is the parameter `as_json`."""
    return [_key_of(param) for param in _encode_command().params if param.name != "dry_run"]


def _key_of(param: Any) -> str:
    name: str = param.name
    return name.removeprefix("as_")


def _encode_command() -> Any:
    app = typer.Typer(rich_markup_mode=None)
    app.command("encode", cls=GroupedCommand)(encode)
    return typer.main.get_command(app)


def _given(job: Job, dry_run: bool, log: bool, reports: str | None) -> dict[str, Any]:
    """Return a job's values with those of the command line."""
    values = dict(job.values)
    if reports is not None:
        values.setdefault("report", os.path.join(reports, f"{job.name}.json"))
    return values | {"dry_run": dry_run} | ({"log": True} if log else {})


def _check(command: Any, job: Job, file: str, values: Mapping[str, Any]) -> typer.Context:
    """Return the values of `encode`'s parameters, checked as on the command line. Raises UsageError."""
    try:
        context: typer.Context = command.make_context("encode", _arguments(command, values))
    except typer.BadParameter as error:
        raise UsageError(f"{file}: [jobs.{job.name}]: {error.format_message()}") from None
    except UsageError as error:
        raise UsageError(f"{file}: [jobs.{job.name}]: {error.message}") from None
    return context


def _arguments(command: Any, values: Mapping[str, Any]) -> list[str]:
    """Write values as the arguments of a command line. Raises UsageError."""
    arguments: list[str] = []
    for param in command.params:
        key = _key_of(param)
        if key not in values or key == _INPUTS:
            continue
        value = values[key]
        if getattr(param, "is_flag", False):
            if not isinstance(value, bool):
                raise UsageError(f"{key}: true or false is wanted, not {value!r}")
            names = param.opts if value else param.secondary_opts
            arguments += names[:1]
        elif isinstance(value, list):
            arguments.append(f"{param.opts[0]}={','.join(map(str, value))}")
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            arguments.append(f"{param.opts[0]}={value}")
        else:
            raise UsageError(f"{key}: a string or a number is wanted, not {value!r}")
    inputs = values.get(_INPUTS, [])
    return [*arguments, "--", *map(str, [inputs] if isinstance(inputs, str) else inputs)]


def _run(job: Job, context: typer.Context, is_one_of_many: bool) -> int:
    """Run a job; return its exit code. Raises Interrupted."""
    if is_one_of_many:
        console.say(f"job {job.name}")
    try:
        with context:
            return encode(**context.params)
    except Interrupted:
        raise
    except Exception as error:
        ending = ending_of(error)
        console.error(f"{job.name}: {ending.error}", ending.hint)
        return ending.exit_code
