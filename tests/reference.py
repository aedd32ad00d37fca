"""The commands' reference, made from the program: `python -m tests.reference` writes it in."""

import inspect
import typing
from pathlib import Path

import typer.models

from embedcli.commands import VERBS

README = Path(__file__).parent.parent / "embedcli" / "commands" / "README.md"
BEGIN, END = "<!-- reference: python -m tests.reference -->", "<!-- /reference -->"


def reference() -> str:
    """Markdown for all verbs: help, arguments, options with default and environment variable."""
    return "\n".join(described(name, verb) for name, verb in verbs().items())


def verbs():
    """All verbs by their full name."""
    groups = {
        name: {name: verb}
        if callable(verb)
        else {f"{name} {inner}": v for inner, v in verb.items()}
        for name, verb in VERBS.items()
    }
    return {name: verb for group in groups.values() for name, verb in group.items()}


def described(name, verb):
    hints = typing.get_type_hints(verb, include_extras=True)
    parameters = inspect.signature(verb).parameters
    infos = {key: hints[key].__metadata__[0] for key in parameters}
    arguments = [key for key, info in infos.items() if isinstance(info, typer.models.ArgumentInfo)]
    usage = " ".join(
        key.upper() + ("..." if "list" in str(hints[key]) else "") for key in arguments
    )
    rows = [
        f"## embedcli {name} {usage}",
        "",
        inspect.getdoc(verb),
        "",
        "| | | default | environment |",
        "|---|---|---|---|",
    ]
    rows += [f"| `{key.upper()}` | {infos[key].help} | | |" for key in arguments]
    rows += [
        _option(info, parameters[key].default)
        for key, info in infos.items()
        if key not in arguments
    ]
    return "\n".join([*rows, ""])


def _option(info, default):
    # Typer keeps the first name where, outside of Annotated, the default would stand.
    names = ", ".join(f"`{name}`" for name in (info.default, *info.param_decls))
    shown = {inspect.Parameter.empty: "**required**", None: "", False: "", "": ""}.get(
        default, f"`{default}`"
    )
    return f"| {names} | {_escaped(info.help)} | {shown} | {f'`{info.envvar}`' if info.envvar else ''} |"


def _escaped(text):
    return text.replace("|", "\\|").replace("<", "&lt;")


def with_reference(readme: str) -> str:
    """The README with the block between the marks made anew."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{reference()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(with_reference(README.read_text(encoding="utf-8")), encoding="utf-8")
