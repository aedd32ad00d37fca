"""What people see on standard error: progress, warnings, tables, errors. Escapes whatever comes from outside."""

import contextlib
import os
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from embedcli.job import Preview, Summary
    from embedcli.store.claims import Beat

_PLAIN_SECONDS = 30.0
_SHOWN = 200
_SHOWN_WORKERS = 16
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def safe(text: object, limit: int | None = None) -> str:
    """A string fit for a terminal: control, format and surrogate characters escaped, cut to `limit` characters.

    C0, C1, bidirectional marks and other invisible ones could move the cursor, hide text or reorder it.
    """
    string = str(text)
    if limit is not None and len(string) > limit:
        string = string[:limit] + "…"
    return "".join(_escaped(character) for character in string)


def _escaped(character: str) -> str:
    if character.isprintable() or character == " ":
        return character
    if character in _NAMED:
        return _NAMED[character]
    code = ord(character)
    if unicodedata.category(character) == "Zs":
        return " "
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _console(to_stdout: bool = False) -> Console:
    stream = sys.stdout if to_stdout else sys.stderr
    # `2>&-` leaves no stream at all
    return Console(file=stream or open(os.devnull, "w"), highlight=False, markup=False, soft_wrap=True)


def is_terminal() -> bool:
    """True where a person looks at standard error."""
    return _console().is_terminal


def _tell(*words: Text) -> None:
    """A line on standard error. Where nobody can read it, the run's end and its code stay what they are."""
    with contextlib.suppress(OSError):
        _console().print(Text.assemble(*words))


def say(message: str) -> None:
    """A plain line on standard error."""
    _tell(Text(safe(message)))


def warn(message: str) -> None:
    """A line that should be looked at."""
    _tell(Text("warning: ", style="yellow"), Text(safe(message)))


def error(message: str, hint: str = "") -> None:
    """Why the run ended, and the way out."""
    _tell(Text("error: ", style="bold red"), Text(safe(message)))
    if hint:
        _tell(Text("  hint: ", style="cyan"), Text(safe(hint)))


def result(text: str) -> None:
    """The one line on standard output that programs read; file names may hold any byte."""
    if sys.stdout is None:  # closed by the caller, who doesn't want to know
        return
    sys.stdout.buffer.write(os.fsencode(text) + b"\n")
    sys.stdout.buffer.flush()


def table(rows: Sequence[tuple[str, str]], to_stdout: bool = False) -> None:
    """Names and values, aligned; values may be longer than the line."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(Text(safe(name)), Text(safe(value)))
    console = _console(to_stdout)
    if console.is_terminal:
        console.print(grid)
        return
    width = max(len(name) for name, _ in rows)  # a pipe gets whole lines, however long
    for name, value in rows:
        console.print(Text(f"{safe(name):<{width}}  {safe(value)}"))


class _Silent:
    def warn(self, message: str) -> None:
        warn(message)

    def stage(self, name: str) -> None:
        """Nobody looks."""

    def begin(self, rows: int) -> None:
        """Nobody looks."""

    def advance(self, rows: int, tokens: int) -> None:
        """Nobody looks."""

    def workers(self, beats: "Sequence[Beat]") -> None:
        """Nobody looks."""


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
    def tokens_per_second(self) -> float:
        return self.tokens / max(1e-9, time.monotonic() - self._start)

    @property
    def seconds_left(self) -> float:
        return (time.monotonic() - self._start) / max(1, self.rows - self._first) * (self.total - self.rows)


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
        speed = f"{pace.tokens_per_second:,.0f} tokens/s{self._busy}"
        say(f"{pace.rows:,} of {pace.total:,} rows, {speed}, {duration(pace.seconds_left)} left")

    def workers(self, beats: "Sequence[Beat]") -> None:
        busy = sum(beat.stage == "encoding" for beat in beats)
        self._busy = f", {busy} of {len(beats)} workers encoding"


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
            speed = f"{self._pace.tokens_per_second:,.0f} tokens/s"
            self._progress.update(self._task, description="encoding", speed=speed)

    def workers(self, beats: "Sequence[Beat]") -> None:
        for beat in beats:
            if beat.worker not in self._workers:
                if len(self._workers) == _SHOWN_WORKERS:
                    continue
                self._workers[beat.worker] = self._progress.add_task("", total=None, speed="")
            what = f"{beat.stage} unit {beat.unit}" if beat.unit is not None else beat.stage
            line = f"  {beat.worker} {beat.device}: {what}"
            shown = beat.unit is not None
            self._progress.update(
                self._workers[beat.worker], description=safe(line), completed=beat.rows, total=beat.of, visible=shown
            )


@contextlib.contextmanager
def watching(quiet: bool) -> Iterator[_Silent]:
    """A watcher of a run: a bar on a terminal, a line every 30 seconds elsewhere, nothing but warnings if quiet."""
    if quiet:
        yield _Silent()
    elif not is_terminal():
        yield _Lines()
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rows  {task.fields[speed]}"),
            TimeRemainingColumn(),
        )
        progress = Progress(*columns, console=_console(), transient=True)
        try:
            yield _Bar(progress)
        finally:
            progress.stop()


def size(count: int) -> str:
    """A number of bytes as people say it."""
    value, units = float(count), iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 1000 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"


def preview(run: "Preview") -> None:
    """What a run would do."""
    disk = "" if run.free_bytes is None else f", of {size(run.free_bytes)} free"
    table(
        [
            ("output", run.output),
            ("rows", f"{run.rows:,} in {run.units:,} units"),
            ("unchanged", f"{run.unchanged:,} rows whose vector is on disk"),
            ("to embed", f"{run.to_embed:,} texts, about {run.tokens:,} tokens (by {run.sampled:,} texts)"),
            ("duplicates", f"{run.duplicates:,} rows repeat one of these texts"),
            ("rejected", f"{run.rejected:,} rows, before a model has seen them"),
            ("size", f"output up to {size(run.output_bytes)}"),
            ("disk", f"up to {size(run.needed_bytes)} to write{disk}"),
        ],
        to_stdout=True,
    )


def duration(seconds: float) -> str:
    """A length of time as people say it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def summary(run: "Summary") -> None:
    """The closing words of a run: what was asked, what came of it, how fast, and where it is."""
    table([row for row in _summary_rows(run) if row[1]])


