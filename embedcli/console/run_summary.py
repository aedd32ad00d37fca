"""What a run did, or would do, in a table."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from embedcli.console import duration, safe, size, table

if TYPE_CHECKING:
    from embedcli.run import Preview, Summary

_SHOWN = 200


def print_summary(run: "Summary") -> None:
    """Print what was asked of a run, what came of it, how fast, and where it is."""
    table([row for row in _summary_rows(run) if row[1]])


def _summary_rows(run: "Summary") -> Iterator[tuple[str, str]]:
    counts, space, seconds = run.counts, run.recipe.space, run.seconds
    version = space.revision or (f"sha256 {space.weights[:16]}…" if space.weights else "")
    yield "model", f"{space.model}  {version}".rstrip()
    plain = run.recipe.template == "{text}"
    yield "role", f"{run.recipe.role}  ({'no instruction for this model; ' if plain else ''}{run.template_source})"
    yield "template", "" if plain else run.recipe.template
    yield "example", safe(run.example, _SHOWN)
    yield "rows", f"{counts.rows_in:,} in = {counts.rows_out:,} out + {counts.rejected:,} rejected"
    if run.update:
        changes = (counts.reused + counts.resumed, counts.embedded, counts.removed, counts.rejected)
        names = ("unchanged", "embedded", "removed", "rejected")
        told = ", ".join(f"{count:,} {name}" for count, name in zip(changes, names, strict=True))
        yield "update", f"{told}{'' if run.published else '; the output stays as it is'}"
    yield "resumed", f"{counts.resumed:,} rows were finished by an interrupted run" if counts.resumed else ""
    yield "duplicates", f"{counts.duplicates:,} rows repeat a text of their unit" if counts.duplicates else ""
    yield "restarts", f"{run.restarts:,} workers died and were restarted" if run.restarts else ""
    cut = f"{counts.truncated:,} of {counts.rows_out:,} rows at {run.recipe.max_length} tokens"
    yield "truncated", cut if counts.truncated else "none"
    yield "blank", f"{counts.blank:,} texts" if counts.blank else ""
    yield "prefixed", f"{counts.prefixed:,} texts start with the template's prefix already" if counts.prefixed else ""
    if run.device:
        several = f", {run.workers} processes" if run.workers > 1 else ""
        dtype = f"{run.dtype}, compiled" if run.compiled else run.dtype
        yield "computed", f"{run.device}, {dtype}, {space.dim} dimensions{several}"
    if encoding := seconds.get("encoding"):
        encoding = max(1e-9, encoding / run.workers)
        padding = 1 - counts.encoded_tokens / max(1, counts.padded_tokens)
        speed = f"{counts.embedded / encoding:,.0f} rows/s, {counts.encoded_tokens / encoding:,.0f} tokens/s"
        yield "speed", f"{speed}, {padding:.1%} padding; limited by {run.limited_by}"
    stages = ", ".join(
        f"{name} {duration(seconds[name])}" for name in seconds if name != "total" and seconds[name] >= 0.05
    )
    stages += "; stages summed over processes" if stages and run.workers > 1 else ""
    yield "time", f"{duration(seconds['total'])} ({stages})" if stages else duration(seconds["total"])


def print_preview(run: "Preview") -> None:
    """Print what a run would do."""
    disk = "" if run.free_bytes is None else f", of {size(run.free_bytes)} free"
    table(
        [
            ("output", run.output),
            ("rows", f"{run.rows:,} in {run.units:,} units"),
            ("unchanged", f"{run.unchanged:,} rows whose vector is on disk"),
            ("to embed", f"{run.to_embed:,} texts, about {run.tokens:,} tokens (by {run.sampled:,} texts)"),
            ("duplicates", f"{run.duplicates:,} rows repeat one of these texts"),
            ("rejected", f"{run.rejected:,} rows, before a model has seen them"),
            ("size", f"output up to {size(run.output_bytes)}"),
            ("disk", f"up to {size(run.needed_bytes)} to write{disk}"),
        ],
        to_stdout=True,
    )
