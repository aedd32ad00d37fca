"""What an output says of its making, and whether vectors that lie on disk belong to the same recipe.

No times, no paths, no counts of workers: equal runs write equal bytes.
"""

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import embedcli
from embedcli.config import differing, in_words
from embedcli.errors import ConfigurationError
from embedcli.job.summary import Counts, Job
from embedcli.store import parts

_LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "pyarrow")
_COUNTS = ("rows_in", "rows_out", "rejected", "truncated", "blank", "tokens")


@dataclass(frozen=True, order=True)
class Made:
    """What computed a vector: the device by name, the number format of the weights, and whether by compiled code."""

    device: str
    dtype: str
    compiled: bool = False


def joined(made: Iterable[Made]) -> list[Made]:
    """Each once, in order."""
    return sorted(set(made))


def made_of(provenance: Mapping[str, Any]) -> Made:
    """What computed the vectors of a file."""
    return Made(provenance.get("device", ""), provenance.get("dtype", ""), provenance.get("compiled", False))


def of_part(job: Job, made: Sequence[Made]) -> dict[str, Any]:
    """The provenance of some of a run's vectors; of all of them it lacks the counts."""
    recipe = job.recipe
    return {
        "format_version": parts.FORMAT_VERSION,
        "embedcli": embedcli.__version__,
        "space_id": recipe.space.id,
        "recipe_id": recipe.id,
        "recipe": recipe.as_dict(),
        "template_origin": job.template.origin,
        "vector_type": job.output.vector_type,
        "dtype": ", ".join(dict.fromkeys(one.dtype for one in made)),
        "device": ", ".join(dict.fromkeys(one.device for one in made)),
        "compiled": any(one.compiled for one in made),
        "libraries": dict(_versions()),
    }


@cache
def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def of_output(job: Job, made: Sequence[Made], counts: Counts) -> dict[str, Any]:
    """The provenance of a whole output."""
    return {**of_part(job, made), "counts": counts_of(counts)}


def counts_of(counts: Counts) -> dict[str, int]:
    """The counts that an output records: those that don't depend on how the run went."""
    return {name: getattr(counts, name) for name in _COUNTS}


def differences(found: Mapping[str, Any], job: Job) -> dict[str, tuple[Any, Any]]:
    """Return how the recipe of vectors on disk differs from this run's, by field: (there, here)."""
    there, here = _fields(found["recipe"]), _fields(job.recipe.as_dict())
    if found["recipe_id"] == job.recipe.id:
        there, here = {}, {}
    there["vector type"], here["vector type"] = found.get("vector_type", "float32"), job.output.vector_type
    return differing(there, here)


def differences_to_reuse(found: Mapping[str, Any], job: Job) -> dict[str, tuple[Any, Any]]:
    """The same, for vectors that are to stand beside this run's: they have to be of its dtype, too."""
    dtype = (found["dtype"], job.run.dtype)
    asked = job.run.dtype != "auto" and found["dtype"]
    return differences(found, job) | ({"dtype": dtype} if asked and dtype[0] != dtype[1] else {})


def refuse(where: str, differing_fields: Mapping[str, tuple[Any, Any]], hint: str) -> ConfigurationError:
    """The error that names each field in which recipes differ."""
    return ConfigurationError(f"{where}: its vectors are of another recipe: {in_words(differing_fields)}", hint)


def _fields(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's fields by the names that people know."""
    flat = {**recipe["space"], **{name: value for name, value in recipe.items() if name != "space"}}
    return {name.replace("_", " "): value for name, value in flat.items()}
