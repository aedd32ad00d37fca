"""What a file of vectors is like: provenance, columns, norms, tokens, duplicates.

Reads it once, block by block.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from embedcli.store.parts import Hashes
from embedcli.store.provenance import ColumnProvenance, Provenance
from embedcli.store.vector_file import VectorFile

_PERCENTILES = (50, 90, 99)
_SINGLE_ROWS = ("norms", "token_counts")


@dataclass(frozen=True)
class Inspection:
    """What a file of vectors is like; None where the file can't tell.

    norms: float32 [vectors]; token_counts: int32 [rows].
    `zero` and `non_finite` count vectors, `duplicates` rows whose rendered text came before;
    `norm_*` are over finite vectors; `tokens` holds min, mean, max, total and percentiles; `lost` is
    what the program that wrote the file has dropped of what we give it.
    """

    file: str
    bytes: int
    rows: int
    columns: dict[str, str]
    embedding_column: str
    dim: int
    vector_type: str
    norm_min: float | None
    norm_max: float | None
    non_finite: int
    zero: int
    missing: int
    tokens: dict[str, float] | None
    truncated: int | None
    duplicates: int | None
    lost: list[str]
    provenance: Provenance | None
    norms: npt.NDArray[np.float32]
    token_counts: npt.NDArray[np.int32] | None

    @property
    def made(self) -> ColumnProvenance | None:
        """How the vectors were made, if the file says it."""
        if self.provenance is None:
            return None
        return self.provenance.columns.get(self.embedding_column)

    def to_json(self) -> dict[str, object]:
        """Return all of it but the single rows."""
        names = [field.name for field in fields(self) if field.name not in _SINGLE_ROWS]
        value = {name: getattr(self, name) for name in names}
        value["provenance"] = self.provenance.to_json() if self.provenance is not None else None
        return value


def inspect(path: str, embedding_column: str | None = None) -> Inspection:
    """Read a file through and describe it.

    Raises InputMissingError, DataError where it is damaged or has no column of vectors.
    """
    file = VectorFile(path, embedding_column)
    norms: list[npt.NDArray[np.float32]] = []
    tokens: list[npt.NDArray[np.int32]] = []
    hashes: list[Hashes] = []
    missing = truncated = 0
    for block in file.blocks():
        norms.append(np.linalg.norm(block.vectors, axis=1))
        missing += block.missing
        if block.tokens is not None:
            tokens.append(block.tokens)
        if block.truncated is not None:
            truncated += int(block.truncated.sum())
        if block.hashes is not None:
            hashes.append(block.hashes)
    norm = np.concatenate([*norms, np.empty(0, np.float32)])
    finite = norm[np.isfinite(norm)]
    token_counts = np.concatenate(tokens) if tokens else None
    return Inspection(
        file=path,
        bytes=file.bytes,
        rows=file.rows,
        columns=file.columns,
        embedding_column=file.names.vector,
        dim=file.dim,
        vector_type=file.vector_type,
        norm_min=float(finite.min()) if len(finite) else None,
        norm_max=float(finite.max()) if len(finite) else None,
        non_finite=int(len(norm) - len(finite)),
        zero=int((norm == 0).sum()),
        missing=missing,
        tokens=_distribution(token_counts) if token_counts is not None else None,
        truncated=truncated if file.names.truncated in file.columns else None,
        duplicates=_count_duplicates(np.concatenate(hashes)) if hashes else None,
        lost=file.lost if file.provenance is not None else [],
        provenance=file.provenance,
        norms=norm,
        token_counts=token_counts,
    )


def _distribution(tokens: npt.NDArray[np.int32]) -> dict[str, float] | None:
    if not len(tokens):
        return None
    percentiles = np.percentile(tokens, _PERCENTILES, method="higher")
    return {
        "min": int(tokens.min()),
        "mean": round(float(tokens.mean()), 1),
        **{f"p{rank}": int(value) for rank, value in zip(_PERCENTILES, percentiles, strict=True)},
        "max": int(tokens.max()),
        "total": int(tokens.sum()),
    }


def _count_duplicates(hashes: Hashes) -> int:
    return int(len(hashes) - len(np.unique(hashes)))
