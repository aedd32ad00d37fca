"""The results of a search, for people."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from embedcli.console import console_of, safe

if TYPE_CHECKING:
    from embedcli.analysis.search import Hit

# Values up to this width have a column of their own, at most so many of them.
_SHORT_WIDTH = 24
_SHORT_COLUMNS = 3
_MAX_SNIPPET, _MIN_SNIPPET = 400, 20


def table(query: str, hits: "Sequence[Hit]") -> None:
    """Print a query's hits: rank, score, the short values, and as much of the longest one as the
    line holds.
    """
    console = console_of(to_stdout=True)
    console.print(Text(safe(query or "(a vector)"), style="bold"))
    if not hits:
        console.print(Text("  no rows", style="dim"))
        return
    longest, short = _choose_columns(hits)
    header = ["rank", "score", *_file_cells(hits, "file"), *map(safe, short)]
    rows = [_cells(hit, hits, short) for hit in hits]
    widths = [max(map(cell_len, column)) for column in zip(header, *rows, strict=True)]
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name, width in zip(header, widths, strict=True):
        grid.add_column(
            name, min_width=width, no_wrap=True, justify="right" if name == "rank" else "left"
        )
    if longest is not None:
        grid.add_column(safe(longest), no_wrap=True)
    snippet_width = max(_MIN_SNIPPET, console.width - sum(widths) - 2 * len(widths))
    for row, hit in zip(rows, hits, strict=True):
        cells = [Text(cell) for cell in row]
        if longest is not None:
            snippet = Text(safe(hit.record.get(longest, ""), _MAX_SNIPPET))
            snippet.truncate(snippet_width, overflow="ellipsis")
            cells.append(snippet)
        grid.add_row(*cells)
    console.print(grid)
    console.print()


def _choose_columns(hits: "Sequence[Hit]") -> tuple[str | None, list[str]]:
    """Return the column that gets what is left of the line (`text`, else the longest), and the
    short ones beside it.
    """
    names = list(dict.fromkeys(name for hit in hits for name in hit.record))
    lengths = {name: max(len(str(hit.record.get(name, ""))) for hit in hits) for name in names}
    longest = max(names, key=lambda name: (name == "text", lengths[name]), default=None)
    short = [name for name in names if name != longest and lengths[name] <= _SHORT_WIDTH]
    return longest, short[:_SHORT_COLUMNS]


def _cells(hit: "Hit", hits: "Sequence[Hit]", short: Sequence[str]) -> list[str]:
    values = [safe(hit.record.get(name, "")) for name in short]
    return [
        str(hit.rank),
        f"{hit.score:.4f}",
        *_file_cells(hits, safe(Path(hit.file).name)),
        *values,
    ]


def _file_cells(hits: "Sequence[Hit]", cell: str) -> list[str]:
    """Return a cell for the file, where the hits are of several."""
    return [cell] if len({hit.file for hit in hits}) > 1 else []
