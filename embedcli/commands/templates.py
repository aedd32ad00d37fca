"""`embedcli templates`: what is known of models and roles, and what a text becomes."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from embedcli import console
from embedcli.errors import EXIT_OK, ConfigurationError

if TYPE_CHECKING:
    from embedcli.models.facts import FamilyFacts
    from embedcli.models.families import Family
    from embedcli.models.hub import ModelFiles
    from embedcli.models.spec import ModelSpec

Rows = list[tuple[str, str]]


def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> int:
    """List the families: their models, roles, longest text, dimensions to cut to, and source.

    Example: embedcli templates list

    Exit codes: 0 done; 78 a template file is broken.
    """
    from embedcli.models import families

    for family in families.families():
        if as_json:
            console.result(console.as_json(_as_json(family)))
            continue
        facts = family.facts
        rows = [
            ("family", family.name + ("  (not verified)" if family.unsure else "")),
            ("models", ", ".join(family.models)),
            ("roles", ", ".join(family.roles)),
            ("max length", f"{facts.max_length:,} tokens" if facts.max_length else ""),
            ("dimensions", ", ".join(map(str, facts.dims or ()))),
            ("source", family.source),
        ]
        console.table([row for row in rows if row[1]], to_stdout=True)
        console.result("")
    return EXIT_OK


def _as_json(family: "Family") -> dict[str, object]:
    facts = {name: value for name, value in asdict(family.facts).items() if value is not None}
    return {**asdict(family), "facts": facts}


def show(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="org/name, ./folder, hash:64, a family's name. Default: the bundled model.",
        ),
    ] = None,
    template: Annotated[
        str | None, typer.Option("--template", help="A template file or a family's name.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit of a hub model.")
    ] = None,
) -> int:
    """Show a model's templates and pipeline, and where each fact comes from. Fetches nothing.

    Example: embedcli templates show intfloat/e5-base-v2

    Exit codes: 0 done; 78 unknown model.
    """
    from embedcli.models import families, hub
    from embedcli.models.spec import read_prompts

    family = families.find_family([model or ""], template) or families.by_name(model)
    files, absence = None, ""
    try:
        files = hub.find(model, revision, fetch=False)
        family = families.find_family(files.names, template) or family
    except ConfigurationError as error:
        absence = error.message
    prompts = read_prompts(files) if files else {}
    if family is None and files is None:
        raise ConfigurationError(f"unknown model {model}", absence)
    rows = [("model", files.id if files else str(model))]
    rows += _prompt_rows(prompts) if family is None else _family_rows(family)
    console.table([*rows, *_pipeline(files, family, absence)], to_stdout=True)
    return EXIT_OK


def _family_rows(family: "Family") -> Rows:
    """Return what a family's file says of templates."""
    origin = f"(family {family.name})"
    rows = [(f"role {role}", f"{string}  {origin}") for role, string in family.roles.items()]
    if family.task:
        rows.append(("task", f"{family.task}  {origin}"))
    rows += [("adapter", f"{role}: {folder}") for role, folder in family.adapters.items()]
    rows += [("not verified", unsure) for unsure in family.unsure]
    return [*rows, ("source", family.source)]


def _prompt_rows(prompts: Mapping[str, str]) -> Rows:
    """Return the prompts that stand in the model's own folder."""
    origin = "(the model's own prompts)"
    if not any(prompts.values()):
        return [("template", "none known: --template says which string a role needs")]
    return [(f"role {role}", f"{prompt}{{text}}  {origin}") for role, prompt in prompts.items()]


def _pipeline(files: "ModelFiles | None", family: "Family | None", absence: str) -> Rows:
    """Return the pipeline's facts with their origin; the family's alone where the model isn't at hand."""
    from embedcli.models.facts import FamilyFacts
    from embedcli.models.spec import read_spec

    facts = family.facts if family else FamilyFacts()
    origin = f"family {family.name}" if family else ""
    known_facts = {name: value for name, value in asdict(facts).items() if value is not None}
    stated = [(name, f"{value}  ({origin})") for name, value in known_facts.items()]
    if files is None:
        return [*stated, ("files", f"not at hand: {absence}")]
    try:
        spec = read_spec(files, facts)
    except ConfigurationError as error:
        return [*stated, ("files", f"{error.message}; {error.hint}")]
    return _spec_rows(spec, facts, origin)


def _spec_rows(spec: "ModelSpec", facts: "FamilyFacts", family_origin: str) -> Rows:
    """Return what the model's folder and its family say together."""
    origins = dict(spec.origins)
    for fact, origin in origins.items():
        if origin == "family":
            origins[fact] = family_origin
    pooling = "+".join(spec.pooling) or "hash"
    truncated = f", truncated to {', '.join(map(str, facts.dims))}" if facts.dims else ""
    normalized = "yes" if spec.normalize else "no"
    return [
        ("pipeline", ", ".join(spec.pipeline)),
        ("pooling", f"{pooling}  ({origins['pooling']})"),
        ("max length", f"{spec.max_length} tokens  ({origins['max_length']})"),
        ("dimensions", f"{spec.full_dim}{truncated}"),
        ("normalized", f"{normalized}  ({origins['normalize']})"),
        ("weights", f"sha256 {spec.weights}" if spec.weights else ""),
        ("files", f"{spec.files.path}  {spec.files.revision}".rstrip() if spec.files.path else ""),
    ]


def render(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="org/name, ./folder, hash:64, or a family's name."),
    ],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The text.")],
    role: Annotated[str, typer.Option("--role", help="query, passage, or a role the model names.")],
    task: Annotated[
        str | None, typer.Option("--task", help="The instruction, where the template has {task}.")
    ] = None,
    template: Annotated[
        str | None, typer.Option("--template", help="A string, a file, or a family's name.")
    ] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option("--field", help="title=Moon: a column that the template names."),
    ] = None,
    ids: Annotated[
        bool, typer.Option("--ids", help="Load the model's tokenizer and show the token ids.")
    ] = False,
) -> int:
    """Show exactly what a text becomes: the string as JSON, so that spaces and newlines are seen,
    and its token ids.

    Example: embedcli templates render intfloat/e5-base-v2 "how do tides work" --role query

    Exit codes: 0 done; 2 a field is missing; 78 no template is known.
    """
    from embedcli import templates
    from embedcli.errors import UsageError
    from embedcli.models import families, hub
    from embedcli.models.spec import read_prompts

    family = families.find_family([model], template) or families.by_name(model)
    files = None
    if ids or family is None:
        files = hub.find(model, fetch=False)
        family = families.find_family(files.names, template) or family
    prompts = read_prompts(files) if files else {}
    chosen = families.choose_template(model, role, task, template, family, prompts)
    values = dict(field.partition("=")[::2] for field in fields or ())
    rendered, faults = templates.render(
        chosen, [text], {name: [values.get(name)] for name in chosen.fields}
    )
    if faults:
        raise UsageError(faults[0].reason, f"--field {chosen.fields[0]}=...")
    console.result(console.as_json(rendered.strings[0]))
    if files is not None and ids:
        from embedcli import encoder
        from embedcli.models.facts import FamilyFacts
        from embedcli.models.spec import read_spec

        spec = read_spec(files, family.facts if family else FamilyFacts())
        console.result(console.as_json(encoder.token_ids(spec, rendered)[0]))
    console.say(f"{chosen.role}, by {chosen.source}: {chosen.string}")
    return EXIT_OK


VERBS: dict[str, Callable[..., int]] = {"list": list_, "show": show, "render": render}
