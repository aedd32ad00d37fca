"""A process's units on their way: the next is read and tokenized and the last is written while one is encoded."""

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from embedcli import encoder
from embedcli.job.draft import Draft
from embedcli.job.summary import WAITING_FOR_INPUT, WAITING_FOR_OUTPUT, timed
from embedcli.job.unit import Workshop
from embedcli.store.claims import Board


@dataclass
class Line:
    """The units that this process has claimed; `reader` and `writer` have a thread each, `model` once one is wanted.

    A unit is the next draft, then encoded by the caller, then given to `write`.
    """

    shop: Workshop
    board: Board
    units: Sequence[int]
    model: encoder.Encoder | None = None
    reader: ThreadPoolExecutor = field(init=False)
    writer: ThreadPoolExecutor = field(init=False)
    _untried: Iterator[int] = field(init=False)
    _claimed: list[int] = field(default_factory=list)
    _begun: set[int] = field(default_factory=set)
    _reading: "deque[tuple[int, Future[Draft]]]" = field(default_factory=deque)
    _writing: "Future[None] | None" = None
    _waited: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._untried = iter(self.units)

    def next(self) -> Draft | None:
        """The next unit's draft, once it is there; None where no unit is left."""
        if not self._reading:
            self._read_ahead()
        if not self._reading:
            return None
        index, reading = self._reading.popleft()
        self.board.begin(index)
        self._begun.add(index)
        self.board.beat(stage="reading", unit=index, rows=0, of=self.shop.corpus.units[index].rows, tokens=0)
        with timed(self._waited, WAITING_FOR_INPUT):
            draft = reading.result()
        if self._may_read_ahead():
            self._read_ahead()
        return draft

    def _may_read_ahead(self) -> bool:
        """The last units are left to those who have none."""
        return len(self.units) - self.board.claims() >= self.shop.workers

    def _read_ahead(self) -> None:
        free = (index for index in self._untried if not self.board.is_done(index) and self.board.claim(index))
        if (index := next(free, None)) is not None:
            self._claimed.append(index)
            self._reading.append((index, self.reader.submit(self._read, index)))

    def _read(self, index: int) -> Draft:
        draft = self.shop.draft(index)
        if self.model is not None:
            self.shop.prepare(draft, self.model)
        return draft

    def write(self, draft: Draft, failed: Mapping[int, str]) -> None:
        """Have a unit written, once the one before is."""
        self.wait_for_writing()
        draft.result.seconds.update(self._waited)
        self._waited.clear()
        self._writing = self.writer.submit(self._write, draft, failed)

    def _write(self, draft: Draft, failed: Mapping[int, str]) -> None:
        self.board.finish(draft.index, self.shop.finish(draft, failed).as_dict())

    def wait_for_writing(self) -> None:
        """Wait until the unit that is being written is done. Raises what writing it raised."""
        if self._writing is not None:
            with timed(self._waited, WAITING_FOR_OUTPUT):
                self._writing.result()

    def give_back(self) -> None:
        """Free what this process has claimed and not finished."""
        for index in self._claimed:
            with contextlib.suppress(OSError):  # a full disk must not hide the error that brought us here
                if not self.board.is_done(index):
                    self.board.release(index)
                    if index in self._begun:
                        self.board.forget_attempt(index)
