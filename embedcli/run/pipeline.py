"""What each process does: claim a unit, do its steps, until there is none left to claim.

While a unit is encoded, the next is read and tokenized and the one before is written, in their own
threads.
"""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from embedcli import encoder
from embedcli.errors import DeviceError, as_foreseen
from embedcli.run.job import WAITING_FOR_INPUT, WAITING_FOR_OUTPUT, timed
from embedcli.run.steps import UnitSteps
from embedcli.run.unit import UnitState
from embedcli.store.claims import ClaimBoard, StallDetector

# Gives the model for a unit, the first that needs one; None where workers should take over.
LoadForUnit = Callable[[UnitState], encoder.Encoder | None]


class UnitPipeline:
    """The units that this process has claimed, each on its way from reading to writing.

    `next_unit` gives a unit that is read; the caller encodes it and hands it to `write`. Use it in
    a `with` block: where the block raises, units that are begun and not finished are given back, so
    that only a process that dies, or whose device fails, leaves a mark on its unit.
    """

    def __init__(self, steps: UnitSteps, board: ClaimBoard) -> None:
        self.steps = steps
        self.board = board
        self.model: encoder.Encoder | None = None
        self._begun: set[int] = set()
        self._reading: deque[tuple[int, Future[UnitState]]] = deque()
        self._writing: Future[None] | None = None
        self._waited: dict[str, float] = {}
        self._reader = ThreadPoolExecutor(1, "reading")
        self._writer = ThreadPoolExecutor(1, "writing")

    def __enter__(self) -> "UnitPipeline":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        self._reader.shutdown()
        self._writer.shutdown()
        if error is not None:
            is_fault = self.model is not None and isinstance(as_foreseen(error), DeviceError)
            self.give_back(is_fault)

    def next_unit(self) -> UnitState | None:
        """Return the next unit once it is read; None where no unit is left to claim."""
        if not self._reading and not self._read_ahead():
            self.wait_for_writing()
            if not (self.board.take_over() and self._read_ahead()):
                return None
        index, reading = self._reading.popleft()
        self.board.begin(index)
        self._begun.add(index)
        self.board.beat(
            stage="reading",
            unit=index,
            rows=0,
            of=self.steps.plan.corpus.units[index].rows,
            tokens=0,
        )
        with timed(self._waited, WAITING_FOR_INPUT):
            state = reading.result()
        # The last units are left to workers that have none.
        if self.board.has_plenty:
            self._read_ahead()
        return state

    def _read_ahead(self) -> bool:
        index = self.board.next_unit()
        if index is None:
            return False
        self._reading.append((index, self._reader.submit(self._read, index)))
        return True

    def _read(self, index: int) -> UnitState:
        state = self.steps.read(index)
        if self.model is not None:
            self.steps.prepare(state, self.model)
        return state

    def write(self, state: UnitState, failed: Mapping[int, str]) -> None:
        """Have a unit written, once the one before is."""
        self.wait_for_writing()
        state.result.seconds.update(self._waited)
        self._waited.clear()
        self._writing = self._writer.submit(self._write, state, failed)

    def _write(self, state: UnitState, failed: Mapping[int, str]) -> None:
        self.board.finish(state.index, self.steps.finish(state, failed).to_json())

    def wait_for_writing(self) -> None:
        """Wait until the unit that is being written is done. Raises what writing it raised."""
        if self._writing is not None:
            with timed(self._waited, WAITING_FOR_OUTPUT):
                self._writing.result()

    def give_back(self, is_fault: bool = False) -> None:
        """Let others take what this process has claimed and not finished; `is_fault` where its units
        may be why.
        """
        # A full disk must not hide the error that brought us here.
        with contextlib.suppress(OSError):
            self.board.give_back()
            for index in self._begun:
                if index not in self.board.results and not is_fault:
                    self.board.forget_attempt(index)


def run_pipeline(
    steps: UnitSteps,
    board: ClaimBoard,
    load: LoadForUnit,
    on_unit: Callable[[UnitState], None] = lambda state: None,
    on_done: Callable[[], None] = lambda: None,
) -> bool:
    """Do all units that nobody else is at. Return False where workers should go on."""
    with UnitPipeline(steps, board) as pipeline:
        while (state := pipeline.next_unit()) is not None:
            on_unit(state)
            if len(state.missing) and pipeline.model is None:
                board.beat(stage="loading")
                pipeline.model = load(state)
                if pipeline.model is None:
                    pipeline.give_back()
                    board.beat(stage="starting workers", unit=None)
                    return False
            failed = _encode(pipeline, state)
            pipeline.write(state, failed)
            on_done()
        pipeline.wait_for_writing()
        on_done()
    board.beat(stage="done", unit=None, rows=0, tokens=0)
    return True


def _encode(pipeline: UnitPipeline, state: UnitState) -> dict[int, str]:
    """Compute a unit's missing vectors; return the texts that have none, and why."""
    board, model = pipeline.board, pipeline.model
    failed: dict[int, str] = {}
    if model is None:
        board.beat(stage="encoding")
    else:
        board.beat(stage="encoding", device=model.computation.device)
        failed = pipeline.steps.encode(state, model, board.advance)
    known_rows = pipeline.steps.plan.corpus.units[state.index].rows - len(state.missing)
    board.advance(known_rows, 0)
    return failed


@contextlib.contextmanager
def watchdog(board: ClaimBoard, limit: float | None, warn: Callable[[str], None]) -> Iterator[None]:
    """End this process where it shows no sign of life for too long: nobody else watches it."""
    ended = threading.Event()

    def watch() -> None:
        detector = StallDetector(limit)
        while not ended.wait(min(1.0, detector.limit / 4)):
            if detector.is_stalled(board.own.moves):
                warn(
                    f"no progress for {detector.limit:g} s: given up; the same command continues "
                    "(--watchdog sets the time)"
                )
                os._exit(DeviceError.exit_code)

    if limit is None or limit > 0:
        threading.Thread(target=watch, name="watchdog", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
