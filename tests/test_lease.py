"""One writer, where the kernel's locks do nothing: files with signs of life decide."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict, replace

import pytest

from embedcli.errors import LockedError
from embedcli.store import lease


def owner_here(pid=None):
    pid = os.getpid() if pid is None else pid
    return lease.Owner(
        lease.socket.gethostname(), lease.boot(), pid, lease._started(pid), "now", "other"
    )


def put(folder, owner):
    """Let somebody be the writer, by what its files say."""
    content = "" if owner is None else json.dumps(asdict(owner))
    held = folder / "owner-1.held"
    for path in (held, folder / "owner-1"):
        path.write_text(content)
    return held


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path):
    with lease.held(tmp_path, tmp_path / "o", "one"):
        assert lease.read(tmp_path).token == "one"
        with (
            pytest.raises(LockedError, match=f"process {os.getpid()} on"),
            lease.held(tmp_path, tmp_path / "o", "two"),
        ):
            pass
        assert lease.read(tmp_path).token == "one"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["ended", "another process of that number", "another boot"])
def test_a_writer_that_is_gone_is_replaced(tmp_path, monkeypatch, change):
    monkeypatch.setattr(lease, "_WATCHED_SECONDS", 0.3)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    started = lease._started(ended.pid)
    ended.wait()
    owner = {
        "ended": replace(owner_here(), pid=ended.pid, started=started),
        "another process of that number": replace(owner_here(), started="1"),
        "another boot": replace(owner_here(), boot="before"),
    }[change]
    put(tmp_path, owner)
    with lease.held(tmp_path, tmp_path / "o", "mine"):
        assert lease.read(tmp_path).token == "mine"
    assert list(tmp_path.iterdir()) == []


def test_a_writer_on_another_machine_lives_while_its_file_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_WATCHED_SECONDS", 2)
    held = put(tmp_path, replace(owner_here(), host="elsewhere"))
    ended = threading.Event()

    def beat():
        while not ended.wait(0.05):
            os.utime(held)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(LockedError, match="on elsewhere"):
            lease._take(tmp_path / "owner-2", tmp_path / "o", "mine")
    finally:
        ended.set()
        thread.join()
    assert lease.read(tmp_path).host == "elsewhere"


@pytest.mark.parametrize("dead", [True, False])
def test_of_many_that_come_at_once_one_wins(tmp_path, dead):
    for turn in range(20):
        if dead:
            put(tmp_path, replace(owner_here(), started="1"))
        winners = []

        def take(number, turn=turn, winners=winners):
            with contextlib.suppress(LockedError):
                lease._take(tmp_path / f"owner-9{number}", tmp_path / "o", f"{turn}-{number}")
                winners.append(number)

        threads = [threading.Thread(target=take, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        [number] = winners
        mine = tmp_path / f"owner-9{number}"
        assert lease.read(tmp_path).token == f"{turn}-{number}"
        assert sorted(tmp_path.iterdir()) == [mine, lease._held_by(mine)]
        lease._withdraw(mine)


def test_a_file_that_a_power_cut_left_empty_is_nobodys(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_WATCHED_SECONDS", 0.3)
    put(tmp_path, None)
    with lease.held(tmp_path, tmp_path / "o", "mine"):
        assert lease.read(tmp_path).token == "mine"


def test_a_writer_that_was_taken_for_dead_publishes_nothing(tmp_path):
    output = tmp_path / "o"
    with lease.held(tmp_path, output, "mine"):
        lease.check(tmp_path, output, "mine")
        for path in tmp_path.iterdir():
            path.unlink()
        put(tmp_path, owner_here())
        with pytest.raises(LockedError, match="another run took over"):
            lease.check(tmp_path, output, "mine")
