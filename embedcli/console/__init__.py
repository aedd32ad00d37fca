"""What people see: messages, tables, errors. Escapes whatever comes from outside."""

import contextlib
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from embedcli.escaping import as_json as as_json
from embedcli.escaping import count as count
from embedcli.escaping import safe as safe

_is_log = False


def write_log(is_log: bool) -> None:
    """From now on each message starts with the time, or no longer does."""
    global _is_log
    _is_log = is_log


def console_of(to_stdout: bool = False) -> Console:
    """Rich's console on standard error, or on standard output."""
    stream = sys.stdout if to_stdout else sys.stderr
    # `2>&-` leaves no stream at all.
    return Console(
        file=stream or open(os.devnull, "w"), highlight=False, markup=False, soft_wrap=True
    )


def is_terminal() -> bool:
    """Tell whether a person looks at standard error."""
    return console_of().is_terminal


def _tell(*words: Text) -> None:
    """Print a line on standard error.

    Where nobody can read it, the run's end and its code stay what they are.
    """
    time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ ") if _is_log else ""
    with contextlib.suppress(OSError):
        console_of().print(Text.assemble(time, *words))


def say(message: str) -> None:
    """Print a plain line on standard error."""
    _tell(Text(safe(message)))


def warn(message: str) -> None:
    """Print a warning on standard error."""
    _tell(Text("warning: ", style="yellow"), Text(safe(message)))


def error(message: str, hint: str = "") -> None:
    """Print why the run ended, and the option that helps."""
    _tell(Text("error: ", style="bold red"), Text(safe(message)))
    if hint:
        _tell(Text("  hint: ", style="cyan"), Text(safe(hint)))


def result(text: str) -> None:
    """Print a line on standard output, for programs; file names may hold any byte."""
    if sys.stdout is None:  # closed by the caller, who doesn't want to know
        return
    if sys.stdout.isatty():  # a name may hold what moves the cursor, or reorders what is shown
        text = safe(text)
    sys.stdout.buffer.write(os.fsencode(text) + b"\n")
    sys.stdout.buffer.flush()


def table(rows: Sequence[tuple[str, str]], to_stdout: bool = False) -> None:
    """Print names and values, aligned; values may be longer than the line."""
    console = console_of(to_stdout)
    if not console.is_terminal:  # a pipe gets whole lines, however long
        for line in _aligned(rows):
            console.print(Text(line))
        return
    columns = Table.grid(padding=(0, 2))
    columns.add_column(style="dim", no_wrap=True)
    columns.add_column(overflow="fold")
    for name, value in rows:
        columns.add_row(Text(safe(name)), Text(safe(value)))
    console.print(columns)


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on standard output: aligned columns, whole lines however long."""
    for line in _aligned([header, *rows]):
        result(line)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each row, its cells padded to the width of their column."""
    cells = [[safe(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = [set_cell_size(cell, width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return lines


def size(count: int) -> str:
    """Return a number of bytes as people say it."""
    return decimal(count)


def duration(seconds: float) -> str:
    """Return a length of time as people say it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
