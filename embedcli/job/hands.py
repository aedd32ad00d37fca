"""Who does the units: this process, a crew of workers on this machine, or the ranks of a launcher."""

import time
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from embedcli import encoder, launch
from embedcli.job import crew, plan_file
from embedcli.job.draft import Draft
from embedcli.job.publishing import Outcome
from embedcli.job.summary import Job, Watcher, timed
from embedcli.job.unit import Workshop
from embedcli.job.work import load_model, watchdog, work_through
from embedcli.store import staging
from embedcli.store.claims import Board, Pulse

_POLL_SECONDS = 0.2


def do_units(shop: Workshop, world: launch.World, watcher: Watcher, outcome: Outcome) -> None:
    """Have all units done. This process begins; once a model is wanted on several devices, a crew goes on.

    So a run with nothing to encode starts no worker and loads no model. Raises what a unit raises, DeviceError.
    """
    board = Board(shop.stage, _name(world), outcome.advance)
    suspects = {index for index in outcome.units if crew.is_suspect(board, index)}
    # Units without a part first: if a model is wanted, it is wanted soon.
    units = sorted(set(outcome.units) - suspects, key=lambda index: (shop.stage.part(index).exists(), index))

    @cache
    def devices() -> list[str]:
        with timed(outcome.summary.seconds, "loading"):  # of torch, which counts them
            return launch.devices(shop.job.run, shop.job.checkpoint.is_hash, world)

    @cache
    def model() -> encoder.Encoder:
        watcher.stage(f"loading {shop.job.checkpoint.files.id}")
        with timed(outcome.summary.seconds, "loading"):
            loaded = load_model(shop.job, devices()[0])
        watcher.stage("encoding")
        return loaded

    def load(draft: Draft) -> encoder.Encoder | None:
        rows = sum(shop.corpus.units[index].rows for index in set(units) - board.done())
        shop.expect(_expected_tokens(draft, rows, shop.job.checkpoint.max_length))
        return model() if len(devices()) == 1 else None

    if world.size > 1:
        shop.workers = world.size
        shop.expect(0)  # the ranks could not agree on more before they have read something
        plan_file.save(shop, units)
    on_done = outcome.send_ready if world.size == 1 else outcome.show
    with watchdog(board, shop.job.run.watchdog, watcher.warn):
        through = work_through(shop, board, units, load, outcome.look_at, on_done)
    while world.size > 1 and _wait_for_others(units, board, shop.job.run.watchdog, watcher, outcome):
        work_through(shop, board, units, load, outcome.look_at, on_done)
    if not through or suspects:
        model.cache_clear()
        places = devices()[: max(1, len(outcome.units) - len(board.done()))]  # no more workers than units
        shop.workers = len(places)
        team = crew.Crew(shop, board, units, places, watcher, outcome.show, suspects)
        team.run()
        outcome.summary.workers, outcome.summary.restarts = len(places), team.restarts
    if world.size > 1:
        outcome.summary.workers, outcome.summary.launched = world.size, True


def assist(job: Job, world: launch.World) -> None:
    """As a higher rank: wait for rank 0's plan, and do units until none is left to claim."""
    while not _assist_if_planned(job, world):
        time.sleep(_POLL_SECONDS)


def _assist_if_planned(job: Job, world: launch.World) -> bool:
    with staging.open_joined(Path(job.output.path), world.token) as stage:
        work = plan_file.read(stage, job) if stage is not None else None
        if work is None:
            return False
        _do_claimed_units(*work, world)
    return True


def _do_claimed_units(shop: Workshop, units: Sequence[int], world: launch.World) -> None:
    board, job = Board(shop.stage, _name(world)), shop.job
    try:
        with watchdog(board, job.run.watchdog, lambda message: None):
            place = launch.devices(job.run, job.checkpoint.is_hash, world)[0]
            work_through(shop, board, units, lambda draft: load_model(shop.job, place))
    except Exception as error:
        board.fail(crew.as_failure(error, shop.stage))
        raise


def _wait_for_others(units: Sequence[int], board: Board, limit: float, watcher: Watcher, outcome: Outcome) -> bool:
    """Wait until all units are done: False; or until one is free again, whose rank shows no progress: True."""
    pulses: defaultdict[str, Pulse] = defaultdict(Pulse)
    while left := set(units) - board.done():
        crew.raise_failure(board)
        if board.any_free(left):
            return True
        beats = board.beats()
        watcher.workers(beats)
        outcome.show()
        for beat in beats:
            if pulses[beat.worker].is_still(beat.moves, limit):
                for index in board.claimed_by(beat.worker):
                    board.release(index)
        time.sleep(_POLL_SECONDS)
    return False


def _expected_tokens(draft: Draft, rows: int, max_length: int) -> int:
    """About how many tokens so many rows hold, if they are like a draft's: the missing ones, of 4 characters each."""
    tokens = sum(min(max_length, len(string) // 4) for string in draft.strings(draft.missing).strings)
    return rows * tokens // max(1, len(draft.texts))


def _name(world: launch.World) -> str:
    return f"rank-{world.rank}"
