"""What a run would do, without doing it: rows, units, tokens, reuse, size, and the disk that it
would need.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from embedcli import encoder
from embedcli.config import STDOUT
from embedcli.records import Rendered
from embedcli.run import resuming
from embedcli.run.job import Job
from embedcli.run.planning import RunPlan
from embedcli.run.steps import UnitSteps
from embedcli.run.unit import UnitResult, UnitState

_SAMPLED_TEXTS = 1024
_BYTES_PER_NUMBER = {"float32": 4, "float16": 2}
# The columns of hashes, tokens and truncations.
_BYTES_BESIDE_VECTOR = 16 + 4 + 1


@dataclass
class Preview:
    """What a run would do.

    rows = unchanged + to_embed + duplicates + rejected, as far as they are known without a model.
    tokens: what it would encode, estimated from `sampled` texts. output_bytes: what the output
    would take at most, before compression; needed_bytes: what the run would write beside what is
    there; free_bytes: what the disk has; None for a stream.
    """

    output: str
    rows: int
    units: int
    unchanged: int = 0
    to_embed: int = 0
    duplicates: int = 0
    rejected: int = 0
    tokens: int = 0
    sampled: int = 0
    output_bytes: int = 0
    needed_bytes: int = 0
    free_bytes: int | None = None

    @property
    def fits(self) -> bool:
        """Is there enough disk?"""
        return self.free_bytes is None or self.needed_bytes <= self.free_bytes

    def to_json(self) -> dict[str, object]:
        """Return all of it, for `--report`."""
        return asdict(self)


def make_preview(plan: RunPlan) -> Preview:
    """Read the whole corpus and look every text up; encode nothing."""
    job = plan.job
    steps = UnitSteps(plan)
    preview = Preview(job.output.path, plan.corpus.rows, len(plan.units))
    samples: list[Rendered] = []
    finished = resuming.read(plan.stage, job.input.on_error) if plan.continues else {}
    for index in plan.units:
        if index in finished:
            _count_finished(preview, plan, finished[index])
            continue
        state = steps.read(index)
        _count(preview, job, state)
        samples.append(_sample(state, max(1, _SAMPLED_TEXTS // len(plan.units))))
    if preview.to_embed:
        lengths = encoder.count_tokens(job.spec, _concatenate(samples))
        preview.sampled = len(lengths)
        preview.tokens = round(sum(lengths) / len(lengths) * preview.to_embed)
    if job.output.path != STDOUT:
        if (
            not job.output.directory and preview.needed_bytes
        ):  # the parts, and then the whole beside them
            preview.needed_bytes += preview.output_bytes
        preview.free_bytes = shutil.disk_usage(Path(job.output.path).absolute().parent).free
    return preview


def _count(preview: Preview, job: Job, state: UnitState) -> None:
    """Add a unit to the preview."""
    bytes_per_row = job.spec.dim * _BYTES_PER_NUMBER[job.output.vector_type] + _BYTES_BESIDE_VECTOR
    size = int(state.records.table.nbytes) + bytes_per_row * len(state.hashes)
    counts = state.result.counts
    known = counts.reused + counts.resumed
    preview.output_bytes += size
    preview.needed_bytes += 0 if state.is_kept else size
    preview.unchanged += known
    preview.to_embed += len(state.missing)
    preview.rejected += len(state.result.rejects)
    preview.duplicates += len(state.hashes) - known - len(state.missing)


def _count_finished(preview: Preview, plan: RunPlan, result: UnitResult) -> None:
    """Add a unit that an interrupted run has finished."""
    preview.unchanged += result.rows
    preview.rejected += len(result.rejects)
    if result.part is not None:
        preview.output_bytes += (plan.stage.parts / result.part.file).stat().st_size


def _sample(state: UnitState, count: int) -> Rendered:
    """Return about `count` of a unit's texts that have no vector yet."""
    step = max(1, len(state.missing) // count)
    return state.rendered_texts(state.missing[::step])


def _concatenate(samples: Sequence[Rendered]) -> Rendered:
    joined = Rendered([], [], [])
    for sample in samples:
        joined.strings.extend(sample.strings)
        joined.starts.extend(sample.starts)
        joined.stops.extend(sample.stops)
    return joined
