"""Which model and which template: from what people ask for, or from vectors that theirs are to be
compared with.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from embedcli.errors import ConfigurationError
from embedcli.models import families, hub
from embedcli.models.facts import FamilyFacts
from embedcli.models.families import Family
from embedcli.models.request import ModelRequest
from embedcli.models.spec import ModelSpec, read_prompts, read_spec
from embedcli.recipe import Recipe, Space, describe_differences
from embedcli.store.provenance import ColumnProvenance
from embedcli.templates import Template


def recipe_of(spec: ModelSpec, template: Template) -> Recipe:
    """Return what makes the vectors of a model and a template what they are."""
    return Recipe(
        space=spec.space, role=template.role, template=template.string, max_length=spec.max_length
    )


@dataclass(frozen=True)
class ResolvedModel:
    """A model and the template of a role; `warnings` is what a user should know of them."""

    spec: ModelSpec
    template: Template
    warnings: tuple[str, ...] = ()

    @property
    def recipe(self) -> Recipe:
        """What makes this model's vectors of this role what they are."""
        return recipe_of(self.spec, self.template)


def resolve(request: ModelRequest, role: str) -> ResolvedModel:
    """Find the model's files, its family and the role's template.

    Fetches models of the hub; loads nothing.

    Raises ConfigurationError where there is no such model, no template for the role, or they can't
    be used.
    """
    files = hub.find(request.model, request.revision, request.trust_remote_code)
    family = families.find_family(files.names, request.template)
    template = families.choose_template(
        files.id, role, request.task, request.template, family, read_prompts(files)
    )
    facts = family.facts if family else FamilyFacts()
    adapter = family.adapters.get(template.role) if family else None
    spec = read_spec(files, facts, request, adapter)
    return ResolvedModel(spec, template, tuple(_warnings(request, family)))


def _warnings(request: ModelRequest, family: Family | None) -> Iterator[str]:
    escape = families.warn_literal_escape(request.template)
    if escape is not None:
        yield escape
    if family is None:
        return
    for unsure in family.unsure:
        yield f"family {family.name} is not verified: {unsure}"
    dims = family.facts.dims
    if request.dim is not None and dims and request.dim not in dims:
        yield f"the model was trained to be truncated to {', '.join(map(str, dims))} dimensions, not to {request.dim}"


def resolve_like(
    request: ModelRequest, role: str, like: ColumnProvenance, where: str
) -> ResolvedModel:
    """Resolve a model whose vectors compare with those of a file; what isn't asked for is taken
    from their provenance.

    The model, its revision, the family of templates, the dimension, and whether vectors are
    normalized. The template itself only for the role of the file's texts; the max length is each
    role's own affair. Raises ConfigurationError where no template follows for the role, or the
    spaces differ.
    """
    space = like.recipe.space
    completed = replace(
        request,
        model=request.model or _model_option(space),
        revision=request.revision or (None if request.model else space.revision or None),
        template=request.template or _template_option(like, role, where),
        normalize=space.normalized if request.normalize is None else request.normalize,
    )
    resolved = resolve(completed, role)
    if request.dim is None and resolved.spec.dim != space.dim:
        resolved = resolve(replace(completed, dim=space.dim), role)
    check_same_space(space, resolved.spec.space, where, "here")
    return resolved


def _model_option(space: Space) -> str | None:
    """Return the model as `--model` takes it. A folder's name alone is recorded, not where it stood."""
    return None if space.model == hub.DEFAULT_MODEL and not space.revision else space.model


def _template_option(like: ColumnProvenance, role: str, where: str) -> str | None:
    """Return what `--template` would be for such vectors; None where it follows from the model."""
    source = like.template_source
    if source.kind == "family":
        if families.by_name(source.name) is None:
            raise ConfigurationError(
                f"{where}: its template file {source.name}.toml is not among the known",
                "--template FILE",
            )
        return source.name
    if source.kind == "prompts":
        return None
    if families.main_name(role) != like.recipe.role:
        raise ConfigurationError(
            f"{where}: its template was given by hand ({like.recipe.template!r} for role {like.recipe.role}): "
            f"none follows for role {role}",
            "say which string the texts here need: --template '... {text}'",
        )
    return like.recipe.template


def check_same_space(
    model_space: Space, index_space: Space, model_name: str, index_name: str
) -> None:
    """See that two spaces hold comparable vectors.

    Raises ConfigurationError that names each differing field.
    """
    differences = index_space.differences(model_space)
    if differences:
        models = f"{model_name} by {model_space.model}, {index_name} by {index_space.model}"
        raise ConfigurationError(
            f"vectors of different spaces can't be compared: {models}: {describe_differences(differences, model_name)}",
            "--like FILE takes them from a file",
        )
