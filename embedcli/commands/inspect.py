"""`embedcli inspect`: what a file of vectors says of itself, and what its vectors are like."""

import json
from typing import Annotated

import typer

from embedcli import console
from embedcli.errors import EXIT_OK


def inspect(
    file: Annotated[
        str, typer.Argument(help="A Parquet file with a column of vectors, or a folder that encode wrote.")
    ],
    embedding_column: Annotated[
        str | None, typer.Option("--embedding-column", help="The vector column, where there are several.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Show a file's provenance, its columns, and the health of its vectors.

    Example: embedcli inspect corpus.passage.parquet

    Exit codes: 0 done; 65 not a readable file of vectors; 66 no such file.
    """
    from embedcli import inspection

    found = inspection.inspect(file, embedding_column)
    if as_json:
        console.result(json.dumps(found.as_dict(), ensure_ascii=False))
    else:
        console.table(inspection.lines(found), to_stdout=True)
    return EXIT_OK
