"""Processes of our own: they end with the one that started them, and never run the caller's script."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from tokenizers.pre_tokenizers import PreTokenizer

from embedcli.encoder.loading import load_tokenizer
from embedcli.encoder.tokenizer_processes import TokenizerProcesses, joined, process_count
from embedcli.errors import DeviceError
from embedcli.processes import pool
from embedcli.records import Rendered
from tests import families, runs, tiny
from tests.conftest import REPOSITORY

FIELDS = ("ids", "starts", "lengths", "truncated", "skipped")

SCRIPT = """
import os, sys, time
from concurrent.futures import wait
from embedcli.processes import pool
print("started", flush=True)  # a second time, if a child ran this
children = pool(2, os.getpid)
print(children.submit(os.getpid).result(), children.submit(abs, -5).result(), flush=True)
if "--stay" in sys.argv:
    time.sleep(60)
"""


@pytest.fixture
def tokenizer(tmp_path):
    return load_tokenizer(
        families.spec_of("e5", tiny.bert(tmp_path / "m", positions=tiny.LENGTH))[0]
    )


def rendered_of(texts):
    return Rendered(texts, [0] * len(texts), [len(text) for text in texts])


def test_tokens_are_the_same_from_any_number_of_processes(tokenizer):
    texts = [f"{text} {index}" for index in range(60) for text in families.TEXTS]
    expected = tokenizer.encode(rendered_of(texts))
    processes = TokenizerProcesses(tokenizer, 2)
    for count in (len(texts), 513, 1, 0):
        tokens = processes.encode(rendered_of(texts[:count]))
        reference = (
            expected if count == len(texts) else tokenizer.encode(rendered_of(texts[:count]))
        )
        for name in FIELDS:
            ours, theirs = getattr(tokens, name), getattr(reference, name)
            assert np.array_equal(ours, theirs), name
            assert ours.dtype == theirs.dtype


def test_nothing_joined_is_nothing():
    assert [len(getattr(joined([]), name)) for name in FIELDS] == [0] * len(FIELDS)


def test_a_tokenizer_process_that_dies_is_a_lost_device(tokenizer):
    processes = TokenizerProcesses(tokenizer, 1)
    texts = rendered_of(["a"] * 1000)
    processes.encode(texts)
    for pid in list(processes._pool._processes):
        os.kill(pid, signal.SIGKILL)
    runs.wait_for(lambda: processes._pool._broken, 10)
    with pytest.raises(DeviceError, match="tokenizes died"):
        processes.encode(texts)


def test_a_few_texts_start_no_process(tokenizer):
    processes = TokenizerProcesses(tokenizer, 2)
    processes.encode(rendered_of(["a"] * 500))
    assert not processes._pool._processes


def test_a_tokenizer_with_a_step_in_python_stays_here(tokenizer):
    assert tokenizer.can_be_sent

    class Split:
        def pre_tokenize(self, pretok):
            """Leave it whole."""

    tokenizer._backend.pre_tokenizer = PreTokenizer.custom(Split())
    assert not tokenizer.can_be_sent


@pytest.mark.parametrize(
    ("cores", "count"), [(1, 0), (2, 0), (3, 0), (4, 2), (8, 6), (16, 12), (64, 12)]
)
def test_cores_are_left_for_the_others(cores, count):
    assert process_count(cores) == count


def test_a_pool_does_not_run_the_callers_script(tmp_path):
    script = tmp_path / "script.py"  # without a guard for __main__, as scripts are
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=REPOSITORY, check=True, timeout=60,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.stdout.count("started") == 1
    assert done.stdout.split()[-1] == "5"


def test_a_pool_ends_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, script, "--stay"], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    child = int(process.stdout.readline().split()[0])
    assert runs.is_alive(child)
    process.kill()
    process.wait()
    runs.wait_for(lambda: not runs.is_alive(child), 10)
    process.stdout.close()


FORKING = """
import os, signal, time
from embedcli import signals
signals._GRACE_SECONDS = 0.3
signals.watch()
child = os.fork()
if not child:
    time.sleep(60)
time.sleep(0.2)
os.kill(child, signal.SIGTERM)
print(os.waitpid(child, 0)[1])
time.sleep(1)
print("alive")
"""


def test_a_signal_for_a_forked_child_is_not_ours():
    """Libraries fork, and end what they forked."""
    done = subprocess.run(
        [sys.executable, "-c", FORKING], capture_output=True, text=True, cwd=REPOSITORY, check=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, timeout=60,
    )  # fmt: skip
    assert done.stdout.split() == [str(int(signal.SIGTERM)), "alive"], done.stderr


def test_the_current_folder_is_safe_for_its_own_children_only(tmp_path):
    with pool(1) as processes:
        assert processes.submit(os.getenv, "PYTHONSAFEPATH").result() == "1"
    assert not os.environ.get("PYTHONSAFEPATH")


def test_an_initializer_runs_in_each_process(tmp_path):
    with pool(1, os.chdir, tmp_path) as processes:
        assert processes.submit(os.getcwd).result() == str(tmp_path)
