"""`embedcli encode`: its options, into a Job."""

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from embedcli import console
from embedcli.config import (
    STDIN,
    STDOUT,
    Compile,
    DType,
    Facts,
    InputOptions,
    OnError,
    OutputOptions,
    RunOptions,
    VectorType,
)
from embedcli.console import closing, progress
from embedcli.errors import EXIT_OK, EXIT_REJECTED, OutputError, UsageError

if TYPE_CHECKING:
    from embedcli.job import Job
    from embedcli.registry import Family

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def _option(help: str, *names: str, **more: Any) -> Any:  # noqa: A002 - Typer's own word
    """An option that an environment variable may set too: EMBEDCLI_ and its name."""
    variable = "EMBEDCLI_" + names[0].partition("/")[0].lstrip("-").upper().replace("-", "_")
    return typer.Option(*names, help=help, envvar=variable, **more)


def encode(
    inputs: Annotated[
        list[str], typer.Argument(help="JSONL (also .gz, .zst) or Parquet: files, folders, globs; - is stdin.")
    ],
    role: Annotated[
        str, _option("What the texts are: query, passage (or document), or a role the model names.", "--role")
    ],
    output: Annotated[
        str | None,
        _option(
            "Output file, folder/ of part files, or - for stdout. Default: <input>.<role>.parquet beside the input.",
            "--output",
            "-o",
        ),
    ] = None,
    model: Annotated[
        str | None,
        _option("org/name (of the hub), ./folder, or hash:64. Default: the embedded all-MiniLM-L6-v2.", "--model"),
    ] = None,
    revision: Annotated[str | None, _option("Branch, tag or commit of a hub model.", "--revision")] = None,
    trust_remote_code: Annotated[
        bool, _option("Run the repository's own code. Demands --revision with a commit.", "--trust-remote-code")
    ] = False,
    template: Annotated[
        str | None, _option("A string with {text}, a template file, or a family's name.", "--template")
    ] = None,
    task: Annotated[str | None, _option("The instruction sentence, where the template has {task}.", "--task")] = None,
    max_length: Annotated[
        int | None, _option("Most tokens of a text, template included.", "--max-length", min=1)
    ] = None,
    dim: Annotated[
        int | None, _option("Keep the first so many dimensions, then normalize (Matryoshka).", "--dim", min=1)
    ] = None,
    normalize: Annotated[
        bool | None,
        _option("Give vectors norm 1. Default: as the model is meant to be used.", "--normalize/--no-normalize"),
    ] = None,
    dtype: Annotated[
        DType, _option("Number format of the weights; auto: bfloat16 where it is faster.", "--dtype")
    ] = "auto",
    device: Annotated[str, _option("auto, cpu, cuda or cuda:1.", "--device")] = "auto",
    batch_tokens: Annotated[
        str, _option("Tokens per batch, padding included; auto: what suits the device.", "--batch-tokens")
    ] = "auto",
    compile: Annotated[  # noqa: A002 - the option's name
        Compile, _option("Compile the model; auto: where the amount of work pays for it (CPUs with AMX).", "--compile")
    ] = "auto",
    num_processes: Annotated[
        int | None, _option("Worker processes. Default: one for each CUDA device, else one.", "--num-processes", min=1)
    ] = None,
    watchdog: Annotated[
        float, _option("Seconds without progress after which a worker is given up; 0: never.", "--watchdog", min=0)
    ] = 1800.0,
    update: Annotated[
        bool, _option("Reuse the vectors of the output as it is; embed only new and changed texts.", "--update")
    ] = False,
    fresh: Annotated[bool, _option("Throw away what an interrupted run left, and start over.", "--fresh")] = False,
    text_column: Annotated[
        str, _option("The column to embed; doc.text is a path into objects.", "--text-column")
    ] = "text",
    columns: Annotated[
        str | None, _option("Columns to carry over, separated by commas; '' for none. Default: all.", "--columns")
    ] = None,
    embedding_column: Annotated[str, _option("Name of the vector column.", "--embedding-column")] = "embedding",
    vector_type: Annotated[VectorType, _option("Number format of the stored vectors.", "--vector-type")] = "float32",
    format: Annotated[  # noqa: A002 - the option's name
        Literal["parquet", "arrow", "jsonl"] | None, _option("With -o -: arrow (IPC stream) or jsonl.", "--format")
    ] = None,
    on_error: Annotated[OnError, _option("Bad rows end the run, or are set aside.", "--on-error")] = "fail",
    rejects: Annotated[
        str | None, _option("Where rejected rows go. Default: <output>.rejects.jsonl.", "--rejects")
    ] = None,
    min_rows: Annotated[int, _option("Fail (65) if the input has fewer rows.", "--min-rows", min=0)] = 0,
    max_row_bytes: Annotated[int, _option("Longest JSONL line.", "--max-row-bytes", min=1)] = 16 * 2**20,
    binary_as_utf8: Annotated[
        bool, _option("Read a Parquet text column of bytes as UTF-8.", "--binary-as-utf8")
    ] = False,
    dry_run: Annotated[
        bool, _option("Embed nothing: show rows, tokens, what would be reused, and the disk it takes.", "--dry-run")
    ] = False,
    report: Annotated[str | None, _option("Write the run's summary to this file, as JSON.", "--report")] = None,
    quiet: Annotated[bool, _option("No progress and no summary; warnings and errors only.", "--quiet", "-q")] = False,
) -> int:
    """Encode a text column into vectors with the role's template.

    Example: embedcli encode corpus.parquet --role passage

    A run that was interrupted is continued by the same command.

    Exit codes: 0 done; 3 done with rejected rows; 65 bad data; 66 input missing; 69 workers or device lost; 73 output
    can't be created; 74 disk full; 75 output locked; 78 model or template unusable, or another recipe than before.
    """
    from embedcli import job as jobs
    from embedcli import registry, sources
    from embedcli.encoder import checkpoint, model_files

    if not _DEVICE.fullmatch(device):
        raise UsageError(f"--device {device!r} is none of auto, cpu, cuda, cuda:N")
    _check_together(update, fresh, dry_run, output)
    found = sources.find(inputs)
    path = output if output is not None else _default_output(inputs, found, role)
    output_options = OutputOptions(
        path=path.rstrip("/") or path,
        directory=path != STDOUT and (path.endswith("/") or Path(path).is_dir()),
        format=_format(path, format),
        rejects=_rejects_path(path, on_error, rejects),
        embedding_column=embedding_column,
        vector_type=vector_type,
        min_rows=min_rows,
    )
    jobs.check_output(output_options, found, report)  # before a model is looked for or fetched
    files = model_files.find(model, revision, trust_remote_code)
    family = registry.find_family(files.names, template)
    chosen = registry.choose(files.id, role, task, template, family, checkpoint.prompts(files))
    _warn(template, family, dim)
    wishes = checkpoint.Wishes(max_length, dim, normalize, trust_remote_code)
    facts, adapter = (family.facts, family.adapters.get(chosen.role)) if family else (Facts(), None)
    job = jobs.Job(
        inputs=tuple(found),
        checkpoint=checkpoint.read(files, facts, wishes, adapter),
        template=chosen,
        input=InputOptions(
            text_column=text_column,
            columns=None if columns is None else tuple(filter(None, columns.split(","))),
            fields=chosen.fields,
            max_row_bytes=max_row_bytes,
            binary_as_utf8=binary_as_utf8,
            on_error=on_error,
        ),
        output=output_options,
        run=RunOptions(
            device, dtype, _batch_tokens(batch_tokens), num_processes, update, fresh, watchdog, compile=compile
        ),
    )
    return _look_ahead(job, quiet, report) if dry_run else _run(job, quiet, report)


