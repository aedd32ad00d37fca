"""A Slurm array on one machine: SLURM_ROOT names a folder into which Debian's packages slurmctld,
slurmd, slurm-client, slurm-wlm-basic-plugins, libmunge2 and libhwloc15 were unpacked (`dpkg -x`).
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import run_process
from tests.runs import HASH, slowed, staging_of, wait_for, workers_at, write_corpus

ROOT = os.environ.get("SLURM_ROOT", "")
pytestmark = [pytest.mark.heavy, pytest.mark.skipif(not ROOT, reason="needs SLURM_ROOT")]

SETTINGS = """
ClusterName=t
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PluginDir={root}/usr/lib/x86_64-linux-gnu/slurm-wlm
SlurmctldPort={control_port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdParameters=config_overrides
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=p Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def slurm(tmp_path):
    """A function that runs a command of Slurm and gives what it printed."""
    folder = tmp_path / "slurm"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    settings = folder / "slurm.conf"
    ports = {"control_port": 26817, "node_port": 26818}
    host = socket.gethostname()
    settings.write_text(SETTINGS.format(host=host, root=ROOT, folder=folder, **ports))
    libraries = f"{ROOT}/usr/lib/x86_64-linux-gnu"
    environment = {
        **os.environ,
        "SLURM_CONF": str(settings),
        "LD_LIBRARY_PATH": f"{libraries}:{libraries}/slurm-wlm",
    }
    step = ("-d", f"{ROOT}/usr/sbin/slurmstepd-wlm")
    commands = {"slurmctld-wlm": (), "slurmd-wlm": step}
    daemons = []
    for name, options in commands.items():
        command = [f"{ROOT}/usr/sbin/{name}", "-D", "-f", settings, *options]
        with (folder / name).open("wb") as log:
            daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        time.sleep(2)

    def run(command, *arguments):
        words = [f"{ROOT}/usr/bin/{command}", *map(str, arguments)]
        return subprocess.run(
            words, env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()

    wait_for(lambda: "idle" in run("sinfo", "-h"))
    yield run
    for daemon in reversed(daemons):
        daemon.terminate()
        daemon.wait()


@pytest.mark.parametrize("victim", ["any", "leader"])
def test_an_array_of_which_one_is_cancelled_and_one_requeued(victim, slurm, tmp_path):
    corpus, output = write_corpus(tmp_path / "c.jsonl", 400_000), tmp_path / "o.parquet"
    assert run_process("encode", corpus, *HASH, "-o", tmp_path / "whole").code == 0
    script = tmp_path / "job.sh"
    path = slowed(tmp_path, seconds=0.15)["PYTHONPATH"]
    words = (sys.executable, "-m", "embedcli", "encode", str(corpus), *HASH, "-o", str(output))
    script.write_text(
        f"#!/bin/bash\nunset LD_LIBRARY_PATH\nexport PYTHONPATH={path}\n{' '.join(words)}\n"
        "echo task $SLURM_ARRAY_TASK_ID ended with $?\n"
    )
    logs = ("--output", f"{tmp_path}/task-%a.log", "--open-mode", "append", "--requeue")
    job = slurm("sbatch", "--parsable", "--array=0-7", *logs, script)
    wait_for(lambda: len(workers_at(output)) == 8)
    cancelled = leading_task(output) if victim == "leader" else 3
    requeued = (cancelled + 1) % 8
    slurm("scancel", "-s", signal.SIGKILL.name, "--full", f"{job}_{cancelled}")
    slurm("scontrol", "requeue", f"{job}_{requeued}")
    time.sleep(0.5)
    slurm("scontrol", "update", f"jobid={job}_{requeued}", "StartTime=now")
    wait_for(lambda: not slurm("squeue", "-h"), seconds=300)
    for task in set(range(8)) - {cancelled}:
        log = (tmp_path / f"task-{task}.log").read_text()
        assert f"task {task} ended with 0" in log, log
    assert output.read_bytes() == (tmp_path / "whole").read_bytes()
    assert not staging_of(output).exists()


def leading_task(output):
    """The task of the process that holds the lease."""
    last = sorted(staging_of(output).glob("lease-*"))[-1]
    pid = json.loads(last.read_bytes())["pid"]
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    (task,) = (word for word in variables if word.startswith(b"SLURM_ARRAY_TASK_ID="))
    return int(task.partition(b"=")[2])
