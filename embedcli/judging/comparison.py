"""Two outputs of the same texts: what changes if dtype, dimension, template or model do?"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcli.config import differing
from embedcli.errors import DataError
from embedcli.judging import spaces
from embedcli.judging.nearest import Floats, nearest
from embedcli.judging.spaces import Index
from embedcli.store import describe, reuse

NEIGHBOURS = 10
# Vectors of so many common rows are compared one by one, and the neighbours of so many.
_ROWS, _ASKED = 20_000, 1000
_PERCENTILES = {"p1": 1, "p5": 5, "median": 50, "p95": 95}


@dataclass(frozen=True)
class Comparison:
    """What two files have in common.

    differing: the fields of their recipes that differ, with both values. rows: in the first, the second, both, and
    those in one only. cosines: of the same row in both, over `compared` rows; None where the dimensions differ.
    overlap: how many of a row's 10 nearest among the common rows are the same ones, on average over `asked` rows.
    """

    key: str
    same_space: bool
    differing: dict[str, tuple[Any, Any]]
    rows: dict[str, int]
    compared: int
    identical: int
    cosines: dict[str, float] | None
    asked: int
    overlap: float | None

    def as_dict(self) -> dict[str, Any]:
        """All of it, for `--json`."""
        return asdict(self)


def compare(one: Index, other: Index, key: str | None = None) -> Comparison:
    """Compare by rendered text where the templates are the same, else by id; or by the column `key`.

    Raises DataError where no key is in both, or it is not unique where it should be.
    """
    key = key or _key(one, other)
    first, second = _Keyed.read(one, key), _Keyed.read(other, key)
    _, at, there = np.intersect1d(first.keys, second.keys, assume_unique=True, return_indices=True)
    order = np.argsort(first.rows[at])
    pairs = np.stack([first.rows[at][order], second.rows[there][order]], axis=1)
    chosen = spaces.sample(len(pairs), _ROWS)
    cosines, identical = _cosines(one, other, pairs[chosen])
    asked = spaces.sample(len(pairs), _ASKED)
    return Comparison(
        key="rendered text" if key == _hash_column(one) else key,
        same_space=one.said["space_id"] == other.said["space_id"],
        differing=_differing(one, other),
        rows={
            "in the first": one.head.rows,
            "in the second": other.head.rows,
            "in both": len(pairs),
            "only in the first": len(first.keys) - len(pairs),
            "only in the second": len(second.keys) - len(pairs),
        },
        compared=len(chosen) if cosines is not None else 0,
        identical=identical,
        cosines=cosines,
        asked=len(asked),
        overlap=_overlap(one, other, pairs, asked),
    )


def _hash_column(index: Index) -> str:
    return f"{index.head.embedding_column}_hash"


def _key(one: Index, other: Index) -> str:
    if one.said["recipe"]["template"] == other.said["recipe"]["template"]:
        return _hash_column(one)
    shared = [name for name in spaces.IDS if name in one.head.columns and name in other.head.columns]
    if not shared:
        raise DataError(
            f"{one.path} and {other.path} have different templates, so their texts' hashes differ, and no id in common",
            "--key names a column of both",
        )
    return shared[0]


@dataclass(frozen=True)
class _Keyed:
    """The distinct keys of a file, sorted, and the first row of each."""

    keys: npt.NDArray[Any]
    rows: npt.NDArray[np.int64]

    @classmethod
    def read(cls, index: Index, key: str) -> "_Keyed":
        name = _hash_column(index) if key.endswith("_hash") and key not in index.head.columns else key
        if name not in index.head.columns:
            raise DataError(f"{index.path}: no column {name!r}", f"its columns: {', '.join(index.head.columns)}")
        if name == _hash_column(index):
            values = reuse.prefixes(describe.hashes(index.path, index.head))
        else:
            values = np.array([str(value) for value in describe.column(index.path, name)] or np.empty(0, "U1"))
        keys, rows = np.unique(values, return_index=True)
        return cls(keys, rows.astype(np.int64))


def _differing(one: Index, other: Index) -> dict[str, tuple[Any, Any]]:
    def flat(index: Index) -> dict[str, Any]:
        recipe = index.said["recipe"]
        own = {name: value for name, value in recipe.items() if name != "space"}
        names = ("vector_type", "dtype", "device", "compiled")
        return {**recipe["space"], **own, **{name: index.said.get(name) for name in names}}

    return differing(flat(one), flat(other))


def _cosines(one: Index, other: Index, pairs: npt.NDArray[np.int64]) -> tuple[dict[str, float] | None, int]:
    """How the same rows' vectors agree, and how many are the same numbers."""
    if one.head.dim != other.head.dim or not len(pairs):
        return None, 0
    first, second = _vectors(one, pairs[:, 0]), _vectors(other, pairs[:, 1])
    cosines = spaces.cosines(first, second)
    found = {"least": float(cosines.min()), "mean": float(cosines.mean())}
    found |= {name: float(np.percentile(cosines, rank)) for name, rank in _PERCENTILES.items()}
    return found, int((first == second).all(axis=1).sum())


def _vectors(index: Index, rows: npt.NDArray[np.int64]) -> Floats:
    return describe.vectors(index.path, index.head, rows.tolist())


def _overlap(one: Index, other: Index, pairs: npt.NDArray[np.int64], asked: npt.NDArray[np.int64]) -> float | None:
    """The share of each asked row's nearest common rows that both files agree on."""
    if len(pairs) < 2:
        return None
    near = [_neighbours(index, pairs[:, side], asked) for side, index in enumerate((one, other))]
    most = min(NEIGHBOURS, len(pairs) - 1)
    return float(np.mean([len(set(a) & set(b)) / most for a, b in zip(*near, strict=True)]))


def _neighbours(index: Index, rows: npt.NDArray[np.int64], asked: npt.NDArray[np.int64]) -> Sequence[list[int]]:
    """For each asked pair the numbers of its nearest pairs, itself left out."""
    order = np.argsort(rows)

    def blocks() -> Any:
        for block in describe.blocks(index.path, index.head):
            at = np.searchsorted(rows[order], block.rows)
            common = (at < len(rows)) & (rows[order][np.minimum(at, len(rows) - 1)] == block.rows)
            yield order[at[common]], block.vectors[common]

    _, numbers = nearest(_vectors(index, rows[asked]), blocks(), NEIGHBOURS + 1)
    return [[n for n in found if n != own][:NEIGHBOURS] for found, own in zip(numbers.tolist(), asked, strict=True)]
