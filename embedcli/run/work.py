"""This command's share of a run's units: done in this process, or by workers on its devices."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace

from embedcli import encoder, launch
from embedcli.run import plan_file, ray_engine, supervisor
from embedcli.run.job import ProgressListener, timed
from embedcli.run.loading import load_model
from embedcli.run.pipeline import run_pipeline, watchdog
from embedcli.run.planning import RunPlan
from embedcli.run.results import RunResults
from embedcli.run.steps import UnitSteps
from embedcli.run.unit import UnitState
from embedcli.store.claims import ClaimBoard, taking_part

_POLL_SECONDS = 1.0


class Site:
    """What a command needs to do units: its devices, and its model once one is needed."""

    def __init__(
        self,
        plan: RunPlan,
        board: ClaimBoard,
        place: launch.Placement,
        listener: ProgressListener,
        results: RunResults,
    ) -> None:
        self.plan = plan
        self.board = board
        self._place = place
        self._listener = listener
        self._results = results
        self._steps = UnitSteps(plan)
        self._devices: list[str] = []
        self._expected_tokens: int | None = None
        self._supervisor: supervisor.WorkerSupervisor | None = None
        self._engine: ray_engine.RayEngine | None = None

    def work(self) -> None:
        """Do all units that nobody else is at, but those that kill whoever tries them.

        A run with nothing to encode starts no worker and loads no model. The model's memory is free
        again afterwards. Raises what a unit raises, DeviceError.
        """
        if self._supervisor is None and self._engine is None:
            with watchdog(self.board, self.plan.job.run.watchdog, self._listener.warn):
                is_through = run_pipeline(
                    self._steps,
                    self.board,
                    self._load,
                    self._results.observe,
                    self._tell,
                )
            encoder.release(self.plan.job.spec)  # while this process waits for others
            if is_through:
                return
        summary = self._results.summary
        if self.plan.job.run.engine:
            engine = self._ray()
            engine.run()
            summary.workers, summary.restarts = engine.actors, engine.restarts
        else:
            self._workers().run()
            summary.restarts = self._workers().restarts

    def wait(self) -> None:
        """Wait a moment for the others; do what one of them has left by then."""
        time.sleep(_POLL_SECONDS)
        self._tell()
        if any(self.board.claimable()):
            self.work()

    def _tell(self) -> None:
        """Tell the listener how far all are, and send what is ready."""
        if self.plan.job.run.join:
            self._results.show()
        else:
            self._results.send_ready()

    def do_without_bad_texts(self) -> None:
        """Do the units that have killed whoever tried them, but for the texts that kill."""
        self.board.results.refresh()
        for unit in self.plan.units:
            if unit not in self.board.results and self.board.is_quarantined(unit):
                self._workers().do_without_bad_texts(unit)
                self._results.summary.restarts = self._workers().restarts

    @property
    def devices(self) -> list[str]:
        """The device of each process that should work on this machine."""
        if not self._devices:
            run = self.plan.job.run
            needs_torch = encoder.backend_of(self.plan.job.spec).needs_torch
            with timed(self._results.summary.seconds, "loading"):  # of torch, which counts them
                self._devices = launch.devices(run, needs_torch, self._place)
        return self._devices

    def _load(self, state: UnitState) -> encoder.Encoder | None:
        """Load the model onto the one device of this process; None where there are several."""
        self.board.results.refresh()
        undone = set(self.plan.units) - set(self.board.results)
        rows = sum(self.plan.corpus.units[index].rows for index in undone)
        self._expected_tokens = _expected_tokens(state, rows, self.plan.job.spec.max_length)
        if self.plan.job.run.engine or len(self.devices) > 1:
            return None
        self._listener.stage(f"loading {self.plan.job.spec.files.id}")
        with timed(self._results.summary.seconds, "loading"):
            model = load_model(
                self.plan.job, self.plan.stage, self.devices[0], self._expected_tokens
            )
        self._listener.stage("encoding")
        return model

    def _plan_of_others(self) -> RunPlan:
        """Leave the plan for processes that this command starts: their options are its own."""
        run = replace(self.plan.job.run, expected_tokens=self._expected_tokens)
        plan = replace(self.plan, job=replace(self.plan.job, run=run))
        plan_file.save(plan, self._steps.lookup, plan.stage.temporary)
        return plan

    def _ray(self) -> ray_engine.RayEngine:
        """Return the actors that do the units."""
        if self._engine is None:
            self._engine = ray_engine.RayEngine(
                self._plan_of_others(), self.board, self._listener, self._results.show
            )
        return self._engine

    def _workers(self) -> supervisor.WorkerSupervisor:
        """Return the supervisor of no more workers than there are units."""
        if self._supervisor is None:
            undone = len(self.plan.units) - len(self.board.results)
            devices = self.devices[: max(1, undone)]
            plan = self._plan_of_others()
            self._supervisor = supervisor.WorkerSupervisor(
                plan, self._steps, self.board, devices, self._listener, self._results.show
            )
            self._results.summary.workers = len(devices)
        return self._supervisor


@contextlib.contextmanager
def open_board(plan: RunPlan, results: RunResults) -> Iterator[ClaimBoard]:
    """Take part in a run's units; others see that this process lives."""
    limit = plan.job.run.watchdog
    board = ClaimBoard(
        plan.stage,
        plan.stage.token,
        plan.units,
        limit,
        supervisor.called(plan.job),
        results.advance,
    )
    with taking_part(board):
        yield board


def _expected_tokens(state: UnitState, rows: int, max_length: int) -> int:
    """Estimate how many tokens `rows` rows hold, if they are like a unit's: its missing texts, 4
    characters a token.
    """
    strings = state.rendered_texts(state.missing).strings
    tokens = sum(min(max_length, len(string) // 4) for string in strings)
    return rows * tokens // max(1, len(state.text_numbers))
