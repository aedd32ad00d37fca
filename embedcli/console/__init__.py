"""What people see: messages, tables, errors. Escapes whatever comes from outside."""

import contextlib
import os
import sys
import unicodedata
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def safe(text: object, limit: int | None = None) -> str:
    """A string fit for a terminal: control, format and surrogate characters escaped, cut to `limit`
    characters.

    C0, C1, bidirectional marks and other invisible ones could move the cursor, hide text or reorder
    it.
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
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )


def console_of(to_stdout: bool = False) -> Console:
    """Rich's console on standard error, or on standard output."""
    stream = sys.stdout if to_stdout else sys.stderr
    # `2>&-` leaves no stream at all
    return Console(
        file=stream or open(os.devnull, "w"), highlight=False, markup=False, soft_wrap=True
    )


def is_terminal() -> bool:
    """True where a person looks at standard error."""
    return console_of().is_terminal


def _tell(*words: Text) -> None:
    """A line on standard error.

    Where nobody can read it, the run's end and its code stay what they are.
    """
    with contextlib.suppress(OSError):
        console_of().print(Text.assemble(*words))


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
    console = console_of(to_stdout)
    if console.is_terminal:
        console.print(grid)
        return
    width = max(len(name) for name, _ in rows)  # a pipe gets whole lines, however long
    for name, value in rows:
        console.print(Text(f"{safe(name):<{width}}  {safe(value)}"))


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output: aligned columns, whole lines however long."""
    table = [[safe(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    for row in table:
        padded = [
            cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)
        ]
        result("  ".join(padded).rstrip())


def size(count: int) -> str:
    """A number of bytes as people say it."""
    value, units = float(count), iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 1000 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"


def duration(seconds: float) -> str:
    """A length of time as people say it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
