"""`embedcli compare`: two outputs, side by side."""

from typing import TYPE_CHECKING, Annotated

import typer

from embedcli import console
from embedcli.commands import options
from embedcli.errors import EXIT_OK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedcli.analysis.comparison import Comparison


def compare(
    first: Annotated[
        str, typer.Argument(metavar="A", help="A file or folder of vectors that encode wrote.")
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one of the same texts.")],
    key: Annotated[
        str | None,
        typer.Option(
            "--key",
            help="The column that tells which rows are the same. Default: their text, else _id or id.",
        ),
    ] = None,
    embedding_column: options.VectorColumn = None,
    as_json: options.AsJson = False,
) -> int:
    """Compare two outputs row by row: the same space? cosines, and whether neighbours stay the same.

    Example: embedcli compare float32.parquet bfloat16.parquet

    Rows are the same where their rendered texts are; where the templates differ, where _id or id
    is.

    Exit codes: 0 done; 65 not files of vectors, or no common key; 66 no such file.
    """
    from embedcli.analysis.comparison import compare as compare_files
    from embedcli.store.vector_file import open_ours

    comparison = compare_files(
        open_ours(first, embedding_column), open_ours(second, embedding_column), key
    )
    if as_json:
        console.result(console.as_json(comparison.to_json()))
    else:
        console.table(list(_lines(comparison)), to_stdout=True)
    return EXIT_OK


def _lines(comparison: "Comparison") -> "Iterator[tuple[str, str]]":
    yield (
        "space",
        "the same: the vectors compare"
        if comparison.same_space
        else "not the same: the vectors don't compare",
    )
    for name, (first, second) in comparison.differing.items():
        yield (
            "",
            f"{name}: {console.as_json(first)} and {console.as_json(second)}",
        )
    yield (
        "rows",
        ", ".join(f"{count:,} {name}" for name, count in comparison.rows.items())
        + f" (by {comparison.key})",
    )
    if comparison.cosines is None:
        dims = " and ".join(f"{dim:,}" for dim in comparison.dims)
        reason = f"they have {dims} dimensions" if comparison.rows["in both"] else "no common rows"
        yield "cosines", f"none: {reason}"
    else:
        values = ", ".join(f"{name} {value:.6f}" for name, value in comparison.cosines.items())
        identical = f"{comparison.identical:,} of {comparison.compared:,} vectors are identical"
        yield "cosines", f"{values}; {identical}"
    if comparison.overlap is not None:
        yield (
            "neighbours",
            f"{comparison.overlap:.1%} of the 10 nearest are the same (over {comparison.asked:,} rows; "
            f"by chance {comparison.chance:.1%})",
        )
