"""Several commands at one output: `--join`, launchers, and what happens when one of them dies."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import run_process
from tests.runs import (
    HASH,
    SLOW,
    bytes_of_a_run,
    content,
    end_of,
    join,
    poisoned,
    slowed,
    staging_of,
    start_encode,
    table,
    wait_for,
    workers_at,
    write_corpus,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """About eight units."""
    return write_corpus(tmp_path_factory.mktemp("sharing") / "corpus.jsonl", rows=80_000)


@pytest.fixture(scope="module")
def whole(corpus):
    return bytes_of_a_run(corpus)


def has_planned(output):
    return (staging_of(output) / "run" / "plan.json").exists()


@contextlib.contextmanager
def at_work(corpus, output, folder):
    """A command that has planned, and is killed with the block."""
    first = join(corpus, output, env=slowed(folder, seconds=0.3))
    try:
        wait_for(lambda: has_planned(output))
        yield
    finally:
        first.kill()
        first.communicate()


@pytest.mark.parametrize("kind", ["o.parquet", "o/"])
def test_commands_that_join_share_one_output(kind, corpus, whole, tmp_path):
    output = f"{tmp_path}/{kind}"
    processes = [join(corpus, output, "--report", tmp_path / str(n)) for n in range(3)]
    ends = [end_of(process) for process in processes]
    assert [code for code, _, _ in ends] == [0, 0, 0], ends
    assert {out for _, out, _ in ends} == {f"{output.rstrip('/')}\n"}
    reports = [json.loads((tmp_path / str(n)).read_text()) for n in range(3)]
    assert {report["counts"]["rows_out"] for report in reports} == {80_000}
    assert sum(report["coordinated"] for report in reports) == 1
    assert table(output).num_rows == 80_000
    if not kind.endswith("/"):
        assert Path(output).read_bytes() == whole
    assert not staging_of(output.rstrip("/")).exists()


def test_who_comes_late_finds_it_done(corpus, tmp_path):
    output = tmp_path / "o"
    assert end_of(join(corpus, output))[0] == 0
    before = output.stat().st_ino
    code, out, err = end_of(join(corpus, output))
    assert (code, out, "nothing was left to do" in err) == (0, f"{output}\n", True)
    assert output.stat().st_ino == before


def test_rejected_rows_are_told_by_all_but_not_to_a_launcher(tmp_path):
    corpus = write_corpus(tmp_path / "c.jsonl", 20_000)
    with corpus.open("a") as stream:
        stream.write('{"text": 7}\n')
    options = ("--on-error", "reject")
    processes = [join(corpus, tmp_path / "o", *options) for _ in range(2)]
    assert [end_of(process)[0] for process in processes] == [3, 3]
    environment = {**os.environ, "WORLD_SIZE": "2"}
    processes = [
        start_encode(corpus, tmp_path / "r", *options, env={**environment, "LOCAL_RANK": rank})
        for rank in "01"
    ]
    ends = [end_of(process) for process in processes]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert sorted(out for _, out, _ in ends) == ["", f"{tmp_path / 'r'}\n"]  # one speaks for all
    assert content(tmp_path / "r") == content(tmp_path / "o")


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (("--columns", "id"), "columns is"),
        (("--vector-type", "float16"), "vector_type is 'float32' in their command, 'float16'"),
        (("--max-length", "7"), "max_length is"),
        (("--update",), "update is False in their command, True"),
    ],
)
def test_another_request_is_refused_while_others_are_at_it(options, difference, corpus, tmp_path):
    output = tmp_path / "o"
    with at_work(corpus, output, tmp_path):
        code, _, err = end_of(join(corpus, output, *options))
    assert (code, difference in err) == (78, True), err


def test_another_input_is_refused_while_others_are_at_it(corpus, tmp_path):
    output, small = tmp_path / "o", write_corpus(tmp_path / "small.jsonl", 10)
    with at_work(corpus, output, tmp_path):
        code, _, err = end_of(join(small, output))
    assert (code, "input is" in err, str(small) in err) == (78, True, True), err


def test_without_join_a_second_run_is_refused(corpus, tmp_path):
    output = tmp_path / "o"
    first = join(corpus, output, env=slowed(tmp_path, seconds=0.3))
    wait_for(lambda: has_planned(output))
    ran = run_process("encode", corpus, *HASH, "-o", output)
    assert (ran.code, f"process {first.pid} on " in ran.err) == (75, True), ran.err
    second = join(corpus, output, env=slowed(tmp_path, seconds=0.3))
    time.sleep(1)
    first.kill()
    first.communicate()
    ran = run_process("encode", corpus, *HASH, "-o", output)  # nobody leads, but one works
    assert ran.code == 75, ran.err
    second.kill()
    second.communicate()
    assert run_process("encode", corpus, *HASH, "-o", output).code == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("-", "-o", "o"), "standard input can't be read by several processes (--join)"),
        (("c.jsonl", "-o", "-"), "can't be written by several processes"),
        (("c.jsonl", "-o", "o", "--fresh"), "--fresh would throw away what others are at"),
        (("pipe", "-o", "o"), "a pipe can't be read by several processes"),
    ],
)
def test_what_cannot_be_shared_is_refused(arguments, reason, tmp_path):
    write_corpus(tmp_path / "c.jsonl", 10)
    os.mkfifo(tmp_path / "pipe")
    ran = run_process("encode", *arguments, *HASH, "--join", "--format", "jsonl", cwd=tmp_path)
    if "-" not in arguments[1:]:
        ran = run_process("encode", *arguments, *HASH, "--join", cwd=tmp_path)
    assert (ran.code, reason in ran.err) == (2, True), ran.err
    assert sorted(os.listdir(tmp_path)) == ["c.jsonl", "pipe"]


def test_no_wait_leaves_the_last_units_to_the_others(corpus, whole, tmp_path):
    output = tmp_path / "o"
    first = join(corpus, output, env=slowed(tmp_path, seconds=0.2))
    wait_for(lambda: has_planned(output))
    code, _, err = end_of(join(corpus, output, "--no-wait"))
    assert (code, "other machines are at the last units" in err) == (75, True), err
    assert end_of(first)[0] == 0
    assert output.read_bytes() == whole


@pytest.mark.parametrize("leader", [True, False])
def test_who_dies_is_followed(leader, corpus, whole, tmp_path):
    output, environment = tmp_path / "o", slowed(tmp_path)
    first = join(corpus, output, env=environment)
    wait_for(lambda: has_planned(output))
    second = join(corpus, output, env=environment)
    wait_for(lambda: len(workers_at(output)) == 2)
    victim, survivor = (first, second) if leader else (second, first)
    victim.kill()
    victim.communicate()
    code, _, err = end_of(survivor)
    assert code == 0, err
    assert output.read_bytes() == whole
    assert not staging_of(output).exists()


# Holds a process at the moment that is named, until it is killed.
HELD = """
import sys, time
if "embedcli" in sys.orig_argv:
    import embedcli.{module} as module
    def hold(*args, **options):
        open({marker!r}, "w").close()
        time.sleep(1000)
    module.{function} = hold
