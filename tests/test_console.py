"""What comes from outside can't move the cursor, hide, or reorder what people read."""

import subprocess
import sys
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from embedcli import console
from embedcli.console import progress
from embedcli.store.claims import Heartbeat


@given(st.text(st.characters()))
def test_nothing_but_visible_characters_is_left(text):
    shown = console.safe(text)
    assert all(
        character == " " or unicodedata.category(character)[0] not in "CZ" for character in shown
    )
    assert shown.count("\n") == 0


def test_what_is_visible_stays_as_it_is():
    for text in ("plain [bold] text", "größer", "海は", "עברית", "🌊", "a\\b"):
        assert console.safe(text) == text


def test_escapes_are_readable():
    assert console.safe("a\nb\x1b[31m\u202e\udcff") == "a\\nb\\x1b[31m\\u202e\\xff"
    assert console.safe("x" * 10, limit=4) == "xxxx…"


def test_markup_in_messages_is_not_interpreted(capfd):
    console.error("[/red] [link=http://x]y[/link]", "[bold]")
    assert capfd.readouterr().err == "error: [/red] [link=http://x]y[/link]\n  hint: [bold]\n"


def test_logs_get_a_line_every_30_seconds(capfd, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.listening(quiet=False) as watcher:
        watcher.begin(1000)
        for _ in range(8):
            now[0] += 10
            watcher.advance(100, 5000)
    assert capfd.readouterr().err.splitlines() == [
        "300 of 1,000 rows, 10 rows/s, 500 tokens/s, 1 min left",
        "600 of 1,000 rows, 10 rows/s, 500 tokens/s, 40.0 s left",
    ]


def test_lengths_of_time():
    assert [console.duration(s) for s in (0.04, 59.94, 61, 3600, 90_061)] == [
        "0.0 s",
        "59.9 s",
        "1 min",
        "1 h 0 min",
        "25 h 1 min",
    ]


def test_closed_streams_are_no_fault(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    command = f"{sys.executable} -m embedcli encode {tmp_path}/a.jsonl --role query --model hash:8 2>&- <&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/a.query.parquet\n".encode())
    done = subprocess.run(["sh", "-c", command.replace("2>&-", ">&-")], capture_output=True)
    assert b"Traceback" not in done.stderr
    assert done.returncode == 0


def test_an_input_that_is_closed_is_missing(tmp_path):
    command = f"{sys.executable} -m embedcli encode - --role query --model hash:8 -o {tmp_path}/o"
    done = subprocess.run(["sh", "-c", f"{command} <&-"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (66, "")
    assert done.stderr == "error: <stdin>: standard input is closed\n"


def test_a_bare_environment_gives_the_same_bytes(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "größer"}\n', encoding="utf-8")
    found = set()
    for variables in (
        {},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"TERM": "dumb", "HOME": "/nonexistent"},
    ):
        command = [
            sys.executable,
            "-m",
            "embedcli",
            "encode",
            str(tmp_path / "a.jsonl"),
            "--role",
            "query",
            "--model",
            "hash:8",
        ]
        done = subprocess.run(command, capture_output=True, env=variables, cwd=tmp_path.parent)
        if (
            done.returncode
        ):  # an editable install is found by the interpreter, a checkout by the working directory
            done = subprocess.run(command, capture_output=True, env=variables)
        assert done.returncode == 0, done.stderr
        found.add((tmp_path / "a.query.parquet").read_bytes())
    assert len(found) == 1


def test_a_log_line_tells_of_all_workers(capfd, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.listening(quiet=False) as watcher:
        watcher.begin(1000)
        watcher.workers(
            [
                Heartbeat("a", "worker 0", stage="encoding"),
                Heartbeat("b", "worker 1", stage="loading"),
            ]
        )
        now[0] = 31
        watcher.advance(310, 620)
    assert (
        capfd.readouterr().err
        == "310 of 1,000 rows, 10 rows/s, 20 tokens/s, 1 of 2 workers encoding, 1 min left\n"
    )


def test_sizes():
    assert [console.size(n) for n in (0, 999, 1000, 12_345_678, 10**13)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "12.3 MB",
        "10.0 TB",
    ]
