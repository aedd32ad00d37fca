"""Which string a text becomes for a role: families of templates, how one is chosen, how it is filled in.

Knows nothing of tokenizers and files of records. The registry's data is ../templates/*.toml.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from embedcli.errors import ConfigurationError, RowFault
from embedcli.records import Rendered

PASSAGE_NAMES = ("passage", "document", "corpus")
_FIELD = re.compile(r"\{([^{}|]+)(?:\|([^{}]*))?\}")


class Field(NamedTuple):
    """A place in a template that a column of the record fills."""

    name: str
    default: str | None


@dataclass(frozen=True)
class Template:
    """A template for one role with its task filled in: literal strings and fields, exactly one of them `text`."""

    pieces: tuple[str | Field, ...]
    role: str
    origin: str

    @property
    def string(self) -> str:
        """The template as written, its task filled in."""
        return "".join(piece if isinstance(piece, str) else _written(piece) for piece in self.pieces)

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


@dataclass(frozen=True)
class Family:
    """What a template file says: roles for every model, and facts that correct or supply those of its directory."""

    name: str
    models: tuple[str, ...]
    source: str
    roles: Mapping[str, str]
    task: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


# Facts about the pipeline that a family file may state, and the type of each.
FACTS: dict[str, type] = {
    "pooling": str,
    "max_length": int,
    "normalize": bool,
    "append_eos": bool,
}
_KEYS = {"models": list, "source": str, "task": str, "roles": dict, **FACTS}


def _written(piece: Field) -> str:
    return f"{{{piece.name}}}" if piece.default is None else f"{{{piece.name}|{piece.default}}}"


def parse(string: str, role: str, origin: str, task: str | None = None) -> Template:
    """Cut a template string into its pieces and fill in the task.

    Raises ConfigurationError where `{text}` is not there exactly once, or `{task}` has nothing to fill it.
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
                raise ConfigurationError(f"{origin}: the template {string!r} needs a task", "pass --task '...'")
            add(filled)
        else:
            pieces.append(Field(name, default))
    add(string[end:])
    if [piece for piece in pieces if isinstance(piece, Field) and piece.name == "text"] != [Field("text", None)]:
        raise ConfigurationError(
            f"{origin}: the template {string!r} must hold {{text}} exactly once",
            "for example --template 'query: {text}'",
        )
    return Template(tuple(pieces), role, origin)


def _templates_directory() -> Path:
    inside = Path(__file__).parent / "_templates"  # a wheel
    return inside if inside.is_dir() else Path(__file__).parent.parent / "templates"  # an editable install


def read_family(path: Path) -> Family:
    """Read a template file.

    Raises ConfigurationError naming the file and the key where it can't be read or holds something unknown.
    """
    try:
        data = tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: there is no such template file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path}: not a readable template file: {error}") from None
    for key, value in data.items():
        if key not in _KEYS:
            raise ConfigurationError(f"{path}: unknown key {key!r}", f"known keys: {', '.join(_KEYS)}")
        if type(value) is not _KEYS[key]:
            raise ConfigurationError(f"{path}: {key} must be a {_KEYS[key].__name__}, not {value!r}")
    roles = data.get("roles", {})
    if not roles:
        raise ConfigurationError(f"{path}: the table [roles] is missing", "give at least one role, such as passage")
    for role, string in roles.items():
        if not isinstance(string, str):
            raise ConfigurationError(f"{path}: roles.{role} must be a string, not {string!r}")
        parse(string, role, f"{path}: roles.{role}", task="")
    return Family(
        name=path.stem,
        models=tuple(data.get("models", ())),
        source=data.get("source", ""),
        roles=roles,
        task=data.get("task"),
        facts={key: data[key] for key in FACTS if key in data},
    )


@cache
def families() -> tuple[Family, ...]:
    """All registered families, by file name.

    Raises ConfigurationError where two of them name the same model.
    """
    found = tuple(read_family(path) for path in sorted(_templates_directory().glob("*.toml")))
    owner: dict[str, str] = {}
    for family in found:
        for model in family.models:
            if model in owner:
                raise ConfigurationError(f"model {model} stands in two template files: {owner[model]}, {family.name}")
            owner[model] = family.name
    return found


