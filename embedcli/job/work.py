"""What each process does: claim a unit, encode it, leave its part, until there is none left to claim."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from embedcli import encoder, templates
from embedcli.errors import ConfigurationError, DeviceError
from embedcli.job.draft import Draft
from embedcli.job.summary import Job
from embedcli.job.unit import Workshop
from embedcli.store.claims import Board, Pulse

# Gives the model, or None where a crew should take over.
Load = Callable[[], encoder.Encoder | None]


def load_model(job: Job, device: str) -> encoder.Encoder:
    """Load the model, and see that the template leaves room for a text. Raises ConfigurationError, DeviceError."""
    model = encoder.load(job.checkpoint, replace(job.run, device=device))
    bare, _ = templates.render(job.template, [""], {name: [""] for name in job.template.fields})
    taken = model.count_tokens(bare.strings)[0]
    if taken >= job.checkpoint.max_length:
        limit = job.checkpoint.max_length
        raise ConfigurationError(f"the template takes all {limit} tokens of the max length", "raise --max-length")
    return model


def work_through(
    shop: Workshop,
    board: Board,
    units: Sequence[int],
    load: Load,
    on_draft: Callable[[Draft], None] = lambda draft: None,
    on_done: Callable[[], None] = lambda: None,
) -> bool:
    """Do all units that nobody has claimed. False where a crew should go on.

    What is begun and not finished is given back, so that only a process that dies leaves a mark on its unit.
    """
    model: encoder.Encoder | None = None
    for index in units:
        if board.is_done(index) or not board.claim(index):
            continue
        try:
            board.beat(stage="reading", unit=index, rows=0, of=shop.corpus.units[index].rows, tokens=0)
            draft = shop.draft(index)
            on_draft(draft)
            if len(draft.missing) and model is None:
                board.beat(stage="loading")
                model = load()
                if model is None:
                    _give_back(board, index)
                    return False
            board.beat(stage="encoding", **({"device": model.device} if model else {}))
            result = shop.finish(draft, model, board.advance)
            board.finish(index, result.as_dict())
        except BaseException:
            _give_back(board, index)
            raise
        on_done()
    board.beat(stage="done", unit=None, rows=0, tokens=0)
    return True


def _give_back(board: Board, index: int) -> None:
    with contextlib.suppress(OSError):  # a full disk must not hide the error that brought us here
        board.release(index)
        board.forget_attempt(index)


@contextlib.contextmanager
def watchdog(board: Board, seconds: float, warn: Callable[[str], None]) -> Iterator[None]:
    """End this process where it shows no sign of life for so long: nobody else watches it."""
    ended = threading.Event()

    def watch() -> None:
        pulse = Pulse()
        while not ended.wait(min(1.0, seconds / 4)):
            if pulse.is_still(board.moves, seconds):
                warn(f"no progress for {seconds:g} s: given up; the same command continues (--watchdog sets the time)")
                os._exit(DeviceError.exit_code)

    if seconds > 0:
        threading.Thread(target=watch, name="watchdog", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
