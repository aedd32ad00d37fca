"""`embedcli man`: the manual page, made from the verbs and their options."""

import re
from collections.abc import Iterator
from typing import Any

import typer

import embedcli
from embedcli import console
from embedcli.commands import help  # noqa: A004 - what --help shows
from embedcli.errors import EXIT_OK

_NAME = "embedcli \\- text columns into normalized vectors, with the template that the model was trained with"
_SYNOPSIS = (
    "\\fBembedcli\\fR [\\fB\\-\\-debug\\fR] \\fIVERB\\fR [\\fIOPTION\\fR...] [\\fIARGUMENT\\fR...]"
)
_FILES = (
    ("OUTPUT.rejects.jsonl", "Rows that got no vector, and why."),
    (".OUTPUT.embedcli/", "Finished work of a run that goes on, or was interrupted."),
    ("~/.cache/embedcli/", "Models converted to OpenVINO, compiled kernels."),
)


def man() -> int:
    """Print the manual page, as man reads it.

    Example: embedcli man > ~/.local/share/man/man1/embedcli.1

    Exit codes: 0 done.
    """
    console.result("\n".join(_page()))
    return EXIT_OK


def _page() -> Iterator[str]:
    yield f'.TH EMBEDCLI 1 "" "embedcli {embedcli.__version__}" "User Commands"'
    yield from (".SH NAME", _NAME, ".SH SYNOPSIS", _SYNOPSIS, ".SH VERBS")
    for name, command in _commands():
        yield from _verb(name, command)
    yield from (".SH EXIT STATUS", ".nf", *map(_escaped, help.EXIT_CODES.splitlines()), ".fi")
    yield from (".SH ENVIRONMENT", _escaped(help.ENVIRONMENT))
    yield ".SH FILES"
    for path, text in _FILES:
        yield from (".TP", f"\\fI{_escaped(path)}\\fR", _escaped(text))


def _commands() -> Iterator[tuple[str, Any]]:
    """Yield each verb by its full name, as a command."""
    from embedcli.commands import VERBS

    for name, verb in VERBS.items():
        group = {"": verb} if callable(verb) else verb
        for subname, subverb in group.items():
            app = typer.Typer(rich_markup_mode=None, add_completion=False)
            app.command(cls=help.GroupedCommand)(subverb)
            yield f"{name} {subname}".strip(), typer.main.get_command(app)


def _verb(name: str, command: Any) -> Iterator[str]:
    context = typer.Context(command, info_name=f"embedcli {name}")
    arguments = " ".join(command.collect_usage_pieces(context))
    yield f'.SS "embedcli {name} {_escaped(arguments)}"'
    for paragraph in re.split(r"\n\s*\n", (command.help or "").strip()):
        yield from (_escaped(" ".join(paragraph.split())), ".PP")
    for param in command.params:
        record = help.help_record(param, context)
        if record is not None:
            names, text = record
            yield from (".TP", f"\\fB{_escaped(names)}\\fR", _escaped(text))


def _escaped(text: str) -> str:
    """Return a text in which nothing is a command of roff."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text