def find_family(model_ids: Iterable[str], option: str | None = None) -> Family | None:
    """The family that a `--template` option names (a file, or a family's name), else the one that names the model.

    A template string is no family: None. Raises ConfigurationError where the option names nothing.
    """
    if option is not None:
        return None if "{text}" in option else _named_family(option)
    by_model = {model: family for family in families() for model in family.models}
    return next((by_model[model] for model in model_ids if model in by_model), None)


def _named_family(option: str) -> Family:
    if option.endswith(".toml") or "/" in option:
        return read_family(Path(option))
    for family in families():
        if family.name == option:
            return family
    raise ConfigurationError(
        f"--template {option!r} is neither a template string, nor a file, nor a family",
        f"a string holds {{text}}; a file ends in .toml; the families are {', '.join(f.name for f in families())}",
    )


def choose(
    model: str,
    role: str,
    task: str | None = None,
    option: str | None = None,
    family: Family | None = None,
    prompts: Mapping[str, str] | None = None,
) -> Template:
    """Choose the template for a role, first hit wins: the option's string, the family, the model's own prompts.

    `prompts` are prefixes by role name, as in config_sentence_transformers.json.
    Raises ConfigurationError that lists the roles known where this one is not among them.
    """
    role = "passage" if role in PASSAGE_NAMES else role
    if option is not None and "{text}" in option:
        return _checked_task(parse(option, role, "--template", task), option, task)
    if family is not None:
        if role not in family.roles:
            raise _unknown_role(model, role, f"family {family.name}", family.roles)
        string = family.roles[role]
        filled = task if task is not None else family.task
        return _checked_task(parse(string, role, f"family {family.name}", filled), string, task)
    return _from_prompts(model, role, task, dict(prompts or {}))


def _from_prompts(model: str, role: str, task: str | None, prompts: dict[str, str]) -> Template:
    if not any(prompts.values()):  # sentence-transformers saves empty prompts for models that never had any
        raise ConfigurationError(
            f"no template is known for model {model}",
            f"say which string role {role} needs: --template 'query: {{text}}', or --template '{{text}}' for none",
        )
    names = PASSAGE_NAMES if role == "passage" else (role,)
    prefix = next((prompts[name] for name in names if name in prompts), None)
    if prefix is None:
        raise _unknown_role(model, role, "the model's own prompts", prompts)
    # The prefix is literal: braces in it are no fields.
    pieces = (prefix, Field("text", None)) if prefix else (Field("text", None),)
    return _checked_task(Template(pieces, role, "the model's own prompts"), prefix, task)


def _checked_task(template: Template, string: str, task: str | None) -> Template:
    if task is not None and "{task" not in string:
        raise ConfigurationError(
            f"--task can't be used: the template of role {template.role} ({template.origin}) has no {{task}}",
            f"the template is {string!r}",
        )
    return template


def _unknown_role(model: str, role: str, origin: str, known: Iterable[str]) -> ConfigurationError:
    return ConfigurationError(
        f"model {model} has no template for role {role!r} ({origin})",
        f"known roles: {', '.join(sorted(known))}; or pass one: --template 'my instruction: {{text}}'",
    )


def render(
    template: Template, texts: Sequence[str], fields: Mapping[str, Sequence[object]]
) -> tuple[Rendered, dict[int, RowFault]]:
    """Fill the template for each text. Literal substitution: braces in texts and fields stay as they are.

    Rows whose field is missing and has no default come back as faults; their strings are empty.
    """
    text_at = next(i for i, piece in enumerate(template.pieces) if isinstance(piece, Field) and piece.name == "text")
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
    """A column's value as a template takes it: strings and whole numbers. Nothing, and "", give way to a default."""
    if isinstance(value, str) and (value or piece.default is None):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is not None and not isinstance(value, str):
        kind = type(value).__name__
        return RowFault("field-type", f"column {piece.name!r} is a {kind}; a template takes strings and whole numbers")
    if piece.default is not None:
        return piece.default
    return RowFault(
        "field-missing", f"column {piece.name!r} of the template has no value", f"a default: {{{piece.name}|none}}"
    )


def warn_literal_escape(option: str | None) -> str | None:
    """A warning where a template string holds a backslash and an n, which a shell's plain quotes leave as they are."""
    if option is None or "{text}" not in option or "\\n" not in option:
        return None
    return r"--template holds a backslash and an n, not a newline; in bash write $'...\n{text}'"