def _batch_tokens(value: str) -> int | None:
    if value == "auto":
        return None
    if not value.isdecimal() or int(value) < 1:
        raise UsageError(f"--batch-tokens {value!r} is neither auto nor a number from 1 on")
    return int(value)


def _check_together(update: bool, fresh: bool, dry_run: bool, output: str | None) -> None:
    if fresh and dry_run:
        raise UsageError("--dry-run changes nothing: --fresh can't be tried", "embedcli clean throws away leftovers")
    if update and fresh:
        raise UsageError("--update and --fresh exclude each other", "without both, everything is embedded anew")
    if update and output == STDOUT:
        raise UsageError("--update needs an output to update: -o - has none")


def _warn(template: str | None, family: "Family | None", dim: int | None) -> None:
    """Say what a careful colleague would say of these choices."""
    from embedcli import registry

    if warning := registry.warn_literal_escape(template):
        console.warn(warning)
    if family is None:
        return
    for unsure in family.unsure:
        console.warn(f"family {family.name} is not verified: {unsure}")
    if dim is not None and family.facts.dims and dim not in family.facts.dims:
        console.warn(f"the model was trained to be cut to {', '.join(map(str, family.facts.dims))}, not to {dim}")


def _run(job: "Job", quiet: bool, report: str | None) -> int:
    from embedcli import job as jobs

    with progress.watching(quiet) as watcher:
        summary = jobs.run(job, watcher, sys.stdout.buffer if job.output.path == STDOUT else None)
    if summary is None:  # a higher rank: rank 0 speaks for all
        return EXIT_OK
    if report is not None:
        _write_report(Path(report), summary.as_dict())
    if not quiet:
        closing.summary(summary)
    if job.output.path != STDOUT:
        console.result(job.output.path)
    # A launcher takes any code but 0 for a failure, and may start all over.
    return EXIT_REJECTED if summary.counts.rejected and not summary.launched else EXIT_OK


