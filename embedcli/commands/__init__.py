"""One file per verb: its options, one call into the core, its printing. A verb gives its exit code."""

from collections.abc import Callable

from embedcli.commands.encode import encode
from embedcli.commands.inspect import inspect

VERBS: dict[str, Callable[..., int]] = {"encode": encode, "inspect": inspect}
