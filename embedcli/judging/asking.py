"""Queries for an index: texts encoded to match it, or vectors that were."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcli.choosing import Choice, Wanted, choose_like
from embedcli.config import InputOptions, RunOptions
from embedcli.errors import DataError
from embedcli.judging import spaces, texts
from embedcli.judging.spaces import Index
from embedcli.store import describe


@dataclass(frozen=True)
class Queries:
    """What is looked for: n texts (empty where only vectors are known), float32 [n, dim], the other values of each.

    notes: what a careful colleague would say of how they were encoded.
    """

    texts: list[str]
    vectors: npt.NDArray[np.float32]
    rows: list[dict[str, Any]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ask:
    """How queries become vectors that compare with an index's. `role` None takes the one that the index calls for."""

    index: Index
    wanted: Wanted
    role: str | None
    running: RunOptions
    reading: InputOptions

    def choice(self) -> Choice:
        """The index's model, with the template of the queries' role. Raises ConfigurationError."""
        role = spaces.query_role(self.index, self.role)
        return choose_like(self.wanted, role, self.index.said, self.index.path)

    def texts(self, strings: Sequence[str]) -> Queries:
        """Encode texts. Raises what choosing, loading and encoding raise."""
        choice = self.choice()
        vectors = spaces.embed(choice, strings, self.running)
        return Queries(list(strings), vectors, [{} for _ in strings], choice.notes)

    def file(self, path: str) -> Queries:
        """Encode the texts of a file; take the vectors of a file that encode wrote.

        Raises ConfigurationError where those are of another space or role, and what reading raises.
        """
        if (encoded := own(path)) is not None:
            return self.vectors(encoded)
        choice = self.choice()
        read = texts.read(path, replace(self.reading, fields=choice.template.fields))
        vectors = spaces.embed(choice, read.texts, self.running, read.fields)
        return Queries(read.texts, vectors, read.rows, choice.notes)

    def vectors(self, encoded: Index) -> Queries:
        """Take the vectors of a file that encode wrote. Raises ConfigurationError where they don't compare."""
        spaces.check_comparable(self.index, encoded)
        spaces.check_roles(self.index, encoded, spaces.query_role(self.index, self.role))
        vectors, numbers = spaces.vectors_of(encoded)
        found = describe.take(encoded.path, numbers.tolist(), encoded.carried)
        rows = [found[number] for number in numbers.tolist()]
        return Queries([str(row.get(self.reading.text_column, "")) for row in rows], vectors, rows)


def own(path: str) -> Index | None:
    """The file as one of vectors, if encode wrote it."""
    if not Path(path).exists():
        return None
    try:
        describe.provenance_of(path)
    except DataError:
        return None
    return spaces.open_index(path)
