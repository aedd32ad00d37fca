"""`embedcli templates`: what is known of models and roles, and what a text becomes."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from embedcli import console
from embedcli.errors import EXIT_OK, ConfigurationError

if TYPE_CHECKING:
    from embedcli.registry import Family


def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> int:
    """List the families: their models, roles, longest text, dimensions to cut to, and source.

    Example: embedcli templates list

    Exit codes: 0 done; 78 a template file is broken.
    """
    from embedcli import registry

    for family in registry.families():
        if as_json:
            console.result(json.dumps(_as_dict(family), ensure_ascii=False))
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


def _as_dict(family: "Family") -> dict[str, object]:
    facts = {name: value for name, value in asdict(family.facts).items() if value is not None}
    return {**asdict(family), "facts": facts}


def show(
    model: Annotated[
        str | None, typer.Argument(help="org/name, ./folder, hash:64, a family's name. Default: the embedded model.")
    ] = None,
    template: Annotated[str | None, typer.Option("--template", help="A template file or a family's name.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a hub model.")] = None,
) -> int:
    """Show a model's templates and pipeline, and where each fact comes from. Fetches nothing.

    Example: embedcli templates show intfloat/e5-base-v2

    Exit codes: 0 done; 78 nothing is known of the model.
    """
    from embedcli import registry
    from embedcli.encoder import checkpoint, model_files

    family = registry.find_family([model or ""], template) or registry.by_name(model)
    files, missing = None, ""
    try:
        files = model_files.find(model, revision, fetch=False)
        family = registry.find_family(files.names, template) or family
    except ConfigurationError as error:
        missing = error.message
    prompts = checkpoint.prompts(files) if files else {}
    if family is None and not prompts:
        raise ConfigurationError(f"nothing is known of {model}", missing)
    rows = [("model", files.id if files else str(model))]
    if family is not None:
        rows += [(f"role {role}", f"{string}  (family {family.name})") for role, string in family.roles.items()]
        rows += [("task", f"{family.task}  (family {family.name})")] if family.task else []
        rows += [("adapter", f"{role}: {folder}") for role, folder in family.adapters.items()]
        rows += [("not verified", unsure) for unsure in family.unsure]
        rows += [("source", family.source)]
    else:
        rows += [(f"role {role}", f"{prompt}{{text}}  (the model's own prompts)") for role, prompt in prompts.items()]
    console.table([*rows, *_pipeline(files, family, missing)], to_stdout=True)
    return EXIT_OK


def _pipeline(files: object, family: "Family | None", missing: str) -> list[tuple[str, str]]:
    """The pipeline's facts with their origin; the family's alone where the model isn't at hand."""
    from embedcli.config import Facts
    from embedcli.encoder import checkpoint
    from embedcli.encoder.model_files import ModelFiles

    facts = family.facts if family else Facts()
    origin = f"family {family.name}" if family else ""
    stated = [(name, f"{value}  ({origin})") for name, value in asdict(facts).items() if value is not None]
    if not isinstance(files, ModelFiles):
        return [*stated, ("files", f"not at hand: {missing}")]
    try:
        found = checkpoint.read(files, facts, checkpoint.Wishes())
    except ConfigurationError as error:
        return [*stated, ("files", f"{error.message}; {error.hint}")]
    who = {name: origin if by == "family" else by for name, by in found.origins.items()}
    return [
        ("pipeline", ", ".join(found.pipeline)),
        ("pooling", f"{'+'.join(found.pooling)}  ({who['pooling']})"),
        ("max length", f"{found.max_length} tokens  ({who['max_length']})"),
        ("dimensions", f"{found.full_dim}" + (f", cut to {', '.join(map(str, facts.dims))}" if facts.dims else "")),
        ("normalized", f"{'yes' if found.normalize else 'no'}  ({who['normalize']})"),
        ("weights", f"sha256 {found.weights}" if found.weights else ""),
        ("files", f"{files.path}  {files.revision}".rstrip() if files.path else ""),
    ]


def render(
    model: Annotated[str, typer.Argument(help="org/name, ./folder, hash:64, or a family's name.")],
    text: Annotated[str, typer.Argument(help="The text.")],
    role: Annotated[str, typer.Option("--role", help="query, passage, or a role the model names.")],
    task: Annotated[str | None, typer.Option("--task", help="The instruction, where the template has {task}.")] = None,
    template: Annotated[str | None, typer.Option("--template", help="A string, a file, or a family's name.")] = None,
    fields: Annotated[
        list[str] | None, typer.Option("--field", help="title=Moon: a column that the template names.")
    ] = None,
    ids: Annotated[bool, typer.Option("--ids", help="Load the model's tokenizer and show the token ids.")] = False,
) -> int:
    """Show exactly what a text becomes: the string as JSON, so that spaces and newlines are seen, and its token ids.

    Example: embedcli templates render intfloat/e5-base-v2 "how do tides work" --role query

    Exit codes: 0 done; 2 a field is missing; 78 no template is known.
    """
    from embedcli import registry, templates
    from embedcli.encoder import checkpoint, model_files
    from embedcli.errors import UsageError

    family = registry.find_family([model], template) or registry.by_name(model)
    files = None
    if ids or family is None:
        files = model_files.find(model, fetch=False)
        family = registry.find_family(files.names, template) or family
    prompts = checkpoint.prompts(files) if files else {}
    chosen = registry.choose(model, role, task, template, family, prompts)
    given = dict(field.partition("=")[::2] for field in fields or ())
    rendered, faults = templates.render(chosen, [text], {name: [given.get(name)] for name in chosen.fields})
    if faults:
        raise UsageError(faults[0].reason, f"--field {chosen.fields[0]}=...")
    console.result(json.dumps(rendered.strings[0], ensure_ascii=False))
    if files is not None and ids:
        from embedcli import encoder
        from embedcli.config import Facts

        found = checkpoint.read(files, family.facts if family else Facts(), checkpoint.Wishes())
        console.result(json.dumps(encoder.token_ids(found, rendered)[0]))
    console.say(f"{chosen.role}, by {chosen.origin}: {chosen.string}")
    return EXIT_OK


VERBS: dict[str, Callable[..., int]] = {"list": list_, "show": show, "render": render}
