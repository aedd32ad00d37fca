"""torchrun and accelerate launch, on machines that are processes here: any of them is killed.

In reduced numbers by default; `pytest -m heavy --full` kills twenty times each and prints what it
saw.
"""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs import (
    HASH,
    bytes_of_a_run,
    children,
    end_of,
    is_alive,
    join,
    slowed,
    staging_of,
    wait_for,
    workers_at,
    write_corpus,
)

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """About eight units."""
    return write_corpus(tmp_path_factory.mktemp("launchers") / "corpus.jsonl", rows=80_000)


@pytest.fixture(scope="module")
def whole(corpus):
    return bytes_of_a_run(corpus)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def torchrun(machine, port):
    """The command by which one of two machines starts two ranks; machine 0 is where they meet."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "2"),
        *("--node_rank", machine, "--max_restarts", "2", "--rdzv_backend", "c10d"),
        *("--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_id", port),
        *("--rdzv_conf", f"is_host={1 - machine}", "-m", "embedcli"),
    ]


def accelerate(machine, port):
    """The same, by accelerate."""
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--max_restarts", "2"),
        *("--num_machines", "2", "--num_processes", "4", "--machine_rank", machine),
        *("--main_process_ip", "127.0.0.1", "--main_process_port", port),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "-m", "embedcli"),
    ]


LAUNCHERS = {"torchrun": torchrun, "accelerate": accelerate}


def launch_both(launcher, corpus, output, environment):
    """Start both machines; each is a group of processes of its own."""
    port = free_port()
    return [
        subprocess.Popen(
            [str(word) for word in (*LAUNCHERS[launcher](machine, port), "encode", corpus)]
            + [*HASH, "-o", str(output)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        for machine in range(2)
    ]


def ranks_of(agent):
    """The processes of embedcli that a launcher started."""
    return [pid for pid in children(agent.pid) if b"embedcli" in command_of(pid)]


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def all_work(agents, output):
    """Wait until all ranks have joined."""
    wait_for(lambda: len(workers_at(output)) >= 4, seconds=120)
    return [pid for agent in agents for pid in ranks_of(agent)]


def launches(launcher, corpus, folder, rounds, rng):
    """Launch again and again; yield an output, its launchers and their ranks somewhere in the middle."""
    for number in range(rounds):
        output = folder / str(number)
        agents = launch_both(launcher, corpus, output, slowed(folder, seconds=0.4))
        ranks = all_work(agents, output)
        time.sleep(rng.uniform(0, 2))
        yield output, agents, ranks


def test_ranks_of_torchrun_give_the_same_bytes(corpus, whole, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", "-m", "embedcli", "encode", corpus, *HASH]
    done = subprocess.run([*command, "-o", tmp_path / "o"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'o'}\n"
    assert (tmp_path / "o").read_bytes() == whole
    assert not staging_of(tmp_path / "o").exists()


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_launches_act_as_two_machines(launcher, corpus, whole, tmp_path):
    agents = launch_both(launcher, corpus, tmp_path / "o", slowed(tmp_path))
    ends = [end_of(agent, seconds=120) for agent in agents]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert sorted(out for _, out, _ in ends) == ["", f"{tmp_path / 'o'}\n"]
    assert "4 processes" in "".join(err for _, _, err in ends)
    assert (tmp_path / "o").read_bytes() == whole


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_rank_that_is_killed_costs_nothing(launcher, corpus, whole, tmp_path, full):
    rounds, rng, seconds = 20 if full else 1, random.Random(launcher), []
    for output, agents, ranks in launches(launcher, corpus, tmp_path, rounds, rng):
        started = time.monotonic()
        os.kill(rng.choice(ranks), signal.SIGKILL)
        ends = [end_of(agent, seconds=180) for agent in agents]
        seconds.append(time.monotonic() - started)
        assert [code for code, _, _ in ends] == [0, 0], ends
        assert output.read_bytes() == whole
        assert not staging_of(output).exists()
    print(
        f"\n{rounds} ranks of {launcher} killed: published, codes 0, {max(seconds):.0f} s at most"
    )


@pytest.mark.parametrize(
    ("launcher", "dead"), [("torchrun", 1), ("accelerate", 1), ("accelerate", 0)]
)
def test_a_machine_that_is_killed_costs_nothing(launcher, dead, corpus, whole, tmp_path, full):
    """What the other launcher ends with is its own affair: it waits for the lost machine."""
    rounds, rng, codes = 20 if full else 1, random.Random(launcher), []
    for output, agents, ranks in launches(launcher, corpus, tmp_path, rounds, rng):
        kill_machine(agents[dead])
        wait_for(output.exists, seconds=120)
        assert output.read_bytes() == whole
        wait_for(lambda output=output: not staging_of(output).exists())
        wait_for(lambda ranks=ranks: not any(map(is_alive, ranks)))
        codes.append(code_of(agents[1 - dead]))
    print(
        f"\n{rounds} times machine {dead} of {launcher} killed: published; the other's codes: {codes}"
    )


def test_without_the_machine_where_they_meet_torchrun_ends_its_ranks(corpus, whole, tmp_path):
    """Then what is finished is kept, and whoever joins goes on."""
    output = tmp_path / "o"
    agents = launch_both("torchrun", corpus, output, slowed(tmp_path, seconds=0.4))
    all_work(agents, output)
    wait_for(lambda: any((staging_of(output) / "parts").iterdir()))
    kill_machine(agents[0])
    code = end_of(agents[1], seconds=60)[0]
    assert (code, output.exists()) == (1, False)
    code, _, err = end_of(join(corpus, output))
    assert (code, "were finished by an interrupted run" in err) == (0, True), err
    assert output.read_bytes() == whole


def kill_machine(agent):
    """Kill a launcher and all its ranks at once."""
    for pid in (agent.pid, *ranks_of(agent)):
        os.kill(pid, signal.SIGKILL)
    agent.communicate()


def code_of(agent, seconds=10):
    """How a launcher ends; it is ended where it doesn't."""
    try:
        return end_of(agent, seconds)[0]
    except subprocess.TimeoutExpired:
        os.killpg(agent.pid, signal.SIGKILL)
        agent.communicate()
        return f"none in {seconds} s"


def test_a_machine_joins_in_the_middle(corpus, whole, tmp_path):
    output, environment = tmp_path / "o", slowed(tmp_path, seconds=0.4)
    agents = launch_both("torchrun", corpus, output, environment)
    all_work(agents, output)
    third = join(corpus, output, env=environment)
    code, out, err = end_of(third, seconds=120)
    assert (code, out) == (0, f"{output}\n"), err
    assert re.search(r"[\d,]+ rows were done here", err) or "processes" in err
    assert [end_of(agent, seconds=120)[0] for agent in agents] == [0, 0]
    assert output.read_bytes() == whole
