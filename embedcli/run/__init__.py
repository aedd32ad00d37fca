"""A run: plan the corpus, have its units done, account for every row, publish.

Wires the layers together. Knows no option parser, no terminal, no tensor.
"""

import contextlib
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from embedcli import launch
from embedcli.config import NAMED_FILES, STDOUT
from embedcli.errors import ConfigurationError, DataError, UsageError
from embedcli.run import dispatch
from embedcli.run.job import Counts, Job, ProgressListener, Summary, timed
from embedcli.run.places import check_places
from embedcli.run.planning import make_plan
from embedcli.run.preview import Preview, make_preview
from embedcli.run.results import RunResults
from embedcli.store import staging

__all__ = [
    "Counts",
    "Job",
    "Preview",
    "ProgressListener",
    "Summary",
    "check_places",
    "encode_corpus",
    "look_ahead",
]


def encode_corpus(
    job: Job, listener: ProgressListener, stdout: BinaryIO | None = None
) -> Summary | None:
    """Encode the corpus and publish its vectors; `stdout` takes them where the output is `-`.

    Raises the errors of errors.py. Until the run is through, nothing is visible under the output's
    name; what is finished when it ends early is kept, and the same job continues from there.
    Returns None in a process of a higher rank, which only helps.
    """
    world = launch.join(job.run)
    if world.size > 1 and job.output.path == STDOUT:
        raise UsageError(
            "-o - can't be written by several ranks",
            "name a file or a directory that all of them see",
        )
    if world.rank > 0:
        dispatch.help_rank_zero(job, world)
        return None
    summary = Summary(
        output=job.output.path,
        recipe=job.recipe,
        template_source=job.template.source,
        inputs=list(job.inputs[:NAMED_FILES]),
        input_files=len(job.inputs),
        left_out=list(job.left_out[:NAMED_FILES]),
    )
    with timed(summary.seconds, "total"), _open_stage(job, world) as stage:
        try:
            _run(job, stage, world, listener, summary, stdout)
        except BaseException as error:
            staging.name_places(error, stage)
            finished = stage.finished if stage.output is not None else 0
            if finished and not isinstance(
                error, ConfigurationError
            ):  # a refused recipe doesn't continue by itself
                error.add_note(
                    f"finished work is kept (units: {finished}): the same command continues from there"
                )
            raise
    return summary


def look_ahead(job: Job, listener: ProgressListener) -> Preview:
    """Tell what `encode_corpus` would do; change nothing. Raises what it would raise before encoding."""
    listener.stage("reading the input")
    with _open_stage(job, launch.World(secrets.token_hex(8)), keep=True) as stage:
        preview = make_preview(make_plan(job, stage, listener, dry=True))
    if preview.rows and preview.rejected == preview.rows and not job.output.allow_empty:
        raise DataError(f"all {preview.rows:,} rows are rejected", "--allow-empty accepts it")
    return preview


def _run(
    job: Job,
    stage: staging.Staging,
    world: launch.World,
    listener: ProgressListener,
    summary: Summary,
    stdout: BinaryIO | None,
) -> None:
    """Go from the input to the published output."""
    listener.stage("reading the input")
    with timed(summary.seconds, "planning"):
        plan = make_plan(job, stage, listener, workers=world.size)
    summary.counts.rows_in = plan.corpus.rows
    summary.update = plan.job.run.update
    listener.begin(plan.corpus.rows)
    results = RunResults(plan, listener, summary, stdout)
    dispatch.run_units(plan, world, listener, results)
    with timed(summary.seconds, "publishing"):
        results.publish()


@contextlib.contextmanager
def _open_stage(job: Job, world: launch.World, keep: bool = False) -> Iterator[staging.Staging]:
    """Open a directory of this run's own; lock the output where that is a file or a directory."""
    if job.output.path == STDOUT:
        with staging.open_temporary(
            Path(tempfile.mkdtemp(prefix="embedcli-")), world.token
        ) as stage:
            yield stage
    else:
        with staging.open_staging(Path(job.output.path), world.token, job.run.fresh, keep) as stage:
            yield stage
