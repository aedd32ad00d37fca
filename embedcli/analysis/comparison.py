"""Two outputs of the same texts: what changes if dtype, dimension, template or model do?"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcli.analysis.similarity import Numbers, cosines, nearest, neighbours_in_common, sample
from embedcli.config import ID_COLUMNS
from embedcli.errors import DataError
from embedcli.recipe import Differences
from embedcli.store import reuse
from embedcli.store.parts import Vectors
from embedcli.store.provenance import ColumnProvenance
from embedcli.store.vector_file import VectorFile

NEIGHBOURS = 10
# Vectors of so many common rows are compared one by one, and the neighbours of so many.
_COMPARED_ROWS = 20_000
_ROWS_WITH_NEIGHBOURS = 1000
_PERCENTILES = {"p1": 1, "p5": 5, "median": 50, "p95": 95}


@dataclass(frozen=True)
class Comparison:
    """What two files have in common.

    differing: the fields of their recipes that differ, with both values. rows: in the first, the
    second, both, and those in one only. cosines: of the same row in both, over `compared` rows;
    None where the dimensions differ. overlap: how many of a row's 10 nearest among the common rows
    are the same ones, on average over `asked` rows; chance: what unrelated vectors would have.
    """

    key: str
    same_space: bool
    differing: Differences
    rows: dict[str, int]
    compared: int
    identical: int
    cosines: dict[str, float] | None
    asked: int
    overlap: float | None
    dims: tuple[int, int]
    chance: float

    def to_json(self) -> dict[str, object]:
        """Return all of it."""
        return asdict(self)


def compare(first: VectorFile, second: VectorFile, key: str | None = None) -> Comparison:
    """Compare by rendered text where the templates are the same, else by id; or by the column `key`.

    Raises DataError where no key is in both, or it is not unique where it should be.
    """
    key = key or _common_key(first, second)
    first_keys, first_rows = _read_keys(first, key)
    second_keys, second_rows = _read_keys(second, key)
    _, at_first, at_second = np.intersect1d(
        first_keys, second_keys, assume_unique=True, return_indices=True
    )
    pairs = np.stack([first_rows[at_first], second_rows[at_second]], axis=1)  # [common rows, 2]
    pairs = pairs[np.argsort(pairs[:, 0])]
    compared = sample(len(pairs), _COMPARED_ROWS)
    agreement, identical = _agreement(first, second, pairs[compared])
    sampled = sample(len(pairs), _ROWS_WITH_NEIGHBOURS)
    return Comparison(
        key="rendered text" if key == first.names.hash else key,
        same_space=first.recipe.space.id == second.recipe.space.id,
        differing=_differences(first.made, second.made),
        rows={
            "in the first": first.rows,
            "in the second": second.rows,
            "in both": len(pairs),
            "only in the first": len(first_keys) - len(pairs),
            "only in the second": len(second_keys) - len(pairs),
        },
        compared=len(compared) if agreement is not None else 0,
        identical=identical,
        cosines=agreement,
        asked=len(sampled),
        overlap=_overlap(first, second, pairs, sampled),
        dims=(first.dim, second.dim),
        chance=min(1.0, NEIGHBOURS / max(1, len(pairs) - 1)),
    )


def _common_key(first: VectorFile, second: VectorFile) -> str:
    if first.recipe.template == second.recipe.template:
        return first.names.hash
    for name in ID_COLUMNS:
        if name in first.columns and name in second.columns:
            return name
    raise DataError(
        f"{first.path} and {second.path} have different templates, so their texts' hashes differ, and no id in common",
        "--key names a column of both",
    )


def _read_keys(file: VectorFile, key: str) -> tuple[npt.NDArray[Any], Numbers]:
    """Return the distinct keys of a file, sorted, and the first row of each."""
    # The hash column is called after the vector column, which may have another name in each file.
    name = file.names.hash if key.endswith("_hash") and key not in file.columns else key
    if name not in file.columns:
        raise DataError(
            f"{file.path}: no column {name!r}", f"its columns: {', '.join(file.columns)}"
        )
    values: npt.NDArray[Any]
    if name == file.names.hash:
        values = reuse.hash_prefixes(file.hashes())
    else:
        values = np.array([str(value) for value in file.column(name)] or np.empty(0, "U1"))
    keys, rows = np.unique(values, return_index=True)
    return keys, rows.astype(np.int64)


def _differences(first: ColumnProvenance, second: ColumnProvenance) -> Differences:
    """Return all that differs in how the vectors were made: (first, second)."""
    facts = {
        "vector_type": (first.vector_type, second.vector_type),
        "dtype": (", ".join(first.dtypes), ", ".join(second.dtypes)),
        "device": (", ".join(first.devices), ", ".join(second.devices)),
        "backend": (", ".join(first.backends), ", ".join(second.backends)),
        "compiled": (first.compiled, second.compiled),
    }
    differing = {name: values for name, values in facts.items() if values[0] != values[1]}
    return {**second.recipe.differences(first.recipe), **differing}


def _agreement(
    first: VectorFile, second: VectorFile, pairs: Numbers
) -> tuple[dict[str, float] | None, int]:
    """Return how the same rows' vectors agree, and how many are the same numbers."""
    if first.dim != second.dim or not len(pairs):
        return None, 0
    first_vectors = first.vectors(pairs[:, 0].tolist())
    second_vectors = second.vectors(pairs[:, 1].tolist())
    values = cosines(first_vectors, second_vectors)
    agreement = {"least": float(values.min()), "mean": float(values.mean())}
    for name, rank in _PERCENTILES.items():
        agreement[name] = float(np.percentile(values, rank))
    return agreement, int((first_vectors == second_vectors).all(axis=1).sum())


def _overlap(
    first: VectorFile, second: VectorFile, pairs: Numbers, sampled: Numbers
) -> float | None:
    """Return the share of each asked row's nearest common rows that both files agree on."""
    if len(pairs) < 2:
        return None
    first_rankings = _neighbours(first, pairs[:, 0], sampled)
    second_rankings = _neighbours(second, pairs[:, 1], sampled)
    return neighbours_in_common(first_rankings, second_rankings, min(NEIGHBOURS, len(pairs) - 1))


def _neighbours(file: VectorFile, rows: Numbers, sampled: Numbers) -> list[list[int]]:
    """Return for each asked pair the numbers of its nearest pairs, itself left out."""
    queries = file.vectors(rows[sampled].tolist())
    _, numbers = nearest(queries, _blocks_of_rows(file, rows), NEIGHBOURS + 1)
    rankings = []
    # One neighbour more was asked for, since a vector's nearest is itself.
    for pair, ranking in zip(sampled.tolist(), numbers.tolist(), strict=True):
        rankings.append([number for number in ranking if number != pair][:NEIGHBOURS])
    return rankings


def _blocks_of_rows(file: VectorFile, rows: Numbers) -> Iterator[tuple[Numbers, Vectors]]:
    """Yield the vectors of some rows, each with its position among `rows` as its number."""
    order = np.argsort(rows)
    sorted_rows = rows[order]
    for block in file.blocks():
        # Where each row of the block would stand among `rows`, and whether it is there.
        position = np.searchsorted(sorted_rows, block.rows)
        is_wanted = sorted_rows[np.minimum(position, len(rows) - 1)] == block.rows
        yield order[position[is_wanted]], block.vectors[is_wanted]
