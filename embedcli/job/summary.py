"""What a run is asked to do, what it says on the way, and what it reports at the end."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

import embedcli
from embedcli.config import InputOptions, OutputOptions, Recipe, RunOptions
from embedcli.encoder.checkpoint import Checkpoint
from embedcli.store.claims import Beat
from embedcli.templates import Template

WAITING_FOR_INPUT, WAITING_FOR_OUTPUT = "waiting for input", "waiting for output"


@dataclass(frozen=True)
class Job:
    """All that one run is asked to do."""

    inputs: tuple[str, ...]
    checkpoint: Checkpoint
    template: Template
    input: InputOptions
    output: OutputOptions
    run: RunOptions

    @property
    def recipe(self) -> Recipe:
        """What makes this run's vectors what they are."""
        return Recipe(
            space=self.checkpoint.space,
            role=self.template.role,
            template=self.template.string,
            max_length=self.checkpoint.max_length,
        )


class Watcher(Protocol):
    """Whoever wants to know how the run goes."""

    def warn(self, message: str) -> None:
        """Something the user should look at."""

    def stage(self, name: str) -> None:
        """What goes on now; `encoding` once the model is there."""

    def begin(self, rows: int) -> None:
        """The work on units starts; so many rows are to come."""

    def advance(self, rows: int, tokens: int) -> None:
        """So many more rows are done, and tokens encoded."""

    def workers(self, beats: Sequence[Beat]) -> None:
        """What each of several workers is at."""


@dataclass
class Counts:
    """What came in and what became of it, in rows.

    rows_out = reused + resumed + embedded: vectors taken from the output as it was, from an interrupted run, and new
    ones. duplicates: rows of rows_out whose text stood in their unit before. removed: rows of the output as it was
    whose text is not among the new ones. tokens: of all rows; encoded_tokens and padded_tokens: what was computed now,
    without and with padding.
    """

    rows_in: int = 0
    rows_out: int = 0
    rejected: int = 0
    reused: int = 0
    resumed: int = 0
    embedded: int = 0
    removed: int = 0
    duplicates: int = 0
    truncated: int = 0
    blank: int = 0
    prefixed: int = 0
    tokens: int = 0
    encoded_tokens: int = 0
    padded_tokens: int = 0

    def add(self, other: "Counts") -> None:
        """Count what another has counted, too."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


@dataclass
class Summary:
    """What a run did, for the closing words and `--report`. Times are in seconds, summed over the workers.

    `launched` tells whether the processes are ranks of a launcher, `update` whether an earlier output was reused,
    `published` whether the output had to change.
    """

    output: str
    recipe: Recipe
    template_origin: str
    example: str = ""
    device: str = ""
    dtype: str = ""
    compiled: bool = False
    workers: int = 1
    launched: bool = False
    restarts: int = 0
    update: bool = False
    published: bool = True
    counts: Counts = field(default_factory=Counts)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def limited_by(self) -> str:
        """The stage that the others waited for; empty where nothing was encoded."""
        if "encoding" not in self.seconds:
            return ""
        before = max(("reading", "rendering", "looking up", "tokenizing"), key=lambda name: self.seconds.get(name, 0.0))
        held = {WAITING_FOR_INPUT: before, "encoding": "encoding", WAITING_FOR_OUTPUT: "writing"}
        return held[max(held, key=lambda name: self.seconds.get(name, 0.0))]

    def as_dict(self) -> dict[str, Any]:
        """All of it, and the ids."""
        known = {"embedcli": embedcli.__version__, "recipe_id": self.recipe.id, "limited_by": self.limited_by}
        return known | asdict(self)


@contextlib.contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the block's time to a stage's."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
