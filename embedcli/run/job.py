"""What a run is asked to do, what it says on the way, and what it reports at the end."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Protocol

import embedcli
from embedcli import encoder, machine
from embedcli.computation import Computation
from embedcli.config import InputOptions, OutputOptions, RunOptions
from embedcli.models.resolve import recipe_of
from embedcli.models.spec import ModelSpec
from embedcli.recipe import Differences, Recipe, TemplateSource
from embedcli.store.claims import Heartbeat
from embedcli.store.provenance import ColumnProvenance, OutputCounts, Provenance, merge_made
from embedcli.templates import Template

WAITING_FOR_INPUT, WAITING_FOR_OUTPUT = "waiting for input", "waiting for output"


@dataclass(frozen=True)
class Job:
    """All that one run is asked to do. `left_out`: files of the inputs' folders that embedcli wrote."""

    inputs: tuple[str, ...]
    spec: ModelSpec
    template: Template
    input: InputOptions
    output: OutputOptions
    run: RunOptions
    left_out: tuple[str, ...] = ()

    @property
    def recipe(self) -> Recipe:
        """What makes this run's vectors what they are."""
        return recipe_of(self.spec, self.template)

    def provenance(
        self, made: Sequence[Computation], counts: OutputCounts | None = None, signature: str = ""
    ) -> Provenance:
        """Return the provenance of some of this run's vectors; with counts and the run's signature,
        of the whole output.
        """
        return provenance_of(self.spec, self.template, self.output, made, counts, signature)

    def differences(self, made: ColumnProvenance) -> Differences:
        """Return how vectors on disk differ from this run's in recipe or vector type: (there, here)
        by field.
        """
        differences = self.recipe.differences(made.recipe)
        vector_types = (made.vector_type, self.output.vector_type)
        return (
            {**differences, "vector_type": vector_types}
            if vector_types[0] != vector_types[1]
            else differences
        )

    def differences_to_reuse(self, made: ColumnProvenance) -> Differences:
        """Return the same for vectors that are to stand beside this run's: their dtype counts, too,
        if one is asked.
        """
        differences = self.differences(made)
        is_same = self.run.dtype == "auto" or not made.dtypes or made.dtypes == [self.run.dtype]
        return (
            differences
            if is_same
            else {**differences, "dtype": (", ".join(made.dtypes), self.run.dtype)}
        )


def provenance_of(
    spec: ModelSpec,
    template: Template,
    output: OutputOptions,
    made: Sequence[Computation],
    counts: OutputCounts | None = None,
    signature: str = "",
) -> Provenance:
    """Return the provenance of vectors of a model and a template; of a whole output with its counts
    and the signature of the run.
    """
    column = ColumnProvenance(
        recipe=recipe_of(spec, template),
        template_source=template.source,
        vector_type=output.vector_type,
        made=merge_made(made),
    )
    return Provenance(
        columns={output.embedding_column: column},
        embedcli=embedcli.__version__,
        libraries=_versions(tuple(sorted(encoder.libraries_of(spec, made)))),
        counts=counts,
        signature=signature,
    )


@cache
def _versions(libraries: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of what is installed; OpenVINO may have gone since it computed vectors."""
    return machine.versions(libraries)


class ProgressListener(Protocol):
    """Whoever wants to know how the run goes."""

    def warn(self, message: str) -> None:
        """Something the user should look at."""

    def stage(self, name: str) -> None:
        """Tell what goes on now; `encoding` once the model is there."""

    def begin(self, rows: int) -> None:
        """Tell that the work on units starts; so many rows are to come."""

    def advance(self, rows: int, tokens: int) -> None:
        """Tell that so many more rows are done, and tokens encoded."""

    def workers(self, heartbeats: Sequence[Heartbeat]) -> None:
        """Tell what each of several workers is doing."""


@dataclass
class Counts:
    """What came in and what became of it, in rows.

    rows_out = reused + resumed + embedded: vectors taken from the output as it was, from an
    interrupted run, and new ones. duplicates: rows of rows_out whose text stood in their unit
    before. new, changed, unchanged: rows of an update by their text, told by their ids where there
    are ids; deleted: rows of the output as it was that are no more; stale: those that stay
    although their text turned bad. tokens: of
    all rows; encoded_tokens and padded_tokens: what was computed now, without and with padding.
    """

    rows_in: int = 0
    rows_out: int = 0
    rejected: int = 0
    reused: int = 0
    resumed: int = 0
    embedded: int = 0
    new: int = 0
    changed: int = 0
    deleted: int = 0
    unchanged: int = 0
    stale: int = 0
    duplicates: int = 0
    truncated: int = 0
    blank: int = 0
    prefixed: int = 0
    tokens: int = 0
    encoded_tokens: int = 0
    padded_tokens: int = 0

    def add(self, other: "Counts") -> None:
        """Add what another has counted."""
        for count in fields(self):
            setattr(self, count.name, getattr(self, count.name) + getattr(other, count.name))

    @classmethod
    def of(cls, output: OutputCounts) -> "Counts":
        """Return the counts that an output has recorded; it doesn't tell how its rows came."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: count for name, count in asdict(output).items() if name in names})

    def of_output(self, rejects_sha256: str = "") -> OutputCounts:
        """Return the counts that an output records, with the digest of its rejects."""
        return OutputCounts(
            rows_in=self.rows_in,
            rows_out=self.rows_out,
            rejected=self.rejected,
            truncated=self.truncated,
            blank=self.blank,
            tokens=self.tokens,
            rejects_sha256=rejects_sha256,
            stale=self.stale,
        )


@dataclass
class Summary:
    """What a run did, for the console and `--report`. Times are in seconds, summed over the workers.

    `inputs` are the first of `input_files` files. `rejects` is the file that lists the rejected rows,
    `first_rejects` tell why the first of them were. `launched` tells whether the processes are ranks
    of a launcher, `update` whether an earlier output was reused, `published` whether the output had
    to change. Of several commands at one output one `coordinated`; `rows_here` were done by this one.
    """

    output: str
    recipe: Recipe
    template_source: TemplateSource
    inputs: list[str] = field(default_factory=list)
    input_files: int = 1
    left_out: list[str] = field(default_factory=list)
    rejects: str = ""
    first_rejects: list[str] = field(default_factory=list)
    example: str = ""
    computations: list[Computation] = field(default_factory=list)
    workers: int = 1
    launched: bool = False
    restarts: int = 0
    update: bool = False
    published: bool = True
    coordinated: bool = True
    rows_here: int = 0
    counts: Counts = field(default_factory=Counts)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def limited_by(self) -> str:
        """The stage that the others waited for; empty where nothing was encoded."""
        if "encoding" not in self.seconds:
            return ""
        stages_before = ("reading", "rendering", "looking up", "tokenizing")
        slowest_before = max(stages_before, key=self._seconds_of)
        waiting = {
            WAITING_FOR_INPUT: slowest_before,
            "encoding": "encoding",
            WAITING_FOR_OUTPUT: "writing",
        }
        return waiting[max(waiting, key=self._seconds_of)]

    def _seconds_of(self, stage: str) -> float:
        return self.seconds.get(stage, 0.0)

    def to_json(self) -> dict[str, object]:
        """Return all of it, and the ids."""
        head = {
            "embedcli": embedcli.__version__,
            "recipe_id": self.recipe.id,
            "limited_by": self.limited_by,
        }
        return head | asdict(self)


@contextlib.contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the block's time to a stage's."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
