"""Who works on what: files in a run's directory, so that processes and machines need nothing but
the shared folder.

A claim is a file made with O_EXCL: one maker wins. What became of a unit, and what a worker is at,
are files renamed into place. None of this outlives the run; what must, is in the parts.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from embedcli.store.staging import Staging

_BEAT_SECONDS = 0.2


@dataclass(frozen=True)
class Heartbeat:
    """What a worker says of itself; a new number of moves means that it lives.

    rows (out of `of`) and tokens are those of its unit so far; moves count what it has done since
    it started, finished its units.
    """

    worker: str
    device: str = ""
    stage: str = "starting"
    unit: int | None = None
    rows: int = 0
    of: int = 0
    tokens: int = 0
    moves: int = 0
    finished: int = 0


class StallDetector:
    """Notices a worker that has made no move for too long."""

    def __init__(self) -> None:
        self._moves, self._since = -1, time.monotonic()

    def is_stalled(self, moves: int, limit: float) -> bool:
        """Has the number of moves been this one for more than `limit` seconds? Never, where the
        limit is 0.
        """
        clock = time.monotonic()
        if moves != self._moves:
            self._moves, self._since = moves, clock
        return 0 < limit < clock - self._since


@dataclass
class ClaimBoard:
    """A run's claims, results and signs of life, as seen by one worker."""

    stage: Staging
    worker: str
    on_advance: Callable[[int, int], None] | None = None
    _beat: Heartbeat = field(init=False)
    _shown: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._beat = Heartbeat(self.worker)
        for folder in ("claims", "done", "beats", "failed"):
            (self.stage.run / folder).mkdir(exist_ok=True)

    def claim(self, index: int) -> bool:
        """Take a unit, if nobody has."""
        try:
            with open(self._claim(index), "x") as stream:
                stream.write(self.worker)
        except FileExistsError:
            return False
        return True

    def begin(self, index: int) -> None:
        """From here on this worker is at a unit: if it dies, the unit may be why."""
        with open(self.stage.attempts(index), "a") as stream:
            stream.write("x")

    def release(self, index: int) -> None:
        """Give a unit back, whoever has it."""
        self._claim(index).unlink(missing_ok=True)

    def claimed_by(self, worker: str) -> list[int]:
        """List the units that a worker has taken and not finished."""
        claims = (
            path
            for path in (self.stage.run / "claims").iterdir()
            if not self.is_done(int(path.name))
        )
        return sorted(int(path.name) for path in claims if _read(path) == worker)

    def holder(self, index: int) -> str:
        """Return the worker that has taken a unit; empty where nobody has."""
        return _read(self._claim(index))

    def count_claims(self) -> int:
        """Count the units that somebody has taken."""
        return sum(1 for _ in (self.stage.run / "claims").iterdir())

    def any_free(self, units: Iterable[int]) -> bool:
        """Tell whether one of the units is taken by nobody."""
        return any(not self.holder(index) for index in units)

    def attempts(self, index: int) -> int:
        """Count how often a unit was begun and not finished."""
        return len(_read(self.stage.attempts(index)))

    def forget_attempt(self, index: int) -> None:
        """Forget that a unit was begun: it was given up for a reason that doesn't lie in it."""
        count = self.attempts(index)
        if count > 1:
            self.stage.attempts(index).write_text("x" * (count - 1))
        else:
            self.stage.attempts(index).unlink(missing_ok=True)

    def finish(self, index: int, result: dict[str, object]) -> None:
        """Say what became of a unit."""
        self._put(self.stage.run / "done" / f"{index:06d}", result)
        self.stage.attempts(index).unlink(missing_ok=True)
        with self._lock:  # units are finished in another thread
            self._beat = replace(self._beat, finished=self._beat.finished + 1)

    def is_done(self, index: int) -> bool:
        """Tell whether a unit is finished."""
        return (self.stage.run / "done" / f"{index:06d}").exists()

    def done(self) -> set[int]:
        """Return the units that are finished."""
        return {
            int(path.name) for path in (self.stage.run / "done").iterdir() if path.suffix != ".tmp"
        }

    def result(self, index: int) -> dict[str, Any]:
        """Read what became of a finished unit."""
        result: dict[str, Any] = json.loads((self.stage.run / "done" / f"{index:06d}").read_bytes())
        return result

    def fail(self, failure: Mapping[str, object]) -> None:
        """Say why this worker can't go on."""
        self._put(self.stage.run / "failed" / self.worker, failure)

    def failures(self) -> list[dict[str, Any]]:
        """Read why workers can't go on."""
        paths = sorted(
            path for path in (self.stage.run / "failed").iterdir() if path.suffix != ".tmp"
        )
        return [json.loads(path.read_bytes()) for path in paths]

    @property
    def moves(self) -> int:
        """Grows with everything that this worker does."""
        return self._beat.moves

    def beat(self, **changes: Any) -> None:
        """Show that this worker is at something else."""
        with self._lock:
            self._beat = replace(self._beat, moves=self._beat.moves + 1, **changes)
        self._show()

    def advance(self, rows: int, tokens: int) -> None:
        """Count so many more rows of the unit as done. Shown at most five times a second."""
        with self._lock:
            old = self._beat
            self._beat = replace(
                old, rows=old.rows + rows, tokens=old.tokens + tokens, moves=old.moves + 1
            )
        if time.monotonic() - self._shown > _BEAT_SECONDS:
            self._show()
        if self.on_advance is not None:
            self.on_advance(rows, tokens)

    def _show(self) -> None:
        self._shown = time.monotonic()
        self._put(self.stage.run / "beats" / self.worker, asdict(self._beat))

    def heartbeats(self) -> list[Heartbeat]:
        """Read what all workers say of themselves."""
        heartbeats = []
        for path in sorted((self.stage.run / "beats").iterdir()):
            if path.suffix != ".tmp":
                with contextlib.suppress(FileNotFoundError):
                    heartbeats.append(Heartbeat(**json.loads(path.read_bytes())))
        return heartbeats

    def _claim(self, index: int) -> Path:
        return self.stage.run / "claims" / f"{index:06d}"

    def _put(self, path: Path, value: object) -> None:
        unfinished = path.with_name(f"{path.name}.{self.worker}.tmp")
        unfinished.write_text(json.dumps(value))
        os.replace(unfinished, path)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""
