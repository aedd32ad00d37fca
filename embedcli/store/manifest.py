"""The manifest of a dataset directory: `_embedcli.json` with the provenance and the parts, sealed
by a digest.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from embedcli.errors import DataError
from embedcli.store import digest
from embedcli.store.parts import DIGEST_MARK as PART_DIGEST_MARK
from embedcli.store.provenance import Provenance

# Readers of a dataset directory pass over such names.
NAME = "_embedcli.json"
# The bytes that stand before the digest.
DIGEST_MARK = b'"sha256": "'


# Inside the folder, and one of ours.
_PART_NAME = re.compile(r"part-[\w-]{1,100}\.parquet")


@dataclass(frozen=True)
class PartEntry:
    """A part file of a dataset directory, its number of rows, and the digest that it carries."""

    file: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a dataset directory holds: how it was made, and its parts in the order of the rows."""

    provenance: Provenance
    parts: tuple[PartEntry, ...]

    @property
    def rows(self) -> int:
        """Rows of all parts."""
        return sum(part.rows for part in self.parts)


def to_bytes(provenance: Provenance, entries: Sequence[PartEntry]) -> bytes:
    """Return the content of a manifest, with its digest filled in."""
    value = provenance.to_json()
    value["parts"] = [asdict(entry) for entry in entries]
    value["sha256"] = digest.EMPTY
    line = json.dumps(value, ensure_ascii=False) + "\n"
    return digest.fill_in(line.encode(), DIGEST_MARK)


def exists(directory: Path) -> bool:
    """Tell whether a folder has a manifest."""
    return (directory / NAME).is_file()


def read(directory: Path) -> Manifest:
    """Read a dataset directory's manifest.

    Raises DataError where there is none, or it is none of ours.
    """
    try:
        value: Any = json.loads((directory / NAME).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{directory}: no readable {NAME}: {error}") from None
    try:
        provenance = Provenance.from_json(value)
        parts = msgspec.convert(value.get("parts"), tuple[PartEntry, ...])
    except DataError as error:
        raise DataError(f"{directory / NAME}: {error.message}", error.hint) from None
    except msgspec.ValidationError as error:
        raise DataError(f"{directory / NAME}: its parts can't be read: {error}") from None
    for part in parts:
        if not _PART_NAME.fullmatch(part.file) or part.rows < 0:
            raise DataError(f"{directory / NAME}: lists {part.file[:100]!r}, no part of ours")
    return Manifest(provenance, parts)


def digest_of(output: Path) -> str | None:
    """Return the digest that an output carries: a directory's in its manifest. None without one."""
    if output.is_dir():
        return digest.read(output / NAME, DIGEST_MARK)
    return digest.read(output, PART_DIGEST_MARK)


def is_whole(directory: Path) -> bool | None:
    """Tell whether a manifest has the bytes it was written with; None where it carries no digest or
    isn't there.
    """
    try:
        return digest.is_whole(directory / NAME, DIGEST_MARK)
    except FileNotFoundError:
        return None
