"""What lies on disk of a unit: all of it as it stands, or vectors of some of its texts."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from embedcli.computation import Computation
from embedcli.errors import DataError
from embedcli.run.planning import RunPlan
from embedcli.run.unit import UnitState
from embedcli.store import digest, parts, reuse
from embedcli.store.parts import EmbeddingColumns
from embedcli.store.provenance import merge_made
from embedcli.store.vector_file import RowGroup, RowGroupCache

# Of row groups that begin with the same text.
_MOST_CANDIDATES = 8


class Lookup:
    """Finds vectors in the staging directory and in the output as it was."""

    def __init__(self, plan: RunPlan) -> None:
        self._plan = plan
        self._cache = RowGroupCache()
        self._made_by_path: dict[Path, Sequence[Computation]] = {}

    @cached_property
    def index(self) -> reuse.VectorIndex | None:
        """Index all vectors that can be looked up; None where there are none.

        Built on disk by whoever needs it first.
        """
        groups = self._plan.groups
        if not groups:
            return None
        run = self._plan.stage.run
        if not reuse.has_index(run):
            reuse.build_index(groups, run)
        return reuse.VectorIndex(groups, self._plan.job.spec.dim, run, self._cache)

    def fill_in(self, state: UnitState) -> UnitState:
        """Find what can stay as it is, or look every text up.

        Raises DataError where the output is damaged.
        """
        if self._is_kept(state):
            return state
        self._look_up(state)
        return state

    def _is_kept(self, state: UnitState) -> bool:
        """Leave a unit as it stands, where its part or row group holds the same texts and the same
        carried values.
        """
        return any(self._keep_group(state, number) for number in self._candidates(state))

    def _candidates(self, state: UnitState) -> Sequence[int]:
        """Return the row groups that begin with the unit's first text, as many as are worth a look.

        The one of the unit's own number comes first: many may begin so where a text is repeated.
        """
        if not len(state.hashes):
            return ()
        numbers = self._plan.candidates.get(state.hashes[0].tobytes().hex(), ())
        return sorted(numbers, key=lambda number: abs(number - state.index))[:_MOST_CANDIDATES]

    def _keep_group(self, state: UnitState, number: int) -> bool:
        """Keep a part of an interrupted run, or a row group of the earlier output, as the unit's."""
        group = self._plan.groups[number]
        if number < len(self._plan.earlier):
            if not self._is_whole(group, state):
                return False
            state.kept_part = group.path
            self._keep(state, group, "resumed")
            return True
        if not self._cache.holds(group, state.records.table, self._plan.schema, state.hashes):
            return False
        state.result.previous = number - len(self._plan.earlier)
        self._keep(state, group, "reused")
        return True

    def _is_whole(self, group: RowGroup, state: UnitState) -> bool:
        """Tell whether a part in staging holds the unit, with every byte sound."""
        try:
            if not digest.is_whole(group.path, parts.DIGEST_MARK):
                return False
            holds_same = self._cache.holds(
                group, state.records.table, self._plan.schema, state.hashes
            )
            return holds_same and len(self._cache.embedding_columns(group).tokens) == group.rows
        except DataError:
            return False

    def _keep(self, state: UnitState, group: RowGroup, count: Literal["resumed", "reused"]) -> None:
        counts = state.result.counts
        state.result.rows = group.rows
        setattr(counts, count, group.rows)
        if group.rows:
            tokens, truncated = self._cache.lengths(group)
            counts.tokens = int(tokens.sum())
            counts.truncated = int(truncated.sum())
            state.result.made = list(self._made(group.path))
        state.missing = state.missing[:0]
        state.is_kept = True

    def _look_up(self, state: UnitState) -> None:
        """Find each text's vector by its hash."""
        dim, hashes = self._plan.job.spec.dim, state.hashes[state.first_rows]
        if self.index is None or not len(hashes):
            state.columns = EmbeddingColumns.zeros(hashes, dim)
            return
        state.columns, source = self.index.take(hashes, dim)
        state.missing = np.flatnonzero(source < 0)
        # Row groups are numbered from the earlier ones on.
        source_by_row = source[state.text_numbers]
        earlier = len(self._plan.earlier)
        counts = state.result.counts
        counts.resumed = int(((source_by_row >= 0) & (source_by_row < earlier)).sum())
        counts.reused = int((source_by_row >= earlier).sum())
        paths = {self.index.groups[number].path for number in np.unique(source[source >= 0])}
        made = merge_made(entry for path in paths for entry in self._made(path))
        state.result.made = list(made)

    def _made(self, path: Path) -> Sequence[Computation]:
        """Return how a file's vectors were computed. Asked again and again, for many files."""
        if path not in self._made_by_path:
            self._made_by_path[path] = self._cache.made(path).made
        return self._made_by_path[path]
