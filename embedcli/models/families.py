"""Which template belongs to a model's role: families of models, read from templates/*.toml and the
user's own files.

A family also states facts about the pipeline, which correct or supply those of the model's own
folder.
"""

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from embedcli.errors import ConfigurationError
from embedcli.models.facts import FamilyFacts
from embedcli.recipe import BY_OPTION, OWN_PROMPTS, TemplateSource
from embedcli.templates import Field, Template, parse

PASSAGE_NAMES = ("passage", "document", "corpus")
_PASSAGE_PROMPTS = ("document", "passage", "corpus")
# Folders and files of the user's own, separated as in PATH; they come before ours.
VARIABLE = "EMBEDCLI_TEMPLATES"
_PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True)
class Family:
    """What a template file says: a template for each role, and facts about the pipeline.

    `adapters` names the folder of a role's adapter; `revision` is the commit that is loaded where
    none is asked for; `unsure` lists what could not be read in a primary source.
    """

    name: str
    models: tuple[str, ...]
    source: str
    roles: Mapping[str, str]
    task: str | None = None
    facts: FamilyFacts = field(default_factory=FamilyFacts)
    adapters: Mapping[str, str] = field(default_factory=dict)
    revision: str | None = None
    unsure: tuple[str, ...] = ()

    @property
    def template_source(self) -> TemplateSource:
        """Where a template of this family comes from."""
        return TemplateSource("family", self.name)


class _FamilyFile(msgspec.Struct, forbid_unknown_fields=True):
    """The keys of a template file beside those of FamilyFacts."""

    roles: dict[str, str]
    models: tuple[str, ...] = ()
    source: str = ""
    task: str | None = None
    adapters: dict[str, str] = {}
    revision: str | None = None
    unsure: tuple[str, ...] = ()


_FACT_NAMES = {fact.name for fact in fields(FamilyFacts)}


def read_family(path: Path) -> Family:
    """Read a template file.

    Raises ConfigurationError naming the file and the key where it can't be read or holds something
    unknown.
    """
    try:
        data = tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: there is no such template file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path}: not a readable template file: {error}") from None
    facts = {key: value for key, value in data.items() if key in _FACT_NAMES}
    texts = {key: value for key, value in data.items() if key not in _FACT_NAMES}
    file = _convert(path, texts, _FamilyFile)
    if not file.roles:
        raise ConfigurationError(
            f"{path}: the table [roles] is empty", "give at least one role, such as passage"
        )
    for role, string in file.roles.items():
        parse(string, role, f"{path}: roles.{role}", BY_OPTION, task="")
    return Family(
        name=path.stem,
        models=file.models,
        source=file.source,
        roles=file.roles,
        task=file.task,
        facts=_convert(path, facts, FamilyFacts),
        adapters=file.adapters,
        revision=file.revision,
        unsure=file.unsure,
    )


def _convert(path: Path, data: dict[str, Any], kind: Any) -> Any:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        known = ", ".join(sorted({*_FACT_NAMES, *_FamilyFile.__struct_fields__}))
        raise ConfigurationError(f"{path}: {error}", f"known keys: {known}") from None


def _files() -> list[Path]:
    in_wheel = _PACKAGE / "_templates"
    in_checkout = _PACKAGE.parent / "templates"
    shipped = in_wheel if in_wheel.is_dir() else in_checkout
    folders = [Path(part) for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]
    for path in folders:
        if not path.exists():
            raise ConfigurationError(f"{VARIABLE}: {path} is not there")
    return [
        file
        for path in (*folders, shipped)
        for file in (sorted(path.glob("*.toml")) if path.is_dir() else [path])
    ]


def families() -> tuple[Family, ...]:
    """Return all families: the user's own, then ours, by name.

    Raises ConfigurationError where a file is broken.
    """
    return _read_all(tuple(_files()))


@cache
def _read_all(files: tuple[Path, ...]) -> tuple[Family, ...]:
    return tuple(read_family(path) for path in files)


def find_family(model_ids: Iterable[str], option: str | None = None) -> Family | None:
    """Return the family that a `--template` option names (a file, or a family's name), else the one
    of the model.

    A template string is no family: it changes the string, and the model's family goes on to state
    its facts. Raises ConfigurationError where the option names nothing.
    """
    if option is not None and "{text}" not in option:
        return _named_family(option)
    for model in model_ids:
        for family in families():
            if model in family.models:
                return family
    return None


def by_name(name: str | None) -> Family | None:
    """Return the family of that name."""
    return next((family for family in families() if family.name == name), None)


