"""`embedcli search`: its options, the search, its printing."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from embedcli import console
from embedcli.commands import options
from embedcli.console import hits
from embedcli.errors import EXIT_OK, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embedcli.analysis.search import Hit


def search(
    index: Annotated[
        str, typer.Argument(metavar="INDEX", help="A file or folder of vectors that encode wrote.")
    ],
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXTS", help="What to look for.")
    ] = None,
    queries: Annotated[
        str | None,
        typer.Option(
            "--queries", help="A file of them: JSONL, Parquet, or what encode wrote; - is stdin."
        ),
    ] = None,
    further_indexes: Annotated[
        list[str] | None, typer.Option("--also", help="A further file of vectors to search in.")
    ] = None,
    k: Annotated[
        int, typer.Option("-k", metavar="N", help="How many rows to find for each.", min=1)
    ] = 10,
    where: Annotated[
        str | None,
        typer.Option("--where", help="Only rows of this SQL condition: \"lang = 'de'\"."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option("--columns", help="Columns to show, separated by commas. Default: all."),
    ] = None,
    as_json: Annotated[
        bool | None,
        typer.Option(
            "--json/--table", help="Default: a table on a terminal, JSON lines in a pipe."
        ),
    ] = None,
    role: Annotated[
        str | None,
        typer.Option(
            "--role", help="The role of what is looked for. Default: query, for passages."
        ),
    ] = None,
    model: options.LikeModel = None,
    revision: options.LikeRevision = None,
    trust_remote_code: options.Trust = False,
    template: options.LikeTemplate = None,
    task: options.LikeTask = None,
    like: Annotated[
        str | None,
        typer.Option(
            "--like", help="A file of the same model, if another program saved the index again."
        ),
    ] = None,
    dtype: options.Numbers = "auto",
    device: options.Device = "auto",
    text_column: options.TextColumn = "text",
    embedding_column: options.VectorColumn = None,
) -> int:
    """Find the rows nearest to texts, exactly; texts are encoded as the file's own recipe demands.

    Example: embedcli search corpus.passage.parquet "how do tides work"

    Exit codes: 0 done; 2 a condition or column that isn't there; 65 not a file of vectors; 66 no
    such file; 78 vectors of another space, or in a role that isn't meant.
    """
    from embedcli.analysis import search as exact
    from embedcli.analysis.foreign import open_index
    from embedcli.analysis.queries import QueryEncoder
    from embedcli.config import InputOptions
    from embedcli.models.request import ModelRequest

    if bool(texts) == (queries is not None):
        raise UsageError("say what to look for: texts, or --queries FILE")
    request = ModelRequest(model, revision, trust_remote_code, template, task)
    indexes = [
        open_index(path, embedding_column, request, like)
        for path in (index, *(further_indexes or ()))
    ]
    shown = [name for file in indexes for name in file.carried]
    if columns is not None:
        shown = options.names(columns)
        exact.check_columns(indexes, shown)
    encoder = QueryEncoder(
        index=indexes[0],
        request=request,
        role=role,
        run=options.run_options(device, dtype),
        input=InputOptions(text_column),
    )
    encoded = encoder.encode_texts(texts) if texts else encoder.read_file(queries or "")
    for warning in encoded.warnings:
        console.warn(warning)
    results = exact.search(indexes, encoded.vectors, k, list(dict.fromkeys(shown)), where)
    if as_json is None:
        as_json = sys.stdout is None or not sys.stdout.isatty()
    if as_json:
        _print_json(encoded.texts, results)
    else:
        for text, ranking in zip(encoded.texts, results, strict=True):
            hits.table(text, ranking)
    return EXIT_OK


def _print_json(texts: "Sequence[str]", results: "Sequence[Sequence[Hit]]") -> None:
    """Print a JSON object for each hit."""
    from embedcli.store.stream_writers import json_of

    for row, (text, ranking) in enumerate(zip(texts, results, strict=True)):
        for hit in ranking:
            console.result(json_of({"query": text, "query_row": row, **asdict(hit)}))