"""


@pytest.mark.parametrize(
    ("module", "function"),
    [("sources", "plan"), ("run.sharing", "begin"), ("store.publish", "_put_in_place")],
    ids=["planning", "before the plan is out", "publishing"],
)
def test_who_is_killed_at_a_moment_is_followed(module, function, corpus, whole, tmp_path):
    output, marker = tmp_path / "o", tmp_path / "held"
    code = HELD.format(module=module, function=function, marker=str(marker))
    first = join(corpus, output, env=poisoned(tmp_path, code))
    wait_for(marker.exists)
    second = join(corpus, output)
    time.sleep(2)
    assert second.poll() is None  # it waits, since the first one lives
    first.kill()
    first.communicate()
    code, _, err = end_of(second)
    assert code == 0, err
    assert output.read_bytes() == whole
    assert not staging_of(output).exists()


@pytest.mark.heavy
@pytest.mark.parametrize("moment", ["working", "publishing"])
def test_who_leads_and_is_stopped_is_followed(moment, corpus, whole, tmp_path):
    """And publishes nothing when it goes on after all."""
    output, marker = tmp_path / "o", tmp_path / "held"
    code = "from embedcli.store import life\nlife.WATCHED_SECONDS = 4\n"
    if moment == "publishing":
        hold = HELD.format(module="store.publish", function="_put_in_place", marker=str(marker))
        code += hold.replace("time.sleep(1000)", "time.sleep(3); put(*args)").replace(
            "    def hold", "    put = module._put_in_place\n    def hold"
        )
    environment = poisoned(tmp_path, SLOW.format(seconds=0.2) + code)
    options = ("--watchdog", "4")
    first = join(corpus, output, *options, env=environment)
    wait_for(marker.exists if moment == "publishing" else lambda: has_planned(output))
    os.kill(first.pid, signal.SIGSTOP)
    second = join(corpus, output, *options, env=environment)
    code, _, err = end_of(second, seconds=120)
    assert code == 0, err
    before = output.stat().st_ino
    os.kill(first.pid, signal.SIGCONT)
    code, _, err = end_of(first, seconds=120)
    assert code == 0, err
    assert output.stat().st_ino == before
    assert output.read_bytes() == whole
    assert not staging_of(output).exists()


# A device of one of two workers is lost: whatever that worker's processes try, CUDA says so.
LOST_DEVICE = """
import sys
if "embedcli.run.worker" in " ".join(sys.orig_argv):
    from embedcli.store import claims
    import embedcli.encoder.hashing as hashing
    class Board(claims.ClaimBoard):
        def __init__(self, stage, worker, *rest):
            super().__init__(stage, worker, *rest)
            if "-1-" in worker:
                def lost(data):
                    raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
                hashing.hashlib.shake_128 = lost
    claims.ClaimBoard = Board
