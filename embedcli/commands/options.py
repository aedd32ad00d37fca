"""Options that several verbs have, and what their values become."""

import re
from typing import Annotated, Any

import typer

from embedcli.config import DType, RunOptions
from embedcli.errors import UsageError

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def option(help: str, *names: str, **keywords: Any) -> Any:  # noqa: A002 - Typer's own word
    """Return an option that an environment variable, EMBEDCLI_ and its name, may set too."""
    variable = "EMBEDCLI_" + names[0].partition("/")[0].lstrip("-").upper().replace("-", "_")
    return typer.Option(*names, help=help, envvar=variable, **keywords)


Model = Annotated[
    str | None,
    option(
        "org/name (of the hub), ./folder, or hash:64. Default: the bundled all-MiniLM-L6-v2.",
        "--model",
        metavar="MODEL",
    ),
]
Revision = Annotated[
    str | None, option("Branch, tag or commit of a hub model.", "--revision", metavar="REVISION")
]
TrustRemoteCode = Annotated[
    bool,
    option(
        "Run the repository's own code. Demands --revision with a commit.", "--trust-remote-code"
    ),
]
Template = Annotated[
    str | None,
    option(
        "A string with {text}, a template file, or a family's name.",
        "--template",
        metavar="TEMPLATE",
    ),
]
Task = Annotated[
    str | None,
    option("The instruction sentence, where the template has {task}.", "--task", metavar="TEXT"),
]
MaxLength = Annotated[
    int | None,
    option("Maximum tokens per text, including the template.", "--max-length", metavar="N", min=1),
]
Dim = Annotated[
    int | None,
    option(
        "Truncate embeddings to the first N dimensions (Matryoshka), then normalize.",
        "--dim",
        metavar="N",
        min=1,
    ),
]
# For verbs that go by a file's own recipe: no environment variable speaks against it.
LikeModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="The model's ./folder, where the file can't say it. Default: its own.",
    ),
]
LikeRevision = Annotated[
    str | None,
    typer.Option(
        "--revision", metavar="REVISION", help="Branch, tag or commit. Default: the file's own."
    ),
]
LikeTemplate = Annotated[
    str | None,
    typer.Option(
        "--template",
        metavar="TEMPLATE",
        help="A string with {text}, a file, or a family. Default: as the file's.",
    ),
]
LikeTask = Annotated[
    str | None,
    typer.Option(
        "--task", metavar="TEXT", help="The instruction sentence, where the template has {task}."
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Run the repository's own code, as the file's maker did."
    ),
]
Like = Annotated[
    str | None,
    option(
        "Use the model, revision, template family, dimension and normalization of this vector file.",
        "--like",
        metavar="FILE",
    ),
]
Numbers = Annotated[
    DType,
    option(
        "float32, bfloat16, float16, or auto: what is fastest and accurate.",
        "--dtype",
        metavar="NAME",
    ),
]
Device = Annotated[str, option("auto, cpu, cuda or cuda:1.", "--device", metavar="DEVICE")]
TextColumn = Annotated[
    str,
    option(
        "The column to embed; doc.text is a path into objects.", "--text-column", metavar="NAME"
    ),
]
VectorColumn = Annotated[
    str | None,
    typer.Option(
        "--embedding-column", metavar="NAME", help="The vector column, where there are several."
    ),
]
Plot = Annotated[
    list[str] | None,
    typer.Option("--plot", metavar="FILE", help="Draw it: a .png, .svg or .pdf; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[
    bool, option("No progress and no summary; warnings and errors only.", "--quiet", "-q")
]


def run_options(device: str, dtype: DType, **keywords: Any) -> RunOptions:
    """Return how to run a model. Raises UsageError where the device is none."""
    if not _DEVICE.fullmatch(device):
        raise UsageError(f"--device {device!r} is not auto, cpu, cuda or cuda:N")
    return RunOptions(device, dtype, **keywords)


def check_pictures(paths: list[str] | None) -> None:
    """See that pictures can be drawn. Raises what `pictures.check_name` raises."""
    if paths:
        from embedcli.analysis import pictures

        for path in paths:
            pictures.check_name(path)


def names(value: str) -> list[str]:
    """Return names that commas separate."""
    return [name for name in value.split(",") if name]
