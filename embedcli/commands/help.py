"""`--help` of a verb: its options in groups, a line each where that suffices."""

import copy
import re
from collections import defaultdict
from typing import Any

import typer.core

# The widest help text; narrower where the terminal is.
WIDTH = 100
_NAMES_WIDTH = 30
_DEFAULT_GROUP = "Options"
_GROUPS = {
    "Input": (
        *(
            "text_column",
            "columns",
            "input_format",
            "on_error",
            "rejects",
            "max_rejected",
            "min_rows",
        ),
        *("allow_empty", "max_row_bytes", "max_input_bytes", "binary_as_utf8"),
    ),
    "Model and template": (
        *("role", "model", "revision", "trust_remote_code", "template", "task"),
        *("max_length", "dim", "normalize", "like"),
    ),
    "Output": (
        "output",
        "format",
        "embedding_column",
        "vector_type",
        "hash",
        "metadata_column",
        "update",
        "max_removed",
        "id_column",
        "keep_stale",
        "changes",
        "overwrite",
    ),
    "Run": (
        *("fresh", "join", "no_wait", "engine", "watchdog"),
        *("wait", "retry", "dry_run", "report", "as_json", "log", "quiet", "help"),
    ),
    "Speed": ("device", "dtype", "backend", "batch_tokens", "compile", "num_processes"),
}
_GROUP_OF = {name: group for group, names in _GROUPS.items() for name in names}
ENVIRONMENT = (
    "An option's default can be set by an environment variable of its name: "
    "EMBEDCLI_BATCH_TOKENS=4096 for --batch-tokens."
)
EXIT_CODES = """Exit codes: 0 done; 2 usage; 3 done with rejected rows; 65 bad data; 66 input missing; 69 device lost;
70 internal error; 73 output can't be created; 74 I/O error or disk full; 75 another run holds the output;
77 permission denied; 78 model or template unusable; 128+N ended by signal N."""
# A verb with fewer options shows them in one list.
_MIN_OPTIONS = 20
_NO_BRACES = str.maketrans("", "", "{}")
# The type that follows the names of an option or argument: <str>, <list[str]>, <int range>.
_TYPE = re.compile(r" <(?:list\[)?(\w+)[^>]*>$")
_TYPE_NAMES = {"str": "TEXT", "int": "N", "float": "X"}
# Of the list of verbs, on a terminal of 80 columns.
_MAX_SHORT = 66


class GroupedCommand(typer.core.TyperCommand):
    """A verb whose help shows its options in groups."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the usage line: INPUTS... for what is required, [TEXTS]... for what isn't."""
        pieces: list[str] = super().collect_usage_pieces(ctx)
        return [piece.translate(_NO_BRACES) for piece in pieces]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then each group of options."""
        params = self.get_params(ctx)
        options = [param for param in params if param.param_type_name == "option"]
        sections: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        if len(options) < len(params):
            sections["Arguments"] = []
        if len(options) >= _MIN_OPTIONS:
            sections |= {group: [] for group in _GROUPS}
        for param in params:
            group = _DEFAULT_GROUP
            if param.param_type_name == "argument":
                group = "Arguments"
            elif len(options) >= _MIN_OPTIONS:
                group = _GROUP_OF.get(param.name, _DEFAULT_GROUP)
            record = help_record(param, ctx)
            if record is not None:
                sections[group].append(record)
        for group, records in sections.items():
            if records:
                with formatter.section(group):
                    formatter.write_dl(records, col_max=_NAMES_WIDTH)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Say how the environment sets options, where it does."""
        variables = [param for param in self.get_params(ctx) if param.envvar]
        if variables:
            formatter.write_paragraph()
            formatter.write_text(ENVIRONMENT)


def help_record(param: Any, context: Any) -> tuple[str, str] | None:
    """Return the names of an option or argument and its help; None where it is hidden."""
    # Not each option its variable: the epilog says it once for all.
    shown: Any = copy.copy(param)
    shown.show_envvar = False
    if param.default in ("auto", "0", 0):  # which go without saying
        shown.show_default = False
    record = shown.get_help_record(context)
    return None if record is None else (_TYPE.sub(_type_name, record[0]), record[1])


def _type_name(match: re.Match[str]) -> str:
    """Return a type as people call it; an argument's is in its name."""
    is_option = match.string.startswith("-")
    return f" {_TYPE_NAMES.get(match[1], match[1].upper())}" if is_option else ""


def short(docstring: str) -> str:
    """Return what a verb does in a few words, for the list of all verbs."""
    sentence = re.split(r"[.:;](?:\s|$)", docstring.strip(), maxsplit=1)[0]
    words = " ".join(sentence.split())
    while len(words) > _MAX_SHORT and ", " in words:
        words = words[: words.rindex(", ")]
    return words