"""


def test_a_lost_device_costs_its_units_not_the_run(corpus, whole, tmp_path):
    environment = poisoned(tmp_path, SLOW.format(seconds=0.1) + LOST_DEVICE)
    output = tmp_path / "o"
    ran = run_process("encode", corpus, *HASH, "-o", output, "--num-processes", 2, env=environment)
    assert ran.code == 0, ran.err
    assert "CUDA error: uncorrectable ECC error" in ran.err
    assert "giving it up" in ran.err
    assert output.read_bytes() == whole


def test_a_run_whose_devices_are_all_lost_ends_with_69(corpus, tmp_path):
    environment = poisoned(tmp_path, LOST_DEVICE.replace('"-1-" in worker', "True"))
    ran = run_process(
        "encode", corpus, *HASH, "-o", tmp_path / "o", "--num-processes", 2, env=environment
    )
    assert (ran.code, "all workers failed repeatedly" in ran.err) == (69, True), ran.err
    assert "Traceback" not in ran.err


def test_a_text_that_kills_other_machines_is_found(tmp_path):
    corpus, environment = tmp_path / "c.jsonl", poisoned(tmp_path)
    rows = [{"text": f"text {i}" + " POISON" * (i == 7_777)} for i in range(10_000)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = (tmp_path / "o", "--on-error", "reject")
    codes = []
    while len(codes) < 6 and (not codes or codes[-1][0] == 9):
        codes.append(end_of(join(corpus, *options, env=environment)))
    assert [code for code, _, _ in codes] == [9, 9, 3], codes
    [rejected] = (tmp_path / "o.rejects.jsonl").read_text().splitlines()
    assert json.loads(rejected)["line"] == 7_778


@pytest.mark.heavy
def test_joiners_that_come_and_go(corpus, whole, tmp_path, full):
    """Three to five at a time, killed at random moments, until enough died; then those that are left
    finish it.
    """
    kills, rng, rounds = 200 if full else 12, random.Random(17), 0
    environment = slowed(tmp_path, seconds=0.02)
    while kills:
        output, rounds = tmp_path / f"o{rounds}", rounds + 1
        options = () if rng.random() < 0.7 else ("--num-processes", "2")
        joiners = [
            join(corpus, output, *options, env=environment) for _ in range(rng.choice((3, 4, 5)))
        ]
        for _ in range(rng.randrange(2, 9)):
            time.sleep(rng.uniform(0, 0.8))
            victim = rng.choice(joiners)
            if kills and victim.poll() is None:
                os.killpg(victim.pid, signal.SIGKILL)
                victim.communicate()
                kills -= 1
                joiners.remove(victim)
                joiners.append(join(corpus, output, *options, env=environment))
        ends = [end_of(joiner, seconds=180) for joiner in joiners]
        assert {code for code, _, _ in ends} == {0}, ends
        assert output.read_bytes() == whole
        assert not staging_of(output).exists()
    print(
        f"\n{rounds} runs of 3 to 5 joiners, of which {200 if full else 12} were killed: bytes equal"
    )


def late_folder(folder, seconds):
    """An environment in which locks do nothing and the shared folder is seen late."""
    code = SLOW.format(seconds=0.05) + Path(__file__).with_name("late_folder.py").read_text()
    return {**poisoned(folder, code), "LATE_SECONDS": str(seconds)}


@pytest.mark.heavy
def test_a_folder_that_is_seen_late_gives_one_result(corpus, whole, tmp_path, full):
    environment = late_folder(tmp_path, 10)
    for number in range(5 if full else 1):
        output = tmp_path / f"o{number}"
        joiners = [join(corpus, output, env=environment) for _ in range(3)]
        ends = [end_of(joiner, seconds=300) for joiner in joiners]
        assert {code for code, _, _ in ends} == {0}, ends
        assert output.read_bytes() == whole
        assert not staging_of(output).exists()


@pytest.mark.heavy
def test_the_dead_are_followed_in_a_folder_that_is_seen_late(corpus, whole, tmp_path):
    """And where no lock and no process number tells who is dead: each has its own processes."""
    environment, output = late_folder(tmp_path, 10), tmp_path / "o"
    joiners = [join_in_a_container(corpus, output, environment) for _ in range(3)]
    wait_for(lambda: len(workers_at(output)) == 3)
    os.killpg(joiners[0].pid, signal.SIGKILL)
    joiners[0].communicate()
    ends = [end_of(joiner, seconds=300) for joiner in joiners[1:]]
    assert {code for code, _, _ in ends} == {0}, ends
    assert output.read_bytes() == whole
    assert not staging_of(output).exists()


def join_in_a_container(corpus, output, environment):
    """A joiner whose process numbers mean nothing to others."""
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-m", "embedcli"]
    return subprocess.Popen(
        [*command, "encode", corpus, *HASH, "-o", output, "--join"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.mark.heavy
@pytest.mark.skipif(os.geteuid() != 0, reason="needs its own process numbers")
def test_containers_on_one_machine_share_an_output(corpus, whole, tmp_path):
    # Slow enough that all three are there at one time, on a slow machine, too.
    output, environment = tmp_path / "o", slowed(tmp_path, 0.4)
    joiners = [join_in_a_container(corpus, output, environment) for _ in range(3)]
    wait_for(lambda: len(workers_at(output)) == 3)
    started = time.monotonic()
    os.killpg(joiners[0].pid, signal.SIGKILL)
    joiners[0].communicate()
    ends = [end_of(joiner) for joiner in joiners[1:]]
    assert {code for code, _, _ in ends} == {0}, ends
    assert time.monotonic() - started < 40  # locks tell at once who is dead
    assert output.read_bytes() == whole
