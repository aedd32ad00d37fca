"""`embedcli eval`: its options, the evaluations, their comparison, its printing."""

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from embedcli import console, files
from embedcli.commands import options
from embedcli.config import RunOptions
from embedcli.console import progress
from embedcli.errors import EXIT_OK, UsageError

if TYPE_CHECKING:
    from embedcli.analysis.evaluation import Data, Evaluation, RunDifference, Setup
    from embedcli.models.request import ModelRequest


def evaluate(
    corpus: Annotated[
        str, typer.Option("--corpus", help="Passages: JSONL, Parquet, or what encode wrote.")
    ],
    queries: Annotated[
        str, typer.Option("--queries", help="Queries: JSONL, Parquet, or what encode wrote.")
    ],
    qrels: Annotated[
        str, typer.Option("--qrels", help="Judgments: query-id, corpus-id, score; or TREC's.")
    ],
    model: options.Model = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    template: Annotated[
        str | None,
        typer.Option("--template", help="A template file, or a family's name, for both roles."),
    ] = None,
    passage_template: Annotated[
        str | None,
        typer.Option("--passage-template", help="A string for the corpus: '{title} {text}'."),
    ] = None,
    query_template: Annotated[
        str | None,
        typer.Option("--query-template", help="A string for the queries: 'query: {text}'."),
    ] = None,
    task: options.Task = None,
    max_length: options.MaxLength = None,
    dim: options.Dim = None,
    like: options.Like = None,
    dtype: options.Numbers = "auto",
    device: options.Device = "auto",
    ablate: Annotated[
        Literal["template"] | None,
        typer.Option("--ablate", help="template: also without it. What is it worth here?"),
    ] = None,
    models: Annotated[
        str | None,
        typer.Option("--models", help="Compare models, separated by commas: quality, speed, size."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", help="Compare with an earlier run: what --per-query wrote."),
    ] = None,
    per_query: Annotated[
        str | None,
        typer.Option(
            "--per-query", help="Write each query's values and best ids: .parquet or .json."
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep", help="Keep the vectors in this folder, and use those that are there."
        ),
    ] = None,
    id_column: Annotated[
        str | None, typer.Option("--id-column", help="Default: _id, else id.")
    ] = None,
    text_column: options.TextColumn = "text",
    ignore_identical_ids: Annotated[
        bool,
        typer.Option(
            "--ignore-identical-ids", help="A query doesn't find the passage of its own id."
        ),
    ] = False,
    plot: options.Plot = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> int:
    """Measure how well vectors find what people judged relevant: nDCG@10, Recall@100, MRR@10, MAP.

    Example: embedcli eval --corpus corpus.jsonl --queries queries.jsonl --qrels qrels.tsv

    Exit codes: 0 done; 2 options that exclude each other; 65 bad data; 66 a file is missing; 73
    results can't be written; 78 model or template unusable, vectors that don't compare, or
    ir-measures missing.
    """
    from embedcli.analysis import evaluation, metrics
    from embedcli.models.request import ModelRequest
    from embedcli.store import results

    metrics.check_library()
    options.check_pictures(plot)
    request = ModelRequest(
        model, revision, trust_remote_code, _family(template), task, max_length, dim
    )
    if per_query is not None:
        inputs = {
            "the corpus": corpus,
            "the queries": queries,
            "the judgments": qrels,
            "--against": against,
        }
        taken_paths = [(name, path) for name, path in inputs.items() if path is not None]
        files.check_distinct(per_query, "--per-query", taken_paths)
        results.check_place(per_query)
    baselines = []
    if against is not None:
        baselines.append(evaluation.RunValues.from_file(results.read(against), against))
    judged = metrics.read_judgments(qrels)
    data = evaluation.Data(corpus, queries, judged, id_column, text_column, ignore_identical_ids)
    setup = _setup("run", request, passage_template, query_template, like)
    setups = _setups(data, setup, models, ablate)
    run = options.run_options(device, dtype, update=keep is not None)
    evaluations = _evaluate_all(data, setups, run, keep, quiet)
    first, *following = evaluations
    if per_query is not None:
        results.write(per_query, first.per_query())
    baselines = [*map(evaluation.RunValues.of, following), *baselines]
    first_values = evaluation.RunValues.of(first)
    differences = [evaluation.compare_runs(first_values, baseline) for baseline in baselines]
    if plot:
        from embedcli.analysis import evaluation_plot

        evaluation_plot.draw(plot, evaluations)
    if as_json:
        _print_json(evaluations, differences)
    else:
        _print(evaluations, differences)
    return EXIT_OK


def _evaluate_all(
    data: "Data", setups: "list[Setup]", run: RunOptions, keep: str | None, quiet: bool
) -> "list[Evaluation]":
    """Evaluate each setup. Vectors go to the folder `keep`, or to one that lives as long as this."""
    from embedcli.analysis.evaluation import Evaluator

    with ExitStack() as stack:
        if keep is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = Path(keep)
            folder.mkdir(parents=True, exist_ok=True)
        listener = stack.enter_context(progress.listening(quiet))
        evaluator = Evaluator(data, run, folder, listener)
        return [evaluator.evaluate(setup) for setup in setups]


def _family(template: str | None) -> str | None:
    if template is not None and "{text}" in template:
        raise UsageError(
            "--template takes a family or a file here: a string is for one role",
            "--passage-template '...', --query-template '...'",
        )
    return template


def _setup(
    name: str, request: "ModelRequest", passages: str | None, queries: str | None, like: str | None
) -> "Setup":
    """Return the same request for both roles, but for the templates given by hand.

    A task is the queries'.
    """
    from embedcli.analysis.evaluation import Setup

    return Setup(
        name,
        passages=replace(request, template=passages or request.template, task=None),
        queries=replace(request, template=queries or request.template),
        like=like,
    )


def _setups(data: "Data", setup: "Setup", models: str | None, ablate: str | None) -> list["Setup"]:
    """Return the setups to compare: one for each model, or with and without templates."""
    if models is not None and ablate is not None:
        raise UsageError("--models and --ablate exclude each other: one comparison at a time")
    if models is not None:
        return _model_setups(data, setup, models)
    if ablate is not None:
        return _ablation_setups(data, setup)
    return [setup]


def _model_setups(data: "Data", setup: "Setup", models: str) -> list["Setup"]:
    from embedcli.analysis import evaluation

    evaluation.check_texts(data, "--models")
    names = options.names(models)
    if not names:
        raise UsageError("--models names no model", "for example --models org/one,org/two")
    setups = []
    for name in names:
        passages = replace(setup.passages, model=name)
        queries = replace(setup.queries, model=name)
        setups.append(replace(setup, name=name, passages=passages, queries=queries))
    return setups


def _ablation_setups(data: "Data", setup: "Setup") -> list["Setup"]:
    from embedcli.analysis import evaluation

    evaluation.check_texts(data, "--ablate template")
    evaluation.check_ablation(setup)
    without = replace(
        setup,
        name="without template",
        passages=replace(setup.passages, template=evaluation.BARE_TEMPLATE, task=None),
        queries=replace(setup.queries, template=evaluation.BARE_TEMPLATE, task=None),
    )
    return [replace(setup, name="with template"), without]


def _column(evaluated: "Evaluation") -> dict[str, str]:
    """Return what is told of a run, by name."""
    column = {}
    for name, value in evaluated.estimates().items():
        column[name] = f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"
    column["model"] = evaluated.model
    for role in ("passage", "query"):
        column[role] = console.as_json(evaluated.templates[role])
    column["dimensions"] = f"{evaluated.dim:,}"
    column["passages/s"] = "not encoded now"
    if evaluated.speed is not None:
        column["passages/s"] = f"{evaluated.speed:,.0f}"
    column["size"] = console.size(evaluated.bytes)
    return column


def _print_json(evaluations: "list[Evaluation]", differences: "list[RunDifference]") -> None:
    runs = [evaluated.to_json() for evaluated in evaluations]
    compared = [difference.to_json() for difference in differences]
    console.result(console.as_json({"runs": runs, "differences": compared}))


def _print(evaluations: "list[Evaluation]", differences: "list[RunDifference]") -> None:
    columns = [_column(evaluated) for evaluated in evaluations]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    console.grid(["", *(evaluated.name for evaluated in evaluations)], rows)
    first = evaluations[0]
    counts = f"{len(first.ids):,} judged queries, {first.rows:,} passages"
    console.result(f"\n{counts}; in brackets 95 % intervals (bootstrap)")
    for difference in differences:
        over = f"over {difference.queries:,} queries (paired permutation test)"
        console.result(f"\n{first.name} less {difference.other}, {over}")
        rows = []
        for name, value in difference.measures.items():
            interval = f"[{value.low:+.3f}, {value.high:+.3f}]"
            rows.append([name, f"{value.mean:+.3f}", interval, f"{value.p:.4f}"])
        console.grid(["measure", "difference", "95 % interval", "p"], rows)