def _summary_rows(run: "Summary") -> Iterator[tuple[str, str]]:
    counts, space, seconds = run.counts, run.recipe.space, run.seconds
    version = space.revision or (f"sha256 {space.weights[:16]}…" if space.weights else "")
    yield "model", f"{space.model}  {version}".rstrip()
    plain = run.recipe.template == "{text}"
    yield "role", f"{run.recipe.role}  ({'no instruction for this model; ' if plain else ''}{run.template_origin})"
    yield "template", "" if plain else run.recipe.template
    yield "example", safe(run.example, _SHOWN)
    yield "rows", f"{counts.rows_in:,} in = {counts.rows_out:,} out + {counts.rejected:,} rejected"
    if run.update:
        changes = (counts.reused + counts.resumed, counts.embedded, counts.removed, counts.rejected)
        names = ("unchanged", "embedded", "removed", "rejected")
        told = ", ".join(f"{count:,} {name}" for count, name in zip(changes, names, strict=True))
        yield "update", f"{told}{'' if run.published else '; the output stays as it is'}"
    yield "resumed", f"{counts.resumed:,} rows were finished by an interrupted run" if counts.resumed else ""
    yield "duplicates", f"{counts.duplicates:,} rows repeat a text of their unit" if counts.duplicates else ""
    yield "restarts", f"{run.restarts:,} workers died and were started again" if run.restarts else ""
    cut = f"{counts.truncated:,} of {counts.rows_out:,} rows at {run.recipe.max_length} tokens"
    yield "truncated", cut if counts.truncated else "none"
    yield "blank", f"{counts.blank:,} texts" if counts.blank else ""
    yield "prefixed", f"{counts.prefixed:,} texts start with the template's prefix already" if counts.prefixed else ""
    if run.device:
        several = f", {run.workers} processes" if run.workers > 1 else ""
        dtype = f"{run.dtype}, compiled" if run.compiled else run.dtype
        yield "computed", f"{run.device}, {dtype}, {space.dim} dimensions{several}"
    if encoding := seconds.get("encoding"):
        encoding = max(1e-9, encoding / run.workers)
        padding = 1 - counts.encoded_tokens / max(1, counts.padded_tokens)
        speed = f"{counts.embedded / encoding:,.0f} rows/s, {counts.encoded_tokens / encoding:,.0f} tokens/s"
        yield "speed", f"{speed}, {padding:.1%} padding; limited by {run.limited_by}"
    stages = ", ".join(
        f"{name} {duration(seconds[name])}" for name in seconds if name != "total" and seconds[name] >= 0.05
    )
    stages += "; stages summed over processes" if stages and run.workers > 1 else ""
    yield "time", f"{duration(seconds['total'])} ({stages})" if stages else duration(seconds["total"])
