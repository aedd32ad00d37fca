"""One file per verb: its options, one call into the core, its printing. A verb gives its exit code."""

from collections.abc import Callable, Mapping

from embedcli.commands import templates
from embedcli.commands.clean import clean
from embedcli.commands.encode import encode
from embedcli.commands.inspect import inspect

Verb = Callable[..., int]

# A verb, or a group of verbs.
VERBS: dict[str, Verb | Mapping[str, Verb]] = {
    "encode": encode,
    "inspect": inspect,
    "templates": templates.VERBS,
    "clean": clean,
}
