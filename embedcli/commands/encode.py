"""`embedcli encode`: its options, into a Job."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from embedcli import console
from embedcli.commands import options
from embedcli.commands.options import option
from embedcli.commands.patience import Patience, seconds_of
from embedcli.commands.report import Report
from embedcli.config import (
    STDIN,
    STDOUT,
    Backend,
    Compile,
    HashType,
    InputFormat,
    InputOptions,
    Limit,
    OnError,
    OutputOptions,
    VectorType,
    rejects_beside,
)
from embedcli.console import progress, run_summary
from embedcli.errors import EXIT_OK, EXIT_REJECTED, Ending, OutputError, UsageError

if TYPE_CHECKING:
    from embedcli.run import Job, Summary


def encode(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUTS",
            help="JSONL, CSV, TSV, text (also .gz, .zst), Parquet, Arrow: files, folders, globs; - is stdin.",
        ),
    ],
    role: Annotated[
        str,
        option(
            "What the texts are: query, passage (or document), or a role the model names.",
            "--role",
            metavar="ROLE",
        ),
    ],
    output: Annotated[
        str | None,
        option(
            "Output file, folder/ of part files, or - for stdout. Default: <input>.<role>.parquet beside the input.",
            "--output",
            "-o",
            metavar="PATH",
        ),
    ] = None,
    model: options.Model = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    template: options.Template = None,
    task: options.Task = None,
    max_length: options.MaxLength = None,
    dim: options.Dim = None,
    like: options.Like = None,
    normalize: Annotated[
        bool | None,
        option(
            "L2-normalize embeddings. Default: as the model was trained.",
            "--normalize/--no-normalize",
        ),
    ] = None,
    dtype: options.Numbers = "auto",
    device: options.Device = "auto",
    batch_tokens: Annotated[
        str,
        option(
            "Tokens per batch, padding included; auto: what suits the device.",
            "--batch-tokens",
            metavar="N|auto",
        ),
    ] = "auto",
    backend: Annotated[
        Backend,
        option(
            "torch, openvino (on CPUs), or auto: the faster one.",
            "--backend",
            metavar="NAME",
        ),
    ] = "auto",
    compile: Annotated[  # noqa: A002 - the option's name
        Compile,
        option(
            "Compile the model; auto: where it pays (on AMX).",
            "--compile",
        ),
    ] = "auto",
    engine: Annotated[
        str,
        option(
            "ray, or ray://HOST:PORT: have actors of a Ray cluster do the work.",
            "--engine",
            metavar="ENGINE",
            show_default=False,
        ),
    ] = "",
    num_processes: Annotated[
        int | None,
        option(
            "Workers. Default: one a CUDA device or Ray node, else one.",
            "--num-processes",
            metavar="N",
            min=1,
        ),
    ] = None,
    watchdog: Annotated[
        float | None,
        option(
            "End a worker without progress for so long; 0: never. Default: adaptive.",
            "--watchdog",
            metavar="SEC",
            min=0,
        ),
    ] = None,
    join: Annotated[
        bool,
        option(
            "Share the work with all machines that run this command.",
            "--join",
        ),
    ] = False,
    no_wait: Annotated[
        bool,
        option(
            "With --join: end with 75 once no work is left, don't wait for the output.", "--no-wait"
        ),
    ] = False,
    update: Annotated[
        bool,
        option(
            "Reuse the vectors of the output as it is; embed only new and changed texts.",
            "--update",
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        option(
            "Replace an output of another recipe; with --update, where its recipe differs.",
            "--overwrite",
        ),
    ] = False,
    fresh: Annotated[
        bool, option("Throw away what an interrupted run left, and start over.", "--fresh")
    ] = False,
    text_column: options.TextColumn = "text",
    columns: Annotated[
        str | None,
        option(
            "Columns to carry: id,old:new ('' for none; old:new renames). Default: all.",
            "--columns",
            metavar="NAMES",
        ),
    ] = None,
    embedding_column: Annotated[
        str, option("Name of the vector column.", "--embedding-column", metavar="NAME")
    ] = "embedding",
    vector_type: Annotated[
        VectorType,
        option("Stored vector dtype.", "--vector-type", metavar="float32|float16"),
    ] = "float32",
    hash: Annotated[  # noqa: A002 - the option's name
        HashType,
        option("Texts' hashes; none: no --update.", "--hash", show_default=False),
    ] = "binary",
    metadata_column: Annotated[
        str | None,
        option(
            "Put the carried columns but the id into one JSON string.",
            "--metadata-column",
            metavar="NAME",
        ),
    ] = None,
    format: Annotated[  # noqa: A002 - the option's name
        Literal["parquet", "arrow", "jsonl"] | None,
        option("With -o -: arrow (IPC stream) or jsonl.", "--format"),
    ] = None,
    input_format: Annotated[
        InputFormat,
        option(
            "How lines are read; auto: .csv, .tsv, .txt by their names, else JSONL.",
            "--input-format",
            metavar="FORMAT",
        ),
    ] = "auto",
    on_error: Annotated[
        OnError, option("Bad rows end the run, or are set aside.", "--on-error")
    ] = "fail",
    rejects: Annotated[
        str | None,
        option(
            "Default: <output>.rejects.jsonl, or <folder>/_rejects.jsonl.",
            "--rejects",
            metavar="FILE",
        ),
    ] = None,
    min_rows: Annotated[
        int, option("Fail (65) if the input has fewer rows.", "--min-rows", metavar="N", min=0)
    ] = 0,
    allow_empty: Annotated[
        bool,
        option("Accept an input without rows, or of which every row is rejected.", "--allow-empty"),
    ] = False,
    max_rejected: Annotated[
        str | None,
        option(
            "Fail (65) if more rows are rejected: 100, or 2%.", "--max-rejected", metavar="LIMIT"
        ),
    ] = None,
    max_removed: Annotated[
        str | None,
        option(
            "With --update, fail (65) if more rows go: 100, or 2%.",
            "--max-removed",
            metavar="LIMIT",
        ),
    ] = None,
    id_column: Annotated[
        str | None,
        option(
            "Tells rows apart, with --update. Default: _id or id.",
            "--id-column",
            metavar="NAME",
        ),
    ] = None,
    keep_stale: Annotated[
        bool,
        option("With --update: a row whose text turned bad keeps its old vector.", "--keep-stale"),
    ] = False,
    changes: Annotated[
        str | None,
        option(
            "With --update: write what is new, changed, deleted, as JSONL.",
            "--changes",
            metavar="FILE",
        ),
    ] = None,
    max_row_bytes: Annotated[
        int,
        option(
            "Maximum bytes of a JSONL line; 16 MiB.",
            "--max-row-bytes",
            metavar="N",
            min=1,
            max=2**40,
            show_default=False,
        ),
    ] = 16 * 2**20,
    max_input_bytes: Annotated[
        int | None,
        option(
            "Fail (65) if the input has more bytes, decompressed.",
            "--max-input-bytes",
            metavar="N",
            min=1,
        ),
    ] = None,
    binary_as_utf8: Annotated[
        bool, option("Read a Parquet text column of bytes as UTF-8.", "--binary-as-utf8")
    ] = False,
    dry_run: Annotated[
        bool,
        option(
            "Embed nothing: show rows, tokens, what would be reused, and the disk it takes.",
            "--dry-run",
        ),
    ] = False,
    report: Annotated[
        str | None,
        option(
            "Write what the run did, whatever its end, to this file as JSON; - is stdout.",
            "--report",
            metavar="FILE",
        ),
    ] = None,
    as_json: Annotated[
        bool, option("Print the report instead of the output's path.", "--json")
    ] = False,
    log: Annotated[
        bool, option("For a log: lines with the time, one that sums up.", "--log")
    ] = False,
    wait: Annotated[
        str,
        option(
            "Wait so long for another run at the output: 90s, 10m, 2h.",
            "--wait",
            metavar="TIME",
        ),
    ] = "0",
    retry: Annotated[
        int,
        option(
            "Try again after a lost device, an I/O error, a changed input.",
            "--retry",
            metavar="N",
            min=0,
        ),
    ] = 0,
    quiet: options.Quiet = False,
) -> int:
    """Encode a text column into vectors with the role's template.

    Example: embedcli encode corpus.parquet --role passage

    A run that was interrupted is continued by the same command.

    Exit codes: 0 done; 3 done with rejected rows; 65 bad data; 66 input missing; 69 workers or
    device lost; 73 output can't be created; 74 disk full; 75 output locked; 78 model or template
    unusable, or another recipe (with --join: input, options) than before.
    """
    from embedcli import run
    from embedcli.models.request import ModelRequest
    from embedcli.run import request
    from embedcli.sources import presenting

    run_options = options.run_options(
        device,
        dtype,
        batch_tokens=_batch_tokens(batch_tokens),
        num_processes=num_processes,
        update=update,
        overwrite=overwrite,
        fresh=fresh,
        watchdog=watchdog,
        join=join,
        no_wait=no_wait,
        backend=backend,
        compile=compile,
        engine=engine,
    )
    console.write_log(log)
    names = None if columns is None else options.names(columns)
    carried, renames = presenting.parse_columns(names)
    input_options = InputOptions(
        text_column=text_column,
        columns=carried,
        renames=renames,
        metadata_column=metadata_column,
        id_column=id_column,
        max_row_bytes=max_row_bytes,
        max_input_bytes=max_input_bytes,
        binary_as_utf8=binary_as_utf8,
        on_error=on_error,
        keep_stale=keep_stale,
        input_format=input_format,
    )
    output_options = OutputOptions(
        path=output or "",
        embedding_column=embedding_column,
        vector_type=vector_type,
        min_rows=min_rows,
        allow_empty=allow_empty,
        max_rejected=_limit(max_rejected, "--max-rejected"),
        max_removed=_limit(max_removed, "--max-removed"),
        hash=hash,
        changes=changes,
    )
    patience = Patience(seconds_of(wait, "--wait"), retry)
    reports = [*([STDOUT] if as_json or report == STDOUT else []), *([report] if report else [])]
    run_report = Report(
        list(dict.fromkeys(reports)),
        inputs,
        output or "",
        taken=[name for name in (rejects or rejects_beside(output or ""), changes) if name],
        guards={
            "min_rows": min_rows,
            "allow_empty": allow_empty,
            "max_rejected": max_rejected,
            "max_removed": max_removed,
            "max_input_bytes": max_input_bytes,
        },
    )
    shows = _Shows(quiet, log, STDOUT not in reports)
    with run_report.of_failure():
        request.check_options(run_options, output, input_options, output_options)
        _check_together(output, reports, patience, inputs, fresh and dry_run)
        files = request.find_inputs(inputs)
        run_report.files = files.names
        if files.left_out:
            listed = run_summary.listed(files.left_out)
            console.warn(f"left out, since embedcli wrote them: {listed}")
        path = output if output is not None else request.output_path(inputs, files, role)
        run_report.output = path
        output_options = replace(output_options, format=_format(path, format))
        output_options = request.with_places(output_options, path, rejects, on_error)
        # Before a model is looked for or fetched.
        run.check_places(output_options, files.names, None if report == STDOUT else report)
        asked = ModelRequest(
            model, revision, trust_remote_code, template, task, max_length, dim, normalize
        )
        job, notes = request.make_job(
            files, role, asked, like, input_options, output_options, run_options
        )
        for note in notes:
            console.warn(note)
        if dry_run:
            return _look_ahead(job, shows, run_report)
        return _encode(job, shows, run_report, patience)


def _check_together(
    output: str | None,
    reports: Sequence[str],
    patience: Patience,
    inputs: Sequence[str],
    dry_and_fresh: bool,
) -> None:
    """See that options of the command line go together. Raises UsageError."""
    if output == STDOUT and STDOUT in reports:
        raise UsageError("-o - writes vectors to standard output: the report needs a file")
    if patience.retries and (output == STDOUT or STDIN in inputs):
        raise UsageError("--retry needs files: a pipe can't be read or written twice")
    if dry_and_fresh:
        raise UsageError(
            "--dry-run changes nothing: --fresh can't be tried",
            "embedcli clean throws away leftovers",
        )


class _Shows(NamedTuple):
    """What a person or a log sees of a run."""

    quiet: bool
    log: bool
    path: bool


def _limit(value: str | None, option_name: str) -> Limit:
    return Limit() if value is None else Limit.parse(value, option_name)


def _batch_tokens(value: str) -> int | None:
    if value == "auto":
        return None
    if not value.isdecimal() or int(value) < 1:
        raise UsageError(f"--batch-tokens {value!r} is neither auto nor a number from 1 on")
    return int(value)


def _encode(job: "Job", shows: _Shows, report: Report, patience: Patience) -> int:
    from embedcli import run

    stdout = sys.stdout.buffer if job.output.path == STDOUT else None

    def encode_once() -> "Summary":
        with progress.listening(shows.quiet, shows.log) as listener:
            return run.encode_corpus(job, listener, stdout)

    summary = patience.give(encode_once)
    # A launcher takes any code but 0 for a failure, and may start all over.
    is_partial = summary.counts.rejected and not summary.launched
    code = EXIT_REJECTED if is_partial else EXIT_OK
    report.write(Ending(code), summary.to_json())
    if shows.log:
        run_summary.print_line(summary)
    elif not shows.quiet:
        run_summary.print_summary(summary)
    # The standard output of ranks is one: one speaks for all.
    speaks = summary.coordinated or not summary.launched
    if shows.path and not shows.log and job.output.path != STDOUT and speaks:
        console.result(job.output.path)
    return code


def _look_ahead(job: "Job", shows: _Shows, report: Report) -> int:
    from embedcli import run

    with progress.listening(shows.quiet, shows.log) as listener:
        preview = run.look_ahead(job, listener)
    report.write(Ending(EXIT_OK), preview.to_json())
    if shows.path:
        run_summary.print_preview(preview)
    if not preview.fits:
        raise OutputError(
            f"{job.output.path}: the run would write up to {console.size(preview.needed_bytes)}, "
            f"the disk has {console.size(preview.free_bytes or 0)}",
            "make space, carry fewer --columns, or write another --vector-type",
        )
    return EXIT_OK


def _format(path: str, requested: str | None) -> Literal["parquet", "arrow", "jsonl"]:
    if path == STDOUT and sys.stdout is None:
        raise OutputError("standard output is closed")
    if path != STDOUT:
        if requested not in (None, "parquet"):
            raise UsageError(f"--format {requested} goes with -o -: files are Parquet")
        return "parquet"
    if requested == "parquet":
        raise UsageError("Parquet can't be written to a pipe", "-o FILE, or --format arrow")
    if requested == "jsonl":
        return "jsonl"
    if sys.stdout.isatty():
        raise UsageError(
            "an Arrow stream is not for a terminal",
            "--format jsonl, or send it into a program or a file",
        )
    return "arrow"
