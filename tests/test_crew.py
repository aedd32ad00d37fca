"""Several processes: the same bytes as one, whatever happens to them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from embedcli import launch, machine
from embedcli.config import RunOptions
from embedcli.errors import UsageError, ending_of
from embedcli.run import supervisor
from embedcli.store.staging import Staging
from tests.conftest import run_process
from tests.runs import (
    HASH,
    bytes_of_a_run,
    children,
    content,
    counts,
    encode,
    is_alive,
    poisoned,
    staging_of,
    start_encode,
    table,
    wait_for,
    write_corpus,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """About fifteen units."""
    return write_corpus(tmp_path_factory.mktemp("crew") / "corpus.jsonl", rows=160_000)


@pytest.fixture(scope="module")
def whole(corpus):
    return bytes_of_a_run(corpus)


def workers_of(process):
    return [
        pid
        for pid in children(process.pid)
        if b"embedcli.run.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def parts_of(output):
    return list((staging_of(output) / "parts").glob("part-*"))


@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_gives_the_same_bytes(processes, cli, corpus, whole, tmp_path):
    ran, report = encode(cli, corpus, tmp_path / "o.parquet", "--num-processes", processes)
    assert (ran.code, report["workers"], report["restarts"]) == (0, processes, 0)
    assert (tmp_path / "o.parquet").read_bytes() == whole
    assert counts(report, "rows_in", "rows_out", "rejected") == (160_000, 160_000, 0)


@pytest.mark.heavy
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_any_run_of_any_number_of_processes_gives_the_same_bytes(
    processes, corpus, whole, tmp_path, full
):
    for number in range(5 if full else 1):
        output = tmp_path / str(number)
        ran = run_process("encode", corpus, *HASH, "-o", output, "--num-processes", processes)
        assert ran.code == 0, ran.err
        assert output.read_bytes() == whole


def test_a_directory_and_a_stream_by_several_processes(cli, corpus, tmp_path):
    for options in ((), ("--num-processes", 3)):
        assert encode(cli, corpus, f"{tmp_path}/{len(options)}/", *options)[0].code == 0
    assert content(tmp_path / "0") == content(tmp_path / "2")
    streams = [
        cli("encode", corpus, *HASH, "-o", "-", "-q", *more).out
        for more in ((), ("--num-processes", 3))
    ]
    assert streams[0] == streams[1]


def test_a_worker_that_is_killed_costs_nothing(corpus, whole, tmp_path):
    output, rng = tmp_path / "o.parquet", random.Random(1)
    process = start_encode(corpus, output, "--num-processes", 4)
    victims = wait_for(lambda: len(found := workers_of(process)) == 4 and found)
    wait_for(lambda: parts_of(output))
    os.kill(rng.choice(victims), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert err.count(b"was killed by SIGKILL; restarting it") == 1
    assert b"1 worker died and was restarted" in err
    assert output.read_bytes() == whole


def test_no_worker_outlives_its_parent(corpus, tmp_path):
    process = start_encode(corpus, tmp_path / "o.parquet", "--num-processes", 4)
    workers = wait_for(lambda: len(found := workers_of(process)) == 4 and found)
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(is_alive, workers)), seconds=5)
    process.communicate()


@pytest.mark.parametrize(
    ("processes", "number"),
    [
        (1, signal.SIGTERM),
        (3, signal.SIGINT),
        pytest.param(1, signal.SIGINT, marks=pytest.mark.heavy),
        pytest.param(1, signal.SIGHUP, marks=pytest.mark.heavy),
        pytest.param(3, signal.SIGTERM, marks=pytest.mark.heavy),
        pytest.param(3, signal.SIGHUP, marks=pytest.mark.heavy),
    ],
)
def test_signals_end_the_run_and_keep_what_is_finished(number, processes, corpus, whole, tmp_path):
    output = tmp_path / "o.parquet"
    process = start_encode(corpus, output, "--num-processes", processes, start_new_session=True)
    wait_for(lambda: len(parts_of(output)) > 3)
    workers = workers_of(process)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does it
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 128 + number, err
    assert b"Traceback" not in err
    assert b"the same command continues from there" in err
    assert not any(map(is_alive, workers))
    assert not output.exists()
    ran = run_process("encode", corpus, *HASH, "-o", output, "--num-processes", processes)
    assert (ran.code, "were finished by an interrupted run" in ran.err) == (0, True)
    assert output.read_bytes() == whole


def test_a_second_ctrl_c_ends_at_once():
    process = subprocess.Popen(
        [sys.executable, "-c", HELD], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=2) == 130
    process.communicate()


# One call into C that takes minutes: no Python handler runs meanwhile. A signal that comes before it leads into it.
HELD = """
import hashlib
from embedcli import errors, signals
signals.watch()
while True:
    try:
        print("ready", flush=True)
        hashlib.pbkdf2_hmac("sha512", b"", b"", 2**30)
    except errors.Interrupted:
        pass
