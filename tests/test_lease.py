"""One coordinator at a time: files that are made exclusively, and signs of life."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from embedcli.errors import LockedError
from embedcli.store import lease, life


def holder(folder):
    """Who took the last lease."""
    return life.read(sorted(folder.glob("lease-*"))[-1])


@pytest.fixture(autouse=True)
def short_watch(monkeypatch):
    monkeypatch.setattr(life, "WATCHED_SECONDS", 0.5)
    monkeypatch.setattr(life, "_POLL_SECONDS", 0.02)


def put(folder, process, number=1):
    """Let somebody hold the lease, by what its file says."""
    path = folder / f"lease-{number:06d}"
    path.write_text("" if process is None else json.dumps(asdict(process)))
    return path


def take(folder, token="mine"):
    return lease.held(folder, folder / "o", token)


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path):
    with take(tmp_path, "one"):
        with pytest.raises(LockedError, match=f"process {os.getpid()} on"), take(tmp_path, "two"):
            pass
        assert holder(tmp_path).token == "one"
    with take(tmp_path, "two"):  # the first has said that it is through
        assert holder(tmp_path).token == "two"


def elsewhere(process, change):
    return {
        "ended": replace(process, has_ended=True),
        "another process of that number": replace(process, started="1"),
        "another boot": replace(process, boot="before"),
        "another namespace": replace(process, namespace="pid:[1]"),
    }[change]


CHANGES = ["ended", "another process of that number", "another boot", "another namespace"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_holder_that_is_gone_is_followed(tmp_path, change):
    put(tmp_path, elsewhere(life.this_process("other"), change))
    with take(tmp_path) as held:
        assert held.number == 2
        assert holder(tmp_path).token == "mine"


def test_a_process_that_was_killed_is_followed_at_once(tmp_path):
    code = (
        "import os, sys, pathlib\n"
        "from embedcli.store import lease\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "with lease.held(folder, folder, 'killed'):\n    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code])
    assert holder(tmp_path).token == "killed"
    started = time.monotonic()
    with take(tmp_path):
        assert time.monotonic() - started < life.WATCHED_SECONDS


def test_a_holder_elsewhere_lives_while_its_file_changes(tmp_path):
    path = put(tmp_path, replace(life.this_process("other"), boot="another"))
    ended = threading.Event()

    def beat():
        while not ended.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(LockedError, match="another run is writing it"), take(tmp_path):
            pass
    finally:
        ended.set()
        thread.join()


def test_a_holder_in_another_container_lives_while_it_holds_its_lock(tmp_path):
    process = replace(life.this_process("other"), namespace="pid:[1]")
    path = put(tmp_path, process)
    with life.Signs(path):
        assert life.lives_here(process, path) is True
    assert life.lives_here(process, path) is False


@pytest.mark.parametrize("dead", [True, False])
def test_of_many_that_come_at_once_one_wins(tmp_path, dead):
    for turn in range(20):
        folder = tmp_path / str(turn)
        folder.mkdir()
        if dead:
            put(folder, replace(life.this_process("other"), started="1"))
        winners, through = [], threading.Event()

        def contend(number, folder=folder, winners=winners, through=through):
            with contextlib.suppress(LockedError), take(folder, str(number)):
                winners.append(str(number))
                through.wait()

        threads = [
            threading.Thread(target=contend, args=(number,), daemon=True) for number in range(6)
        ]
        for thread in threads:
            thread.start()
        while not winners or sum(thread.is_alive() for thread in threads) > 1:
            time.sleep(0.01)
        assert winners == [holder(folder).token]
        through.set()
        for thread in threads:
            thread.join()


def test_of_many_that_see_others_late_one_wins(tmp_path, monkeypatch):
    """Some network file systems show what others made only after a while."""
    visible = {}
    real = lease._last
    monkeypatch.setattr(lease, "_last", lambda folder: visible.get("last", 0))
    with take(tmp_path, "first"):
        assert real(tmp_path) == 1
        with pytest.raises(LockedError), take(tmp_path, "second"):  # to whom there is none
            pass


def test_a_file_that_a_power_cut_left_empty_is_nobodys(tmp_path):
    put(tmp_path, None)
    with take(tmp_path):
        assert holder(tmp_path).token == "mine"


def test_a_holder_that_was_taken_for_dead_publishes_nothing(tmp_path):
    with take(tmp_path) as held:
        put(tmp_path, replace(life.this_process("other")), number=2)
        with pytest.raises(LockedError, match="another run took over"):
            held.check()


def test_nobody_takes_over_from_who_is_about_to_publish(tmp_path, monkeypatch):
    with take(tmp_path) as held:
        held.check()
        held.check()
        # Whoever took it for dead finds that it isn't.
        with pytest.raises(LockedError), take(tmp_path, "other"):
            pass
    with take(tmp_path, "other"):
        pass


def test_watching_takes_a_file_that_stops_changing_for_dead(tmp_path):
    path = put(tmp_path, replace(life.this_process("other"), boot="elsewhere"))
    watch = life.Watch()
    for _ in range(8):
        os.utime(path, ns=(time.time_ns(), time.time_ns()))
        assert not watch.is_dead(path)
        time.sleep(0.1)
    time.sleep(0.6)
    assert watch.is_dead(path)
    os.utime(path)
    assert not watch.is_dead(path)  # it was only slow


def test_no_clock_of_another_machine_is_believed(tmp_path):
    path = put(tmp_path, replace(life.this_process("other"), boot="elsewhere"))
    for moment in (0, 2**33):
        os.utime(path, (moment, moment))
        watch = life.Watch()
        assert not watch.is_dead(path)
        os.utime(path, (moment - 100 if moment else 5, moment))
        assert not watch.is_dead(path)


def test_of_many_dead_elsewhere_all_are_known_to_be_dead_at_once(tmp_path, monkeypatch):
    """Each for itself would have to be watched for a minute."""
    monkeypatch.setattr(life, "WATCHED_SECONDS", 1)
    paths = []
    for number in range(8):
        paths.append(tmp_path / str(number))
        life.make(paths[-1], replace(life.this_process(str(number)), boot="another"))
    waits = []
    monkeypatch.setattr(life.time, "sleep", lambda seconds: waits.append(seconds) or real(seconds))
    assert not life.any_lives(paths)
    assert sum(waits) < 3


def test_on_a_system_without_proc_the_lock_tells_who_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(life, "boot", lambda: "")
    monkeypatch.setattr(life, "_namespace", lambda: "")
    monkeypatch.setattr(life, "_started", lambda pid: "")
    process = life.this_process("other")
    path = put(tmp_path, process)
    with life.Signs(path):
        assert life.lives_here(process, path) is True
        assert life.lives_here(replace(process, host="elsewhere"), path) is None
    assert life.lives_here(process, path) is False


real = time.sleep
