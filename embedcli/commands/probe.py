"""`embedcli probe`: its options, the texts, the views, tables and picture."""

from typing import TYPE_CHECKING, Annotated

import typer

from embedcli import console
from embedcli.commands import options
from embedcli.errors import EXIT_OK, UsageError

if TYPE_CHECKING:
    from embedcli.analysis.probe import Probed, View

_MOST_IN_TABLE = 12


def probe(
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXTS", help="Words or sentences to look at."),
    ] = None,
    instruction: Annotated[
        list[str] | None,
        typer.Option("--instruction", "-i", help="An instruction to try; may be repeated."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--input", help="The texts from a file instead: JSONL or Parquet; - is stdin."
        ),
    ] = None,
    text_column: options.TextColumn = "text",
    label: Annotated[
        str | None, typer.Option("--label", help="A column that says what each text is.")
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            "--pairs", help="Two columns of texts that mean the same: de,en. Goes with --input."
        ),
    ] = None,
    plot: options.Plot = None,
    as_json: options.AsJson = False,
    role: Annotated[
        str, options.option("Whose template takes the instruction.", "--role")
    ] = "query",
    model: options.Model = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    template: options.Template = None,
    max_length: options.MaxLength = None,
    dim: options.Dim = None,
    dtype: options.Numbers = "auto",
    device: options.Device = "auto",
) -> int:
    """Show what instructions do to a model: cosines, how far texts move, pairs, a projection; with
    and without.

    Example: embedcli probe warm hot cold philosophy -i "Classify a temperature by its sensation."

    Exit codes: 0 done; 2 texts or options missing; 65 bad data; 66 input missing; 73 the picture
    can't be written; 78 model or template unusable, or matplotlib missing.
    """
    from embedcli.analysis.probe import probe as probe_texts
    from embedcli.models.request import ModelRequest

    options.check_pictures(plot)
    probed = _read_texts(texts, source, text_column, label, pairs)
    request = ModelRequest(
        model, revision, trust_remote_code, template, max_length=max_length, dim=dim
    )
    run = options.run_options(device, dtype)
    name, views = probe_texts(probed, request, role, instruction or (), run)
    if plot:
        from embedcli.analysis import probe_plot

        probe_plot.draw(plot, probed, views, name)
    if as_json:
        value = {
            "model": name,
            "texts": probed.texts,
            "labels": probed.labels,
            "pairs": probed.pairs,
        }
        console.result(console.as_json(value | {"views": [view.to_json() for view in views]}))
    else:
        _print(probed, views)
    return EXIT_OK


def _read_texts(
    texts: list[str] | None,
    source: str | None,
    text_column: str,
    label: str | None,
    pairs: str | None,
) -> "Probed":
    from embedcli.analysis import queries
    from embedcli.analysis.probe import Probed
    from embedcli.config import InputOptions

    if bool(texts) == (source is not None):
        raise UsageError("say what to look at: texts, or --input FILE")
    if source is None:
        if label or pairs:
            raise UsageError("--label and --pairs name columns: they go with --input")
        return Probed(list(texts or ()))
    if pairs is None:
        read = queries.read_texts(
            source, InputOptions(text_column, fields=(label,) if label else ())
        )
        return Probed(read.texts, [str(value) for value in read.fields[label]] if label else [])
    names = options.names(pairs)
    if len(names) != 2 or label:
        raise UsageError("--pairs takes two columns, and no --label beside: --pairs de,en")
    first_texts, second_texts = queries.read_pairs(source, *names)
    labels = [names[0]] * len(first_texts) + [names[1]] * len(second_texts)
    return Probed(
        first_texts + second_texts,
        labels,
        [(row, len(first_texts) + row) for row in range(len(first_texts))],
    )


def _print(probed: "Probed", views: "list[View]") -> None:
    if len(probed.texts) <= _MOST_IN_TABLE and not probed.pairs:
        for view in views:
            console.result(console.safe(f"{view.name}: {console.as_json(view.template)}"))
            rows = [
                [text[:40], *(f"{value:.3f}" for value in line), f"{moved:.3f}"]
                for text, line, moved in zip(probed.texts, view.cosines, view.moved, strict=True)
            ]
            console.grid(["cosine", *(text[:20] for text in probed.texts), "moved"], rows)
            console.result("")
    header = ["instruction", "mean cosine", "moved", "direction 1", "direction 2"]
    header += ["nearest is the partner (both ways)"] if probed.pairs else []
    header += ["nearest has the label"] if probed.labels and not probed.pairs else []
    console.grid(header, [_summary(view) for view in views])
    console.result("moved: 1 - cosine of a text's vector with that without the instruction")


def _summary(view: "View") -> list[str]:
    n = len(view.cosines)
    mean = (view.cosines.sum() - view.cosines.trace()) / (n * (n - 1))
    row = [
        view.name,
        f"{mean:.3f}",
        f"{view.moved.mean():.3f}",
        *(f"{share:.0%}" for share in view.shares),
    ]
    if view.partners is not None:
        return [*row, f"{view.partners[0]:.0%}, {view.partners[1]:.0%}"]
    return row if view.same_label is None else [*row, f"{view.same_label:.0%}"]
