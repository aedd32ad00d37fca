"""Column types of JSON corpora: nothing is lost, rounded or guessed."""

import json
import math

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcli.sources import json_types as columns

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def carried(column):
    """A column's values as they come out of Arrow, and its type."""
    schema, as_json, _ = columns.schema_of({"x": columns.kind_of(column)})
    array = columns.to_arrow(column, schema.field("x").type, "x" in as_json)
    array.validate(full=True)
    return array.to_pylist(), schema.field("x").type, "x" in as_json


def same(before, after):
    """Equal but for what a common type does: integers as floats or digits, missing members as null."""
    if before is None or isinstance(before, bool) or isinstance(after, bool):
        return before is after
    if isinstance(before, int) and isinstance(after, str):
        return str(before) == after
    if isinstance(before, float) and math.isnan(before):
        return math.isnan(after)
    if isinstance(before, list):
        return len(before) == len(after) and all(map(same, before, after))
    if isinstance(before, dict):
        return all(same(before.get(name), after[name]) for name in after) and set(before) <= set(
            after
        )
    return before == after


@given(st.lists(values, max_size=6))
def test_any_column_of_json_survives(column):
    found, _, as_json = carried(column)
    expected = (
        [None if v is None else json.dumps(v, ensure_ascii=False) for v in column]
        if as_json
        else column
    )
    assert all(map(same, expected, found))


@given(st.lists(values, max_size=4), st.lists(values, max_size=4))
def test_joining_the_parts_is_the_kind_of_the_whole(left, right):
    joined = columns.join(columns.kind_of(left), columns.kind_of(right))
    assert columns.arrow_type(joined) == columns.arrow_type(
        columns.kind_of(left + right)
    ) or "json" in repr(joined)


@pytest.mark.parametrize(
    ("column", "arrow", "found"),
    [
        ([1, 2], pa.int64(), [1, 2]),
        ([1, "b"], pa.string(), ["1", "b"]),
        ([1, 2.5], pa.float64(), [1.0, 2.5]),
        ([2**53 + 1, 0.5], pa.string(), [str(2**53 + 1), "0.5"]),
        ([2**63], pa.string(), [str(2**63)]),
        ([10**29, 1], pa.string(), ["1" + "0" * 29, "1"]),
        ([True, 1], pa.string(), ["true", "1"]),
        (["2024-01-01"], pa.string(), ["2024-01-01"]),
        ([None, None], pa.string(), [None, None]),
        ([[1], ["a"], []], pa.list_(pa.string()), [["1"], ["a"], []]),
        (
            [{"a": 1}, {"b": "x"}],
            pa.struct([("a", pa.int64()), ("b", pa.string())]),
            [{"a": 1, "b": None}, {"a": None, "b": "x"}],
        ),
        ([{}], pa.string(), ["{}"]),
        ([{"a": 1}, [1]], pa.string(), ['{"a": 1}', "[1]"]),
    ],
)
def test_the_common_type_of(column, arrow, found):
    values, kind, _ = carried(column)
    assert (kind, values) == (arrow, found)


def test_deep_nesting_becomes_json_text():
    deep: object = "end"
    for _ in range(50):
        deep = [deep]
    found, kind, _ = carried([deep])
    assert kind == pa.string()
    assert json.loads(found[0]) == deep
