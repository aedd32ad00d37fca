"""Who does the units: this process, workers on this machine, or the ranks of a launcher."""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from embedcli import encoder, launch
from embedcli.run import plan_file, supervisor
from embedcli.run.job import Job, ProgressListener, timed
from embedcli.run.pipeline import load_model, run_pipeline, watchdog
from embedcli.run.planning import RunPlan
from embedcli.run.results import RunResults
from embedcli.run.steps import UnitSteps
from embedcli.run.unit import UnitState
from embedcli.store import staging
from embedcli.store.claims import ClaimBoard, StallDetector

_POLL_SECONDS = 0.2


def run_units(
    plan: RunPlan, world: launch.World, listener: ProgressListener, results: RunResults
) -> None:
    """Have all units done. Raises what a unit raises, DeviceError.

    Units that have killed whoever tried them come last, in processes of their own.
    """
    board = ClaimBoard(plan.stage, _rank_name(world), results.advance)
    quarantined = {index for index in plan.units if supervisor.is_quarantined(board, index)}
    # Units without a part first: if a model is needed, it is needed soon.
    resumable = plan.stage.parts_by_unit()
    units = sorted(set(plan.units) - quarantined, key=lambda index: (index in resumable, index))
    process = _ThisProcess(plan, world, listener, results)
    if world.size > 1:
        _run_ranks(process, board, units)
        finished = True
    else:
        finished = _run_here(process, board, units)
    if not finished or quarantined:
        _run_workers(process, board, units, quarantined)


class _ThisProcess:
    """What this process needs to do units: its devices and its model, once they are needed."""

    def __init__(
        self, plan: RunPlan, world: launch.World, listener: ProgressListener, results: RunResults
    ) -> None:
        self.plan = plan
        self.steps = UnitSteps(plan)
        self.listener = listener
        self.results = results
        self.expected_tokens: int | None = None
        self._world = world
        self._devices: list[str] = []
        self._model: encoder.Encoder | None = None

    @property
    def devices(self) -> list[str]:
        """The device of each process that should work on this machine."""
        if not self._devices:
            needs_torch = encoder.backend_of(self.plan.job.spec).needs_torch
            with timed(self.results.summary.seconds, "loading"):  # of torch, which counts them
                self._devices = launch.devices(self.plan.job.run, needs_torch, self._world)
        return self._devices

    def load(self, expected_tokens: int | None) -> encoder.Encoder:
        """Load the model onto this process's device, once."""
        self.expected_tokens = expected_tokens
        if self._model is None:
            self.listener.stage(f"loading {self.plan.job.spec.files.id}")
            with timed(self.results.summary.seconds, "loading"):
                self._model = load_model(self.plan.job, self.devices[0], expected_tokens)
            self.listener.stage("encoding")
        return self._model

    def unload(self) -> None:
        """Free the model's memory for workers."""
        self._model = None


def _run_here(process: _ThisProcess, board: ClaimBoard, units: Sequence[int]) -> bool:
    """Do units in this process; False once a model is needed on several devices.

    So a run with nothing to encode starts no worker and loads no model.
    """
    plan = process.plan

    def load(state: UnitState) -> encoder.Encoder | None:
        rows = sum(plan.corpus.units[index].rows for index in set(units) - board.done())
        process.expected_tokens = _expected_tokens(state, rows, plan.job.spec.max_length)
        return process.load(process.expected_tokens) if len(process.devices) == 1 else None

    with watchdog(board, plan.job.run.watchdog, process.listener.warn):
        return run_pipeline(
            process.steps, board, units, load, process.results.observe, process.results.send_ready
        )


def _run_ranks(process: _ThisProcess, board: ClaimBoard, units: Sequence[int]) -> None:
    """Do units as rank 0 of a launcher's processes, and wait until the other ranks' are done."""
    world_size = process.plan.workers
    plan_file.save(process.plan, process.steps.lookup, units)
    process.results.summary.workers = world_size
    process.results.summary.launched = True

    def load(state: UnitState) -> encoder.Encoder:
        return process.load(0)  # the ranks could not agree on more before they have read something

    limit = process.plan.job.run.watchdog
    with watchdog(board, limit, process.listener.warn):
        run_pipeline(
            process.steps, board, units, load, process.results.observe, process.results.show
        )
    while _wait_for_others(units, board, limit, process.listener, process.results):
        run_pipeline(
            process.steps, board, units, load, process.results.observe, process.results.show
        )


def _run_workers(
    process: _ThisProcess, board: ClaimBoard, units: Sequence[int], quarantined: set[int]
) -> None:
    """Have the rest done by worker processes on this machine, no more of them than there are units."""
    process.unload()
    remaining = len(process.plan.units) - len(board.done())
    devices = process.devices[: max(1, remaining)]
    run = replace(process.plan.job.run, expected_tokens=process.expected_tokens)
    plan = replace(process.plan, job=replace(process.plan.job, run=run), workers=len(devices))
    workers = supervisor.WorkerSupervisor(
        plan,
        process.steps,
        board,
        units,
        devices,
        process.listener,
        process.results.show,
        quarantined,
    )
    workers.run()
    process.results.summary.workers = len(devices)
    process.results.summary.restarts = workers.restarts


def help_rank_zero(job: Job, world: launch.World) -> None:
    """As a higher rank: wait for rank 0's plan, and do units until none is left to claim."""
    while not _help_if_planned(job, world):
        time.sleep(_POLL_SECONDS)


def _help_if_planned(job: Job, world: launch.World) -> bool:
    with staging.open_joined(Path(job.output.path), world.token) as stage:
        work = plan_file.read(stage, job) if stage is not None else None
        if work is None:
            return False
        _do_claimed_units(*work, world)
    return True


def _do_claimed_units(plan: RunPlan, units: Sequence[int], world: launch.World) -> None:
    board = ClaimBoard(plan.stage, _rank_name(world))
    needs_torch = encoder.backend_of(plan.job.spec).needs_torch
    try:
        with watchdog(board, plan.job.run.watchdog, lambda message: None):
            device = launch.devices(plan.job.run, needs_torch, world)[0]
            run_pipeline(
                UnitSteps(plan), board, units, lambda state: load_model(plan.job, device, 0)
            )
    except Exception as error:
        board.fail(supervisor.as_failure(error, plan.stage))
        raise


def _wait_for_others(
    units: Sequence[int],
    board: ClaimBoard,
    limit: float,
    listener: ProgressListener,
    results: RunResults,
) -> bool:
    """Wait until all units are done: False; or until one is free again, whose rank shows no
    progress: True.
    """
    detectors: defaultdict[str, StallDetector] = defaultdict(StallDetector)
    while True:
        remaining = set(units) - board.done()
        if not remaining:
            return False
        supervisor.raise_failure(board)
        if board.any_free(remaining):
            return True
        heartbeats = board.heartbeats()
        listener.workers(heartbeats)
        results.show()
        for heartbeat in heartbeats:
            if detectors[heartbeat.worker].is_stalled(heartbeat.moves, limit):
                for index in board.claimed_by(heartbeat.worker):
                    board.release(index)
        time.sleep(_POLL_SECONDS)


def _expected_tokens(state: UnitState, rows: int, max_length: int) -> int:
    """Estimate how many tokens `rows` rows hold, if they are like a unit's: its missing texts, 4
    characters a token.
    """
    strings = state.rendered_texts(state.missing).strings
    tokens = sum(min(max_length, len(string) // 4) for string in strings)
    return rows * tokens // max(1, len(state.text_numbers))


def _rank_name(world: launch.World) -> str:
    return f"rank-{world.rank}"
