"""Several commands at one output, on any machines that see its folder: the first plans, all work,
whoever holds the lease when all is done publishes. Each of them is followed when it dies.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from embedcli import launch
from embedcli.errors import ConfigurationError, DataError, LockedError
from embedcli.recipe import describe_differences
from embedcli.run import plan_file, resuming
from embedcli.run.job import Counts, Job, ProgressListener, Summary
from embedcli.run.lookup import Lookup
from embedcli.run.planning import RunPlan
from embedcli.run.results import RunResults
from embedcli.run.work import Site, open_board
from embedcli.store import lease, life, staging
from embedcli.store.vector_file import VectorFile

_POLL_SECONDS = 1.0
_LATE_SECONDS = 30.0


class Help(NamedTuple):
    """How the help for others ended: the plan, if there was one, and the lease whose holder is gone."""

    plan: RunPlan | None = None
    deserted: int = 0


def help_others(
    job: Job, token: str, place: launch.Placement, listener: ProgressListener, summary: Summary
) -> Help:
    """Work under the plan of whoever holds the lease, until the run is over or its holder is gone.

    Raises ConfigurationError where this command asks for something else, LockedError where it isn't
    to wait for the others' last units.
    """
    with staging.open_joined(Path(job.output.path), token) as stage:
        if stage is None:
            return Help()
        run = _Run(stage)
        plan = run.wait_for_plan(listener)
        if plan is None:
            return Help(deserted=run.deserted)
        if _differences(plan.job, job):
            raise _different(plan.job, job)
        plan = replace(plan, job=_as_planned(job, plan.job))
        with left_when_over(stage):
            _work(plan, run, place, listener, summary)
        if run.is_over:
            _wait_until_seen(plan, summary)
        return Help(plan, run.deserted)


@contextlib.contextmanager
def left_when_over(stage: staging.Staging) -> Iterator[None]:
    """Leave the block where it fails since others have published, and removed what it was at."""
    try:
        yield
    except OSError:
        if not staging.is_over(stage):
            raise


def _wait_until_seen(plan: RunPlan, summary: Summary) -> None:
    """Wait until an output that others have published can be seen here: network file systems may
    show it late.
    """
    deadline = time.monotonic() + _LATE_SECONDS
    while not published(plan.job, plan.signature, summary) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def published(job: Job, signature: str, summary: Summary) -> bool:
    """Tell whether the output is there that this run would make; then the summary has its counts."""
    path = Path(job.output.path)
    if not job.run.join or not path.exists():
        return False
    try:
        provenance = VectorFile(str(path)).provenance
    except DataError:
        return False
    if provenance is None or provenance.signature != signature or provenance.counts is None:
        return False
    summary.counts = Counts.of(provenance.counts)
    summary.coordinated = False
    return True


def make_room(job: Job, stage: staging.Staging) -> bool:
    """Tell whether others are at this job, without one who coordinates; if not, forget their run.

    Raises ConfigurationError where they are at another one.
    """
    planned = plan_file.read(stage, stage.run)
    if planned is not None and not _differences(planned.job, job):
        watch = life.Watch()
        if not all(map(watch.is_dead, stage.workers)):
            return True
    elif planned is not None and life.any_lives(stage.workers):
        raise _different(planned.job, job)
    stage.forget_run()
    return False


def begin(plan: RunPlan, others: bool) -> None:
    """Let all take part in a run: from what an interrupted one left, or where the others are."""
    if not others:
        resuming.write(plan.stage, resuming.read(plan.stage, plan.job.input.on_error))
    if plan.job.run.join:
        plan_file.save(plan, Lookup(plan), plan.stage.run)


class _Run:
    """A run that another process coordinates, as long as that lives."""

    def __init__(self, stage: staging.Staging) -> None:
        self.stage = stage
        self.deserted = 0
        self._holder = lease.HolderWatch(stage.path)

    @property
    def is_over(self) -> bool:
        """Is the output there?"""
        return staging.is_over(self.stage)

    @property
    def has_nobody(self) -> bool:
        """Is whoever coordinated gone?"""
        deserted = self._holder.deserted()
        self.deserted = deserted or 0
        return deserted is not None

    def wait_for_plan(self, listener: ProgressListener) -> RunPlan | None:
        """Return the plan; None where the run is over, or whoever was to make it is dead."""
        listener.stage("waiting for the plan")
        while (plan := plan_file.read(self.stage, self.stage.run)) is None:
            if self.is_over or self.has_nobody:
                return None
            time.sleep(_POLL_SECONDS)
        return plan


def _work(
    plan: RunPlan,
    run: _Run,
    place: launch.Placement,
    listener: ProgressListener,
    summary: Summary,
) -> None:
    """Do what there is to do, and wait until the run is over or nobody coordinates it."""
    listener.begin(plan.corpus.rows)
    results = RunResults(plan, listener, summary, None)
    with open_board(plan, results) as board:
        site = Site(plan, board, place, listener, results)
        try:
            site.work()
            while not run.is_over and not run.has_nobody:
                if plan.job.run.no_wait:
                    raise LockedError(
                        f"{plan.job.output.path}: other machines are at the last units",
                        "without --no-wait this command waits for them",
                    )
                site.wait()
        finally:
            summary.rows_here = max(summary.rows_here, board.own.finished_rows)


def _differences(planned: Job, job: Job) -> dict[str, tuple[object, object]]:
    """Return in what a command asks for something else than what is being done; `auto` asks for
    nothing. Every process names the output in its own way.
    """
    differences = dict(planned.recipe.differences(job.recipe))
    inputs = tuple(map(plan_file.absolute, job.inputs))
    here = replace(job.output, path=planned.output.path, rejects=planned.output.rejects)
    wanted: tuple[tuple[str, object, object], ...] = (
        ("input", planned.inputs, inputs),
        *_fields(planned.input, job.input),
        *_fields(planned.output, here),
        ("backend", planned.run.backend, job.run.backend),
        ("dtype", planned.run.dtype, job.run.dtype),
        ("compile", planned.run.compile, job.run.compile),
        ("update", planned.run.update, job.run.update),
    )
    for name, there, asked in wanted:
        if asked not in (there, "auto"):
            differences[name] = (there, asked)
    return differences


def _fields(planned: object, asked: object) -> Iterator[tuple[str, object, object]]:
    """Yield the name and both values of each field of two sets of options."""
    for name, value in vars(planned).items():
        yield name, value, getattr(asked, name)


def _different(planned: Job, job: Job) -> ConfigurationError:
    described = describe_differences(_differences(planned, job), "their command")
    return ConfigurationError(
        f"{job.output.path}: others are at it with other options: {described}",
        "repeat their options, or choose another -o",
    )


def _as_planned(job: Job, planned: Job) -> Job:
    """Return a job of this machine's paths and devices, by the backend, dtype and mode of the plan."""
    run = replace(
        job.run,
        backend=planned.run.backend,
        dtype=planned.run.dtype,
        compile=planned.run.compile,
        expected_tokens=planned.run.expected_tokens,
    )
    return replace(job, run=run)