def similar_models(name: str) -> list[str]:
    """Return known models of the hub whose name without its organisation is like a name."""
    by_short_name = {
        model.partition("/")[2].lower(): model for family in families() for model in family.models
    }
    parts = [short for short in by_short_name if len(name) > 3 and name.lower() in short]
    close = difflib.get_close_matches(name.lower(), list(by_short_name), n=2, cutoff=0.75)
    return [by_short_name[short] for short in (close or parts)[:2]]


def _named_family(option: str) -> Family:
    if option.endswith(".toml") or "/" in option:
        return read_family(Path(option))
    family = by_name(option)
    if family is None:
        names = [family.name for family in families()]
        close = difflib.get_close_matches(option, names)
        meant = f"did you mean {', '.join(close)}? " if close else ""
        raise ConfigurationError(
            f"--template {option!r} is neither a template string, nor a file, nor a family",
            f"{meant}a string holds {{text}}; a file ends in .toml; `embedcli templates list` shows the families",
        )
    return family


def choose_template(
    model: str,
    role: str,
    task: str | None = None,
    option: str | None = None,
    family: Family | None = None,
    prompts: Mapping[str, str] | None = None,
    hint: str = "",
) -> Template:
    """Choose the template for a role, first hit wins: the option's string, the family, the model's
    own prompts.

    `prompts` are prefixes by role name, as in config_sentence_transformers.json; `hint` says what
    helps where there is no template.
    Raises ConfigurationError that lists the roles known where this one is not among them.
    """
    role = main_name(role)
    if option is not None and "{text}" in option:
        return _checked_task(parse(option, role, str(BY_OPTION), BY_OPTION, task), option, task)
    if family is not None:
        return _from_family(model, role, task, family)
    return _from_prompts(model, role, task, dict(prompts or {}), hint)


def main_name(role: str) -> str:
    """Return `passage` for all the words that mean it; other roles as they are."""
    return "passage" if role in PASSAGE_NAMES else role


def _from_family(model: str, role: str, task: str | None, family: Family) -> Template:
    source = family.template_source
    if role not in family.roles:
        raise _unknown_role(model, role, source, family.roles)
    string = family.roles[role]
    filled = task if task is not None else family.task
    return _checked_task(parse(string, role, str(source), source, filled), string, task)


def _from_prompts(
    model: str, role: str, task: str | None, prompts: dict[str, str], hint: str
) -> Template:
    # sentence-transformers saves empty prompts for models that never had any.
    if not any(prompts.values()):
        raise ConfigurationError(
            f"no template is known for model {model}",
            f"{hint}say which string role {role} needs: --template 'query: {{text}}', "
            "or --template '{text}' for none",
        )
    prefix = prompts.get(role)
    if role == "passage":
        prefix = passage_prompt(prompts)
    if prefix is None:
        raise _unknown_role(model, role, OWN_PROMPTS, prompts)
    return _checked_task(from_prefix(prefix, role), prefix, task)


def passage_prompt(prompts: Mapping[str, str]) -> str | None:
    """Return the prompt for passages: `document` before `passage` and `corpus`, as
    sentence-transformers chooses.

    An empty one gives way to one that isn't: sentence-transformers saves an empty `document` for
    models that never had it. Where there is a prompt for queries alone, passages are bare.
    """
    named = [prompts[name] for name in _PASSAGE_PROMPTS if name in prompts]
    if named:
        return next((prompt for prompt in named if prompt), "")
    return "" if "query" in prompts else None


def from_prefix(prefix: str, role: str) -> Template:
    """Return the template of a model's own prompt: the prefix is literal, braces in it are no fields."""
    text = Field("text", None)
    return Template((prefix, text) if prefix else (text,), role, OWN_PROMPTS)


def _checked_task(template: Template, string: str, task: str | None) -> Template:
    if task is not None and "{task" not in string:
        raise ConfigurationError(
            f"--task can't be used: the template of role {template.role} ({template.source}) has no {{task}}",
            f"the template is {string!r}",
        )
    return template


def _unknown_role(
    model: str, role: str, source: TemplateSource, known: Iterable[str]
) -> ConfigurationError:
    roles = sorted({main_name(name) for name in known})
    close = difflib.get_close_matches(role, [*roles, *PASSAGE_NAMES], n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    return ConfigurationError(
        f"model {model} has no template for role {role!r} ({source})",
        f"{meant}known roles: {', '.join(roles)}; or pass one: --template 'my instruction: {{text}}'",
    )


def warn_literal_escape(option: str | None) -> str | None:
    """Return a warning where a template string holds a backslash and an n, as a shell's plain
    quotes leave them.
    """
    if option is None or "{text}" not in option or "\\n" not in option:
        return None
    return r"--template holds a backslash and an n, not a newline; in bash write $'...\n{text}'"
