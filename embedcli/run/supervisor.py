"""Several workers on one machine: starts them, watches them, and restarts those that die.

They take their units as workers elsewhere do, by claims. A unit that has killed whoever tried it twice
is left by all until the others are done; then its bad texts are looked for.
"""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedcli import encoder, errors, launch
from embedcli.errors import DeviceError, StorageError
from embedcli.run.job import Job, ProgressListener
from embedcli.run.planning import RunPlan
from embedcli.run.steps import UnitSteps
from embedcli.store import staging
from embedcli.store.claims import MAX_ATTEMPTS, ClaimBoard, StallDetector

_TICK_SECONDS = 0.05
# A worker that dies so often without finishing a unit is given up, sooner where it dies before it has a unit.
_MAX_DEATHS = 5
_MAX_EARLY_DEATHS = 3
# Texts of a unit are tried in so many slices, then those of the slice that killed.
_SLICES = 16
_MAX_BAD_TEXTS = 4
_LOG_LINES = 5
_KILL_SECONDS = 10.0


@dataclass
class _Worker:
    """A place for a process on a device: the process that has it now, and how its processes fared.

    id: what the process is called in the run's files, new for each. deaths: processes that died in
    a row without finishing a unit; early_deaths: those that died before they had one. stalled: this
    process was ended since it showed no progress.
    """

    number: int
    device: str
    detector: StallDetector
    id: str = ""
    process: "subprocess.Popen[bytes] | None" = None
    deaths: int = 0
    early_deaths: int = 0
    stalled: bool = False
    given_up: bool = False

    @property
    def name(self) -> str:
        """What people call it."""
        return f"worker {self.number} ({self.device})"

    @property
    def is_through(self) -> bool:
        """Has it ended, with nothing left to do, or for good?"""
        return self.given_up or (self.process is not None and self.process.poll() == 0)

    def kill(self) -> None:
        """End its process. One that hangs in the kernel is left behind after a while."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_KILL_SECONDS)


@dataclass
class WorkerSupervisor:
    """The workers of this machine. `on_tick` is called again and again while they work; `lost` are
    devices whose workers kept dying.
    """

    plan: RunPlan
    steps: UnitSteps
    board: ClaimBoard
    devices: Sequence[str]
    listener: ProgressListener
    on_tick: Callable[[], None]
    restarts: int = 0
    lost: set[str] = field(default_factory=set)
    _starts: Iterator[int] = field(default_factory=itertools.count)

    def run(self) -> None:
        """Have all units done that no others are at, but those that kill.

        Raises DeviceError where all workers fail repeatedly, and what a worker raises.
        """
        workers = [self._worker(number, device) for number, device in enumerate(self.devices)]
        with self._ended_with(workers):
            while any(not worker.is_through for worker in workers):
                for worker in workers:
                    self._look_after(worker)
                if all(worker.given_up for worker in workers):
                    raise DeviceError(
                        "all workers failed repeatedly", self._last_output(workers[-1])
                    )
                self._tick(workers)

    def _worker(self, number: int, device: str) -> _Worker:
        return _Worker(number, device, StallDetector(self.plan.job.run.watchdog))

    def _tick(self, workers: Sequence[_Worker]) -> None:
        self._raise_failure(workers)
        self.on_tick()
        time.sleep(_TICK_SECONDS)

    def _raise_failure(self, workers: Sequence[_Worker]) -> None:
        """Raise the error that one of these workers wrote down."""
        for worker in workers:
            failure = self.board.failure(worker.id)
            if failure is not None:
                kind = getattr(errors, failure["kind"], None)
                message, hint = failure["message"], failure["hint"]
                raise kind(message, hint) if kind else RuntimeError(message)

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
            self._raise_failure([worker])  # it has said why
            if code == StorageError.exit_code:  # and could not write it down
                raise StorageError(
                    f"{self.plan.stage.name}: No space left on device, or it fails",
                    "make space and run the same command again",
                )
            self._on_death(worker, code)
        elif any(self.board.claimable()):
            worker.process = None  # it ended while another one's units were not free yet

    def _start(self, worker: _Worker, order: dict[str, Any] | None = None) -> None:
        stage = self.plan.stage
        worker.id = f"{stage.token}-{worker.number}-{next(self._starts)}"
        errand = {
            "path": str(stage.path),
            "name": str(stage.name),
            "worker": worker.id,
            "plan": stage.temporary.name,
            "called": called(self.plan.job, f"worker {worker.number}"),
            "device": worker.device,
            "parent": os.getpid(),
            "order": order,
        }
        needs_torch = encoder.backend_of(self.plan.job.spec).needs_torch
        processes = len(self.devices)
        worker.process = launch.start(
            errand, stage.handle, worker.device, processes, self._log_path(worker), needs_torch
        )
        worker.detector = StallDetector(self.plan.job.run.watchdog)
        worker.stalled = False

    def _check_progress(self, worker: _Worker) -> None:
        """End a worker that shows no progress; it then counts as one that died."""
        heartbeat = self.board.heartbeat(worker.id)
        moves = heartbeat.moves if heartbeat else -1
        if worker.detector.is_stalled(moves):
            worker.stalled = True
            worker.kill()

    def _on_death(self, worker: _Worker, code: int) -> None:
        """Restart a worker, or give it up. Whoever is free takes over what it was at."""
        heartbeat = self.board.heartbeat(worker.id)
        unit = heartbeat.unit if heartbeat else None
        worker.deaths = 1 if heartbeat and heartbeat.finished else worker.deaths + 1
        worker.early_deaths = 0 if unit is not None else worker.early_deaths + 1
        worker.given_up = worker.deaths >= _MAX_DEATHS or worker.early_deaths >= _MAX_EARLY_DEATHS
        worker.process = None
        if worker.given_up:
            self.lost.add(worker.device)
        else:
            self.restarts += 1
        self.listener.warn(self._describe_death(worker, code, unit))

    def _describe_death(self, worker: _Worker, code: int, unit: int | None) -> str:
        phrases = [f"{worker.name} {self._describe_exit(worker, code)}"]
        phrases.append("giving it up" if worker.given_up else "restarting it")
        if unit is not None:
            fate = "quarantined" if self.board.is_quarantined(unit) else "tried again"
            phrases.append(f"unit {unit} is {fate}")
        output = self._last_output(worker)
        return "; ".join(phrases) + (f". {output}" if output else "")

    def _describe_exit(self, worker: _Worker, code: int) -> str:
        if worker.stalled:
            return f"showed no progress for {worker.detector.limit:g} s"
        return _describe_code(code)

    def _last_output(self, worker: _Worker) -> str:
        lines = self._log_path(worker).read_text(errors="replace").strip().splitlines()
        return f"Last output: {' | '.join(lines[-_LOG_LINES:])}" if lines else ""

    def _log_path(self, worker: _Worker) -> Path:
        return self.plan.stage.temporary / f"worker-{worker.number}.log"

    def do_without_bad_texts(self, index: int) -> None:
        """Find the texts of a unit that kill the process, and have the unit done without them.

        Raises DeviceError where it isn't single texts that kill.
        """
        device = next((name for name in self.devices if name not in self.lost), self.devices[0])
        worker = self._worker(len(self.devices), device)
        bad_texts: dict[int, str] = {}
        self.listener.warn(
            f"unit {index} ended its worker {MAX_ATTEMPTS} times: looking for the row"
        )
        try:
            while (reason := self._try(worker, index, bad_texts)) is not None:
                number = self._bisect(worker, index, bad_texts)
                if number is None or len(bad_texts) == _MAX_BAD_TEXTS:
                    raise DeviceError(
                        f"{worker.name} dies of unit {index}: {reason}", self._last_output(worker)
                    )
                bad_texts[number] = f"it ends the process that encodes it: {reason}"
        finally:
            worker.kill()

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
            heartbeat = self.board.heartbeat(worker.id)
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
            self._tick([worker])
        self._raise_failure([worker])
        if code == 0:
            return None
        self.restarts += 1
        return (
            f"no progress for {worker.detector.limit:g} s"
            if worker.stalled
            else _describe_code(code)
        )

    @contextlib.contextmanager
    def _ended_with(self, workers: Sequence[_Worker]) -> Iterator[None]:
        """End all workers with the block; that is no fault of the units they are at.

        They may be killed at any moment: what they finished is durable.
        """
        try:
            yield
        finally:
            for worker in workers:
                if worker.process is not None and worker.process.poll() is None:
                    worker.kill()
                    heartbeat = self.board.heartbeat(worker.id)
                    if heartbeat is not None and heartbeat.unit is not None:
                        self.board.forget_attempt(heartbeat.unit)


def called(job: Job, worker: str = "") -> str:
    """Return what people call this process, or a worker of it, among those that take part."""
    names = [f"{socket.gethostname()}:{os.getpid()}" if job.run.join else "", worker]
    return " ".join(name for name in names if name)


def _describe_code(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def as_failure(error: Exception, stage: staging.Staging) -> dict[str, str]:
    """Return an error as a worker writes it down."""
    staging.name_places(error, stage)
    if foreseen := errors.as_foreseen(error):
        return {"kind": type(foreseen).__name__, "message": foreseen.message, "hint": foreseen.hint}
    return {"kind": "", "message": f"{type(error).__name__}: {error}", "hint": ""}
