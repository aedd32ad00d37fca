"""Errors as Python programs see them."""

import contextlib
import re
from collections.abc import Iterator

from embedcli.errors import as_foreseen

_OPTION = re.compile(r"--([a-z][a-z-]+)")


@contextlib.contextmanager
def in_python() -> Iterator[None]:
    """Raise foreseen errors with their hint as a note, options by the names that they have here."""
    try:
        yield
    except Exception as error:
        foreseen = as_foreseen(error)
        if foreseen is None:
            raise
        python_error = type(foreseen)(_as_keywords(foreseen.message), _as_keywords(foreseen.hint))
        if python_error.hint:
            python_error.add_note(python_error.hint)
        raise python_error from (None if foreseen is error else error)


def _as_keywords(message: str) -> str:
    return _OPTION.sub(lambda match: match.group(1).replace("-", "_"), message)