"""


def hang_a_worker(corpus, output, rng):
    """Stop one of two workers of a run for good, while it works; gives what the run said."""
    process = start_encode(corpus, output, "--num-processes", 2, "--watchdog", 2)
    victims = wait_for(lambda: len(found := workers_of(process)) == 2 and found)
    wait_for(lambda: len(parts_of(output)) > 1)
    os.kill(rng.choice(victims), signal.SIGSTOP)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return err


def test_a_worker_that_hangs_is_noticed(corpus, whole, tmp_path):
    err = hang_a_worker(corpus, tmp_path / "o", random.Random(0))
    assert b"showed no progress for 2 s; restarting it" in err
    assert (tmp_path / "o").read_bytes() == whole


@pytest.mark.heavy
def test_workers_that_hang_at_random_cost_nothing(corpus, whole, tmp_path, full):
    rounds, rng, noticed = 10 if full else 2, random.Random(1), 0
    for number in range(rounds):
        err = hang_a_worker(corpus, tmp_path / str(number), rng)
        noticed += b"showed no progress for 2 s; restarting it" in err
        assert (tmp_path / str(number)).read_bytes() == whole
    print(f"\n{rounds} workers stopped, {noticed} while they had work: all complete, bytes equal")


def test_one_process_that_hangs_gives_up_by_itself(tmp_path):
    corpus = write_corpus(tmp_path / "c.jsonl", 100, "ENDLESS {}")
    ran = run_process("encode", corpus, *HASH, "--watchdog", 1, env=poisoned(tmp_path))
    assert (ran.code, "no progress for 1 s" in ran.err) == (69, True)


@pytest.mark.parametrize(
    ("word", "processes"),
    [
        ("POISON", 1),
        ("POISON", 2),
        pytest.param("ENDLESS", 1, marks=pytest.mark.heavy),
        pytest.param("ENDLESS", 2, marks=pytest.mark.heavy),
    ],
)
def test_a_text_that_kills_is_found_and_rejected(word, processes, tmp_path):
    corpus, environment = tmp_path / "c.jsonl", poisoned(tmp_path)
    rows = [{"text": f"text {i}" + f" {word}" * (i == 7_777)} for i in range(10_000)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [
        *HASH,
        "-o",
        tmp_path / "o",
        "--num-processes",
        processes,
        "--report",
        tmp_path / "r",
    ]
    if word == "ENDLESS":
        options += ["--watchdog", 2]
    if processes == 1:
        # It takes the run with it, twice; then a process of its own is given to the unit.
        codes = [run_process("encode", corpus, *options, env=environment).code for _ in range(2)]
        assert codes == ([9, 9] if word == "POISON" else [69, 69])
    ran = run_process("encode", corpus, *options, env=environment)
    message = f"{corpus}:7778: it ends the process that encodes it"
    assert (ran.code, message in ran.err) == (65, True), ran.err
    ran = run_process("encode", corpus, *options, "--on-error", "reject", env=environment)
    assert ran.code == 3, ran.err
    [rejected] = (tmp_path / "o.rejects.jsonl").read_text().splitlines()
    assert json.loads(rejected)["line"] == 7_778
    report = json.loads((tmp_path / "r").read_text())
    assert counts(report, "rows_in", "rows_out", "rejected") == (10_000, 9_999, 1)
    assert report["restarts"] <= 20
    assert table(tmp_path / "o")["text"].to_pylist() == [
        row["text"] for row in rows if word not in row["text"]
    ]


def test_workers_that_keep_dying_end_the_run_with_69(corpus, tmp_path):
    # They die as soon as they start.
    environment = poisoned(
        tmp_path,
        "import os, sys\nif 'embedcli.run.worker' in ' '.join(sys.orig_argv): os._exit(5)\n",
    )
    started = time.monotonic()
    ran = run_process(
        "encode", corpus, *HASH, "-o", tmp_path / "o", "--num-processes", 4, env=environment
    )
    assert (ran.code, "all workers failed repeatedly" in ran.err, "giving it up" in ran.err) == (
        69,
        True,
        True,
    )
    assert time.monotonic() - started < 60


NO_MODEL = """
import sys
if "embedcli.run.worker" in " ".join(sys.orig_argv):
    from embedcli import encoder
    from embedcli.errors import *
    def load(spec, options):
        raise {error}("no model here")
    encoder.load = load
