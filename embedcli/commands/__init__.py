"""One file per verb: its options, one call into the core, its printing. A verb gives its exit code."""

from collections.abc import Callable, Mapping

from embedcli.commands import templates
from embedcli.commands.clean import clean
from embedcli.commands.compare import compare
from embedcli.commands.doctor import doctor
from embedcli.commands.encode import encode
from embedcli.commands.evaluate import evaluate
from embedcli.commands.inspect import inspect
from embedcli.commands.jobs import run_jobs
from embedcli.commands.manual import man
from embedcli.commands.probe import probe
from embedcli.commands.search import search
from embedcli.commands.verify import verify

Verb = Callable[..., int]

# A verb, or a group of verbs.
VERBS: dict[str, Verb | Mapping[str, Verb]] = {
    "encode": encode,
    "run": run_jobs,
    "search": search,
    "eval": evaluate,
    "probe": probe,
    "verify": verify,
    "compare": compare,
    "inspect": inspect,
    "templates": templates.VERBS,
    "clean": clean,
    "doctor": doctor,
    "man": man,
}
