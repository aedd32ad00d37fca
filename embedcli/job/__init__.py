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
from embedcli.config import STDOUT
from embedcli.errors import ConfigurationError, UsageError
from embedcli.job import hands, planning
from embedcli.job.places import check_places
from embedcli.job.preview import Preview, preview
from embedcli.job.publishing import Outcome
from embedcli.job.summary import Counts, Job, Summary, Watcher, timed
from embedcli.store import staging

__all__ = ["Counts", "Job", "Preview", "Summary", "Watcher", "check_places", "look_ahead", "run"]


def run(job: Job, watcher: Watcher, stdout: BinaryIO | None = None) -> Summary | None:
    """Encode the corpus and publish its vectors; `stdout` takes them where the output is `-`.

    Raises the errors of errors.py. Until the run is through, nothing is visible under the output's name; what is
    finished when it ends early is kept, and the same job continues from there. Gives nothing in a process of a higher
    rank, which only lends a hand.
    """
    world = launch.join(job.run)
    if world.size > 1 and job.output.path == STDOUT:
        raise UsageError("-o - can't be written by several ranks", "name a file or a directory that all of them see")
    if world.rank > 0:
        hands.assist(job, world)
        return None
    summary = Summary(job.output.path, job.recipe, job.template.origin, update=job.run.update)
    with timed(summary.seconds, "total"), _open_stage(job, world) as stage:
        try:
            _through(job, stage, world, watcher, summary, stdout)
        except BaseException as error:
            staging.name_places(error, stage)
            # A refused recipe doesn't continue by itself.
            if stage.output is not None and (kept := stage.finished) and not isinstance(error, ConfigurationError):
                error.add_note(f"finished work is kept (units: {kept}): the same command continues from there")
            raise
    return summary


def look_ahead(job: Job, watcher: Watcher) -> Preview:
    """What `run` would do; changes nothing. Raises what it would raise before encoding."""
    watcher.stage("reading the input")
    with _open_stage(job, launch.World(secrets.token_hex(8)), keep=True) as stage:
        return preview(planning.plan(job, stage, watcher, dry=True))


def _through(
    job: Job,
    stage: staging.Staging,
    world: launch.World,
    watcher: Watcher,
    summary: Summary,
    stdout: BinaryIO | None,
) -> None:
    """From the input to the published output."""
    watcher.stage("reading the input")
    with timed(summary.seconds, "planning"):
        shop = planning.plan(job, stage, watcher)
    summary.counts.rows_in, summary.update = shop.corpus.rows, shop.job.run.update
    watcher.begin(shop.corpus.rows)
    outcome = Outcome(shop, watcher, summary, stdout)
    hands.do_units(shop, world, watcher, outcome)
    with timed(summary.seconds, "publishing"):
        outcome.publish()


@contextlib.contextmanager
def _open_stage(job: Job, world: launch.World, keep: bool = False) -> Iterator[staging.Staging]:
    """A directory of this run's own; locks the output where that is a file or a directory."""
    if job.output.path == STDOUT:
        with staging.open_temporary(Path(tempfile.mkdtemp(prefix="embedcli-")), world.token) as stage:
            yield stage
    else:
        with staging.open_staging(Path(job.output.path), world.token, job.run.fresh, keep) as stage:
            yield stage
