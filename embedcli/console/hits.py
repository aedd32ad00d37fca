"""What a search found, for people."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from embedcli.console import console_of, safe

if TYPE_CHECKING:
    from embedcli.analysis.search import Hit

_ID_WIDTH = 24
_SNIPPET, _LEAST_SNIPPET = 400, 20


def table(query: str, hits: "Sequence[Hit]") -> None:
    """A query's hits: rank, score, the short values, and as much of the longest one as the line holds."""
    console = console_of(to_stdout=True)
    console.print(Text(safe(query or "(a vector)"), style="bold"))
    if not hits:
        console.print(Text("  nothing found", style="dim"))
        return
    names = list(dict.fromkeys(name for hit in hits for name in hit.record))
    size = {name: max(len(str(hit.record.get(name, ""))) for hit in hits) for name in names}
    longest = max(names, key=lambda name: (name == "text", size[name]), default=None)
    short = [name for name in names if name != longest and size[name] <= _ID_WIDTH][:3]
    several = len({hit.file for hit in hits}) > 1
    header = ["rank", "score", *(["file"] if several else []), *map(safe, short)]
    rows = [
        [
            str(hit.rank),
            f"{hit.score:.4f}",
            *([safe(Path(hit.file).name)] if several else []),
            *(safe(hit.record.get(name, "")) for name in short),
        ]
        for hit in hits
    ]
    widths = [max(map(cell_len, column)) for column in zip(header, *rows, strict=True)]
    left = max(_LEAST_SNIPPET, console.width - sum(widths) - 2 * len(widths))
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name, width in zip(header, widths, strict=True):
        grid.add_column(name, min_width=width, no_wrap=True, justify="right" if name == "rank" else "left")
    if longest is not None:
        grid.add_column(safe(longest), no_wrap=True)
    for row, hit in zip(rows, hits, strict=True):
        snippet = Text(safe(hit.record.get(longest, ""), _SNIPPET) if longest else "")
        snippet.truncate(left, overflow="ellipsis")
        grid.add_row(*map(Text, row), *([snippet] if longest else []))
    console.print(grid)
    console.print()
