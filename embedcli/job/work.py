"""What each process does: claim a unit, encode it, leave its part, until there is none left to claim."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from embedcli import encoder, templates
from embedcli.errors import ConfigurationError, DeviceError
from embedcli.job.draft import Draft
from embedcli.job.pipeline import Line
from embedcli.job.summary import Job
from embedcli.job.unit import Workshop
from embedcli.store.claims import Board, Pulse

# Gives the model for a draft, the first that needs one; None where a crew should take over.
Load = Callable[[Draft], encoder.Encoder | None]


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

    While a unit is encoded here, the next is read and tokenized and the one before is written, in their own threads.
    What is begun and not finished is given back, so that only a process that dies leaves a mark on its unit.
    """
    line = Line(shop, board, units)
    try:
        through = _work_through(line, load, on_draft, on_done)
    except BaseException:
        line.give_back()
        raise
    if through:
        board.beat(stage="done", unit=None, rows=0, tokens=0)
    else:
        line.give_back()
    return through


def _work_through(line: Line, load: Load, on_draft: Callable[[Draft], None], on_done: Callable[[], None]) -> bool:
    shop, board = line.shop, line.board
    with ThreadPoolExecutor(1, "reading") as line.reader, ThreadPoolExecutor(1, "writing") as line.writer:
        while (draft := line.next()) is not None:
            on_draft(draft)
            if len(draft.missing) and line.model is None:
                board.beat(stage="loading")
                line.model = load(draft)
                if line.model is None:
                    return False
            board.beat(stage="encoding", **({"device": line.model.device} if line.model else {}))
            failed = shop.encode(draft, line.model, board.advance) if line.model else {}
            board.advance(shop.corpus.units[draft.index].rows - len(draft.missing), 0)
            line.write(draft, failed)
            on_done()
        line.wait_for_writing()
        on_done()
    return True


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
