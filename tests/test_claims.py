"""Claims, logs and signs of life in a shared folder, by threads that stand for machines."""

import json
import random
import threading
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcli.errors import LockedError
from embedcli.store import claims, life
from embedcli.store.claims import ClaimBoard, ranges_of
from embedcli.store.staging import Staging


@pytest.fixture(autouse=True)
def short_watch(monkeypatch):
    monkeypatch.setattr(life, "WATCHED_SECONDS", 0.3)


@pytest.fixture
def stage(tmp_path):
    stage = Staging(tmp_path, tmp_path / "o", "token")
    for name in ("results", "attempts", "run"):
        (tmp_path / name).mkdir()
    stage.begin_run()
    return stage


def board(stage, worker, units, lives=True, watchdog=0):
    """A worker's view; whether it lives is what its file says."""
    process = life.this_process(worker)
    life.make(claims.worker_file(stage, worker), replace(process, has_ended=not lives))
    board = ClaimBoard(stage, worker, units, watchdog)
    if not (stage.results / worker).exists():
        board.results.begin(worker)
    return board


def work(worker, done, taken_over=True):
    while True:
        unit = worker.next_unit()
        if unit is None:
            if not (taken_over and worker.take_over()):
                return
            continue
        done.append(unit)
        worker.finish(unit, {"rows": unit})


@given(st.integers(0, 200_000))
def test_ranges_hold_all_units_once_and_become_small(count):
    units = range(count)
    ranges = ranges_of(units)
    assert [unit for part in ranges for unit in part] == list(units)
    sizes = [len(part) for part in ranges]
    assert sizes == sorted(sizes, reverse=True)
    assert all(size <= 64 for size in sizes)
    assert sizes[-64:] == [1] * min(64, count)
    assert len(ranges) <= count // 64 + 600


