"""`embedcli eval`: its options, the evaluations, their comparison, its printing."""

import json
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from embedcli import console, files
from embedcli.commands import options
from embedcli.console import progress
from embedcli.errors import EXIT_OK, UsageError

if TYPE_CHECKING:
    from embedcli.choosing import Wanted
    from embedcli.judging.evaluation import Data, Evaluation, Setup


def evaluate(
    corpus: Annotated[str, typer.Option("--corpus", help="Passages: JSONL, Parquet, or what encode wrote.")],
    queries: Annotated[str, typer.Option("--queries", help="Queries: JSONL, Parquet, or what encode wrote.")],
    qrels: Annotated[str, typer.Option("--qrels", help="Judgments: query-id, corpus-id, score; or TREC's.")],
    model: options.Model = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    template: Annotated[
        str | None, typer.Option("--template", help="A template file, or a family's name, for both roles.")
    ] = None,
    passage_template: Annotated[
        str | None, typer.Option("--passage-template", help="A string for the corpus: '{title} {text}'.")
    ] = None,
    query_template: Annotated[
        str | None, typer.Option("--query-template", help="A string for the queries: 'query: {text}'.")
    ] = None,
    task: options.Task = None,
    max_length: options.MaxLength = None,
    dim: options.Dim = None,
    like: options.Like = None,
    dtype: options.Numbers = "auto",
    device: options.Device = "auto",
    ablate: Annotated[
        Literal["template"] | None, typer.Option("--ablate", help="template: also without it. What is it worth here?")
    ] = None,
    models: Annotated[
        str | None, typer.Option("--models", help="Compare models, separated by commas: quality, speed, size.")
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="Compare with an earlier run: what --per-query wrote.")
    ] = None,
    per_query: Annotated[
        str | None, typer.Option("--per-query", help="Write each query's values and best ids: .parquet or .json.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option("--keep", help="Keep the vectors in this folder, and use those that are there.")
    ] = None,
    id_column: Annotated[str | None, typer.Option("--id-column", help="Default: _id, else id.")] = None,
    text_column: options.TextColumn = "text",
    ignore_identical_ids: Annotated[
        bool, typer.Option("--ignore-identical-ids", help="A query doesn't find the passage of its own id.")
    ] = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> int:
    """Measure how well vectors find what people judged relevant: nDCG@10, Recall@100, MRR@10, MAP.

    Example: embedcli eval --corpus corpus.jsonl --queries queries.jsonl --qrels qrels.tsv

    Exit codes: 0 done; 2 options that exclude each other; 65 bad data; 66 a file is missing; 73 results can't be
    written; 78 model or template unusable, vectors that don't compare, or ir-measures missing.
    """
    from embedcli.choosing import Wanted
    from embedcli.judging import comparing_runs, evaluation, metrics
    from embedcli.judging import qrels as judgments
    from embedcli.store import results

    metrics.check_library()
    wanted = Wanted(model, revision, trust_remote_code, _family(template), task, max_length, dim)
    if per_query is not None:
        inputs = [("the corpus", corpus), ("the queries", queries), ("the judgments", qrels), ("--against", against)]
        files.check_distinct(per_query, "--per-query", [(what, path) for what, path in inputs if path is not None])
        results.check_place(per_query)
    earlier = [comparing_runs.of_file(results.read(against), against)] if against is not None else []
    data = evaluation.Data(corpus, queries, judgments.read(qrels), id_column, text_column, ignore_identical_ids)
    setups = _setups(data, _setup("run", wanted, passage_template, query_template, like), models, ablate)
    running = options.run_options(device, dtype, update=keep is not None)
    with ExitStack() as stack:
        folder = Path(keep) if keep is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        watcher = stack.enter_context(progress.watching(quiet))
        found = [evaluation.evaluate(data, setup, running, folder, watcher) for setup in setups]
    if per_query is not None:
        results.write(per_query, found[0].per_query())
    others = [*(comparing_runs.of_run(one) for one in found[1:]), *earlier]
    compared = [comparing_runs.compare(found[0], *other) for other in others]
    if as_json:
        console.result(json.dumps({"runs": [one.as_dict() for one in found], "differences": compared}))
    else:
        _print(found, compared)
    return EXIT_OK


def _family(template: str | None) -> str | None:
    if template is not None and "{text}" in template:
        raise UsageError(
            "--template takes a family or a file here: a string is for one role",
            "--passage-template '...', --query-template '...'",
        )
    return template


def _setup(name: str, wanted: "Wanted", passages: str | None, queries: str | None, like: str | None) -> "Setup":
    """The same for both roles, but for the templates given by hand. A task is the queries'."""
    from embedcli.judging.evaluation import Setup

    return Setup(
        name,
        replace(wanted, template=passages or wanted.template, task=None),
        replace(wanted, template=queries or wanted.template),
        like,
    )


def _setups(data: "Data", setup: "Setup", models: str | None, ablate: str | None) -> list["Setup"]:
    from embedcli.judging import evaluation

    if models is not None and ablate is not None:
        raise UsageError("--models and --ablate exclude each other: one comparison at a time")
    if models is not None:
        evaluation.check_texts(data, "--models")
        names = options.names(models)
        if not names:
            raise UsageError("--models names no model", "for example --models org/one,org/two")
        return [
            replace(
                setup,
                name=name,
                passages=replace(setup.passages, model=name),
                queries=replace(setup.queries, model=name),
            )
            for name in names
        ]
    if ablate is None:
        return [setup]
    evaluation.check_texts(data, "--ablate template")
    evaluation.check_ablation(setup)
    passages, queries = (
        replace(wanted, template=evaluation.BARE, task=None) for wanted in (setup.passages, setup.queries)
    )
    without = replace(setup, name="without template", passages=passages, queries=queries)
    return [replace(setup, name="with template"), without]


def _column(one: "Evaluation") -> dict[str, str]:
    """What is said of a run, by name."""
    values = {name: f"{v.mean:.3f} [{v.low:.3f}, {v.high:.3f}]" for name, v in one.estimates().items()}
    return {
        **values,
        "model": one.model,
        "passage": json.dumps(one.templates["passage"], ensure_ascii=False),
        "query": json.dumps(one.templates["query"], ensure_ascii=False),
        "dimensions": f"{one.dim:,}",
        "passages/s": f"{one.speed:,.0f}" if one.speed is not None else "not encoded now",
        "size": console.size(one.bytes),
    }


def _print(found: list["Evaluation"], compared: list[dict[str, Any]]) -> None:
    columns = [_column(one) for one in found]
    console.grid(["", *(one.name for one in found)], [[name, *(c[name] for c in columns)] for name in columns[0]])
    first = found[0]
    console.result(
        f"\n{len(first.ids):,} judged queries, {first.rows:,} passages; in brackets 95 % intervals (bootstrap)"
    )
    for less in compared:
        over = f"over {less['queries']:,} queries (paired permutation test)"
        console.result(f"\n{first.name} less {less['other']}, {over}")
        console.grid(
            ["measure", "difference", "95 % interval", "p"],
            [
                [name, f"{d['mean']:+.3f}", f"[{d['low']:+.3f}, {d['high']:+.3f}]", f"{d['p']:.4f}"]
                for name, d in less["measures"].items()
            ],
        )
