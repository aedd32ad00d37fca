"""Which model and which template: from what people ask for, or from the vectors that theirs are to be compared with."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from embedcli import registry
from embedcli.config import NAMES, Facts, differing, in_words
from embedcli.encoder import checkpoint, model_files
from embedcli.encoder.checkpoint import Checkpoint
from embedcli.errors import ConfigurationError
from embedcli.registry import Family
from embedcli.templates import Template


@dataclass(frozen=True)
class Wanted:
    """What people say of the model and its template; None leaves it to the model. Units as in `encode`'s options."""

    model: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    template: str | None = None
    task: str | None = None
    max_length: int | None = None
    dim: int | None = None
    normalize: bool | None = None


@dataclass(frozen=True)
class Choice:
    """A model and the template of a role; `notes` is what a careful colleague would say of them."""

    checkpoint: Checkpoint
    template: Template
    notes: tuple[str, ...] = ()


def choose(wanted: Wanted, role: str) -> Choice:
    """Find the model's files, its family and the role's template. Fetches models of the hub; loads nothing.

    Raises ConfigurationError where there is no such model, no template for the role, or they can't be used.
    """
    files = model_files.find(wanted.model, wanted.revision, wanted.trust_remote_code)
    family = registry.find_family(files.names, wanted.template)
    template = registry.choose(files.id, role, wanted.task, wanted.template, family, checkpoint.prompts(files))
    facts, adapter = (family.facts, family.adapters.get(template.role)) if family else (Facts(), None)
    wishes = checkpoint.Wishes(wanted.max_length, wanted.dim, wanted.normalize, wanted.trust_remote_code)
    return Choice(checkpoint.read(files, facts, wishes, adapter), template, tuple(_notes(wanted, family)))


def _notes(wanted: Wanted, family: Family | None) -> Iterator[str]:
    if warning := registry.warn_literal_escape(wanted.template):
        yield warning
    if family is None:
        return
    for unsure in family.unsure:
        yield f"family {family.name} is not verified: {unsure}"
    if wanted.dim is not None and family.facts.dims and wanted.dim not in family.facts.dims:
        yield f"the model was trained to be cut to {', '.join(map(str, family.facts.dims))}, not to {wanted.dim}"


def choose_like(wanted: Wanted, role: str, said: Mapping[str, Any], where: str) -> Choice:
    """The same with what is not asked for taken from the provenance of vectors, so that theirs and ours compare.

    The model, its revision, the family of templates, the dimension, and whether vectors are normalized. The template
    itself only where the role is theirs; the max length is each role's own affair.
    Raises ConfigurationError where no template follows for the role, or the spaces differ.
    """
    space = said["recipe"]["space"]
    like = replace(
        wanted,
        model=wanted.model or _name(space),
        revision=wanted.revision or (None if wanted.model else space["revision"] or None),
        template=wanted.template or _template(said, role, where),
        normalize=space["normalized"] if wanted.normalize is None else wanted.normalize,
    )
    found = choose(like, role)
    if wanted.dim is None and found.checkpoint.dim != space["dim"]:
        found = choose(replace(like, dim=space["dim"]), role)
    check_same_space(space, found.checkpoint.space.as_dict(), where, "here")
    return found


def _name(space: Mapping[str, Any]) -> str | None:
    """The model as `--model` takes it. A folder's name alone is recorded, not where it stood."""
    name: str = space["model"]
    return None if name == model_files.DEFAULT_MODEL and not space["revision"] else name


def _template(said: Mapping[str, Any], role: str, where: str) -> str | None:
    """What `--template` would be for such vectors; None where it follows from the model."""
    origin: str = said["template_origin"]
    if origin.startswith(registry.BY_FAMILY):
        name = origin.removeprefix(registry.BY_FAMILY)
        if registry.by_name(name) is None:
            raise ConfigurationError(
                f"{where}: its template file {name}.toml is not among the known", "--template FILE"
            )
        return name
    if origin != registry.BY_HAND:
        return None
    if registry.main_name(role) != said["recipe"]["role"]:
        theirs = f"{said['recipe']['template']!r} for role {said['recipe']['role']}"
        raise ConfigurationError(
            f"{where}: its template was given by hand ({theirs}): none follows for role {role}",
            "say which string the texts here need: --template '... {text}'",
        )
    template: str = said["recipe"]["template"]
    return template


def check_same_space(theirs: Mapping[str, Any], ours: Mapping[str, Any], there: str, here: str) -> None:
    """See that two spaces hold comparable vectors. Raises ConfigurationError that names each differing field."""
    if found := differing(theirs, {name: value for name, value in ours.items() if name not in NAMES}):
        models = f"{there} by {theirs['model']}, {here} by {ours['model']}"
        raise ConfigurationError(
            f"vectors of different spaces can't be compared: {models}: {in_words(found)}",
            "--like FILE takes them from a file",
        )
