"""`embedcli inspect`: what a file of vectors says of itself, and what its vectors are like."""

from typing import TYPE_CHECKING, Annotated

import typer

from embedcli import console
from embedcli.commands import options
from embedcli.errors import EXIT_OK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedcli.analysis.inspection import Inspection


def inspect(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A Parquet file with a column of vectors, or a folder that encode wrote.",
        ),
    ],
    embedding_column: Annotated[
        str | None,
        typer.Option("--embedding-column", help="The vector column, where there are several."),
    ] = None,
    plot: options.Plot = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Show a file's provenance, columns, and the health of its vectors.

    Example: embedcli inspect corpus.passage.parquet

    Exit codes: 0 done; 65 not a readable file of vectors; 66 no such file; 73 the picture can't
    be written; 78 matplotlib missing.
    """
    from embedcli.analysis import inspection

    options.check_pictures(plot)
    inspected = inspection.inspect(file, embedding_column)
    if plot:
        from embedcli.analysis import inspection_plot

        inspection_plot.draw(plot, inspected)
    if as_json:
        console.result(console.as_json(inspected.to_json()))
    else:
        rows = [*_provenance_rows(inspected), *_health_rows(inspected)]
        console.table([row for row in rows if row[1]], to_stdout=True)
    return EXIT_OK


def _provenance_rows(inspected: "Inspection") -> "Iterator[tuple[str, str]]":
    yield "file", f"{inspected.file}  ({inspected.bytes:,} bytes)"
    provenance, made = inspected.provenance, inspected.made
    if provenance is None or made is None:
        yield "made by", "not by embedcli, or its metadata was dropped: no provenance"
        return
    recipe, space = made.recipe, made.recipe.space
    versions = ", ".join(f"{name} {version}" for name, version in provenance.libraries.items())
    yield "made by", f"embedcli {provenance.embedcli} ({versions})"
    yield "model", f"{space.model}  {space.revision}".rstrip()
    yield "weights", f"sha256 {space.weights}" if space.weights else ""
    yield (
        "pipeline",
        ", ".join([*space.pipeline, "normalized" if space.normalized else "not normalized"]),
    )
    yield "role", f"{recipe.role}  ({made.template_source})"
    yield "template", recipe.template
    yield "max length", f"{recipe.max_length} tokens"
    for computation in made.made:
        yield "computed", str(computation)
        yield "because", computation.reason
    yield "space id", space.id
    yield "recipe id", recipe.id
    counts = provenance.counts
    if counts is not None:
        yield (
            "accounting",
            f"{counts.rows_in:,} in = {counts.rows_out:,} out + {counts.rejected:,} rejected"
            + (f"; {counts.stale:,} stale kept" if counts.stale else ""),
        )


def _health_rows(inspected: "Inspection") -> "Iterator[tuple[str, str]]":
    yield "rows", f"{inspected.rows:,}"
    yield "columns", ", ".join(f"{name} {kind}" for name, kind in inspected.columns.items())
    yield (
        "vectors",
        f"{inspected.embedding_column}: {inspected.dim} dimensions, {inspected.vector_type}",
    )
    if inspected.norm_min is None:
        yield "norms", "no vectors"
    else:
        yield "norms", f"{inspected.norm_min:.6f} to {inspected.norm_max:.6f}"
    yield "lost", ", ".join(inspected.lost)
    bad = {"non-finite": inspected.non_finite, "zero": inspected.zero, "missing": inspected.missing}
    yield (
        "health",
        ", ".join(f"{count:,} {name}" for name, count in bad.items() if count)
        or "all finite, none zero",
    )
    if inspected.tokens is not None:
        yield "tokens", ", ".join(f"{name} {value:,}" for name, value in inspected.tokens.items())
    if inspected.truncated is not None:
        share = inspected.truncated / max(1, inspected.rows)
        yield "truncated", f"{inspected.truncated:,} of {inspected.rows:,} rows ({share:.1%})"
    if inspected.duplicates is not None:
        yield "duplicates", f"{inspected.duplicates:,} rows repeat an earlier rendered text"
