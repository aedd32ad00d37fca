"""`embedcli verify`: its options, the checks, the verdict."""

from typing import TYPE_CHECKING, Annotated

import typer

from embedcli import console
from embedcli.commands import options
from embedcli.errors import EXIT_OK, DataError, InputMissingError, UsageError

if TYPE_CHECKING:
    from embedcli.analysis.verification import Verdict


def verify(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A file or folder of vectors that encode wrote.")
    ],
    sample: Annotated[
        str,
        typer.Option(
            "--sample", help="How many rows to encode again; all; 0 for none, without a model."
        ),
    ] = "200",
    corpus: Annotated[
        str | None,
        typer.Option("--corpus", help="The corpus: is every text of it here, and none besides?"),
    ] = None,
    least_cosine: Annotated[
        float | None,
        typer.Option(
            "--least-cosine", help="Default: 0.9999 for float32, 0.99 for half precision."
        ),
    ] = None,
    text_column: options.TextColumn = "text",
    embedding_column: options.VectorColumn = None,
    model: options.LikeModel = None,
    revision: options.LikeRevision = None,
    trust_remote_code: options.Trust = False,
    template: options.LikeTemplate = None,
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> int:
    """Check every byte, vector and text of a file, and encode a sample again by the plainest path.

    Example: embedcli verify corpus.passage.parquet

    Exit codes: 0 all is well; 2 options; 65 something is damaged, stale, or not what the model
    gives; 66 no such file; 78 the model isn't there.
    """
    from pathlib import Path

    from embedcli.analysis import verification
    from embedcli.config import InputOptions
    from embedcli.models.request import ModelRequest

    if not Path(file).exists():
        raise InputMissingError(f"{file}: no such file or folder")
    if sample != "all" and not sample.isdecimal():
        raise UsageError(f"--sample {sample!r} is neither all nor a number")
    verify_options = verification.VerifyOptions(
        request=ModelRequest(model, revision, trust_remote_code, template),
        corpus=corpus,
        input=InputOptions(text_column),
        sample=None if sample == "all" else int(sample),
        least_cosine=least_cosine,
        device=options.run_options(device, "float32").device,
    )
    verdict = verification.verify(file, verify_options, embedding_column)
    if as_json:
        console.result(console.as_json(verdict.to_json()))
    else:
        _print(verdict)
    return EXIT_OK if verdict.good else DataError.exit_code


def _print(verdict: "Verdict") -> None:
    marks = {True: "ok", False: "BAD", None: "-"}
    rows = [(f"{marks[check.good]:<3}  {check.name}", check.result) for check in verdict.checks]
    bad = sum(check.good is False for check in verdict.checks)
    result = (
        f"not what it says: {bad} of {len(rows)} checks failed"
        if bad
        else "the file is what it says"
    )
    console.table([*rows, (f"{marks[verdict.good]:<3}  verdict", result)], to_stdout=True)
