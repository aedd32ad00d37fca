"""--log, --wait, --retry, --json: what cron needs of a run."""

import errno
import json
import re
import subprocess
import sys
import time

import pytest

from embedcli.commands import patience
from embedcli.errors import DataError, DeviceError, LockedError, UsageError
from embedcli.store import staging
from tests.conftest import start
from tests.runs import HASH, encode, table, write_corpus


@pytest.fixture
def pauses(monkeypatch):
    slept = []
    monkeypatch.setattr(patience.time, "sleep", slept.append)
    return slept


@pytest.mark.parametrize("error", [DeviceError("lost"), OSError(errno.ENOSPC, "full", "/o")])
def test_what_may_pass_is_tried_again_with_longer_and_longer_pauses(error, pauses):
    tries = []

    def run():
        tries.append(1)
        raise error

    with pytest.raises(type(error)):
        patience.Patience(retries=3).give(run)
    assert (len(tries), pauses) == (4, [5.0, 10.0, 20.0])


@pytest.mark.parametrize(
    "error",
    [
        DataError("bad"),
        LockedError("held"),
        FileNotFoundError(errno.ENOENT, "no", "/c"),
        ValueError(),
    ],
)
def test_what_no_patience_helps_against_is_not(error, pauses):
    def run():
        raise error

    with pytest.raises(type(error)):
        patience.Patience(retries=3).give(run)
    assert pauses == []


@pytest.mark.parametrize(
    ("duration", "seconds"), [("90", 90), ("1.5m", 90), ("2h", 7200), ("1d", 86400), ("0", 0)]
)
def test_durations(duration, seconds):
    assert patience.seconds_of(duration, "--wait") == seconds


@pytest.mark.parametrize("duration", ["", "x", "-1", "5 m", "10 minutes", "1e3"])
def test_what_is_no_duration(duration):
    with pytest.raises(UsageError, match="--wait"):
        patience.seconds_of(duration, "--wait")


def test_a_run_waits_for_another_one_at_its_output(cli, tmp_path):
    corpus, output = write_corpus(tmp_path / "c.jsonl", 10), tmp_path / "o.parquet"
    with staging.open_staging(output, "token"):
        ran, _ = encode(cli, corpus, output, "--wait", "0.2s")
        assert (ran.code, "is writing it: process" in ran.err) == (75, True)
        waiting = start("encode", corpus, *HASH, "-o", output, "--wait", "1m", "--log")
        time.sleep(3)
        assert waiting.poll() is None
    _, err = waiting.communicate(timeout=60)
    assert (waiting.returncode, b"waiting up to 1 min:" in err) == (0, True), err
    assert table(output).num_rows == 10


def test_a_good_night_is_one_line_with_its_time(tmp_path):
    corpus, output = write_corpus(tmp_path / "c.jsonl", 10), tmp_path / "o.parquet"
    command = [sys.executable, "-m", "embedcli", "encode", corpus, *HASH, "-o", output]
    for counts in ("10 new, 0 changed, 0 deleted, 0 unchanged; 10 embedded", "10 unchanged; 0 embedded; the output stays as it is"):  # fmt: skip
        done = subprocess.run([*command, "--update", "--log"], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "")
        (line,) = done.stderr.splitlines()
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ " + re.escape(str(output)), line)
        assert counts in line
    corpus.write_text('{"text": null}\n')
    done = subprocess.run([*command, "--log"], capture_output=True, text=True)
    assert done.returncode == 65
    assert all(re.match(r"\d{4}-\d\d-\d\dT", line) for line in done.stderr.splitlines())


def test_the_report_is_printed_instead_of_the_path(cli, tmp_path):
    corpus, output = write_corpus(tmp_path / "c.jsonl", 10), tmp_path / "o.parquet"
    for option in (["--json"], ["--report", "-"]):
        ran = cli("encode", corpus, *HASH, "-o", output, "-q", *option)
        (line,) = ran.lines
        report = json.loads(line)
        assert (report["exit_code"], report["counts"]["rows_out"]) == (0, 10)
        assert report["command"][0] == "embedcli"
        assert report["files"] == [str(corpus)]
    ran = cli("encode", tmp_path / "none", *HASH, "-o", output, "--json")
    assert (ran.code, json.loads(ran.lines[0])["exit_code"]) == (66, 66)
    ran = cli("encode", corpus, *HASH, "-o", "-", "--json")
    assert (ran.code, "needs a file" in ran.err) == (2, True)
    ran = cli("encode", "-", *HASH, "-o", output, "--retry", "1")
    assert (ran.code, "--retry needs files" in ran.err) == (2, True)


def test_mistakes_in_a_command_line_look_like_other_errors(cli):
    for arguments, message in (
        (["encod"], "error: No such command 'encod'. Did you mean 'encode'?"),
        (["encode"], "error: Missing argument 'INPUTS'."),
        (["encode", "c", "--rol", "x"], "error: No such option: --rol"),
    ):
        ran = cli(*arguments)
        assert (ran.code, ran.err.splitlines()[0].startswith(message)) == (2, True), ran.err
    assert cli("-V").out == cli("--version").out
    assert cli("help", "encode").out == cli("encode", "--help").out
    assert cli("help").out == cli("--help").out


def test_several_text_columns_are_a_template(cli, tmp_path):
    corpus = write_corpus(tmp_path / "c.jsonl", 3)
    ran = cli("encode", corpus, *HASH, "-o", tmp_path / "o", "--text-column", "title,text")
    assert (ran.code, "--text-column text --template '{title} {text}'" in ran.err) == (2, True)


def test_the_doctor_tells_what_an_issue_needs(cli, tmp_path):
    ran = cli("doctor", tmp_path, "--json")
    told = json.loads(ran.out)
    assert ran.code == 0
    assert {"embedcli", "libraries", "cpu", "cuda", "long runs", "bundled", "abilities"} <= set(
        told
    )
    assert "torch" in told["libraries"]
    assert "has hard links" in told["abilities"]
    assert list(tmp_path.iterdir()) == []
    assert cli("doctor", tmp_path / "none").code == 66
