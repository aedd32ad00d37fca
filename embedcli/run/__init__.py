"""A run: plan the corpus, have its units done, account for every row, publish.

Wires the layers together. Knows no option parser, no terminal, no tensor.
"""

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from embedcli import launch
from embedcli.config import NAMED_FILES, STDIN, STDOUT
from embedcli.errors import ConfigurationError, DataError, LockedError, UsageError
from embedcli.run import plan_file, resuming, sharing
from embedcli.run.job import Counts, Job, ProgressListener, Summary, timed
from embedcli.run.places import check_places
from embedcli.run.planning import RunPlan, make_plan
from embedcli.run.preview import Preview, make_preview
from embedcli.run.results import RunResults
from embedcli.run.work import Site, open_board
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


def encode_corpus(job: Job, listener: ProgressListener, stdout: BinaryIO | None = None) -> Summary:
    """Encode the corpus and publish its vectors; `stdout` takes them where the output is `-`.

    Raises the errors of errors.py. Until the run is through, nothing is visible under the output's
    name; what is finished when it ends early is kept, and the same job continues from there.
    """
    place = launch.placement()
    launch.share_cores(place)
    if place.launcher:
        job = replace(job, run=replace(job.run, join=True))
    _check_join(job, place)
    summary = Summary(
        output=job.output.path,
        recipe=job.recipe,
        template_source=job.template.source,
        inputs=list(job.inputs[:NAMED_FILES]),
        input_files=len(job.inputs),
        left_out=list(job.left_out[:NAMED_FILES]),
        launched=place.fails,
    )
    with timed(summary.seconds, "total"):
        if job.run.join:
            _join(job, place, listener, summary)
        else:
            with _open_stage(job) as stage, _kept_noted(stage, summary):
                _coordinate(job, stage, place, listener, summary, stdout)
    return summary


def _check_join(job: Job, place: launch.Placement) -> None:
    """Refuse what several commands can't do together. Raises UsageError."""
    if not job.run.join:
        return
    asked_by = place.launcher or "--join"
    if job.output.path == STDOUT:
        raise UsageError(
            f"-o - can't be written by several processes ({asked_by})",
            "name a file or a directory that all of them see",
        )
    if STDIN in job.inputs:
        raise UsageError(
            f"standard input can't be read by several processes ({asked_by})",
            "name files that all of them see",
        )
    for name in job.inputs:
        if os.path.exists(name) and not os.path.isfile(name):
            raise UsageError(
                f"{name}: a pipe can't be read by several processes ({asked_by})",
                "name files that all of them see",
            )
    if job.run.fresh:
        raise UsageError(f"--fresh would throw away what others are at ({asked_by})")


def _join(job: Job, place: launch.Placement, listener: ProgressListener, summary: Summary) -> None:
    """Take part in a run until its output is published, in whatever role is free."""
    plan: RunPlan | None = None
    deserted = 0
    while True:
        if plan is not None and sharing.published(job, plan.signature, summary):
            return
        try:
            with (
                _open_stage(job, deserted=deserted) as stage,
                _kept_noted(stage, summary),
                sharing.left_when_over(stage),
            ):
                _coordinate(job, stage, place, listener, summary, known=plan)
                return
        except LockedError:
            token = secrets.token_hex(8)
            theirs, deserted = sharing.help_others(job, token, place, listener, summary)
            plan = theirs or plan


def _coordinate(
    job: Job,
    stage: staging.Staging,
    place: launch.Placement,
    listener: ProgressListener,
    summary: Summary,
    stdout: BinaryIO | None = None,
    known: RunPlan | None = None,
) -> None:
    """Go from the input to the published output. `known` is the plan that this process has worked
    under: if it still stands, its run goes on.
    """
    plan = plan_file.read(stage, stage.run) if known is not None else None
    if plan is None or known is None or plan.signature != known.signature:
        others = sharing.make_room(job, stage)
        listener.stage("reading the input")
        with timed(summary.seconds, "planning"):
            plan = make_plan(job, stage, listener)
        if sharing.published(plan.job, plan.signature, summary):
            return
        sharing.begin(plan, others and plan.continues)
    summary.counts.rows_in = plan.corpus.rows
    summary.update = plan.job.run.update
    listener.begin(plan.corpus.rows)
    results = RunResults(plan, listener, summary, stdout)
    with open_board(plan, results) as board:
        results.show()  # what is finished already
        site = Site(plan, board, place, listener, results)
        site.work()
        while not board.is_through:
            site.wait()
        site.do_without_bad_texts()
        if job.run.join:
            summary.workers = board.busy_workers
    with timed(summary.seconds, "publishing"):
        results.publish()


@contextlib.contextmanager
def _kept_noted(stage: staging.Staging, summary: Summary) -> Iterator[None]:
    """Add to an error how much finished work is kept."""
    try:
        yield
    except BaseException as error:
        staging.name_places(error, stage)
        finished = stage.finished if stage.output is not None else 0
        # A refused recipe doesn't continue by itself, and somebody else's run isn't this one's.
        if finished and not isinstance(error, ConfigurationError | LockedError):
            rows = resuming.count_rows(stage)
            of_all = f" of {summary.counts.rows_in:,}" if summary.counts.rows_in else ""
            error.add_note(
                f"finished work is kept (units: {finished}, rows: {rows:,}{of_all}): "
                "the same command continues from there"
            )
        raise


def look_ahead(job: Job, listener: ProgressListener) -> Preview:
    """Tell what `encode_corpus` would do; change nothing. Raises what it would raise before encoding."""
    listener.stage("reading the input")
    with _open_stage(job, keep=True) as stage:
        preview = make_preview(make_plan(job, stage, listener, dry=True))
    if preview.rows and preview.rejected == preview.rows and not job.output.allow_empty:
        raise DataError(f"all {preview.rows:,} rows are rejected", "--allow-empty accepts it")
    return preview


@contextlib.contextmanager
def _open_stage(job: Job, keep: bool = False, deserted: int = 0) -> Iterator[staging.Staging]:
    """Open a directory of this run's own; take the lease of the output where that is a file or a
    directory.
    """
    token = secrets.token_hex(8)
    if job.output.path == STDOUT:
        with staging.open_temporary(Path(tempfile.mkdtemp(prefix="embedcli-")), token) as stage:
            yield stage
    else:
        run = job.run
        with staging.open_staging(
            Path(job.output.path), token, run.fresh, keep, run.join, deserted
        ) as stage:
            yield stage
