"""How a run goes, while it goes: a bar on a terminal, lines elsewhere."""

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from embedcli.console import console_of, duration, is_terminal, safe, say, warn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embedcli.store.claims import Heartbeat

_PLAIN_SECONDS = 30.0
_SHOWN_WORKERS = 16


class _Silent:
    def warn(self, message: str) -> None:
        warn(message)

    def stage(self, name: str) -> None:
        """Ignored."""

    def begin(self, rows: int) -> None:
        """Ignored."""

    def advance(self, rows: int, tokens: int) -> None:
        """Ignored."""

    def workers(self, heartbeats: "Sequence[Heartbeat]") -> None:
        """Ignored."""


class _Pace:
    """How fast it goes since encoding began: reused rows and loading a model say nothing of it."""

    def __init__(self, rows: int) -> None:
        self.total, self.rows, self.tokens = rows, 0, 0
        self.restart()

    def restart(self) -> None:
        self._start, self._first = time.monotonic(), self.rows

    def advance(self, rows: int, tokens: int) -> None:
        self.rows, self.tokens = self.rows + rows, self.tokens + tokens

    @property
    def speed(self) -> str:
        seconds = max(1e-9, time.monotonic() - self._start)
        rows = (self.rows - self._first) / seconds
        return f"{rows:,.0f} rows/s, {self.tokens / seconds:,.0f} tokens/s"

    @property
    def seconds_left(self) -> float:
        return (
            (time.monotonic() - self._start)
            / max(1, self.rows - self._first)
            * (self.total - self.rows)
        )


class _Lines(_Silent):
    """A line every 30 seconds, for logs."""

    def begin(self, rows: int) -> None:
        self._pace, self._busy = _Pace(rows), ""
        self._said = time.monotonic()

    def stage(self, name: str) -> None:
        if name == "encoding":
            self._pace.restart()

    def advance(self, rows: int, tokens: int) -> None:
        pace = self._pace
        pace.advance(rows, tokens)
        if time.monotonic() - self._said < _PLAIN_SECONDS:
            return
        self._said = time.monotonic()
        speed = f"{pace.speed}{self._busy}"
        say(f"{pace.rows:,} of {pace.total:,} rows, {speed}, {duration(pace.seconds_left)} left")

    def workers(self, heartbeats: "Sequence[Heartbeat]") -> None:
        stages = {heartbeat.name: heartbeat.stage for heartbeat in heartbeats}
        busy = sum(stage == "encoding" for stage in stages.values())
        self._busy = f", {busy} of {len(stages)} workers encoding"


class _Bar(_Silent):
    """A progress bar, for a terminal; with several workers a line for each below it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None, speed="")
        self._workers: dict[str, TaskID] = {}
        progress.start()

    def stage(self, name: str) -> None:
        self._progress.update(self._task, description=safe(name))
        if name == "encoding":
            self._pace.restart()

    def begin(self, rows: int) -> None:
        self._pace = _Pace(rows)
        self._progress.reset(self._task, total=rows, description="working")

    def advance(self, rows: int, tokens: int) -> None:
        self._pace.advance(rows, tokens)
        self._progress.update(self._task, advance=rows)
        if tokens:
            self._progress.update(self._task, description="encoding", speed=self._pace.speed)

    def workers(self, heartbeats: "Sequence[Heartbeat]") -> None:
        for heartbeat in heartbeats:
            if heartbeat.name not in self._workers:
                if len(self._workers) == _SHOWN_WORKERS:
                    continue
                self._workers[heartbeat.name] = self._progress.add_task("", total=None, speed="")
            phrases = (
                f"{heartbeat.stage} unit {heartbeat.unit}"
                if heartbeat.unit is not None
                else heartbeat.stage
            )
            line = f"  {f'{heartbeat.name} {heartbeat.device}'.strip()}: {phrases}"
            shown = heartbeat.unit is not None
            self._progress.update(
                self._workers[heartbeat.name],
                description=safe(line),
                completed=heartbeat.rows,
                total=heartbeat.of,
                visible=shown,
            )


@contextlib.contextmanager
def listening(quiet: bool, log: bool = False) -> Iterator[_Silent]:
    """Listen to a run: a bar on a terminal, a line every 30 seconds elsewhere and for a log, nothing
    but warnings if quiet.
    """
    if quiet:
        yield _Silent()
    elif log or not is_terminal():
        yield _Lines()
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rows  {task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        progress = Progress(*columns, console=console_of(), transient=True)
        try:
            yield _Bar(progress)
        finally:
            progress.stop()
