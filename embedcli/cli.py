"""The Typer app: verbs, global options, and the one place where errors become exit codes."""

import atexit
import functools
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NoReturn

import typer
import typer.core

import embedcli
from embedcli import console, processes, signals
from embedcli.commands import VERBS, Verb, help  # noqa: A004 - what --help shows
from embedcli.errors import Interrupted, ending_of, from_os_error

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": help.WIDTH}


class _Program(typer.core.TyperGroup):
    """All verbs: mistakes in a command line look like all other errors."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command line, and exit with its code."""
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
        except typer.BadParameter.__mro__[2] as error:  # type: ignore[misc] # all of a command line
            sys.exit(_say_usage(error))
        sys.exit(code if isinstance(code, int) else 0)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the verb; `help VERB` is `VERB --help`."""
        if args[0] == "help" and self.get_command(ctx, "help") is None:
            args = [*args[1:], "--help"] if len(args) > 1 else ["--help"]
            if args == ["--help"]:
                console.result(self.get_help(ctx))
                ctx.exit()
        return super().resolve_command(ctx, args)


def _say_usage(error: Any) -> int:
    """Say what is wrong with a command line; return the exit code."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        console.result(error.format_message())
    else:
        path = context.command_path if context is not None else "embedcli"
        console.error(error.format_message(), f"{path} --help")
    code: int = error.exit_code
    return code


app = typer.Typer(
    name="embedcli",
    cls=_Program,
    help="Text columns into normalized vectors, with the template that the model was trained with.",
    epilog=help.EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode=None,
    context_settings=_SETTINGS,
)
_debug = False


def _print_version(is_asked: bool) -> None:
    if is_asked:
        console.result(f"embedcli {embedcli.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(help="Show tracebacks.", envvar="EMBEDCLI_DEBUG")] = False,
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version.", callback=_print_version)
    ] = False,
) -> None:
    global _debug
    _debug = debug


def _guarded(verb: Callable[..., int]) -> Callable[..., NoReturn]:
    """Wrap a verb so that its errors become messages and exit codes."""

    @functools.wraps(verb)
    def run(*args: object, **options: object) -> NoReturn:
        signals.watch()
        processes.prepare()
        try:
            with signals.outrank_errors():
                code = verb(*args, **options)
        except (Exception, Interrupted) as error:
            code = _report(error)
            if _debug:
                traceback.print_exception(error)
        raise typer.Exit(code)

    return run


def _report(error: BaseException) -> int:
    """Say why the run ended; gives the exit code."""
    code = _say(error)
    for note in getattr(error, "__notes__", ()):  # what is kept
        console.say(f"  {note}")
    return code


def _say(error: BaseException) -> int:
    ending = ending_of(error)
    if isinstance(error, BrokenPipeError):
        # The reader had enough. Nothing more may be written, not even by the interpreter when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    else:
        console.error(ending.error, ending.hint)
    return ending.exit_code


def _add(parent: typer.Typer, name: str, verb: Verb | Mapping[str, Verb]) -> None:
    if callable(verb):
        parent.command(
            name,
            cls=help.GroupedCommand,
            context_settings=_SETTINGS,
            short_help=help.short(verb.__doc__ or ""),
        )(_guarded(verb))
        return
    group = typer.Typer(
        help=f"{name.capitalize()}: {', '.join(verb)}.", no_args_is_help=True, rich_markup_mode=None
    )
    for inner, subverb in verb.items():
        _add(group, inner, subverb)
    parent.add_typer(group, name=name)


for _name, _verb in VERBS.items():
    _add(app, _name, _verb)


def main() -> NoReturn:
    """Run the console script."""
    try:
        code = _run(sys.argv[1:])
    except OSError as error:  # of writing help or a usage error: /dev/full, say
        code = _report(from_os_error(error))
    # A signal would end the interpreter half-way, and Ray's threads crash now and then while it is
    # taken down: neither may change the exit code.
    signals.ignore()
    atexit._run_exitfuncs()
    os._exit(code)


def _run(arguments: Sequence[str]) -> int:
    """Run a verb; return its exit code. Raises OSError where standard output takes no more."""
    try:
        app([_shown(argument) for argument in arguments], prog_name="embedcli")
    except SystemExit as end:
        if sys.stdout is not None:
            sys.stdout.flush()
        return int(end.code or 0)
    return 0


def _shown(argument: str) -> str:
    """Return an option's name as it may be repeated in an error: a value stays as it is."""
    name, equals, value = argument.partition("=")
    return console.safe(name) + equals + value if name.startswith("-") else argument
