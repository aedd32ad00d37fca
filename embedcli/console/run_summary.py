"""What a run did, or would do, in a table."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from embedcli.config import NAMED_FILES
from embedcli.console import count, duration, safe, say, size, table

if TYPE_CHECKING:
    from embedcli.run import Preview, Summary

_EXAMPLE_LENGTH = 200
# Stages that took less are not told.
_TOLD_SECONDS = 0.05
# What is encoded in less tells no speed.
_MEASURED_SECONDS = 1.0

Rows = Iterator[tuple[str, str]]


def print_summary(run: "Summary") -> None:
    """Print what was asked of a run, what came of it, and how fast. Rows without a value are left out."""
    if run.coordinated:
        rows = [*_recipe_rows(run), *_count_rows(run), *_observation_rows(run), *_speed_rows(run)]
    else:
        rows = [*_shared_rows(run), ("time", _times(run))]
    table([row for row in rows if row[1]])


def print_line(run: "Summary") -> None:
    """Print in one line, for a log, what became of a run."""
    counts = run.counts
    phrases = [f"{counts.rows_in:,} rows = {counts.rows_out:,} out + {counts.rejected:,} rejected"]
    if run.first_rejects:
        phrases.append(f"rejected rows in {run.rejects}, the first: {run.first_rejects[0]}")
    phrases.append(_changes(run) if run.update else f"{counts.embedded:,} embedded")
    if counts.resumed:
        phrases.append(f"{counts.resumed:,} finished by an interrupted run")
    if counts.truncated:
        phrases.append(f"{counts.truncated:,} truncated at {run.recipe.max_length} tokens")
    if not run.published:
        phrases.append("the output stays as it is")
    say(f"{run.output}: {'; '.join(phrases)}; {duration(run.seconds['total'])}")


def _shared_rows(run: "Summary") -> Rows:
    """Tell what this command did for an output that another one has written."""
    counts = run.counts
    yield "rows", f"{counts.rows_in:,} in = {counts.rows_out:,} out + {counts.rejected:,} rejected"
    here = f"{_rows_were(run.rows_here)} done here" if run.rows_here else "nothing was left to do"
    yield "shared", f"{here}; another process has written the output"


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


def _rows_were(number: int) -> str:
    return f"{count(number, 'row')} {_were(number)}"


def _rows_repeat(number: int) -> str:
    return f"{count(number, 'row')} repeat{'s' if number == 1 else ''}"


def _recipe_rows(run: "Summary") -> Rows:
    space, template = run.recipe.space, run.recipe.template
    version = space.revision
    if not version and space.weights:
        version = f"sha256 {space.weights[:16]}…"
    yield "model", f"{space.model}  {version}".rstrip()
    if template == "{text}":
        yield "role", f"{run.recipe.role}  (no instruction for this model; {run.template_source})"
    else:
        yield "role", f"{run.recipe.role}  ({run.template_source})"
        yield "template", template
    yield "example", safe(run.example, _EXAMPLE_LENGTH)


def listed(names: Sequence[str], count: int | None = None) -> str:
    """Name the first of `count` files, and how many more there are."""
    more = (len(names) if count is None else count) - len(names[:NAMED_FILES])
    beside = f" and {more:,} more" if more > 0 else ""
    return ", ".join(names[:NAMED_FILES]) + beside


def _count_rows(run: "Summary") -> Rows:
    counts = run.counts
    if run.input_files > 1:
        yield "inputs", f"{run.input_files:,} files: {listed(run.inputs, run.input_files)}"
    yield "rows", f"{counts.rows_in:,} in = {counts.rows_out:,} out + {counts.rejected:,} rejected"
    if run.first_rejects:
        yield "rejected", f"listed in {run.rejects}; the first: {run.first_rejects[0]}"
    if run.update:
        suffix = "" if run.published else "; the output stays as it is"
        yield "update", f"{_changes(run)}{suffix}"
    if counts.resumed:
        yield "resumed", f"{_rows_were(counts.resumed)} finished by an interrupted run"
    if counts.duplicates:
        yield (
            "duplicates",
            f"{_rows_repeat(counts.duplicates)} a text of their unit",
        )
    if run.restarts:
        yield (
            "restarts",
            f"{count(run.restarts, 'worker')} died and {_were(run.restarts)} restarted",
        )


def _changes(run: "Summary") -> str:
    counts = run.counts
    stale = f", {counts.stale:,} stale kept" if counts.stale else ""
    return (
        f"{counts.new:,} new, {counts.changed:,} changed, {counts.deleted:,} deleted, "
        f"{counts.unchanged:,} unchanged{stale}; {counts.embedded:,} embedded"
    )


def _observation_rows(run: "Summary") -> Rows:
    counts = run.counts
    if counts.truncated:
        limit = run.recipe.max_length
        yield "truncated", f"{counts.truncated:,} of {counts.rows_out:,} rows at {limit} tokens"
    else:
        yield "truncated", "none"
    if counts.blank:
        yield "blank", count(counts.blank, "text")
    if counts.prefixed:
        yield (
            "prefixed",
            f"{count(counts.prefixed, 'text')} with the template's prefix already",
        )


def _speed_rows(run: "Summary") -> Rows:
    counts = run.counts
    processes = f", {run.workers} processes" if run.workers > 1 else ""
    for computation in run.computations:
        computed = f"{computation}, {run.recipe.space.dim} dimensions{processes}"
        yield "computed", computed
        yield "because", computation.reason
    encoding = run.seconds.get("encoding", 0.0) / run.workers
    if encoding >= _MEASURED_SECONDS:
        padding = 1 - counts.encoded_tokens / max(1, counts.padded_tokens)
        speed = f"{counts.embedded / encoding:,.0f} rows/s, {counts.encoded_tokens / encoding:,.0f} tokens/s"
        yield "speed", f"{speed}, {padding:.1%} padding; limited by {run.limited_by}"
    yield "time", _times(run)


def _times(run: "Summary") -> str:
    """Tell the time of the run and of its stages."""
    stages = [
        f"{name} {duration(seconds)}"
        for name, seconds in run.seconds.items()
        if name != "total" and seconds >= _TOLD_SECONDS
    ]
    total = duration(run.seconds["total"])
    if not stages:
        return total
    summed = "; stages summed over processes" if run.workers > 1 else ""
    return f"{total} ({', '.join(stages)}{summed})"


def print_preview(run: "Preview") -> None:
    """Print what a run would do."""
    free = "" if run.free_bytes is None else f", of {size(run.free_bytes)} free"
    table(
        [
            ("output", run.output),
            ("rows", f"{run.rows:,} in {count(run.units, 'unit')}"),
            ("unchanged", f"{count(run.unchanged, 'row')} whose vector is on disk"),
            (
                "to embed",
                f"{count(run.to_embed, 'text')}, about {run.tokens:,} tokens (from {count(run.sampled, 'text')})",
            ),
            ("duplicates", f"{_rows_repeat(run.duplicates)} one of these texts"),
            ("rejected", f"{count(run.rejected, 'row')}, before a model has seen them"),
            ("size", f"output up to {size(run.output_bytes)}"),
            ("disk", f"up to {size(run.needed_bytes)} to write{free}"),
        ],
        to_stdout=True,
    )