"""


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("error", "code"), [("DeviceError", 69), ("ConfigurationError", 78), ("MemoryError", 69)]
)
def test_a_model_that_no_worker_can_load_ends_the_run(error, code, tmp_path, full):
    corpus = write_corpus(tmp_path / "c.jsonl")
    environment = poisoned(tmp_path, NO_MODEL.format(error=error))
    for _ in range(10 if full else 1):
        process = start_encode(corpus, tmp_path / "o", "--num-processes", 4, env=environment)
        workers = wait_for(lambda process=process: workers_of(process))
        _, err = process.communicate(timeout=60)
        assert (process.returncode, b"no model here" in err) == (code, True), err
        assert b"Traceback" not in err
        assert not any(map(is_alive, workers))
        assert not (tmp_path / "o").exists()


def test_a_worker_without_memory_fails_as_this_process_would(tmp_path):
    error = MemoryError("no room")
    failure = supervisor.as_failure(error, Staging(tmp_path, None, "t"))
    ending = ending_of(error)
    assert failure == {"kind": "DeviceError", "message": ending.error, "hint": ending.hint}


def test_a_device_that_kills_every_text_is_not_the_texts_fault(tmp_path):
    corpus = write_corpus(
        tmp_path / "c.jsonl", 9_000, "POISON {} and some more of it, to fill more units than one"
    )
    ran = run_process(
        "encode",
        corpus,
        *HASH,
        "--num-processes",
        2,
        "--on-error",
        "reject",
        env=poisoned(tmp_path),
    )
    assert ran.code == 69, ran.err
    assert not list(tmp_path.glob("*.parquet"))


def test_what_a_worker_finds_wrong_is_the_runs_error(corpus, tmp_path, monkeypatch):
    environment = poisoned(
        tmp_path,
        "import hashlib\ndef no(data): raise OSError(28, 'No space left on device', 'x')\nhashlib.shake_128 = no\n",
    )
    ran = run_process(
        "encode", corpus, *HASH, "-o", tmp_path / "o", "--num-processes", 2, env=environment
    )
    assert (ran.code, "x: No space left on device" in ran.err, "Traceback" in ran.err) == (
        74,
        True,
        False,
    )


@pytest.mark.torch
@pytest.mark.parametrize("visible", [None, "2,5", "GPU-aa,GPU-bb"])
def test_a_worker_is_shown_its_own_device(visible, monkeypatch):
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    command, environment = launch._accelerated("cuda:1", 3)
    assert command[1:] == ["-m", "embedcli.run.worker"]
    assert environment["CUDA_VISIBLE_DEVICES"] == (visible.split(",")[1] if visible else "1")
    assert (environment["OMP_NUM_THREADS"], environment["ACCELERATE_USE_CPU"]) == ("3", "False")
    assert launch._accelerated("cpu", 1)[1]["ACCELERATE_USE_CPU"] == "True"


TORCH, NO_TORCH = True, False


@pytest.mark.torch
def test_devices(monkeypatch):
    import torch

    alone, second = launch.Placement(), launch.Placement("torchrun", local_rank=1)
    assert launch.devices(RunOptions(), NO_TORCH, alone) == ["cpu"]
    assert launch.devices(RunOptions(device="cpu", num_processes=3), TORCH, alone) == ["cpu"] * 3
    monkeypatch.setattr(machine, "may_have_cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert launch.devices(RunOptions(), TORCH, alone) == ["cuda:0", "cuda:1"]
    assert launch.devices(RunOptions(num_processes=3), TORCH, alone) == [
        "cuda:0",
        "cuda:1",
        "cuda:0",
    ]
    assert launch.devices(RunOptions(device="cuda:1"), TORCH, alone) == ["cuda:1"]
    assert launch.devices(RunOptions(), TORCH, second) == ["cuda:1"]
    by_openvino = RunOptions(backend="openvino", num_processes=2)
    assert launch.devices(by_openvino, TORCH, alone) == ["cpu", "cpu"]


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, launch.Placement()),
        ({"WORLD_SIZE": "1", "LOCAL_RANK": "0"}, launch.Placement()),
        (
            {"WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
            launch.Placement("torchrun", 1, 2, fails=True),
        ),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}, launch.Placement("srun", 0)),
        ({"SLURM_ARRAY_TASK_COUNT": "8"}, launch.Placement("a Slurm array")),
        ({"JOB_COMPLETION_INDEX": "0"}, launch.Placement("a Kubernetes Job", fails=True)),
        (
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
            launch.Placement("mpirun", 1, fails=True),
        ),
    ],
)
def test_launchers_are_known_by_their_environment(environment, place):
    assert launch.placement(environment) == place


def test_a_launcher_settles_how_many_processes_there_are():
    with pytest.raises(UsageError, match="the launcher has settled"):
        launch.devices(RunOptions(num_processes=2), NO_TORCH, launch.Placement("torchrun", 1))


@pytest.mark.heavy
def test_a_real_model_gives_the_same_bytes_in_two_processes(tmp_path):
    corpus = write_corpus(tmp_path / "c.jsonl", 6_000, "text {}, " + "x" * 80)
    for processes in (1, 2):
        options = (
            "--role",
            "passage",
            "--dtype",
            "float32",
            "--max-length",
            16,
            "--num-processes",
            processes,
        )
        ran = run_process("encode", corpus, *options, "-o", tmp_path / str(processes))
        assert ran.code == 0, ran.err
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
