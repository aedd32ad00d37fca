"""A run's plan as a JSON file in the staging directory: one process writes it, workers and other
machines read it.

Nothing in it is code: types are checked as it is read. The Arrow schema stands in it as Arrow IPC.
"""

import base64
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from embedcli.config import STDIN, STDOUT
from embedcli.files import replace_content
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
    """A RunPlan as JSON holds it."""

    job: Job
    files: tuple[InputFile, ...]
    units: tuple[Unit, ...]
    schema: str
    json_columns: frozenset[str]
    previous: tuple[RowGroup, ...]
    earlier: tuple[RowGroup, ...]
    candidates: dict[str, tuple[int, ...]]
    signature: str


def save(plan: RunPlan, lookup: Lookup, folder: Path) -> None:
    """Leave what other processes need to know, in the run's directory or in this process's own; both
    are closed to other users.
    """
    _ = lookup.index  # built once, for all processes
    corpus, stage = plan.corpus, plan.stage
    content = _PlanFile(
        job=_absolute(plan.job),
        files=tuple(replace(file, path=_portable(file.path, stage)) for file in corpus.files),
        units=corpus.units,
        schema=base64.b64encode(parts.schema_as_bytes(corpus.schema)).decode(),
        json_columns=corpus.json_columns,
        previous=tuple(
            replace(group, path=Path(os.path.abspath(group.path))) for group in plan.previous
        ),
        candidates={key: tuple(numbers) for key, numbers in plan.candidates.items()},
        earlier=tuple(
            replace(group, path=Path(_portable(str(group.path), stage))) for group in plan.earlier
        ),
        signature=plan.signature,
    )
    value = msgspec.to_builtins(content, str_keys=True, enc_hook=str)
    # JSON escapes the bytes of a file name that isn't UTF-8.
    replace_content(folder / _NAME, json.dumps(value).encode())


def read(stage: staging.Staging, folder: Path) -> RunPlan | None:
    """Return the plan that was left there; None where there is none yet."""
    try:
        content = (folder / _NAME).read_bytes()
    except FileNotFoundError:
        return None
    file = msgspec.convert(json.loads(content), _PlanFile, str_keys=True, dec_hook=_decode)
    corpus = Corpus(
        files=tuple(replace(source, path=_local(source.path, stage)) for source in file.files),
        units=file.units,
        schema=parts.schema_from_bytes(base64.b64decode(file.schema)),
        json_columns=file.json_columns,
    )
    return RunPlan(
        job=file.job,
        corpus=corpus,
        stage=replace(stage, output=_output(file.job)),
        previous=file.previous,
        candidates=file.candidates,
        earlier=[
            replace(group, path=Path(_local(str(group.path), stage))) for group in file.earlier
        ],
        signature=file.signature,
    )


def _absolute(job: Job) -> Job:
    """Return a job with paths that don't depend on a process's working directory."""
    rejects = job.output.rejects
    output = replace(
        job.output,
        path=absolute(job.output.path),
        rejects=None if rejects is None else absolute(rejects),
    )
    return replace(job, inputs=tuple(map(absolute, job.inputs)), output=output)


def absolute(path: str) -> str:
    """Return a path that doesn't depend on the working directory; `-` stays."""
    return path if path in (STDIN, STDOUT) else os.path.abspath(path)


def _output(job: Job) -> Path | None:
    return None if job.output.path == STDOUT else Path(job.output.path)


def _portable(path: str, stage: staging.Staging) -> str:
    if path.startswith(f"{stage.path}/"):
        return path.replace(str(stage.path), _STAGING, 1)
    return os.path.abspath(path)


def _local(path: str, stage: staging.Staging) -> str:
    return path.replace(_STAGING, str(stage.path), 1) if path.startswith(_STAGING) else path


def _decode(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(f"{kind} in a plan")