def _look_ahead(job: "Job", quiet: bool, report: str | None) -> int:
    from embedcli import job as jobs

    with progress.watching(quiet) as watcher:
        found = jobs.look_ahead(job, watcher)
    if report is not None:
        _write_report(Path(report), found.as_dict())
    closing.preview(found)
    if not found.fits:
        raise OutputError(
            f"{job.output.path}: the run would write up to {console.size(found.needed_bytes)}, "
            f"the disk has {console.size(found.free_bytes or 0)}",
            "make space, carry fewer --columns, or write another --vector-type",
        )
    return EXIT_OK


def _write_report(path: Path, content: dict[str, Any]) -> None:
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def _default_output(inputs: list[str], found: list[str], role: str) -> str:
    if len(inputs) > 1 or found != inputs or found == [STDIN]:
        what = "several inputs" if len(inputs) > 1 else f"the input {inputs[0]!r}"
        raise UsageError(f"no output name follows from {what}", "name it: -o vectors.parquet")
    if not re.fullmatch(r"[\w.-]+", role):
        raise UsageError(f"role {role!r} can't be part of a file name", "name the output: -o vectors.parquet")
    path = Path(inputs[0])
    stem = re.sub(r"\.(jsonl|ndjson|json|parquet)$", "", re.sub(r"\.(gz|zst)$", "", path.name))
    return str(path.with_name(f"{stem}.{role}.parquet"))


def _format(path: str, wanted: str | None) -> Literal["parquet", "arrow", "jsonl"]:
    if path == STDOUT and sys.stdout is None:
        raise OutputError("standard output is closed")
    if path != STDOUT:
        if wanted not in (None, "parquet"):
            raise UsageError(f"--format {wanted} goes with -o -: files are Parquet")
        return "parquet"
    if wanted == "parquet":
        raise UsageError("Parquet can't be written to a pipe", "-o FILE, or --format arrow")
    if wanted == "jsonl":
        return "jsonl"
    if sys.stdout.isatty():
        raise UsageError("an Arrow stream is not for a terminal", "--format jsonl, or send it into a program or a file")
    return "arrow"


def _rejects_path(path: str, on_error: OnError, wanted: str | None) -> str | None:
    if on_error == "fail":
        if wanted is not None:
            raise UsageError("--rejects goes with --on-error reject")
        return None
    if wanted is None and path == STDOUT:
        raise UsageError("with -o - the rejected rows need a file", "name it: --rejects rejects.jsonl")
    return wanted or f"{path.rstrip('/')}.rejects.jsonl"
