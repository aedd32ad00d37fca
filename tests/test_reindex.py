"""A reindex costs what changed: parts that hold no change keep their name and their bytes."""

import itertools
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcli.sources import cuts
from embedcli.store import publish
from tests.runs import HASH, content, table

GRAIN = cuts.Grain(rows=16, bytes=2**20)


@pytest.fixture(autouse=True, scope="module")
def small_units():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuts, "FINE", GRAIN)
        yield


def encode(corpus, output, *options):
    from embedcli.cli import app

    with pytest.raises(SystemExit) as end:
        app(["encode", str(corpus), *HASH, "-o", f"{output}/", "-q", *options])
    assert end.value.code == 0


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_by_part(output):
    return {path.name: table(path)["id"].to_pylist() for path in output.glob("part-*")}


edits = st.lists(
    st.tuples(
        st.sampled_from(["insert", "delete", "change"]),
        st.floats(0, 1),
        st.sampled_from([1, 3, 40]),
    ),
    min_size=1,
    max_size=3,
)


def edit(rows, script, rng):
    """Edit a corpus; return it, and the ids of the rows beside which something changed."""
    rows, touched = list(rows), set()
    for kind, share, count in script:
        at = round(share * len(rows))
        touched |= {row["id"] for row in rows[max(0, at - 1) : at + count + 1]}
        if kind == "delete":
            del rows[at : at + count]
        elif kind == "change":
            for index in range(at, min(at + count, len(rows))):
                rows[index] = {**rows[index], "text": f"changed {rng.random()}"}
        else:
            first = max((row["id"] for row in rows), default=0) + 1
            new = [{"id": first + n, "text": f"new {rng.random()}"} for n in range(count)]
            touched |= {row["id"] for row in new}
            rows[at:at] = new
    return rows, touched


@settings(max_examples=25)
@given(script=edits, kind=st.sampled_from([".jsonl", ".parquet"]), seed=st.integers(0, 3))
def test_an_update_rewrites_the_parts_beside_its_changes(script, kind, seed, tmp_path_factory):
    place, rng = tmp_path_factory.mktemp("reindex"), random.Random(seed)
    rows = [{"id": n, "text": f"text {n} {rng.random()}"} for n in range(600)]
    corpus = write(place / f"c{kind}", rows)
    encode(corpus, place / "o")
    before, files_before = rows_by_part(place / "o"), content(place / "o")
    rows, touched = edit(rows, script, rng)
    write(corpus, rows)
    encode(corpus, place / "o", "--update")
    encode(corpus, place / "fresh")
    assert table(place / "o").equals(table(place / "fresh"))
    after, files_after = rows_by_part(place / "o"), content(place / "o")
    new = after.keys() - before.keys()
    # Those that hold a change, and a few until the cuts meet again.
    beside = [name for name in new if not touched.isdisjoint(after[name])]
    assert len(new) - len(beside) <= 3 * len(script)
    for name in after.keys() & before.keys():
        assert files_after[name] == files_before[name]
    # Parts that were and are the same are the same files, whatever stands before them.
    contents = {tuple(ids) for name, ids in before.items()}
    kept = [name for name, ids in after.items() if tuple(ids) in contents]
    assert {name for name in kept if touched.isdisjoint(after[name])} <= before.keys()


@given(st.lists(st.none() | st.integers(1, 40), max_size=30))
def test_order_keys_increase_and_keep_what_they_can(earlier):
    keys = publish.order_keys(earlier)
    assert len(keys) == len(earlier)
    assert all(first < second for first, second in itertools.pairwise(keys))


def test_a_part_that_is_inserted_renames_no_other():
    keys = publish.order_keys([None] * 5)
    assert publish.order_keys([keys[0], None, *keys[1:], None])[2:6] == keys[1:]
    # Where something is put again and again, there is room for a while.
    for _ in range(10):
        keys = publish.order_keys([keys[0], None, *keys[1:]])
    assert publish.order_keys([None, *keys])[1:] == keys


def test_a_part_that_moves_is_renamed_and_the_others_are_not():
    keys = publish.order_keys([None] * 6)
    moved = [keys[4], *keys[:4], keys[5]]
    assert publish.order_keys(moved)[1:] == [*keys[:4], keys[5]]
