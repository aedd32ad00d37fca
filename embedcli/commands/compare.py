"""`embedcli compare`: two outputs, side by side."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from embedcli import console
from embedcli.commands import options
from embedcli.errors import EXIT_OK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedcli.judging.comparison import Comparison


def compare(
    one: Annotated[str, typer.Argument(metavar="A", help="A file or folder of vectors that encode wrote.")],
    other: Annotated[str, typer.Argument(metavar="B", help="Another one of the same texts.")],
    key: Annotated[
        str | None,
        typer.Option(
            "--key", help="The column that tells which rows are the same. Default: their text, else _id or id."
        ),
    ] = None,
    embedding_column: options.VectorColumn = None,
    as_json: options.AsJson = False,
) -> int:
    """Compare two outputs row by row: the same space? cosines, and whether neighbours stay the same.

    Example: embedcli compare float32.parquet bfloat16.parquet

    Rows are the same where their rendered texts are; where the templates differ, where _id or id is.

    Exit codes: 0 done; 65 not files of vectors, or no common key; 66 no such file.
    """
    from embedcli.judging import comparison, spaces

    indexes = [spaces.open_index(path, embedding_column) for path in (one, other)]
    found = comparison.compare(indexes[0], indexes[1], key)
    if as_json:
        console.result(json.dumps(found.as_dict(), ensure_ascii=False))
    else:
        console.table(list(_lines(found)), to_stdout=True)
    return EXIT_OK


def _lines(found: "Comparison") -> "Iterator[tuple[str, str]]":
    yield "space", "the same: the vectors compare" if found.same_space else "not the same: the vectors don't compare"
    for name, (first, second) in found.differing.items():
        yield "", f"{name}: {json.dumps(first, ensure_ascii=False)} and {json.dumps(second, ensure_ascii=False)}"
    yield "rows", ", ".join(f"{count:,} {name}" for name, count in found.rows.items()) + f" (by {found.key})"
    if found.cosines is None:
        yield "cosines", "none: no common rows, or other dimensions"
    else:
        said = ", ".join(f"{name} {value:.6f}" for name, value in found.cosines.items())
        yield "cosines", f"{said}; {found.identical:,} of {found.compared:,} vectors are identical"
    if found.overlap is not None:
        yield "neighbours", f"{found.overlap:.1%} of the 10 nearest are the same (over {found.asked:,} rows)"
