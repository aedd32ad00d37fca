"""A template: a string with fields, parsed once and filled in for each text.

Knows no files and no tokenizers.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from embedcli.errors import ConfigurationError, RowFault
from embedcli.recipe import BY_OPTION, TemplateSource
from embedcli.records import Rendered

_FIELD = re.compile(r"\{([^{}|]+)(?:\|([^{}]*))?\}")


class Field(NamedTuple):
    """A place in a template that a column of the record fills."""

    name: str
    default: str | None


@dataclass(frozen=True)
class Template:
    """A template for one role with its task filled in: literal strings and fields, exactly one of
    them `text`.
    """

    pieces: tuple[str | Field, ...]
    role: str
    source: TemplateSource

    @property
    def string(self) -> str:
        """The template as written, its task filled in."""
        return "".join(
            piece if isinstance(piece, str) else _written(piece) for piece in self.pieces
        )

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that the template names, `text` left out."""
        names = (piece.name for piece in self.pieces if isinstance(piece, Field))
        return tuple(dict.fromkeys(name for name in names if name != "text"))

    @property
    def is_plain(self) -> bool:
        """True where the model gets the text as it is."""
        return len(self.pieces) == 1

    @property
    def prefix(self) -> str:
        """The literal string that every rendered text begins with; may be empty."""
        return self.pieces[0] if isinstance(self.pieces[0], str) else ""


def _written(piece: Field) -> str:
    return f"{{{piece.name}}}" if piece.default is None else f"{{{piece.name}|{piece.default}}}"


def parse(
    string: str, role: str, where: str, source: TemplateSource = BY_OPTION, task: str | None = None
) -> Template:
    """Cut a template string into its pieces and fill in the task. `where` is what messages call it.

    Raises ConfigurationError where `{text}` is not there exactly once, or `{task}` has nothing to
    fill it.
    """
    pieces: list[str | Field] = []

    def add(literal: str) -> None:
        if literal and pieces and isinstance(pieces[-1], str):
            pieces[-1] += literal
        elif literal:
            pieces.append(literal)

    end = 0
    for match in _FIELD.finditer(string):
        add(string[end : match.start()])
        end = match.end()
        name, default = match.group(1), match.group(2)
        if name == "task":
            filled = task if task is not None else default
            if filled is None:
                raise ConfigurationError(
                    f"{where}: the template {string!r} needs a task", "pass --task '...'"
                )
            add(filled)
        else:
            pieces.append(Field(name, default))
    add(string[end:])
    if [piece for piece in pieces if isinstance(piece, Field) and piece.name == "text"] != [
        Field("text", None)
    ]:
        raise ConfigurationError(
            f"{where}: the template {string!r} must hold {{text}} exactly once",
            "for example --template 'query: {text}'",
        )
    return Template(tuple(pieces), role, source)


def render(
    template: Template, texts: Sequence[str], fields: Mapping[str, Sequence[object]]
) -> tuple[Rendered, dict[int, RowFault]]:
    """Fill the template for each text.

    Literal substitution: braces in texts and fields stay as they are.

    Rows whose field is missing and has no default come back as faults; their strings are empty.
    """
    text_at = next(
        i
        for i, piece in enumerate(template.pieces)
        if isinstance(piece, Field) and piece.name == "text"
    )
    heads, head_faults = _join(template.pieces[:text_at], fields, len(texts))
    tails, tail_faults = _join(template.pieces[text_at + 1 :], fields, len(texts))
    starts = [len(head) for head in heads]
    stops = [start + len(text) for start, text in zip(starts, texts, strict=True)]
    strings = [head + text + tail for head, text, tail in zip(heads, texts, tails, strict=True)]
    return Rendered(strings, starts, stops), {**tail_faults, **head_faults}


def _join(
    pieces: Sequence[str | Field], fields: Mapping[str, Sequence[object]], count: int
) -> tuple[list[str], dict[int, RowFault]]:
    faults: dict[int, RowFault] = {}
    if all(isinstance(piece, str) for piece in pieces):
        return ["".join(str(piece) for piece in pieces)] * count, faults
    rows = []
    for index in range(count):
        parts = []
        for piece in pieces:
            value = piece if isinstance(piece, str) else _fill(piece, fields[piece.name][index])
            if isinstance(value, RowFault):
                faults.setdefault(index, value)
                value = ""
            parts.append(value)
        rows.append("".join(parts))
    return rows, faults


def _fill(piece: Field, value: object) -> str | RowFault:
    """Return a column's value as a template takes it: strings and whole numbers.

    Nothing, and "", give way to a default.
    """
    if isinstance(value, str) and (value or piece.default is None):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is not None and not isinstance(value, str):
        kind = type(value).__name__
        return RowFault(
            "field-type",
            f"column {piece.name!r} is a {kind}; a template takes strings and whole numbers",
        )
    if piece.default is not None:
        return piece.default
    return RowFault(
        "field-missing",
        f"column {piece.name!r} of the template has no value",
        f"a default: {{{piece.name}|none}}",
    )
