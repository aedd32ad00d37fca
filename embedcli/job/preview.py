"""What a run would do, without doing it: rows, units, tokens, reuse, size, and the disk that it would need."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embedcli import encoder
from embedcli.config import STDOUT
from embedcli.job.draft import Draft
from embedcli.job.summary import Job
from embedcli.job.unit import Workshop
from embedcli.records import Rendered

_SAMPLE = 1024
_NUMBER_BYTES = {"float32": 4, "float16": 2}


@dataclass
class Preview:
    """What a run would do.

    rows = unchanged + to_embed + duplicates + rejected, as far as they are known without a model. tokens: what it would
    encode, estimated from `sampled` texts. output_bytes: what the output would take at most, before compression;
    needed_bytes: what the run would write beside what is there; free_bytes: what the disk has; None for a stream.
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

    def as_dict(self) -> dict[str, Any]:
        """All of it, for `--report`."""
        return asdict(self)


def preview(shop: Workshop) -> Preview:
    """Read the whole corpus and look every text up; encode nothing."""
    job, units = shop.job, [index for index, unit in enumerate(shop.corpus.units) if unit.rows]
    found = Preview(job.output.path, shop.corpus.rows, len(units))
    samples: list[Rendered] = []
    for index in units:
        draft = shop.draft(index)
        size = _bytes(job, draft)
        found.output_bytes += size
        found.needed_bytes += 0 if draft.kept else size
        counts = draft.result.counts
        reused = counts.reused + counts.resumed
        found.unchanged += reused
        found.to_embed += len(draft.missing)
        found.rejected += len(draft.result.rejects)
        found.duplicates += len(draft.hashes) - reused - len(draft.missing)
        samples.append(_sample(draft, max(1, _SAMPLE // len(units))))
    if found.to_embed:
        lengths = encoder.count_tokens(job.checkpoint, _joined(samples))
        found.sampled, found.tokens = len(lengths), round(sum(lengths) / len(lengths) * found.to_embed)
    if job.output.path != STDOUT:
        if not job.output.directory and found.needed_bytes:  # the parts, and then the whole beside them
            found.needed_bytes += found.output_bytes
        found.free_bytes = shutil.disk_usage(Path(job.output.path).resolve().parent).free
    return found


def _joined(samples: list[Rendered]) -> Rendered:
    return Rendered(
        strings=[string for one in samples for string in one.strings],
        starts=[start for one in samples for start in one.starts],
        stops=[stop for one in samples for stop in one.stops],
    )


def _bytes(job: Job, draft: Draft) -> int:
    own = job.checkpoint.dim * _NUMBER_BYTES[job.output.vector_type] + 16 + 4 + 1
    return int(draft.records.table.nbytes) + own * len(draft.hashes)


def _sample(draft: Draft, wanted: int) -> Rendered:
    """Some of a unit's texts that have no vector yet."""
    return draft.strings(draft.missing[:: max(1, len(draft.missing) // wanted)])
