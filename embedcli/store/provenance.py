"""How vectors were made: what a file of vectors says of itself, as types with one reader and one
writer of their JSON.

Format version 2, under the key `embedcli` of a file's metadata and in the manifest of a dataset
directory:

    {
      "format_version": 2,
      "embedcli": "0.2.0",
      "libraries": {"torch": "2.13.0", ...},
      "counts": {"rows_in": 240, ...},                    (of a whole output; a part has none)
      "columns": {
        "embedding": {                                    (one entry for each vector column)
          "space_id": "...", "recipe_id": "...",
          "recipe": {"space": {...}, "role": "passage", "template": "passage: {text}", "max_length": 512},
          "template_source": {"kind": "family", "name": "e5"},
          "vector_type": "float32",
          "made": [{"device": "cpu", "dtype": "float32", "compiled": false, "backend": "torch",
                    "attention": "groups", "reason": "..."}]
        }
      }
    }

It holds no times, no paths and no number of workers: equal runs write equal bytes.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from embedcli.computation import Computation
from embedcli.config import VectorType
from embedcli.errors import DataError
from embedcli.recipe import Recipe, TemplateSource

FORMAT_VERSION = 2
# Metadata may be anybody's: templates and names are far shorter, a manifest lists that many parts.
_MAX_STRING = 2**16
_MAX_ENTRIES = 2**22
_MAX_DEPTH = 8


@dataclass(frozen=True)
class ColumnProvenance:
    """How the vectors of one column were made. `made` lists each kind of computation once, sorted."""

    recipe: Recipe
    template_source: TemplateSource
    vector_type: VectorType
    made: tuple[Computation, ...]

    @property
    def dtypes(self) -> list[str]:
        """The dtypes of the weights that computed the vectors; empty where the column has no rows."""
        return sorted({made.dtype for made in self.made})

    @property
    def backends(self) -> list[str]:
        """What ran the model."""
        return sorted({made.backend for made in self.made})

    @property
    def devices(self) -> list[str]:
        """The devices that computed the vectors."""
        return sorted({made.device for made in self.made})

    @property
    def compiled(self) -> bool:
        """Tell whether compiled code computed any of the vectors."""
        return any(made.compiled for made in self.made)


@dataclass(frozen=True)
class OutputCounts:
    """What became of the input's rows. None of it depends on how the run went.

    rejects_sha256: of the file that lists the rejected rows, 64 hex digits; empty without one.
    stale: rows beside rows_out: vectors that rejected rows have kept.
    """

    rows_in: int
    rows_out: int
    rejected: int
    truncated: int
    blank: int
    tokens: int
    rejects_sha256: str = ""
    stale: int = 0


@dataclass(frozen=True)
class Provenance:
    """How a file of vectors was made: each vector column, the versions of the programs, the counts
    of an output, and the signature of the run: what it was made from and how it was read.
    """

    columns: Mapping[str, ColumnProvenance]
    embedcli: str
    libraries: Mapping[str, str]
    counts: OutputCounts | None = None
    signature: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the value that `from_json` reads."""
        value: dict[str, object] = {
            "format_version": FORMAT_VERSION,
            "embedcli": self.embedcli,
            "libraries": dict(self.libraries),
            "columns": {name: _column_to_json(column) for name, column in self.columns.items()},
        }
        if self.counts is not None:
            counts = asdict(self.counts)
            if not self.counts.stale:
                del counts["stale"]
            value["counts"] = counts
        if self.signature:
            value["signature"] = self.signature
        return value

    @classmethod
    def from_json(cls, value: Any) -> "Provenance":
        """Read the value that `to_json` gives.

        Raises DataError that names what is missing or ill-typed.
        """
        _check_lengths(value)
        version = value.get("format_version") if isinstance(value, dict) else None
        if version != FORMAT_VERSION:
            raise DataError(
                f"written in format version {str(version)[:40]}, this embedcli reads version {FORMAT_VERSION}",
                "encode it again",
            )
        try:
            provenance = msgspec.convert(value, cls)
        except msgspec.ValidationError as error:
            raise DataError(f"its provenance can't be read: {error}") from None
        if not provenance.columns:
            raise DataError("its provenance names no vector column")
        for name, column in provenance.columns.items():
            _check_ids(name, column, value["columns"][name])
        return provenance

    def to_bytes(self) -> bytes:
        """Return the JSON as a file's metadata holds it."""
        return json.dumps(self.to_json(), sort_keys=True, ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Provenance":
        """Read what `to_bytes` gives. Raises DataError."""
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DataError(f"its provenance is not JSON: {error}") from None
        return cls.from_json(value)


def _column_to_json(column: ColumnProvenance) -> dict[str, object]:
    # The ids stand beside the recipe for programs that only compare.
    return {"space_id": column.recipe.space.id, "recipe_id": column.recipe.id, **asdict(column)}


def _check_lengths(value: Any, depth: int = 0) -> None:
    """See that nothing in it is longer than what we write. Raises DataError."""
    if isinstance(value, dict):
        entries = [*value.keys(), *value.values()]
    else:
        entries = value if isinstance(value, list) else []
    too_long = isinstance(value, str) and len(value) > _MAX_STRING
    if too_long or len(entries) > _MAX_ENTRIES or depth > _MAX_DEPTH:
        raise DataError("its provenance is longer than any that embedcli writes")
    for entry in entries:
        _check_lengths(entry, depth + 1)


def _check_ids(name: str, column: ColumnProvenance, value: Mapping[str, Any]) -> None:
    ids = (value.get("space_id"), value.get("recipe_id"))
    if ids != (column.recipe.space.id, column.recipe.id):
        raise DataError(
            f"its provenance contradicts itself: the ids of column {name!r} are not those of its recipe"
        )


def merge_made(made: Iterable[Computation]) -> tuple[Computation, ...]:
    """Return each kind of computation once, sorted."""
    return tuple(sorted(set(made)))
