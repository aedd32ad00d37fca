"""Who works on what: files in the staging directory, so that processes and machines need nothing but
the shared folder.

Units are claimed in ranges: far fewer claims than units, and smaller ones towards the end, so that
all have something to do until then. A claim is a file made exclusively, `000012.0`; who takes over from
one that died makes the next one, `000012.1`, and nothing is ever removed that another could have made
since. Should two take each other for dead, both do the range: the parts are the same, and either will do.

What became of a unit is a line in the log of whoever did it: nothing grows with the square of the
units. Lines carry a checksum and outlive the run: the next one continues from them. A log that is
gone is never made anew: whoever slept through the end of its run can't add to the next one.
"""

import contextlib
import itertools
import json
import os
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from embedcli.errors import LockedError
from embedcli.files import make_exclusively, replace_content
from embedcli.store import life
from embedcli.store.staging import Staging

_SHOWN_SECONDS = 0.5
_MOST_UNITS = 64
# A range is this part of what is left behind it, at most.
_SHARES = 64
# In the place of a worker: the range is given back.
_NOBODY = "-"
_PATIENCE_SECONDS, _PATIENCE_MOVES = 300.0, 10
# A unit that was begun so often and never finished is left for last.
MAX_ATTEMPTS = 2


def ranges_of(units: Sequence[int]) -> list[Sequence[int]]:
    """Cut a list of units into the ranges that are claimed; the same for everybody."""
    ranges: list[Sequence[int]] = []
    start = 0
    while start < len(units):
        size = max(1, min(_MOST_UNITS, (len(units) - start) // _SHARES))
        ranges.append(units[start : start + size])
        start += size
    return ranges


@dataclass(frozen=True)
class Heartbeat:
    """What a worker says of itself; a new number of moves means that it lives.

    rows (out of `of`) and tokens are those of its unit so far; moves count what it has done since
    it started, finished its units, finished_rows their rows.
    """

    worker: str
    name: str = ""
    device: str = ""
    stage: str = "starting"
    unit: int | None = None
    rows: int = 0
    of: int = 0
    tokens: int = 0
    moves: int = 0
    finished: int = 0
    finished_rows: int = 0


class StallDetector:
    """Notices a worker that has made no move for too long: `limit` seconds; 0 is for ever. None is
    five minutes, or ten times as long as any move took so far, if that is more.
    """

    def __init__(self, limit: float | None) -> None:
        self._limit = limit
        self._longest = 0.0
        self._moves, self._since = -1, time.monotonic()

    @property
    def limit(self) -> float:
        """How many seconds are too long."""
        if self._limit is not None:
            return self._limit
        return max(_PATIENCE_SECONDS, _PATIENCE_MOVES * self._longest)

    def is_stalled(self, moves: int) -> bool:
        """Has the number of moves been this one for too long?"""
        clock = time.monotonic()
        if moves != self._moves:
            self._longest = max(self._longest, clock - self._since)
            self._moves, self._since = moves, clock
        return 0 < self.limit < clock - self._since


class ResultLog:
    """What became of units, as all workers have written it down."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_unit: dict[int, dict[str, Any]] = {}
        # How much of each file is read.
        self._offsets: dict[str, int] = {}

    def begin(self, worker: str) -> None:
        """Make a worker's own file."""
        (self._folder / worker).touch(0o600, exist_ok=False)

    def append(self, worker: str, unit: int, result: Mapping[str, object], durable: bool) -> None:
        """Write down what became of a unit, in the worker's own file: all of it, or nothing.

        Raises LockedError where the file is gone: another run has begun.
        """
        content = json.dumps({"unit": unit, "result": result}).encode()
        line = b"%08x %s\n" % (zlib.crc32(content), content)
        try:
            descriptor = os.open(self._folder / worker, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            raise LockedError("other processes took this one for dead", "try again") from None
        try:
            size = os.fstat(descriptor).st_size
            try:
                if os.write(descriptor, line) != len(line):
                    raise OSError(28, "No space left on device", str(self._folder))
                if durable:
                    os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)

    def refresh(self) -> list[int]:
        """Read what was added; return the units that are new."""
        known = len(self._by_unit)
        for path in sorted(self._folder.iterdir()):
            offset = self._offsets.get(path.name, 0)
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as stream:
                stream.seek(offset)
                for line in stream:
                    if not line.endswith(b"\n"):
                        break  # not all of it can be seen yet
                    offset += len(line)
                    self._take(line)
            self._offsets[path.name] = offset
        return list(itertools.islice(reversed(self._by_unit), len(self._by_unit) - known))

    def _take(self, line: bytes) -> None:
        checksum, _, content = line.rstrip(b"\n").partition(b" ")
        if checksum != b"%08x" % zlib.crc32(content):
            return  # damaged: the unit is done again
        value = json.loads(content)
        # Of two that did it the one that was read first; either will do.
        self._by_unit.setdefault(value["unit"], value["result"])

    def __contains__(self, unit: int) -> bool:
        return unit in self._by_unit

    def __getitem__(self, unit: int) -> dict[str, Any]:
        return self._by_unit[unit]

    def __iter__(self) -> Iterator[int]:
        return iter(self._by_unit)

    def __len__(self) -> int:
        return len(self._by_unit)


class ClaimBoard:
    """The claims, results and signs of life of a run, as seen by one worker.

    `units`: all that are to be done, in the order in which they are claimed; `watchdog`: how long
    others may make no move (see `StallDetector`); `name`: what people call the worker.
    """

    def __init__(
        self,
        stage: Staging,
        worker: str,
        units: Sequence[int] = (),
        watchdog: float | None = None,
        name: str = "",
        on_advance: Callable[[int, int], None] = lambda rows, tokens: None,
    ) -> None:
        self.stage = stage
        self.worker = worker
        self.results = ResultLog(stage.results)
        self.ranges = ranges_of(units)
        self._on_advance = on_advance
        self._watch = life.Watch()
        # The first range that may be free, the one that this worker is at, and what is left of it.
        self._cursor = 0
        self._workers = 1
        self._claimed: dict[int, int] = {}
        self._mine: deque[int] = deque()
        # Of other workers' ranges the last generation seen, and how the workers move.
        self._generations: dict[int, int] = {}
        self._detectors: dict[str, StallDetector] = {}
        self._watchdog = watchdog
        self._beat = Heartbeat(worker, name)
        self._shown = 0.0
        self._lock = threading.Lock()

    # Claims

    def next_unit(self) -> int | None:
        """Take a unit that nobody has done or is at; None where there is none."""
        while True:
            while self._mine:
                unit = self._mine.popleft()
                if unit not in self.results and not self.is_quarantined(unit):
                    return unit
            if not self._claim_range():
                return None

    @property
    def has_plenty(self) -> bool:
        """Is there more to do than for the workers that there are?"""
        return bool(self._mine) or len(self.ranges) - self._cursor >= self._workers

    @property
    def is_through(self) -> bool:
        """Are all units done, but those that kill whoever tries them?"""
        self.results.refresh()
        units = (unit for part in self.ranges for unit in part)
        left = [unit for unit in units if unit not in self.results]
        if not all(map(self.is_quarantined, left)):
            return False
        tried = {beat.unit for beat in self.heartbeats() if self._is_other_alive(beat.worker)}
        return tried.isdisjoint(left)

    def _is_other_alive(self, worker: str) -> bool:
        return worker != self.worker and not self._watch.is_dead(worker_file(self.stage, worker))

    def _claim_range(self) -> bool:
        self.results.refresh()
        self._workers = len(os.listdir(self.stage.run / "beats"))
        while self._cursor < len(self.ranges):
            number = self._cursor
            self._cursor += 1
            if not self._is_done(number) and self._claim(number, 0):
                return True
        return False

    def _is_done(self, number: int) -> bool:
        return all(unit in self.results for unit in self.ranges[number])

    def _claim(self, number: int, generation: int) -> bool:
        path = self._claim_file(number, generation)
        if not make_exclusively(path, self.worker.encode()):
            return False
        self._claimed[number] = generation
        self._mine.extend(self.ranges[number])
        return True

    def _claim_file(self, number: int, generation: int) -> Path:
        return self.stage.run / "claims" / f"{number:06d}.{generation}"

    def take_over(self) -> bool:
        """Claim a range whose worker is dead, gave it back, or made no move for too long.

        False where there is none. To be asked again and again: it takes time to see who is dead.
        """
        return any(self._claim(number, generation + 1) for number, generation in self.claimable())

    def claimable(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges that can be claimed, with the generation of their last claim; -1 where
        there is none.
        """
        self.results.refresh()
        beats = {beat.worker: beat for beat in self.heartbeats()}
        for number in range(len(self.ranges)):
            if all(
                unit in self.results or self.is_quarantined(unit) for unit in self.ranges[number]
            ):
                continue
            generation, worker = self._holder(number)
            if generation < 0 or self._is_gone(worker, beats.get(worker)):
                yield number, generation

    def _holder(self, number: int) -> tuple[int, str]:
        """Return who claimed a range last, and in which generation: -1 where nobody has."""
        generation = self._generations.get(number, -1)
        while self._claim_file(number, generation + 1).exists():
            generation += 1
        self._generations[number] = generation
        return generation, _read(self._claim_file(number, generation)) if generation >= 0 else ""

    def _is_gone(self, worker: str, beat: Heartbeat | None) -> bool:
        if worker == _NOBODY:
            return True
        if worker == self.worker:
            return False
        if self._watch.is_dead(worker_file(self.stage, worker)):
            return True
        detector = self._detectors.setdefault(worker, StallDetector(self._watchdog))
        return detector.is_stalled(beat.moves if beat is not None else 0)

    def give_back(self) -> None:
        """Let others take what this worker has claimed and not finished."""
        self.results.refresh()
        self._mine.clear()
        for number, generation in self._claimed.items():
            if not self._is_done(number):
                make_exclusively(self._claim_file(number, generation + 1), _NOBODY.encode())
        self._claimed.clear()
        self._cursor = 0

    # Units

    def begin(self, unit: int) -> None:
        """From here on this worker is at a unit: if it dies, the unit may be why."""
        with open(self.stage.attempts(unit), "a") as stream:
            stream.write("x")

    def attempts(self, unit: int) -> int:
        """Count how often a unit was begun and not finished."""
        return len(_read(self.stage.attempts(unit)))

    def is_quarantined(self, unit: int) -> bool:
        """Tell whether a unit has killed whoever tried it, again and again."""
        return self.attempts(unit) >= MAX_ATTEMPTS

    def forget_attempt(self, unit: int) -> None:
        """Forget that a unit was begun: it was given up for a reason that doesn't lie in it."""
        count = self.attempts(unit)
        if count > 1:
            self.stage.attempts(unit).write_text("x" * (count - 1))
        else:
            self.stage.attempts(unit).unlink(missing_ok=True)

    def finish(self, unit: int, result: Mapping[str, Any]) -> None:
        """Say what became of a unit."""
        self.results.append(self.worker, unit, result, durable=self.stage.output is not None)
        self.stage.attempts(unit).unlink(missing_ok=True)
        with self._lock:  # units are finished in another thread
            self._beat = replace(
                self._beat,
                finished=self._beat.finished + 1,
                finished_rows=self._beat.finished_rows + result["rows"],
            )

    # Signs of life

    @property
    def own(self) -> Heartbeat:
        """What this worker says of itself."""
        return self._beat

    def beat(self, **changes: Any) -> None:
        """Show that this worker is at something else."""
        with self._lock:
            self._beat = replace(self._beat, moves=self._beat.moves + 1, **changes)
        self._show()

    def advance(self, rows: int, tokens: int) -> None:
        """Count so many more rows of the unit as done. Shown at most twice a second."""
        with self._lock:
            old = self._beat
            self._beat = replace(
                old, rows=old.rows + rows, tokens=old.tokens + tokens, moves=old.moves + 1
            )
        if time.monotonic() - self._shown > _SHOWN_SECONDS:
            self._show()
        self._on_advance(rows, tokens)

    def _show(self) -> None:
        self._shown = time.monotonic()
        path = self.stage.run / "beats" / self.worker
        replace_content(path, json.dumps(asdict(self._beat)).encode())

    def heartbeats(self) -> list[Heartbeat]:
        """Read what all workers say of themselves."""
        names = sorted(os.listdir(self.stage.run / "beats"))
        heartbeats = (self.heartbeat(name) for name in names if not name.endswith(".tmp"))
        return [heartbeat for heartbeat in heartbeats if heartbeat is not None]

    def heartbeat(self, worker: str) -> Heartbeat | None:
        """Read what a worker says of itself; None where it has said nothing yet."""
        content = _read(self.stage.run / "beats" / worker)
        return Heartbeat(**json.loads(content)) if content else None

    @property
    def busy_workers(self) -> int:
        """How many workers have finished a unit of this run; at least one."""
        return max(1, len({beat.name for beat in self.heartbeats() if beat.finished}))

    # Failures

    def failure(self, worker: str) -> dict[str, Any] | None:
        """Read why a worker can't go on; None where it doesn't say it."""
        content = _read(self.stage.run / "failed" / worker)
        return json.loads(content) if content else None


@contextlib.contextmanager
def taking_part(board: ClaimBoard) -> Iterator[ClaimBoard]:
    """Take part in a run under the name of the board's worker; others see that this process lives."""
    file = worker_file(board.stage, board.worker)
    life.make(file, life.this_process(board.worker))
    with life.Signs(file):
        board.results.begin(board.worker)
        yield board


def fail(stage: Staging, worker: str, failure: Mapping[str, object]) -> None:
    """Say why a worker can't go on."""
    replace_content(stage.run / "failed" / worker, json.dumps(failure).encode())


def worker_file(stage: Staging, worker: str) -> Path:
    """Return the file by which others see whether a worker lives."""
    return stage.run / "workers" / worker


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""
