"""`embedcli search`: its options, the search, its printing."""

import sys
from typing import Annotated

import typer

from embedcli import console
from embedcli.commands import options
from embedcli.console import hits
from embedcli.errors import EXIT_OK, UsageError


def search(
    index: Annotated[str, typer.Argument(help="A file or folder of vectors that encode wrote.")],
    texts: Annotated[list[str] | None, typer.Argument(help="What to look for.")] = None,
    queries: Annotated[
        str | None, typer.Option("--queries", help="A file of them: JSONL, Parquet, or what encode wrote; - is stdin.")
    ] = None,
    more: Annotated[list[str] | None, typer.Option("--also", help="A further file of vectors to search in.")] = None,
    k: Annotated[int, typer.Option("-k", help="How many rows to find for each.", min=1)] = 10,
    where: Annotated[
        str | None, typer.Option("--where", help="Only rows of this SQL condition: \"lang = 'de'\".")
    ] = None,
    columns: Annotated[
        str | None, typer.Option("--columns", help="Columns to show, separated by commas. Default: all.")
    ] = None,
    as_json: Annotated[
        bool | None, typer.Option("--json/--table", help="Default: a table on a terminal, JSON lines in a pipe.")
    ] = None,
    role: Annotated[
        str | None, typer.Option("--role", help="The role of what is looked for. Default: query, for passages.")
    ] = None,
    model: options.LikeModel = None,
    revision: options.LikeRevision = None,
    trust_remote_code: options.Trust = False,
    template: options.LikeTemplate = None,
    task: options.LikeTask = None,
    dtype: options.Numbers = "auto",
    device: options.Device = "auto",
    text_column: options.TextColumn = "text",
    embedding_column: options.VectorColumn = None,
) -> int:
    """Find the rows nearest to texts, exactly; texts are encoded as the file's own recipe demands.

    Example: embedcli search corpus.passage.parquet "how do tides work"

    Exit codes: 0 done; 2 a condition or column that isn't there; 65 not a file of vectors; 66 no such file; 78 vectors
    of another space, or in a role that isn't meant.
    """
    from embedcli.choosing import Wanted
    from embedcli.config import InputOptions
    from embedcli.judging import asking, spaces
    from embedcli.judging import search as searching

    if bool(texts) == (queries is not None):
        raise UsageError("say what to look for: texts, or --queries FILE")
    indexes = [spaces.open_index(path, embedding_column) for path in (index, *(more or ()))]
    shown = options.names(columns) if columns is not None else [name for one in indexes for name in one.carried]
    searching.check_columns(indexes, shown if columns is not None else ())
    wanted = Wanted(model, revision, trust_remote_code, template, task)
    running, reading = options.run_options(device, dtype), InputOptions(text_column)
    ask = asking.Ask(indexes[0], wanted, role, running, reading)
    queries_found = ask.texts(texts) if texts else ask.file(queries or "")
    for note in queries_found.notes:
        console.warn(note)
    found = searching.search(indexes, queries_found.vectors, k, list(dict.fromkeys(shown)), where)
    if as_json is None:
        as_json = sys.stdout is None or not sys.stdout.isatty()
    if as_json:
        for line in searching.lines(queries_found, found):
            console.result(line)
    else:
        for text, rows in zip(queries_found.texts, found, strict=True):
            hits.table(text, rows)
    return EXIT_OK
