"""A worker process: `python -m embedcli.run.worker`, which reads its errand as JSON from standard
input.

Claims units until none is left; or, by an order, does one unit without its bad texts, or tries
slices of it.
"""

import json
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from embedcli.encoder import Encoder
from embedcli.processes import follow_parent
from embedcli.run import plan_file, supervisor
from embedcli.run.pipeline import load_model, run_pipeline
from embedcli.run.steps import UnitSteps
from embedcli.store.claims import ClaimBoard
from embedcli.store.staging import Staging


def main(errand: dict[str, Any]) -> int:
    """Do what there is to do; return the exit code. A failure is written down for the parent to raise.

    The staging directory is inherited as an open descriptor, which the path of the errand names.
    """
    follow_parent(errand["parent"])
    stage = Staging(Path(errand["path"]), None, errand["token"], name=Path(errand["name"]))
    board = ClaimBoard(stage, f"worker-{errand['number']}")
    device: str = errand["device"]
    try:
        board.beat(device=device)
        work = plan_file.read(stage)
        assert work is not None
        plan, units = work
        steps = UnitSteps(plan)

        @cache
        def load() -> Encoder:
            return load_model(plan.job, _device_here(device))

        if errand["order"] is None:
            run_pipeline(steps, board, units, lambda state: load())
        else:
            _carry_out(errand["order"], steps, board, load)
    except Exception as error:
        board.fail(supervisor.as_failure(error, stage))
        return 1
    return 0


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
    sys.stdout.flush()
    os._exit(code)  # whatever the libraries would still tidy up, the parts are durable
