"""What there is to do: the corpus in units, and what lies on disk already that may be reused."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import msgspec

from embedcli import encoder, machine, sources
from embedcli.config import STDOUT, Backend, DType, RunOptions
from embedcli.errors import ConfigurationError, DataError, InputMissingError
from embedcli.recipe import Differences, describe_differences
from embedcli.records import Corpus
from embedcli.run.job import Job, ProgressListener
from embedcli.sources import presenting
from embedcli.store import manifest, parts, publish, reuse, staging
from embedcli.store.provenance import ColumnProvenance
from embedcli.store.vector_file import RowGroup, RowGroupCache, VectorFile, engine_files


@dataclass(frozen=True)
class RunPlan:
    """All that work on units needs, but the model.

    previous: the row groups of the output that is updated; earlier: parts that an interrupted run
    left for the input as it was then; candidates: the numbers of those and these, in that order, by
    the hash of their first text. signature: what the output is made from and how; continues: an
    interrupted run left finished units of just that.
    """

    job: Job
    corpus: Corpus
    stage: staging.Staging
    previous: Sequence[RowGroup] = ()
    earlier: Sequence[RowGroup] = ()
    candidates: Mapping[str, Sequence[int]] = field(default_factory=dict)
    signature: str = ""
    continues: bool = False

    @property
    def groups(self) -> Sequence[RowGroup]:
        """All row groups whose vectors can be taken."""
        return (*self.earlier, *self.previous)

    @property
    def schema(self) -> Any:
        """The schema of the output: the carried columns, then ours. Raises ConfigurationError."""
        carried = presenting.schema_of(self.corpus.schema, self.job.input)
        return parts.output_schema(carried, self.job.spec.dim, self.job.output)

    @property
    def units(self) -> list[int]:
        """The numbers of the units that hold rows; a unit may be blank lines alone."""
        return [index for index, unit in enumerate(self.corpus.units) if unit.rows]


def make_plan(
    job: Job,
    stage: staging.Staging,
    listener: ProgressListener,
    dry: bool = False,
) -> RunPlan:
    """Cut the corpus into units and find the vectors on disk; a run's `auto` goes on as they were
    made.

    A dry plan changes nothing on disk but the run's own directory. Raises ConfigurationError where
    those are of another recipe, or others are at another input, DataError where the input has too
    few rows, and what `sources.plan` raises.
    """
    job, updated = _compare_with_output(job, listener)
    job = replace(job, run=continue_as_before(job.run, _left_behind(job, stage, dry), updated))
    stage.spool.mkdir(mode=0o700)
    corpus = sources.plan(job.inputs, job.input, stage.spool)
    for note in corpus.notes:
        listener.warn(note)
    _check_rows(job, corpus)
    signature = _signature(corpus, job)
    continues = stage.belongs_to(signature)
    folders = [stage.earlier] if continues or not dry else [stage.parts, stage.earlier]
    if not dry:
        stage.adopt(signature)
    previous = _previous_groups(job, listener) if updates_output(job) else []
    earlier = [group for path in _files_in(folders) for group in _groups_if_sound(path)]
    plan = RunPlan(
        job=job,
        corpus=corpus,
        stage=stage,
        previous=previous,
        earlier=earlier,
        candidates=_candidates([*earlier, *previous]),
        signature=signature,
        continues=continues,
    )
    if job.output.directory and Path(job.output.path).is_dir() and not dry:
        _warn_of_absence(job, stage, listener)
    _ = plan.schema  # refused now rather than after the first unit
    return plan


def _warn_of_absence(job: Job, stage: staging.Staging, listener: ProgressListener) -> None:
    if not publish.can_exchange(stage.temporary):
        listener.warn(
            f"{job.output.path}: this file system can't exchange directories: while the new one takes "
            "its place, there is none for a moment"
        )


def continue_as_before(
    run: RunOptions, left: ColumnProvenance | None, updated: ColumnProvenance | None
) -> RunOptions:
    """Return a run's options, with `auto` as vectors on disk were made: their backend and dtype, if
    all are of one; compiled as a run's were. A GPU is used where there is one now.

    `left` is the provenance of what an interrupted run left, `updated` that of the output to be
    updated.
    """
    made = next((column.made for column in (left, updated) if column and column.made), ())
    wanted: dict[str, object] = {}
    backends, dtypes = {entry.backend for entry in made}, {entry.dtype for entry in made}
    on_cpu = run.device == "cpu" or not machine.may_have_cuda()
    if run.backend == "auto" and on_cpu and len(backends) == 1 and backends <= _at_hand():
        wanted["backend"] = backends.pop()
    if run.dtype == "auto" and len(dtypes) == 1 and dtypes <= {*get_args(DType)}:
        wanted["dtype"] = dtypes.pop()
    if run.compile == "auto" and left is not None and left.made:
        wanted["compile"] = "if-possible" if left.compiled else "off"
    return msgspec.convert({**asdict(run), **wanted}, RunOptions)


def _at_hand() -> set[str]:
    """Return the backends that can be asked for here."""
    return {name for name in get_args(Backend) if name != "openvino" or encoder.has_openvino()}


def _check_rows(job: Job, corpus: Corpus) -> None:
    if corpus.rows < job.output.min_rows:
        raise DataError(
            f"the input has {corpus.rows} rows, fewer than --min-rows {job.output.min_rows}"
        )
    if not corpus.rows and not job.output.allow_empty and job.output.path != STDOUT:
        raise DataError(
            "the input has no rows: nothing was changed", "--allow-empty accepts an empty input"
        )


def _left_behind(job: Job, stage: staging.Staging, dry: bool) -> ColumnProvenance | None:
    """Return the provenance of what an interrupted run left; what is of another recipe is refused
    or thrown away.
    """
    first: ColumnProvenance | None = None
    for path in _files_in([stage.parts, stage.earlier]):
        made = _made_if_sound(path)
        if made is None:
            continue
        differences = job.differences_to_reuse(made)
        if not differences:
            if made.made:
                return made
            first = made  # of a unit without vectors
            continue
        if not job.run.overwrite:
            hint = "--fresh throws away what it left; or repeat its options to continue it"
            raise _mismatch(
                f"{stage.name}: left by an interrupted run",
                "the unfinished work",
                differences,
                hint,
            )
        if not dry:
            stage.forget_parts()
        return None
    return first


def _compare_with_output(
    job: Job, listener: ProgressListener
) -> tuple[Job, ColumnProvenance | None]:
    """Compare the job with the output that is there; return the job, and the provenance of what it
    is to update.

    An output of another recipe is replaced by `--overwrite` alone, which then updates nothing.
    """
    path = Path(job.output.path)
    if job.output.path == STDOUT or not _has_output(path):
        return job, None
    try:
        made = VectorFile(str(path)).made
    except DataError as error:
        if job.run.overwrite:
            return _without_update(job), None
        raise ConfigurationError(
            f"{path}: can't be read: {error.message}", "--overwrite replaces it"
        ) from None
    differences = job.differences_to_reuse(made) if job.run.update else job.differences(made)
    if not differences:
        return job, made if job.run.update else None
    if not job.run.overwrite:
        verdict = "can't be updated" if job.run.update else "would be replaced"
        raise _mismatch(
            f"{path}: {verdict}",
            path.name,
            differences,
            "--overwrite embeds everything anew and replaces it",
        )
    differing = describe_differences(differences, path.name)
    listener.warn(f"{path}: replaced, everything is embedded anew: {differing}")
    return _without_update(job), None


def _mismatch(subject: str, where: str, differences: Differences, hint: str) -> ConfigurationError:
    return ConfigurationError(
        f"{subject}: recipe mismatch: {describe_differences(differences, where)}", hint
    )


def _without_update(job: Job) -> Job:
    return replace(job, run=replace(job.run, update=False))


def _has_output(path: Path) -> bool:
    """Tell whether there is an output of ours. An empty file, as mktemp makes it, is none."""
    if path.is_dir():
        return manifest.exists(path) or bool(engine_files(path))
    return path.is_file() and path.stat().st_size > 0


def updates_output(job: Job) -> bool:
    """Tell whether there is an output that this run is to update."""
    return job.run.update and _has_output(Path(job.output.path))


def _previous_groups(job: Job, listener: ProgressListener) -> list[RowGroup]:
    """Return the row groups of the output that is updated, if their vectors can be found by hash."""
    file = VectorFile(job.output.path)
    if file.names.hash in file.schema.names:
        return file.row_groups()
    listener.warn(f"{file.path}: has no hashes of its texts: all are embedded anew")
    return []


def _files_in(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(folder.iterdir())


def _made_if_sound(part: Path) -> ColumnProvenance | None:
    try:
        return VectorFile(str(part)).made
    except (DataError, InputMissingError, OSError):
        return None


def _groups_if_sound(part: Path) -> list[RowGroup]:
    """Return the row groups of a part in staging; none where it is damaged: its rows are done again."""
    try:
        file = VectorFile(str(part))
        if file.names.hash not in file.schema.names:
            return []
        groups = file.row_groups()
        cache = RowGroupCache()
        return [
            group for group in groups if len(cache.embedding_columns(group).tokens) == group.rows
        ]
    except (DataError, InputMissingError, OSError):
        return []


def _signature(corpus: Corpus, job: Job) -> str:
    """Return 16 hex digits over the input and how it is read: do parts belong to it? Hashes tell
    what is in them.
    """
    options = (
        replace(job.input, on_error="reject"),  # the same rows are bad, whatever becomes of them
        job.output.embedding_column,
        job.output.vector_type,
        job.output.hash,
        job.recipe.id,
    )
    schema = [(column.name, str(column.type)) for column in corpus.schema]
    return hashlib.sha256(
        repr((corpus.digest, corpus.units, schema, options)).encode()
    ).hexdigest()[:16]


def _candidates(groups: Sequence[RowGroup]) -> dict[str, list[int]]:
    """Return the numbers of row groups by the hash of their first text, in hex."""
    numbers = reuse.first_hashes(groups, RowGroupCache())
    return {first.hex(): those for first, those in numbers.items()}
