"""What there is to do: the corpus in units, and what lies on disk already that may be reused."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from embedcli import sources
from embedcli.config import MANY_TOKENS, STDOUT, DType, RunOptions, in_words
from embedcli.errors import ConfigurationError, DataError
from embedcli.job import provenance
from embedcli.job.summary import Job, Watcher
from embedcli.job.unit import Workshop
from embedcli.records import Corpus
from embedcli.store import describe, parts, publish, reuse, staging


def plan(job: Job, stage: staging.Staging, watcher: Watcher, dry: bool = False) -> Workshop:
    """Cut the corpus into units and find the vectors on disk; a run's `auto` goes on as they were made.

    A dry plan changes nothing on disk but the run's own directory.
    Raises ConfigurationError where those are of another recipe, and what `sources.plan` raises.
    """
    job, before = _reconcile(job, watcher)
    job = replace(job, run=as_before(job.run, _left_behind(job, stage, dry), before))
    corpus = sources.plan(job.inputs, job.input, stage.run)
    for note in corpus.notes:
        watcher.warn(note)
    if corpus.rows < job.output.min_rows:
        raise DataError(f"the input has {corpus.rows} rows, fewer than --min-rows {job.output.min_rows}")
    if not corpus.rows and not job.output.allow_empty and job.output.path != STDOUT:
        raise DataError("the input has no rows: nothing was changed", "--allow-empty accepts an empty input")
    signature = _signature(corpus, job)
    folders = [stage.earlier] if stage.belongs_to(signature) or not dry else [stage.parts, stage.earlier]
    if not dry:
        stage.adopt(signature)
    version = hashlib.sha256(f"{signature} {job.recipe.id} {job.output.vector_type}".encode()).hexdigest()[:8]
    stage = replace(stage, version=version)
    previous = _previous_blocks(Path(job.output.path)) if has_previous(job) else []
    earlier = [block for folder in folders for part in sorted(folder.iterdir()) for block in _blocks_if_sound(part)]
    return Workshop(job, corpus, stage, previous, _candidates(corpus, previous, job), earlier)


def as_before(run: RunOptions, left: Mapping[str, Any] | None, before: Mapping[str, Any] | None) -> RunOptions:
    """A run's options, with `auto` as vectors on disk were made: in their dtype; compiled as an interrupted run was.

    `left` and `before` are the provenances of what that run left, and of the output that is to be updated.
    """
    found = {one["dtype"] for one in (left, before) if one is not None} & set(get_args(DType))
    if run.dtype == "auto" and found:
        run = replace(run, dtype=sorted(found)[0])
    if left is not None and left["dtype"]:
        run = replace(run, expected_tokens=MANY_TOKENS if left.get("compiled") else 0)
    return run


def _left_behind(job: Job, stage: staging.Staging, dry: bool) -> Mapping[str, Any] | None:
    """The provenance of what an interrupted run left."""
    for part in (part for folder in (stage.parts, stage.earlier) for part in sorted(folder.iterdir())):
        said = _provenance_if_sound(part)
        if said is not None:
            differing = provenance.differences_to_reuse(said, job)
            if differing and job.run.overwrite:
                if not dry:
                    stage.forget_parts()
                return None
            if differing:
                hint = "--fresh throws away what it left; or repeat its options to continue it"
                raise provenance.refuse(f"{stage.name}: left by an interrupted run", differing, hint)
            return said
    return None


def _reconcile(job: Job, watcher: Watcher) -> tuple[Job, Mapping[str, Any] | None]:
    """Compare the job with the output that is there; give the job, and the provenance of what it is to update.

    An output of another recipe is replaced by `overwrite` alone, which then updates nothing.
    """
    path = Path(job.output.path)
    if job.output.path == STDOUT or not _has_output(path):
        return job, None
    try:
        found = describe.provenance_of(str(path))
    except DataError as error:
        if job.run.overwrite:
            return _anew(job), None
        raise ConfigurationError(f"{path}: can't be read: {error.message}", "--overwrite replaces it") from None
    compare = provenance.differences_to_reuse if job.run.update else provenance.differences
    differing = compare(found, job)
    if differing and not job.run.overwrite:
        what = "can't be updated" if job.run.update else "would be replaced"
        raise provenance.refuse(f"{path}: {what}", differing, "--overwrite embeds everything anew and replaces it")
    if differing:
        watcher.warn(f"{path}: replaced, everything is embedded anew: {in_words(differing)}")
        return _anew(job), None
    return job, found if job.run.update else None


def _anew(job: Job) -> Job:
    return replace(job, run=replace(job.run, update=False))


def _has_output(path: Path) -> bool:
    """Is there an output of ours? An empty file, as mktemp makes it, is none."""
    return (path.is_file() and path.stat().st_size > 0) or (path / parts.MANIFEST).is_file()


def has_previous(job: Job) -> bool:
    """Is there an output that this run is to update?"""
    return job.run.update and _has_output(Path(job.output.path))


def _previous_blocks(path: Path) -> list[reuse.Block]:
    """The row groups of an output; of a directory those of the parts that it lists, whatever else lies there."""
    files = [path / part["file"] for part in publish.manifest_of(path)["parts"]] if path.is_dir() else [path]
    return [block for file in files for block in reuse.blocks_of(file)]


def _provenance_if_sound(part: Path) -> dict[str, Any] | None:
    try:
        with parts.open_file(part) as file:
            return parts.provenance_of(file)
    except (DataError, OSError, ValueError, KeyError):
        return None


def _blocks_if_sound(part: Path) -> list[reuse.Block]:
    """The row groups of a part in staging; none where it is damaged: its rows are done again."""
    try:
        blocks = reuse.blocks_of(part)
        shelf = reuse.Shelf()
        return [block for block in blocks if len(shelf.own(block).tokens) == block.rows]
    except (DataError, OSError):
        return []


def _signature(corpus: Corpus, job: Job) -> str:
    """16 hex digits over the input and how it is read: do parts belong to it? What is in them, their hashes say."""
    options = (job.input.text_column, job.input.columns, job.input.fields, job.output.embedding_column)
    schema = [(field.name, str(field.type)) for field in corpus.schema]
    return hashlib.sha256(repr((corpus.digest, corpus.units, schema, options)).encode()).hexdigest()[:16]


def _candidates(corpus: Corpus, previous: Sequence[reuse.Block], job: Job) -> dict[int, int]:
    """For each unit the row group of the earlier output that would be its own if nothing changed."""
    units = [index for index, unit in enumerate(corpus.units) if unit.rows]
    if Path(job.output.path).is_dir():
        by_unit = {parts.part_index(block.path.name): number for number, block in enumerate(previous)}
        return {index: by_unit[index] for index in units if index in by_unit}
    return dict(zip(units, range(len(previous)), strict=False))
