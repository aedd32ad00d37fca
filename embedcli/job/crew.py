"""Several workers on one machine: starts them, watches them, and starts those again that die.

A unit that has killed its worker twice is put aside until the others are done, and then narrowed down to the text.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedcli import errors, launch
from embedcli.errors import DeviceError, EmbedcliError
from embedcli.job import plan_file
from embedcli.job.summary import Watcher
from embedcli.job.unit import Workshop
from embedcli.store import staging
from embedcli.store.claims import Beat, Board, Pulse

_TICK_SECONDS = 0.05
# A worker that dies so often without finishing a unit is given up, sooner where it dies before it has one.
_DEATHS, _EARLY_DEATHS = 5, 3
_MOST_ATTEMPTS = 2
# Texts of a unit are tried in so many slices, then those of the slice that killed.
_SLICES = 16
_MOST_POISON = 4
_LOG_LINES = 5


def is_suspect(board: Board, index: int) -> bool:
    """Has a unit killed whoever tried it, again and again?"""
    return board.attempts(index) >= _MOST_ATTEMPTS


@dataclass
class _Worker:
    """A place for a process on a device: the process that has it now, and how it fared."""

    number: int
    device: str
    process: "subprocess.Popen[bytes] | None" = None
    deaths: int = 0
    early: int = 0
    pulse: Pulse = field(default_factory=Pulse)
    stuck: bool = False
    given_up: bool = False

    @property
    def name(self) -> str:
        return f"worker {self.number} ({self.device})"


@dataclass
class Crew:
    """The workers of a run. `on_tick` is called again and again while they work."""

    shop: Workshop
    board: Board
    units: Sequence[int]
    devices: Sequence[str]
    watcher: Watcher
    on_tick: Callable[[], None]
    suspects: set[int] = field(default_factory=set)
    restarts: int = 0

    def run(self) -> None:
        """Have all units done. Raises DeviceError where the workers keep dying, and what a worker raises."""
        workers = [_Worker(number, device) for number, device in enumerate(self.devices)]
        plan_file.save(self.shop, self.units)
        for index in self.suspects:
            self.board.claim(index)
        with self._ended_with(workers):
            while self._left():
                self._look_after(workers)
                if all(worker.given_up for worker in workers):
                    raise DeviceError("every worker keeps dying", self._last_words(workers[-1]))
                self._tick()
        for index in sorted(self.suspects):
            self._narrow(index)

    def _left(self) -> set[int]:
        return set(self.units) - self.suspects - self.board.done()

    def _tick(self) -> None:
        raise_failure(self.board)
        self.watcher.workers([beat for beat in self.board.beats() if beat.worker != self.board.worker])
        self.on_tick()
        time.sleep(_TICK_SECONDS)

    def _look_after(self, workers: Sequence[_Worker]) -> None:
        for worker in workers:
            if worker.given_up:
                continue
            if worker.process is None:
                self._start(worker)
            elif (code := worker.process.poll()) is None:
                self._check_pulse(worker)
            elif code == 0:
                worker.process = None if self.board.any_free(self._left()) else worker.process
            else:
                raise_failure(self.board)  # it has said why
                self._bury(worker, code)

    def _start(self, worker: _Worker, order: dict[str, Any] | None = None) -> None:
        stage, job = self.shop.stage, self.shop.job
        errand = {
            "path": str(stage.path),
            "name": str(stage.name),
            "token": stage.token,
            "number": worker.number,
            "device": worker.device,
            "parent": os.getpid(),
            "order": order,
        }
        log, needs_torch = self._log(worker), not job.checkpoint.is_hash
        worker.process = launch.start(errand, stage.handle, worker.device, len(self.devices), log, needs_torch)
        worker.pulse, worker.stuck = Pulse(), False

    def _check_pulse(self, worker: _Worker) -> None:
        """End a worker that shows no progress; it then counts as one that died."""
        beat = self._beat(worker)
        if worker.pulse.is_still(beat.moves if beat else -1, self.shop.job.run.watchdog):
            assert worker.process is not None
            worker.stuck = True
            worker.process.kill()
            worker.process.wait()

    def _beat(self, worker: _Worker) -> Beat | None:
        return next((beat for beat in self.board.beats() if beat.worker == _board_name(worker.number)), None)

    def _bury(self, worker: _Worker, code: int) -> None:
        """A worker has died: free its units, put those aside that have killed before, and start it again."""
        how = f"showed no progress for {self.shop.job.run.watchdog:g} s" if worker.stuck else _how(code)
        held = self.board.claimed_by(_board_name(worker.number))
        for index in held:
            self.board.release(index)
            if is_suspect(self.board, index):
                self.suspects.add(index)
                self.board.claim(index)
        beat = self._beat(worker)
        worker.deaths = 1 if beat and beat.finished else worker.deaths + 1
        worker.early = 0 if held else worker.early + 1
        what = f"unit {held[0]} is {'put aside' if held[0] in self.suspects else 'tried again'}" if held else ""
        worker.given_up = worker.deaths >= _DEATHS or worker.early >= _EARLY_DEATHS
        then = "given up" if worker.given_up else "started again"
        self.watcher.warn("; ".join(filter(None, (f"{worker.name} {how}: {then}", what, self._last_words(worker)))))
        self.restarts += not worker.given_up
        worker.process = None

    def _last_words(self, worker: _Worker) -> str:
        lines = self._log(worker).read_text(errors="replace").strip().splitlines()
        return f"it said: {' | '.join(lines[-_LOG_LINES:])}" if lines else ""

    def _log(self, worker: _Worker) -> Path:
        return self.shop.stage.run / f"worker-{worker.number}.log"

    def _narrow(self, index: int) -> None:
        """Find the texts of a unit that kill, and have the unit done without them."""
        worker, poison = _Worker(len(self.devices), self.devices[0]), dict[int, str]()
        self.watcher.warn(f"unit {index} ended its worker {_MOST_ATTEMPTS} times: looking for the row")
        with self._ended_with([worker]):
            while (reason := self._try(worker, index, poison=poison)) is not None:
                text = self._find_poison(worker, index, poison)
                if text is None or len(poison) == _MOST_POISON:
                    raise DeviceError(f"{worker.name} dies of unit {index}: {reason}", self._last_words(worker))
                poison[text] = f"it ends the process that encodes it: {reason}"

    def _find_poison(self, worker: _Worker, index: int, poison: dict[int, str]) -> int | None:
        """The number of a text that kills by itself; None where none does."""
        start, stop = 0, len(self.shop.draft(index).missing)
        while True:
            size = max(1, -(-(stop - start) // _SLICES))
            slices = [[first, min(first + size, stop)] for first in range(start, stop, size)]
            if self._try(worker, index, slices=slices, poison=poison) is None:
                return None
            beat = self._beat(worker)
            if beat is None or not beat.stage.startswith("slice "):
                return None
            start, stop = slices[int(beat.stage.removeprefix("slice "))]
            if stop - start == 1:
                return int(self.shop.draft(index).missing[start])

    def _try(self, worker: _Worker, index: int, **what: Any) -> str | None:
        """Have a process of its own do a unit, or try slices of it; gives how it died, None where it lived."""
        self._start(worker, {"unit": index, **what})
        assert worker.process is not None
        while (code := worker.process.poll()) is None:
            self._check_pulse(worker)
            self._tick()
        raise_failure(self.board)
        self.restarts += code != 0
        if worker.stuck:
            return f"no progress for {self.shop.job.run.watchdog:g} s"
        return _how(code) if code else None

    @contextlib.contextmanager
    def _ended_with(self, workers: Sequence[_Worker]) -> Iterator[None]:
        """No worker outlives the block. They may be killed at any moment: what they finished is durable."""
        try:
            yield
        finally:
            for worker in workers:
                if worker.process is not None and worker.process.poll() is None:
                    worker.process.kill()
                    worker.process.wait()
                    for index in self.board.claimed_by(_board_name(worker.number)):
                        self.board.forget_attempt(index)


def _board_name(number: int) -> str:
    return f"worker-{number}"


def _how(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def as_failure(error: Exception, stage: staging.Staging) -> dict[str, str]:
    """An error as a worker writes it down."""
    staging.name_places(error, stage)
    if isinstance(error, OSError):
        error = errors.from_os_error(error)
    if isinstance(error, EmbedcliError):
        return {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
    return {"kind": "", "message": f"{type(error).__name__}: {error}", "hint": ""}


def raise_failure(board: Board) -> None:
    """Raise the error that a worker wrote down, if one did."""
    for failure in board.failures():
        kind = getattr(errors, failure["kind"], None)
        raise kind(failure["message"], failure["hint"]) if kind else RuntimeError(failure["message"])
