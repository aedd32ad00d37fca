"""What an interrupted run finished of the same work: results whose parts are still sound."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from embedcli.config import OnError
from embedcli.records import stop_at_first
from embedcli.run.unit import UnitResult
from embedcli.store import digest, parts
from embedcli.store.claims import ResultLog
from embedcli.store.staging import Staging


def read(stage: Staging, on_error: OnError) -> dict[int, UnitResult]:
    """Return the finished units, with their rows counted as resumed.

    Each part's bytes are compared with its digest, on all cores. Raises DataError at a row that an
    earlier run set aside, where this one is to stop at it.
    """
    log = ResultLog(stage.results)
    log.refresh()
    results = {unit: UnitResult.from_json(log[unit]) for unit in log}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        are_sound = pool.map(lambda result: _is_sound(stage, result), results.values())
        sound = {
            unit: _as_resumed(result)
            for (unit, result), is_sound in zip(results.items(), are_sound, strict=True)
            if is_sound
        }
    for _, result in sorted(sound.items()):
        stop_at_first(result.rejects, on_error)
    return sound


def count_rows(stage: Staging) -> int:
    """Count the rows of the units that are finished."""
    log = ResultLog(stage.results)
    log.refresh()
    return sum(log[unit]["rows"] for unit in log)


def _is_sound(stage: Staging, result: UnitResult) -> bool:
    """Tell whether a result can be believed.

    Row groups of the output as it was then have no part: they are found again.
    """
    if result.part is None:
        return result.previous is None and not result.rows
    path = stage.parts / result.part.file
    try:
        is_whole = digest.is_whole(path, parts.DIGEST_MARK)
        return bool(is_whole) and digest.read(path, parts.DIGEST_MARK) == result.part.sha256
    except OSError:
        return False


def _as_resumed(result: UnitResult) -> UnitResult:
    """Return a result as that of a run which had nothing to do for it."""
    counts = replace(
        result.counts, reused=0, embedded=0, resumed=result.rows, encoded_tokens=0, padded_tokens=0
    )
    return replace(result, counts=counts, seconds={})


def write(stage: Staging, results: Mapping[int, UnitResult]) -> None:
    """Leave these results for all workers, instead of those that dead ones had left."""
    former = list(stage.results.iterdir())
    log = ResultLog(stage.results)
    worker = f"{stage.token}-resumed"
    log.begin(worker)
    for unit, result in results.items():
        log.append(worker, unit, result.to_json(), durable=False)
    for path in former:
        path.unlink()
