"""What makes a vector what it is: the space, in which vectors may be compared, and the recipe,
within which one may be reused. Equal ids mean equal vectors, up to the rounding of the dtype.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Literal

# Names, not facts: two spaces that differ only here hold the same vectors.
_NAMES = ("model", "revision")

# Field: (there, here).
Differences = Mapping[str, tuple[object, object]]


@dataclass(frozen=True)
class Space:
    """What must be equal for two vectors to be comparable.

    `weights` and `tokenizer` are sha256 digests of the files that are loaded, adapters included,
    `config` one of the configs' content; `pipeline` names the modules in their order.
    """

    model: str
    revision: str
    weights: str
    tokenizer: str
    config: str
    pipeline: tuple[str, ...]
    dim: int
    normalized: bool

    @property
    def id(self) -> str:
        """16 hex digits over all fields but the names."""
        return _digest({key: value for key, value in asdict(self).items() if key not in _NAMES})

    def differences(self, other: "Space") -> Differences:
        """Return the facts in which another space differs, with its value and ours."""
        found = differing_fields(other, self)
        return {name: pair for name, pair in found.items() if name not in _NAMES}


@dataclass(frozen=True)
class Recipe:
    """What must be equal for a vector to be reusable: the space, and how a text becomes tokens.

    `template` is the template with its task filled in, `max_length` counts tokens, special ones
    included.
    """

    space: Space
    role: str
    template: str
    max_length: int

    @property
    def id(self) -> str:
        """16 hex digits over the space's id and all fields of its own."""
        return _digest({**asdict(self), "space": self.space.id})

    def differences(self, other: "Recipe") -> Differences:
        """Return the fields in which another recipe differs, with its value and ours; the model's
        names included.
        """
        if self.id == other.id:
            return {}
        own = {
            name: pair for name, pair in differing_fields(other, self).items() if name != "space"
        }
        return {**differing_fields(other.space, self.space), **own}


@dataclass(frozen=True)
class TemplateSource:
    """Where a template comes from: a family by name, the model's own prompts, or the option
    `--template`.
    """

    kind: Literal["family", "prompts", "option"]
    name: str = ""

    def __str__(self) -> str:
        words = {
            "family": f"family {self.name}",
            "prompts": "the model's own prompts",
            "option": "--template",
        }
        return words[self.kind]


OWN_PROMPTS = TemplateSource("prompts")
BY_OPTION = TemplateSource("option")


def differing_fields(before: Space | Recipe, after: Space | Recipe) -> Differences:
    """Return the fields of two values of one type that differ: (there, here)."""
    pairs = {
        field.name: (getattr(before, field.name), getattr(after, field.name))
        for field in fields(after)
    }
    return {name: (old, new) for name, (old, new) in pairs.items() if old != new}


def describe_differences(differences: Differences, where: str) -> str:
    """Say for a message what is in `where` and what is asked for."""
    return "; ".join(
        f"{name} is {old!r} in {where}, {new!r} requested"
        for name, (old, new) in differences.items()
    )


def _digest(value: dict[str, object]) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
