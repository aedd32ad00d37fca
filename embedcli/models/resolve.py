"""Which model and which template: from what people ask for, or from vectors that theirs are to be
compared with.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from embedcli.errors import ConfigurationError
from embedcli.models import families, hub
from embedcli.models.facts import FamilyFacts
from embedcli.models.families import Family
from embedcli.models.hub import ModelFiles
from embedcli.models.layout import read_layout
from embedcli.models.request import ModelRequest
from embedcli.models.spec import ModelSpec, read_prompts, read_spec
from embedcli.recipe import OWN_PROMPTS, Recipe, Space, describe_differences
from embedcli.store.provenance import ColumnProvenance
from embedcli.templates import Template, parse


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
    revision = request.revision or _revision_of(request.model)
    files = hub.find(request.model, revision, request.trust_remote_code)
    return _resolve_files(files, request, role)


def _revision_of(model: str | None) -> str | None:
    """Return the commit that a model's family names, for hubs' models whose main one won't do."""
    family = families.find_family([model or ""])
    return family.revision if family is not None else None


def _resolve_files(
    files: ModelFiles, request: ModelRequest, role: str, template: Template | None = None
) -> ResolvedModel:
    """Resolve a model that is at hand; `template`: the role's, if it is known already."""
    family = families.find_family(files.names, request.template)
    prompts = read_prompts(files)
    if template is None:
        template = families.choose_template(
            files.id, role, request.task, request.template, family, prompts, _hint(files)
        )
    facts = family.facts if family else FamilyFacts()
    adapters = family.adapters if family else {}
    spec = read_spec(files, facts, request, template.role, adapters)
    warnings = _warnings(request, spec, family, template, prompts)
    return ResolvedModel(spec, template, tuple(warnings))


def _hint(files: ModelFiles) -> str:
    """Say which family a folder's model may have been finetuned from: nobody knows but its maker."""
    family = families.find_family([files.finetuned_from])
    if family is None:
        return ""
    return f"finetuned from {files.finetuned_from}? --template {family.name}; or "


def _warnings(
    request: ModelRequest,
    spec: ModelSpec,
    family: Family | None,
    template: Template,
    prompts: Mapping[str, str],
) -> Iterator[str]:
    """Yield what people should know before they trust the vectors."""
    for token, stated, name in (
        (spec.begin, spec.facts.begin_token, "add_bos_token"),
        (spec.end, spec.facts.end_token, "add_eos_token"),
    ):
        if token is not None and stated is None:
            yield f"tokenizer_config.json says {name}, and the tokenizer adds none: {token} is appended"
    if template.source == OWN_PROMPTS and template.role == "passage":
        yield from _ambiguous_prompts(prompts)
    if family is not None and family.revision and request.revision is None:
        yield f"family {family.name}: revision {family.revision} is loaded: the main one has no safetensors"
    if family is not None and not set(family.models) & set(spec.files.names):
        yield from _overruled(spec, family, template.role)
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


def _ambiguous_prompts(prompts: Mapping[str, str]) -> Iterator[str]:
    named = {name: prompts[name] for name in families.PASSAGE_NAMES if name in prompts}
    if len(set(named.values())) > 1:
        listed = ", ".join(f"{name} {prompt!r}" for name, prompt in named.items())
        yield (
            f"the model has several prompts for passages ({listed}): "
            f"{families.passage_prompt(prompts)!r} is taken, as sentence-transformers chooses; "
            "--template '...{text}' takes another"
        )


def _overruled(spec: ModelSpec, family: Family, role: str) -> Iterator[str]:
    """Yield where a family that was named by hand says something else than the model's folder."""
    if spec.files.path is None or family.facts.pooling is None:
        return
    own = read_layout(spec.files).pipeline_of(role, spec.files.id).pooling
    if own and own != spec.pooling:
        yield (
            f"family {family.name} pools by {'+'.join(spec.pooling)}, the model's own modules.json "
            f"by {'+'.join(own)}: the family's is taken"
        )


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
    files = _files_of(request, space, where)
    template = None
    if request.template is None:
        family, template = _template_of(like, role, where)
        request = replace(request, template=family)
    if request.normalize is None:
        request = replace(request, normalize=space.normalized)
    resolved = _resolve_files(files, request, role, template)
    if request.dim is None and resolved.spec.dim != space.dim:
        resolved = _resolve_files(files, replace(request, dim=space.dim), role, template)
    check_same_space(space, resolved.spec.space, where, "here")
    return resolved


def _files_of(request: ModelRequest, space: Space, where: str) -> ModelFiles:
    """Find the model that vectors were made by.

    A file's metadata may be anybody's: it names no path, and nothing is fetched by its word alone.
    Raises ConfigurationError.
    """
    trusted = request.trust_remote_code
    if request.model is not None:
        return hub.find(request.model, request.revision, trusted)
    if space.model.startswith("./"):
        raise ConfigurationError(
            f"{where}: made by the model folder {space.model}, which is not looked for",
            "--model ./folder says where it is",
        )
    if not hub.is_name(space.model):
        raise ConfigurationError(f"{where}: {space.model[:100]!r} is no model", "--model names it")
    try:
        revision = request.revision or space.revision or None
        return hub.find(space.model, revision, trusted, fetch=False)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{where}: made by {space.model}: {error.message}",
            f"--model {space.model} fetches it",
        ) from None


def _template_of(
    like: ColumnProvenance, role: str, where: str
) -> tuple[str | None, Template | None]:
    """Return the family of a file's templates by name, or the template that was given by hand;
    neither where it follows from the model.
    """
    source = like.template_source
    if source.kind == "family":
        if families.by_name(source.name) is None:
            raise ConfigurationError(
                f"{where}: its template file {source.name}.toml is not among the known",
                "--template FILE",
            )
        return source.name, None
    if source.kind == "prompts":
        return None, None
    if families.main_name(role) != like.recipe.role:
        raise ConfigurationError(
            f"{where}: its template was given by hand ({like.recipe.template!r} for role {like.recipe.role}): "
            f"none follows for role {role}",
            "say which string the texts here need: --template '... {text}'",
        )
    # Parsed as a string, never opened as a file.
    return None, parse(like.recipe.template, families.main_name(role), where)


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