@pytest.mark.parametrize("count", [0, 1, 7, 1_000])
def test_each_unit_is_done_once(stage, count):
    units = random.Random(0).sample(range(count), count)
    done = [[] for _ in range(5)]
    boards = [board(stage, f"w{number}", units) for number in range(5)]
    threads = [threading.Thread(target=work, args=pair) for pair in zip(boards, done, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(unit for part in done for unit in part) == list(range(count))
    late = board(stage, "late", units)
    assert late.next_unit() is None
    assert not late.take_over()
    assert {unit: late.results[unit] for unit in late.results} == {
        unit: {"rows": unit} for unit in range(count)
    }


def test_the_ranges_of_the_dead_are_taken_over(stage):
    units = range(300)
    dead = board(stage, "dead", units, lives=False)
    for _ in range(10):
        dead.finish(dead.next_unit(), {"rows": 1})
    dead.next_unit()
    done = []
    work(board(stage, "w", units), done)
    assert sorted(done) == list(range(10, 300))


def test_the_ranges_of_the_living_are_left_to_them(stage):
    units = range(10)
    slow = board(stage, "slow", units)
    first = slow.next_unit()
    done = []
    other = board(stage, "w", units)
    work(other, done)
    assert done == list(range(1, 10))
    assert not other.take_over()
    slow.finish(first, {"rows": 1})
    assert slow.next_unit() is None


def test_who_makes_no_move_for_too_long_is_followed(stage, monkeypatch):
    units = range(3)
    stuck, other = board(stage, "stuck", units), board(stage, "w", units, watchdog=60)
    stuck.next_unit()
    stuck.beat(stage="encoding")
    work(other, [])
    moment = [0.0]
    monkeypatch.setattr(claims.time, "monotonic", lambda: moment[0])
    assert not other.take_over()
    moment[0] = 59
    stuck.beat()
    assert not other.take_over()
    moment[0] = 118
    assert not other.take_over()
    moment[0] = 120
    assert other.take_over()
    assert other.next_unit() == 0


def test_what_is_given_back_is_taken_at_once(stage):
    units = range(300)
    first, other = board(stage, "first", units), board(stage, "w", units)
    taken = [first.next_unit() for _ in range(3)]
    first.finish(taken[0], {"rows": 1})
    first.give_back()
    done = []
    work(other, done)
    assert sorted(done) == list(range(1, 300))
    assert first.next_unit() is None


def test_of_many_that_take_over_one_does(stage):
    units = range(2)
    dead = board(stage, "dead", units, lives=False)
    assert [dead.next_unit(), dead.next_unit()] == [0, 1]
    boards = [board(stage, f"w{number}", units) for number in range(6)]
    for each in boards:
        assert each.next_unit() is None
    taken = [each.take_over() for each in boards for _ in range(2)]
    assert sum(taken) == 2


def test_a_unit_that_has_killed_twice_is_left(stage):
    units = range(3)
    for _ in range(2):
        board(stage, "w0", units).begin(1)
    done = []
    work(board(stage, "w", units), done)
    assert done == [0, 2]


def test_damaged_lines_of_a_log_are_passed_over(stage):
    writer = board(stage, "w", range(5))
    for unit in range(5):
        writer.finish(unit, {"rows": unit})
    path = stage.path / "results" / "w"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"rows": 2', b'"rows": 7')
    path.write_bytes(b"".join(lines)[:-3])  # and the last one isn't all there
    reader = ClaimBoard(stage, "r", range(5))
    reader.results.refresh()
    assert sorted(reader.results) == [0, 1, 3]
    path.write_bytes(b"".join(lines))
    reader.results.refresh()
    assert sorted(reader.results) == [0, 1, 3, 4]


def test_a_line_that_cannot_be_written_leaves_no_half_line(stage, monkeypatch):
    writer = board(stage, "w", range(5))
    writer.finish(0, {"rows": 0})
    real = claims.os.write
    monkeypatch.setattr(claims.os, "write", lambda descriptor, line: real(descriptor, line[:9]))
    with pytest.raises(OSError, match="No space left"):
        writer.finish(1, {"rows": 0})
    monkeypatch.undo()
    writer.finish(2, {"rows": 1})
    reader = ClaimBoard(stage, "r", range(5))
    reader.results.refresh()
    assert sorted(reader.results) == [0, 2]


def test_claims_of_many_units_are_few(stage):
    units = range(100_000)
    worker = board(stage, "w", units)
    for _ in range(1_000):
        worker.next_unit()
    assert len(list((stage.run / "claims").iterdir())) <= 16


def test_signs_of_life_are_read_by_others(stage):
    writer = board(stage, "w", range(5))
    writer.beat(stage="encoding", unit=3, of=10)
    writer.advance(4, 50)
    writer.beat()
    [beat] = ClaimBoard(stage, "r", range(5)).heartbeats()
    assert (beat.worker, beat.stage, beat.unit, beat.rows, beat.tokens) == (
        "w",
        "encoding",
        3,
        4,
        50,
    )
    assert json.loads((stage.run / "beats" / "w").read_text()) == asdict(beat)


def test_who_slept_through_the_end_adds_nothing(stage):
    """Its log is gone, and with it the run: a line of it would be taken for the next run's."""
    sleeper = board(stage, "sleeper", range(5))
    sleeper.finish(0, {"rows": 1})
    stage.forget_parts(("results",))
    with pytest.raises(LockedError, match="took this one for dead"):
        sleeper.finish(1, {"rows": 1})
    assert list((stage.path / "results").iterdir()) == []


def test_a_unit_that_is_tried_once_more_is_not_given_up(stage):
    dead, living = board(stage, "dead", range(1), lives=False), board(stage, "living", range(1))
    waiting = board(stage, "waiting", range(1))
    dead.begin(dead.next_unit())
    assert living.take_over()
    living.begin(living.next_unit())
    living.beat(unit=0)
    assert (waiting.is_quarantined(0), waiting.is_through) == (True, False)
    worker_file = claims.worker_file(stage, "living")
    worker_file.write_text(json.dumps(asdict(replace(life.read(worker_file), has_ended=True))))
    assert waiting.is_through
