"""A run's plan as a JSON file in the staging directory: one process writes it, workers and other
ranks read it.

Nothing in it is code: types are checked as it is read. The Arrow schema stands in it as Arrow IPC.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from embedcli.config import STDOUT
from embedcli.records import Corpus, InputFile, Unit
from embedcli.run.job import Job
from embedcli.run.lookup import Lookup
from embedcli.run.planning import RunPlan
from embedcli.store import parts, staging
from embedcli.store.vector_file import RowGroup

_NAME = "plan.json"
# Stands for the staging directory, which has another path in each process. No path can hold a NUL.
_STAGING = "\0staging"


@dataclass(frozen=True)
class _PlanFile:
    """A RunPlan as JSON holds it, and the units that are to be done."""

    job: Job
    files: tuple[InputFile, ...]
    units: tuple[Unit, ...]
    schema: str
    json_columns: frozenset[str]
    previous: tuple[RowGroup, ...]
    earlier: tuple[RowGroup, ...]
    candidates: dict[str, tuple[int, ...]]
    workers: int
    todo: tuple[int, ...]


def save(plan: RunPlan, lookup: Lookup, units: Sequence[int]) -> None:
    """Leave what other processes need to know in the run's directory, which is closed to other users."""
    _ = lookup.index  # built once, for all processes
    corpus, stage = plan.corpus, plan.stage
    content = _PlanFile(
        job=plan.job,
        files=tuple(replace(file, path=_portable(file.path, stage)) for file in corpus.files),
        units=corpus.units,
        schema=base64.b64encode(parts.schema_as_bytes(corpus.schema)).decode(),
        json_columns=corpus.json_columns,
        previous=tuple(plan.previous),
        candidates={key: tuple(numbers) for key, numbers in plan.candidates.items()},
        earlier=tuple(
            replace(group, path=Path(_portable(str(group.path), stage))) for group in plan.earlier
        ),
        workers=plan.workers,
        todo=tuple(units),
    )
    value = msgspec.to_builtins(content, str_keys=True, enc_hook=str)
    unfinished = stage.unfinished()
    unfinished.write_text(json.dumps(value))  # escapes the bytes of a file name that isn't UTF-8
    unfinished.rename(stage.run / _NAME)


def read(stage: staging.Staging, job: Job | None = None) -> tuple[RunPlan, list[int]] | None:
    """Give what was left there, and the units to be done; None where nothing is yet.

    A rank has a job of its own, with its machine's paths; how to run is the plan's affair.
    """
    try:
        content = (stage.run / _NAME).read_bytes()
    except FileNotFoundError:
        return None
    file = msgspec.convert(json.loads(content), _PlanFile, str_keys=True, dec_hook=_decode)
    job = file.job if job is None else replace(job, run=file.job.run)
    corpus = Corpus(
        files=tuple(replace(source, path=_local(source.path, stage)) for source in file.files),
        units=file.units,
        schema=parts.schema_from_bytes(base64.b64decode(file.schema)),
        json_columns=file.json_columns,
    )
    plan = RunPlan(
        job=job,
        corpus=corpus,
        stage=replace(stage, output=_output(job)),
        previous=file.previous,
        candidates=file.candidates,
        earlier=[
            replace(group, path=Path(_local(str(group.path), stage))) for group in file.earlier
        ],
        workers=file.workers,
    )
    return plan, list(file.todo)


def _output(job: Job) -> Path | None:
    return None if job.output.path == STDOUT else Path(job.output.path)


def _portable(path: str, stage: staging.Staging) -> str:
    return path.replace(str(stage.path), _STAGING, 1) if path.startswith(f"{stage.path}/") else path


def _local(path: str, stage: staging.Staging) -> str:
    return path.replace(_STAGING, str(stage.path), 1) if path.startswith(_STAGING) else path


def _decode(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(f"{kind} in a plan")
