"""Several workers on one machine: starts them, watches them, and restarts those that die.

A unit that has killed its worker twice is quarantined until the others are done; then its bad texts
are looked for.
"""

import contextlib
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedcli import encoder, errors, launch
from embedcli.errors import DeviceError
from embedcli.run import plan_file
from embedcli.run.job import ProgressListener
from embedcli.run.planning import RunPlan
from embedcli.run.steps import UnitSteps
from embedcli.store import staging
from embedcli.store.claims import ClaimBoard, Heartbeat, StallDetector

_TICK_SECONDS = 0.05
# A worker that dies so often without finishing a unit is given up, sooner where it dies before it has a unit.
_MAX_DEATHS = 5
_MAX_EARLY_DEATHS = 3
_MAX_ATTEMPTS = 2
# Texts of a unit are tried in so many slices, then those of the slice that killed.
_SLICES = 16
_MAX_BAD_TEXTS = 4
_LOG_LINES = 5


def is_quarantined(board: ClaimBoard, index: int) -> bool:
    """Tell whether a unit has killed whoever tried it, again and again."""
    return board.attempts(index) >= _MAX_ATTEMPTS


@dataclass
class _Worker:
    """A place for a process on a device: the process that has it now, and how its processes fared.

    deaths: processes that died in a row without finishing a unit; early_deaths: those that died
    before they had one. stalled: this process was ended since it showed no progress.
    """

    number: int
    device: str
    process: "subprocess.Popen[bytes] | None" = None
    deaths: int = 0
    early_deaths: int = 0
    detector: StallDetector = field(default_factory=StallDetector)
    stalled: bool = False
    given_up: bool = False

    @property
    def name(self) -> str:
        """What people call it."""
        return f"worker {self.number} ({self.device})"

    @property
    def board_name(self) -> str:
        """What it is called on the claim board."""
        return f"worker-{self.number}"

    def kill(self) -> None:
        """End its process, and wait for that."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@dataclass
class WorkerSupervisor:
    """The workers of a run. `on_tick` is called again and again while they work."""

    plan: RunPlan
    steps: UnitSteps
    board: ClaimBoard
    units: Sequence[int]
    devices: Sequence[str]
    listener: ProgressListener
    on_tick: Callable[[], None]
    quarantined: set[int] = field(default_factory=set)
    restarts: int = 0

    def run(self) -> None:
        """Have all units done.

        Raises DeviceError where all workers fail repeatedly, and what a worker raises.
        """
        workers = [_Worker(number, device) for number, device in enumerate(self.devices)]
        plan_file.save(self.plan, self.steps.lookup, self.units)
        for index in self.quarantined:
            self.board.claim(index)
        with self._ended_with(workers):
            while self._remaining():
                for worker in workers:
                    self._look_after(worker)
                if all(worker.given_up for worker in workers):
                    raise DeviceError(
                        "all workers failed repeatedly", self._last_output(workers[-1])
                    )
                self._tick()
        for index in sorted(self.quarantined):
            self._do_without_bad_texts(index)

    def _remaining(self) -> set[int]:
        return set(self.units) - self.quarantined - self.board.done()

    def _tick(self) -> None:
        raise_failure(self.board)
        heartbeats = self.board.heartbeats()
        self.listener.workers(
            [heartbeat for heartbeat in heartbeats if heartbeat.worker != self.board.worker]
        )
        self.on_tick()
        time.sleep(_TICK_SECONDS)

    def _look_after(self, worker: _Worker) -> None:
        """Start a worker that has no process, end one that stalls, and account for one that died."""
        if worker.given_up:
            return
        if worker.process is None:
            self._start(worker)
            return
        # A worker is: not started, at work, ended well (there was nothing left to claim), or dead.
        code = worker.process.poll()
        if code is None:
            self._check_progress(worker)
        elif code != 0:
            raise_failure(self.board)  # it has said why
            self._on_death(worker, code)
        elif self.board.any_free(self._remaining()):
            worker.process = None  # it ended while another one's units were not free yet

    def _start(self, worker: _Worker, order: dict[str, Any] | None = None) -> None:
        stage = self.plan.stage
        errand = {
            "path": str(stage.path),
            "name": str(stage.name),
            "token": stage.token,
            "number": worker.number,
            "device": worker.device,
            "parent": os.getpid(),
            "order": order,
        }
        needs_torch = encoder.backend_of(self.plan.job.spec).needs_torch
        processes = len(self.devices)
        worker.process = launch.start(
            errand, stage.handle, worker.device, processes, self._log_path(worker), needs_torch
        )
        worker.detector = StallDetector()
        worker.stalled = False

    def _check_progress(self, worker: _Worker) -> None:
        """End a worker that shows no progress; it then counts as one that died."""
        heartbeat = self._heartbeat(worker)
        moves = heartbeat.moves if heartbeat else -1
        if worker.detector.is_stalled(moves, self.plan.job.run.watchdog):
            worker.stalled = True
            worker.kill()

    def _heartbeat(self, worker: _Worker) -> Heartbeat | None:
        for heartbeat in self.board.heartbeats():
            if heartbeat.worker == worker.board_name:
                return heartbeat
        return None

    def _on_death(self, worker: _Worker, code: int) -> None:
        """Release a dead worker's units, quarantine those that have killed before, and restart it,
        or give it up.
        """
        held = self.board.claimed_by(worker.board_name)
        for index in held:
            self.board.release(index)
            if is_quarantined(self.board, index):
                self.quarantined.add(index)
                self.board.claim(index)
        heartbeat = self._heartbeat(worker)
        worker.deaths = 1 if heartbeat and heartbeat.finished else worker.deaths + 1
        worker.early_deaths = 0 if held else worker.early_deaths + 1
        worker.given_up = worker.deaths >= _MAX_DEATHS or worker.early_deaths >= _MAX_EARLY_DEATHS
        worker.process = None
        if not worker.given_up:
            self.restarts += 1
        self.listener.warn(self._describe_death(worker, code, held))

    def _describe_death(self, worker: _Worker, code: int, held: Sequence[int]) -> str:
        phrases = [f"{worker.name} {self._describe_exit(worker, code)}"]
        phrases.append("giving it up" if worker.given_up else "restarting it")
        if held:
            fate = "quarantined" if held[0] in self.quarantined else "tried again"
            phrases.append(f"unit {held[0]} is {fate}")
        output = self._last_output(worker)
        return "; ".join(phrases) + (f". {output}" if output else "")

    def _describe_exit(self, worker: _Worker, code: int) -> str:
        if worker.stalled:
            return f"showed no progress for {self.plan.job.run.watchdog:g} s"
        return _describe_code(code)

    def _last_output(self, worker: _Worker) -> str:
        lines = self._log_path(worker).read_text(errors="replace").strip().splitlines()
        return f"Last output: {' | '.join(lines[-_LOG_LINES:])}" if lines else ""

    def _log_path(self, worker: _Worker) -> Path:
        return self.plan.stage.run / f"worker-{worker.number}.log"

    def _do_without_bad_texts(self, index: int) -> None:
        """Find the texts of a unit that kill the process, and have the unit done without them."""
        worker = _Worker(len(self.devices), self.devices[0])
        bad_texts: dict[int, str] = {}
        self.listener.warn(
            f"unit {index} ended its worker {_MAX_ATTEMPTS} times: looking for the row"
        )
        with self._ended_with([worker]):
            while (reason := self._try(worker, index, bad_texts)) is not None:
                number = self._bisect(worker, index, bad_texts)
                if number is None or len(bad_texts) == _MAX_BAD_TEXTS:
                    raise DeviceError(
                        f"{worker.name} dies of unit {index}: {reason}", self._last_output(worker)
                    )
                bad_texts[number] = f"it ends the process that encodes it: {reason}"

    def _bisect(self, worker: _Worker, index: int, bad_texts: dict[int, str]) -> int | None:
        """Return the number of a text that kills by itself; None where none does."""
        missing = self.steps.read(index).missing
        start, stop = 0, len(missing)
        while True:
            size = max(1, -(-(stop - start) // _SLICES))  # rounded up
            edges = [*range(start, stop, size), stop]
            slices = [list(slice_edges) for slice_edges in itertools.pairwise(edges)]
            if self._try(worker, index, bad_texts, slices) is None:
                return None
            heartbeat = self._heartbeat(worker)
            if heartbeat is None or not heartbeat.stage.startswith("slice "):
                return None
            start, stop = slices[int(heartbeat.stage.removeprefix("slice "))]
            if stop - start == 1:
                return int(missing[start])

    def _try(
        self,
        worker: _Worker,
        index: int,
        bad_texts: dict[int, str],
        slices: list[list[int]] | None = None,
    ) -> str | None:
        """Have a process of its own do a unit, or try slices of it; return how it died, None where
        it lived.
        """
        self._start(worker, {"unit": index, "bad_texts": bad_texts, "slices": slices})
        assert worker.process is not None
        while (code := worker.process.poll()) is None:
            self._check_progress(worker)
            self._tick()
        raise_failure(self.board)
        if code == 0:
            return None
        self.restarts += 1
        return (
            f"no progress for {self.plan.job.run.watchdog:g} s"
            if worker.stalled
            else _describe_code(code)
        )

    @contextlib.contextmanager
    def _ended_with(self, workers: Sequence[_Worker]) -> Iterator[None]:
        """End all workers with the block.

        They may be killed at any moment: what they finished is durable.
        """
        try:
            yield
        finally:
            for worker in workers:
                if worker.process is not None and worker.process.poll() is None:
                    worker.kill()
                    for index in self.board.claimed_by(worker.board_name):
                        self.board.forget_attempt(index)


def _describe_code(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def as_failure(error: Exception, stage: staging.Staging) -> dict[str, str]:
    """Return an error as a worker writes it down."""
    staging.name_places(error, stage)
    if foreseen := errors.as_foreseen(error):
        return {"kind": type(foreseen).__name__, "message": foreseen.message, "hint": foreseen.hint}
    return {"kind": "", "message": f"{type(error).__name__}: {error}", "hint": ""}


def raise_failure(board: ClaimBoard) -> None:
    """Raise the error that a worker wrote down, if one did."""
    for failure in board.failures():
        kind = getattr(errors, failure["kind"], None)
        raise (
            kind(failure["message"], failure["hint"]) if kind else RuntimeError(failure["message"])
        )
