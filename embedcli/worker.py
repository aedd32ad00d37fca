"""A process that a run started: `python -m embedcli.worker`, which reads its errand as JSON from standard input.

Claims units until none is left; or, by an order, does one unit without the texts that kill, or tries slices of it.
"""

import json
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from embedcli import launch
from embedcli.encoder import Encoder
from embedcli.job import crew, plan_file
from embedcli.job.unit import Workshop
from embedcli.job.work import load_model, work_through
from embedcli.store.claims import Board
from embedcli.store.staging import Staging


def main(errand: dict[str, Any]) -> int:
    """Do what there is to do; gives the exit code. A failure is written down for the parent to raise.

    The staging directory is inherited as an open descriptor, which the path of the errand names.
    """
    launch.die_with_parent(errand["parent"])
    stage = Staging(Path(errand["path"]), None, errand["token"], name=Path(errand["name"]))
    board, device, order = Board(stage, f"worker-{errand['number']}"), errand["device"], errand["order"]
    try:
        board.beat(device=device)
        work = plan_file.read(stage)
        assert work is not None
        shop, units = work

        @cache
        def load() -> Encoder:
            return load_model(shop.job, _own(device))

        if order:
            _obey(order, shop, board, load)
        else:
            work_through(shop, board, units, lambda draft: load())
    except Exception as error:
        board.fail(crew.as_failure(error, board.stage))
        return 1
    return 0


def _own(device: str) -> str:
    """The device as this process sees it: of several CUDA devices it is shown its own only."""
    return device.partition(":")[0]


def _obey(order: dict[str, Any], shop: Workshop, board: Board, load: Callable[[], Encoder]) -> None:
    """Do one unit without its poison, or try slices of its missing texts, saying which before each."""
    draft, model = shop.draft(order["unit"]), load()
    poison = {int(text): reason for text, reason in order["poison"].items()}
    board.beat(stage="encoding", unit=order["unit"], rows=0, tokens=0)
    if "slices" not in order:
        failed = shop.encode(draft, model, board.advance, poison)
        board.finish(order["unit"], shop.finish(draft, failed).as_dict())
        return
    for number, (start, stop) in enumerate(order["slices"]):
        board.beat(stage=f"slice {number}")
        texts = [text for text in draft.missing[start:stop] if text not in poison]
        if texts:
            model.encode(model.prepare(draft.strings(texts)), board.advance)


if __name__ == "__main__":
    code = main(json.load(sys.stdin))
    sys.stdout.flush()
    os._exit(code)  # whatever the libraries would still tidy up, the parts are durable
