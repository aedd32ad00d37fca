"""One Arrow type for each column of a JSON corpus: the kinds of its values, joined.

JSON has no schema, so the planning pass looks at every value. The join never loses anything: where
no common type holds all values exactly, numbers and strings become strings, and what is left
becomes JSON text.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

# Scalar kinds. small: integers that a double holds exactly; int: 64 bits; big: beyond.
NULL, BOOL, SMALL, INT, BIG, DOUBLE, STRING, JSON = (
    "null",
    "bool",
    "small",
    "int",
    "big",
    "double",
    "string",
    "json",
)
_JOINED: dict[frozenset[str], str] = {
    frozenset({SMALL, INT}): INT,
    frozenset({SMALL, DOUBLE}): DOUBLE,
    frozenset({SMALL, BIG}): BIG,
    frozenset({INT, BIG}): BIG,
    frozenset({SMALL, STRING}): STRING,
    frozenset({INT, STRING}): STRING,
    frozenset({BIG, STRING}): STRING,
}
_ARROW = {
    NULL: pa.string(),
    BOOL: pa.bool_(),
    SMALL: pa.int64(),
    INT: pa.int64(),
    BIG: pa.string(),
    DOUBLE: pa.float64(),
    STRING: pa.string(),
    JSON: pa.string(),
}
_MAX_DEPTH = 8
_MAX_FIELDS = 64
_EXACT = 2**53
_INT64 = 2**63


@dataclass(frozen=True)
class ListOf:
    """The kind of a JSON array."""

    item: "Kind"


@dataclass(frozen=True)
class StructOf:
    """The kind of a JSON object."""

    members: tuple[tuple[str, "Kind"], ...]


Kind = str | ListOf | StructOf


def kind_of(values: Sequence[Any], depth: int = 0) -> Kind:
    """Return the joined kind of a column's values."""
    kind: Kind = NULL
    for python_type in set(map(type, values)):
        chosen = [value for value in values if type(value) is python_type]
        kind = join(kind, _kind_of_type(python_type, chosen, depth))
    return kind


def _kind_of_type(python_type: type, values: list[Any], depth: int) -> Kind:
    if python_type is int:
        low, high = min(values), max(values)
        if low >= -_EXACT and high <= _EXACT:
            return SMALL
        return INT if low >= -_INT64 and high < _INT64 else BIG
    if python_type in (list, dict):
        if depth == _MAX_DEPTH:
            return JSON
        if python_type is list:
            return ListOf(kind_of([item for value in values for item in value], depth + 1))
        return _struct(values, depth)
    return {type(None): NULL, bool: BOOL, float: DOUBLE, str: STRING}[python_type]


def _struct(values: list[dict[str, Any]], depth: int) -> Kind:
    names = dict.fromkeys(name for value in values for name in value)
    if not 0 < len(names) <= _MAX_FIELDS:
        return JSON  # Parquet has no empty struct; a thousand names are data, not a schema
    members = ((name, kind_of([value.get(name) for value in values], depth + 1)) for name in names)
    return StructOf(tuple(members))


def join(left: Kind, right: Kind) -> Kind:
    """Return the least kind that holds all values of both exactly."""
    if left == right or right == NULL:
        return left
    if left == NULL:
        return right
    if isinstance(left, ListOf) and isinstance(right, ListOf):
        return ListOf(join(left.item, right.item))
    if isinstance(left, StructOf) and isinstance(right, StructOf):
        left_members, right_members = dict(left.members), dict(right.members)
        names = dict.fromkeys([*left_members, *right_members])
        if len(names) > _MAX_FIELDS:
            return JSON
        return StructOf(
            tuple(
                (name, join(left_members.get(name, NULL), right_members.get(name, NULL)))
                for name in names
            )
        )
    if isinstance(left, str) and isinstance(right, str):
        return _JOINED.get(frozenset({left, right}), JSON)
    return JSON


def join_columns(left: Mapping[str, Kind], right: Mapping[str, Kind]) -> dict[str, Kind]:
    """Join two maps of column kinds; a column missing on one side is null there."""
    return {
        name: join(left.get(name, NULL), right.get(name, NULL))
        for name in dict.fromkeys([*left, *right])
    }


def arrow_type(kind: Kind) -> pa.DataType:
    """Return the Arrow type that holds a kind."""
    if isinstance(kind, ListOf):
        return pa.list_(arrow_type(kind.item))
    if isinstance(kind, StructOf):
        return pa.struct([(name, arrow_type(member)) for name, member in kind.members])
    return _ARROW[kind]


def schema_of(kinds: Mapping[str, Kind]) -> tuple[pa.Schema, frozenset[str], tuple[str, ...]]:
    """Return the Arrow schema for the kinds, the columns that hold JSON text, and what people should know
    of them.
    """
    notes = []
    as_json = frozenset(name for name, kind in kinds.items() if _holds(kind, JSON))
    for name, kind in kinds.items():
        if name in as_json:
            notes.append(f"column {name!r} holds values of no common type: written as JSON text")
        elif _holds(kind, BIG):
            notes.append(
                f"column {name!r} holds integers beyond 64 bits: written as strings, exactly"
            )
    schema = pa.schema(
        [(name, arrow_type(JSON if name in as_json else kind)) for name, kind in kinds.items()]
    )
    return schema, as_json, tuple(notes)


def _holds(kind: Kind, type_name: str) -> bool:
    if isinstance(kind, ListOf):
        return _holds(kind.item, type_name)
    if isinstance(kind, StructOf):
        return any(_holds(member, type_name) for _, member in kind.members)
    return kind == type_name


def to_arrow(values: Sequence[Any], arrow: pa.DataType, as_json: bool) -> pa.Array:
    """Return a column's values as Arrow, nothing rounded or guessed."""
    if as_json:
        values = [
            None if value is None else json.dumps(value, ensure_ascii=False) for value in values
        ]
    try:
        return pa.array(values, arrow)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # numbers in a column of strings
        return pa.array([_as_strings(value, arrow) for value in values], arrow)


def _as_strings(value: Any, arrow: pa.DataType) -> Any:
    if value is None or isinstance(value, str):
        return value
    if pa.types.is_string(arrow):
        return str(value)
    if pa.types.is_list(arrow):
        return [_as_strings(item, arrow.value_type) for item in value]
    if pa.types.is_struct(arrow):
        return {name: _as_strings(item, arrow.field(name).type) for name, item in value.items()}
    return value
