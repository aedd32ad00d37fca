"""May these vectors be compared, and in which roles? And texts encoded to match vectors on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcli import encoder, registry, templates
from embedcli.choosing import Choice, check_same_space
from embedcli.config import RunOptions
from embedcli.errors import ConfigurationError, DataError
from embedcli.store import describe

Floats = npt.NDArray[np.float32]
# Of columns that tell which row is which, the first that is there.
IDS = ("_id", "id")
_SEED = 0


@dataclass(frozen=True)
class Index:
    """A file or folder of vectors that says how it was made."""

    path: str
    head: describe.Head

    @property
    def said(self) -> Mapping[str, Any]:
        """Its provenance."""
        assert self.head.provenance is not None
        return self.head.provenance

    @property
    def role(self) -> str:
        """What its texts are."""
        role: str = self.said["recipe"]["role"]
        return role

    @property
    def carried(self) -> list[str]:
        """Its columns but those of vectors and what we say of them."""
        name = self.head.embedding_column
        ours = {name, f"{name}_hash", f"{name}_tokens", f"{name}_truncated"}
        return [
            column
            for column, kind in self.head.columns.items()
            if column not in ours and not kind.startswith("fixed_size_")
        ]


def open_index(path: str, embedding_column: str | None = None) -> Index:
    """Read what a file of vectors says of itself.

    Raises InputMissingError; DataError where it has no vectors or doesn't say how they were made.
    """
    describe.provenance_of(path)
    return Index(path, describe.head(path, embedding_column))


def check_comparable(one: Index, other: Index) -> None:
    """See that two files' vectors are of one space. Raises ConfigurationError that names both."""
    check_same_space(one.said["recipe"]["space"], other.said["recipe"]["space"], one.path, other.path)


def query_role(index: Index, wanted: str | None) -> str:
    """The role of texts that are to find an index's: queries for passages; for a symmetric role the same one."""
    if wanted is not None:
        return registry.main_name(wanted)
    return "query" if index.role == "passage" else index.role


def check_roles(index: Index, queries: Index, role: str) -> None:
    """See that queries were encoded in the role that is meant. Raises ConfigurationError that names both recipes."""
    if queries.role != role:
        raise ConfigurationError(
            f"{queries.path} holds vectors of role {queries.role!r} (template {queries.said['recipe']['template']!r}), "
            f"where role {role!r} is meant to find the {index.role!r} of {index.path} "
            f"(template {index.said['recipe']['template']!r})",
            f"encode it with --role {role}; or say that it is meant: --role {queries.role}",
        )


def vectors_of(index: Index) -> tuple[Floats, npt.NDArray[np.int64]]:
    """All vectors of a file [n, dim], and the numbers of their rows."""
    blocks = list(describe.blocks(index.path, index.head))
    empty = np.empty((0, index.head.dim), np.float32)
    rows = np.concatenate([block.rows for block in blocks]) if blocks else np.empty(0, np.int64)
    return np.concatenate([block.vectors for block in blocks] or [empty]), rows


def cosines(one: Floats, other: Floats) -> Floats:
    """The cosine of each row [n, dim] with the other's; -1 where a vector is zero or not finite."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    return np.nan_to_num(found, nan=-1.0)


def sample(count: int, most: int | None) -> npt.NDArray[np.int64]:
    """The numbers of all, or of so many at random (always the same), rising."""
    if most is None or count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(_SEED).choice(count, most, replace=False))


def embed(
    choice: Choice, texts: Sequence[str], options: RunOptions, fields: Mapping[str, Sequence[object]] | None = None
) -> Floats:
    """Texts to vectors float32 [n, dim], each in the choice's template, in one process.

    Raises DataError where a text gives no vector, and what loading raises.
    """
    model = encoder.load(choice.checkpoint, options)
    return embed_with(model, choice.template, texts, fields or {})


def embed_with(
    model: encoder.Encoder,
    template: templates.Template,
    texts: Sequence[str],
    fields: Mapping[str, Sequence[object]],
) -> Floats:
    """The same with a loaded model."""
    missing = [name for name in template.fields if name not in fields]
    if missing:
        raise DataError(f"the template {template.string!r} names {missing[0]!r}, which these texts don't have")
    rendered, faults = templates.render(template, texts, fields)
    if faults:
        row, fault = min(faults.items())
        raise DataError(f"text {row + 1}: {fault.reason}", fault.hint)
    found = model.encode(model.prepare(rendered), lambda rows, tokens: None)
    if found.failed:
        row, reason = min(found.failed.items())
        raise DataError(f"text {row + 1} ({texts[row][:60]!r}) has no vector: {reason}")
    return found.vectors
