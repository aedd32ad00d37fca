"""Which template belongs to a model's role: families of models, read from ../templates/*.toml and the user's own files.

A family also states facts about the pipeline, which correct or supply those of the model's own folder.
"""

import os
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from embedcli.config import Facts
from embedcli.errors import ConfigurationError
from embedcli.templates import Field, Template, parse

PASSAGE_NAMES = ("passage", "document", "corpus")
# Folders and files of the user's own, separated as in PATH; they come before ours.
VARIABLE = "EMBEDCLI_TEMPLATES"
# Where a template comes from; a family is named behind its word.
OWN_PROMPTS, BY_HAND, BY_FAMILY = "the model's own prompts", "--template", "family "


@dataclass(frozen=True)
class Family:
    """What a template file says: a template for each role, and facts about the pipeline.

    `adapters` names the folder of a role's adapter; `unsure` lists what could not be read in a primary source.
    """

    name: str
    models: tuple[str, ...]
    source: str
    roles: Mapping[str, str]
    task: str | None = None
    facts: Facts = field(default_factory=Facts)
    adapters: Mapping[str, str] = field(default_factory=dict)
    unsure: tuple[str, ...] = ()


_OWN_KEYS: dict[str, type] = {
    "models": list,
    "source": str,
    "task": str,
    "roles": dict,
    "adapters": dict,
    "unsure": list,
}


@cache
def _fact_types() -> dict[str, tuple[type, tuple[Any, ...]]]:
    """For each fact the type that TOML must have, and the values allowed (empty: any)."""
    found = {}
    for name, hint in typing.get_type_hints(Facts).items():
        kind = next(part for part in typing.get_args(hint) if part is not types.NoneType)
        literal = typing.get_origin(kind) is typing.Literal
        plain = str if literal else list if typing.get_origin(kind) is tuple else kind
        found[name] = (plain, typing.get_args(kind) if literal else ())
    return found


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
    _check_keys(path, data)
    facts = {one.name: data[one.name] for one in fields(Facts) if one.name in data}
    if "dims" in facts:
        facts["dims"] = tuple(facts["dims"])
    return Family(
        name=path.stem,
        models=tuple(data.get("models", ())),
        source=data.get("source", ""),
        roles=data["roles"],
        task=data.get("task"),
        facts=Facts(**facts),
        adapters=data.get("adapters", {}),
        unsure=tuple(data.get("unsure", ())),
    )


def _check_keys(path: Path, data: dict[str, Any]) -> None:
    allowed = {**{key: (kind, ()) for key, kind in _OWN_KEYS.items()}, **_fact_types()}
    for key, value in data.items():
        if key not in allowed:
            raise ConfigurationError(f"{path}: unknown key {key!r}", f"known keys: {', '.join(allowed)}")
        kind, choices = allowed[key]
        if type(value) is not kind:
            raise ConfigurationError(f"{path}: {key} must be a {kind.__name__}, not {value!r}")
        if choices and value not in choices:
            raise ConfigurationError(f"{path}: {key} must be one of {', '.join(choices)}, not {value!r}")
    if not data.get("roles"):
        raise ConfigurationError(f"{path}: the table [roles] is missing", "give at least one role, such as passage")
    for role, string in data["roles"].items():
        if not isinstance(string, str):
            raise ConfigurationError(f"{path}: roles.{role} must be a string, not {string!r}")
        parse(string, role, f"{path}: roles.{role}", task="")


def _files() -> list[Path]:
    inside = Path(__file__).parent / "_templates"  # a wheel
    shipped = inside if inside.is_dir() else Path(__file__).parent.parent / "templates"  # an editable install
    own = [Path(part) for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]
    for path in own:
        if not path.exists():
            raise ConfigurationError(f"{VARIABLE}: {path} is not there")
    return [file for path in (*own, shipped) for file in (sorted(path.glob("*.toml")) if path.is_dir() else [path])]


def families() -> tuple[Family, ...]:
    """All families: the user's own, then ours, by file name.

    Raises ConfigurationError where two of ours name the same model, or a file is broken.
    """
    return _read_all(tuple(_files()))


@cache
def _read_all(files: tuple[Path, ...]) -> tuple[Family, ...]:
    return tuple(read_family(path) for path in files)


def find_family(model_ids: Iterable[str], option: str | None = None) -> Family | None:
    """The family that a `--template` option names (a file, or a family's name), else the one that names the model.

    A template string is no family: it changes the string, and the model's family goes on to state its facts.
    Raises ConfigurationError where the option names nothing.
    """
    if option is not None and "{text}" not in option:
        return _named_family(option)
    wanted = list(model_ids)
    return next((family for model in wanted for family in families() if model in family.models), None)


def by_name(name: str | None) -> Family | None:
    """The family of that name."""
    return next((family for family in families() if family.name == name), None)


def _named_family(option: str) -> Family:
    if option.endswith(".toml") or "/" in option:
        return read_family(Path(option))
    if (family := by_name(option)) is not None:
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
    role = main_name(role)
    if option is not None and "{text}" in option:
        return _checked_task(parse(option, role, BY_HAND, task), option, task)
    if family is not None:
        if role not in family.roles:
            raise _unknown_role(model, role, BY_FAMILY + family.name, family.roles)
        string = family.roles[role]
        filled = task if task is not None else family.task
        return _checked_task(parse(string, role, BY_FAMILY + family.name, filled), string, task)
    return _from_prompts(model, role, task, dict(prompts or {}))


def main_name(role: str) -> str:
    """`passage` for all the words that mean it; other roles as they are."""
    return "passage" if role in PASSAGE_NAMES else role


def _from_prompts(model: str, role: str, task: str | None, prompts: dict[str, str]) -> Template:
    if not any(prompts.values()):  # sentence-transformers saves empty prompts for models that never had any
        raise ConfigurationError(
            f"no template is known for model {model}",
            f"say which string role {role} needs: --template 'query: {{text}}', or --template '{{text}}' for none",
        )
    names = PASSAGE_NAMES if role == "passage" else (role,)
    prefix = next((prompts[name] for name in names if name in prompts), None)
    if prefix is None:
        raise _unknown_role(model, role, OWN_PROMPTS, prompts)
    return _checked_task(with_prefix(prefix, role), prefix, task)


def with_prefix(prefix: str, role: str) -> Template:
    """A template of a model's own prompt: the prefix is literal, braces in it are no fields."""
    return Template((prefix, Field("text", None)) if prefix else (Field("text", None),), role, OWN_PROMPTS)


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


def warn_literal_escape(option: str | None) -> str | None:
    """A warning where a template string holds a backslash and an n, which a shell's plain quotes leave as they are."""
    if option is None or "{text}" not in option or "\\n" not in option:
        return None
    return r"--template holds a backslash and an n, not a newline; in bash write $'...\n{text}'"
