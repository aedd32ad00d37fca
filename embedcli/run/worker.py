"""A worker process: `python -m embedcli.run.worker`, which reads its errand as JSON from standard
input.

Claims units until none is left; or, by an order, does one unit without its bad texts, or tries
slices of it.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from embedcli.encoder import Encoder
from embedcli.errors import EXIT_INTERNAL, EXIT_OK, DeviceError, as_foreseen
from embedcli.processes import follow_parent
from embedcli.run import plan_file, supervisor
from embedcli.run.loading import load_model
from embedcli.run.pipeline import run_pipeline
from embedcli.run.planning import RunPlan
from embedcli.run.steps import UnitSteps
from embedcli.store import claims
from embedcli.store.claims import ClaimBoard, taking_part
from embedcli.store.staging import Staging


def main(errand: dict[str, Any]) -> int:
    """Do what there is to do; return the exit code. A failure is written down for the parent to raise.

    The staging directory is inherited as an open descriptor, which the path of the errand names.
    """
    follow_parent(errand["parent"])
    stage = Staging(Path(errand["path"]), None, errand["worker"], name=Path(errand["name"]))
    try:
        _take_part(stage, errand)
    except Exception as error:
        return _end_with(error, stage)
    return EXIT_OK


def _take_part(stage: Staging, errand: dict[str, Any]) -> None:
    worker, device = errand["worker"], errand["device"]
    stage.temporary.mkdir(mode=0o700)
    plan = plan_file.read(stage, stage.path / errand["plan"])
    assert plan is not None
    limit = plan.job.run.watchdog
    with taking_part(ClaimBoard(plan.stage, worker, plan.units, limit, errand["called"])) as board:
        board.beat(device=device)
        _work(plan, board, device, errand["order"])


def _end_with(error: Exception, stage: Staging) -> int:
    """Say what went wrong; return the exit code. A device that fails costs this process, not the run."""
    failure = supervisor.as_failure(error, stage)
    foreseen = as_foreseen(error)
    with contextlib.suppress(OSError):  # on a full disk the exit code must do
        sys.stderr.write(f"{failure['message']}\n")  # its log
        if not isinstance(foreseen, DeviceError):
            claims.fail(stage, stage.token, failure)
    return foreseen.exit_code if foreseen else EXIT_INTERNAL


def _work(plan: RunPlan, board: ClaimBoard, device: str, order: dict[str, Any] | None) -> None:
    steps = UnitSteps(plan)

    @cache
    def load() -> Encoder:
        return load_model(plan.job, plan.stage, _device_here(device))

    if order is None:
        run_pipeline(steps, board, lambda state: load())
    else:
        _carry_out(order, steps, board, load)


def _device_here(device: str) -> str:
    """Return the device as this process sees it: of several CUDA devices it is shown its own only."""
    return device.partition(":")[0]


def _carry_out(
    order: dict[str, Any], steps: UnitSteps, board: ClaimBoard, load: Callable[[], Encoder]
) -> None:
    """Do one unit without its bad texts, or try slices of its missing texts, saying which before each."""
    index = order["unit"]
    state = steps.read(index)
    model = load()
    bad_texts = {int(number): reason for number, reason in order["bad_texts"].items()}
    board.beat(stage="encoding", unit=index, rows=0, tokens=0)
    if order["slices"] is None:
        failed = steps.encode(state, model, board.advance, bad_texts)
        board.finish(index, steps.finish(state, failed).to_json())
        return
    for number, (start, stop) in enumerate(order["slices"]):
        board.beat(stage=f"slice {number}")
        texts = [text for text in state.missing[start:stop] if text not in bad_texts]
        if texts:
            model.encode(model.prepare(state.rendered_texts(texts)), board.advance)


if __name__ == "__main__":
    code = main(json.load(sys.stdin))
    os._exit(code)  # whatever the libraries would still tidy up, the parts are durable
