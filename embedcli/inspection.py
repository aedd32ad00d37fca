"""What a file of vectors is like: provenance, columns, norms, tokens, duplicates. Reads it once, block by block."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedcli.errors import InputMissingError
from embedcli.store import describe

_PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Inspection:
    """What was found in a file; None where the file can't tell.

    `zero` and `non_finite` count vectors, `duplicates` rows whose rendered text came before; `norm_*` are over finite
    vectors; `tokens` holds min, mean, max, total and percentiles.
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
    provenance: dict[str, Any] | None

    def as_dict(self) -> dict[str, Any]:
        """All of it, for `--json`."""
        return asdict(self)


def inspect(path: str, embedding_column: str | None = None) -> Inspection:
    """Read a file through and describe it.

    Raises InputMissingError, DataError where it is damaged or has no column of vectors.
    """
    if not Path(path).exists():
        raise InputMissingError(f"{path}: no such file or folder")
    head = describe.head(path, embedding_column)
    norms, missing = [], 0
    tokens: list[np.ndarray] = []
    hashes: list[np.ndarray] = []
    truncated = 0
    for block in describe.blocks(path, head):
        norms.append(np.linalg.norm(block.vectors, axis=1))
        missing += block.missing
        if block.tokens is not None:
            tokens.append(block.tokens)
        if block.truncated is not None:
            truncated += int(block.truncated.sum())
        if block.hashes is not None:
            hashes.append(block.hashes)
    norm = np.concatenate([*norms, np.empty(0)])
    finite = norm[np.isfinite(norm)]
    return Inspection(
        file=path,
        bytes=sum(Path(file).stat().st_size for file in describe.files_of(path)),
        rows=head.rows,
        columns=head.columns,
        embedding_column=head.embedding_column,
        dim=head.dim,
        vector_type=head.vector_type,
        norm_min=float(finite.min()) if len(finite) else None,
        norm_max=float(finite.max()) if len(finite) else None,
        non_finite=int(len(norm) - len(finite)),
        zero=int((norm == 0).sum()),
        missing=missing,
        tokens=_distribution(np.concatenate(tokens)) if tokens else None,
        truncated=truncated if head.has("truncated") else None,
        duplicates=_duplicates(np.concatenate(hashes)) if hashes else None,
        provenance=head.provenance,
    )


def _distribution(tokens: np.ndarray) -> dict[str, float] | None:
    if not len(tokens):
        return None
    found = {"min": int(tokens.min()), "mean": round(float(tokens.mean()), 1)}
    found |= {
        f"p{p}": int(v) for p, v in zip(_PERCENTILES, np.percentile(tokens, _PERCENTILES, method="higher"), strict=True)
    }
    return {**found, "max": int(tokens.max()), "total": int(tokens.sum())}


def _duplicates(hashes: np.ndarray) -> int:
    return int(len(hashes) - len(np.unique(hashes)))


def lines(found: Inspection) -> list[tuple[str, str]]:
    """The same for people: names and values."""
    return [row for row in (*_provenance_lines(found), *_health_lines(found)) if row[1]]


def _provenance_lines(found: Inspection) -> Iterator[tuple[str, str]]:
    yield "file", f"{found.file}  ({found.bytes:,} bytes)"
    said = found.provenance
    if said is None:
        yield "made by", "not by embedcli, or its metadata was dropped: no provenance"
        return
    recipe = said["recipe"]
    space = recipe["space"]
    versions = ", ".join(f"{name} {version}" for name, version in said["libraries"].items())
    yield "made by", f"embedcli {said['embedcli']} ({versions})"
    yield "model", f"{space['model']}  {space['revision']}".rstrip()
    yield "weights", space["weights"] and f"sha256 {space['weights']}"
    yield "pipeline", ", ".join([*space["pipeline"], "normalized" if space["normalized"] else "not normalized"])
    yield "role", f"{recipe['role']}  ({said['template_origin']})"
    yield "template", recipe["template"]
    yield "max length", f"{recipe['max_length']} tokens"
    dtype = f"{said['dtype']}, compiled," if said.get("compiled") else said["dtype"]
    yield "computed", f"{dtype} on {said['device']}" if said["device"] else ""
    yield "space id", said["space_id"]
    yield "recipe id", said["recipe_id"]
    counts = said["counts"]
    yield "accounting", f"{counts['rows_in']:,} in = {counts['rows_out']:,} out + {counts['rejected']:,} rejected"


def _health_lines(found: Inspection) -> Iterator[tuple[str, str]]:
    yield "rows", f"{found.rows:,}"
    yield "columns", ", ".join(f"{name} {kind}" for name, kind in found.columns.items())
    yield "vectors", f"{found.embedding_column}: {found.dim} dimensions, {found.vector_type}"
    yield "norms", f"{found.norm_min:.6f} to {found.norm_max:.6f}" if found.norm_min is not None else "no vectors"
    bad = {"non-finite": found.non_finite, "zero": found.zero, "missing": found.missing}
    yield "health", ", ".join(f"{count:,} {name}" for name, count in bad.items() if count) or "all finite, none zero"
    if found.tokens is not None:
        yield "tokens", ", ".join(f"{name} {value:,}" for name, value in found.tokens.items())
    if found.truncated is not None:
        yield "truncated", f"{found.truncated:,} of {found.rows:,} rows ({found.truncated / max(1, found.rows):.1%})"
    if found.duplicates is not None:
        yield "duplicates", f"{found.duplicates:,} rows repeat an earlier rendered text"
