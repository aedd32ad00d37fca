"""Processes and devices: where a launcher put this process, the devices of this machine, and starting
workers on them.

The only place that knows accelerate. Nothing is ever gathered or synchronized between processes:
whoever works takes units by claims in a shared folder (store/claims.py).
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from embedcli import machine
from embedcli.config import RunOptions
from embedcli.errors import DeviceError, UsageError


class _Launcher(NamedTuple):
    """A program that starts the same command many times, and the variables by which it says so.

    size: how many processes there are; local_rank: this one's number on its machine, where each is
    to take one device; local_size: how many are on its machine; fails: any code but 0 is a failure
    to it, for which it ends or repeats them.
    """

    name: str
    size: str
    local_rank: str = ""
    local_size: str = ""
    fails: bool = False


# Sources: torch.distributed.run; Slurm's sbatch(1) and srun(1), output environment variables;
# Open MPI's environment variables.
_LAUNCHERS = (
    _Launcher("torchrun", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", fails=True),
    _Launcher("srun", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    _Launcher("a Slurm array", "SLURM_ARRAY_TASK_COUNT"),
    _Launcher(
        "mpirun",
        *("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
        fails=True,
    ),
)
# A Kubernetes Job in Indexed mode tells each pod its index, and none how many there are.
_KUBERNETES = "JOB_COMPLETION_INDEX"


@dataclass(frozen=True)
class Placement:
    """Where a launcher put this process among others that run the same command.

    launcher: its name; empty where there is none. local_rank: the number of the one device that
    this process is to use; None for all. local_size: how many share this machine's cores. fails:
    see `_Launcher`.
    """

    launcher: str = ""
    local_rank: int | None = None
    local_size: int = 1
    fails: bool = False


def placement(environment: Mapping[str, str] = os.environ) -> Placement:
    """Find out whether a launcher started this process among others."""
    for launcher in _LAUNCHERS:
        if int(environment.get(launcher.size) or 1) > 1:
            rank = environment.get(launcher.local_rank)
            local_size = int(environment.get(launcher.local_size) or 1)
            return Placement(launcher.name, int(rank) if rank else None, local_size, launcher.fails)
    if environment.get(_KUBERNETES):
        return Placement("a Kubernetes Job", fails=True)
    return Placement()


def share_cores(place: Placement) -> None:
    """Leave the other processes on this machine their cores; to be called before torch is imported."""
    if place.local_size > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // place.local_size)))


def devices(options: RunOptions, needs_torch: bool, place: Placement) -> list[str]:
    """List the device of each process that should work here.

    Imports torch where a CUDA device may be meant. Raises DeviceError, UsageError.
    """
    if place.local_rank is not None and options.num_processes is not None:
        raise UsageError("--num-processes: the launcher has settled how many processes there are")
    if not needs_torch or not _may_use_cuda(options):
        return ["cpu"] * (options.num_processes or 1)
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if options.device.startswith("cuda:"):
        return [options.device] * (options.num_processes or 1)
    if not count:
        if options.device == "cuda":
            raise DeviceError(
                "--device cuda: this machine shows no CUDA device", "--device cpu runs anywhere"
            )
        return ["cpu"] * (options.num_processes or 1)
    if place.local_rank is not None:
        return [f"cuda:{place.local_rank % count}"]
    return [f"cuda:{number % count}" for number in range(options.num_processes or count)]


def _may_use_cuda(options: RunOptions) -> bool:
    if options.device != "auto":
        return options.device.startswith("cuda")
    return options.backend != "openvino" and machine.may_have_cuda()


def start(
    errand: dict[str, object],
    handle: int,
    device: str,
    processes: int,
    log: Path,
    needs_torch: bool,
) -> "subprocess.Popen[bytes]":
    """Start a worker, one of `processes` on this machine; what it prints goes to `log`.

    It inherits the descriptor `handle`, and reads its errand from standard input: all users can see
    a command line. Command and environment are accelerate's, except for the pseudo-model, which is
    to load no torch.
    """
    command = [sys.executable, "-m", "embedcli.run.worker"]
    environment = dict(os.environ)
    if needs_torch:
        command, environment = _accelerated(device, max(1, _cores() // processes))
    environment["PYTHONSAFEPATH"] = (
        "1"  # whatever lies in the working directory is no module of ours
    )
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            pass_fds=(handle,),
        )
    assert process.stdin is not None
    with (
        contextlib.suppress(BrokenPipeError),
        process.stdin as pipe,
    ):  # a worker that died has said why
        pipe.write(json.dumps(errand).encode())
    return process


def _accelerated(device: str, threads: int) -> tuple[list[str], dict[str, str]]:
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils import prepare_simple_launcher_cmd_env

    where = (
        ["--cpu"]
        if device == "cpu"
        else ["--gpu_ids", _visible(int(device.partition(":")[2] or 0))]
    )
    plain = [
        "--num_processes",
        "1",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    options = [
        *where,
        *plain,
        "--num_cpu_threads_per_process",
        str(threads),
        "-m",
        "embedcli.run.worker",
    ]
    arguments = launch_command_parser().parse_args(options)
    arguments.use_cpu = device == "cpu"  # its own check of the options would set it
    command, environment = prepare_simple_launcher_cmd_env(arguments)
    environment["RAYON_NUM_THREADS"] = str(threads)  # the tokenizer's
    environment.pop("KMP_AFFINITY", None)  # it would bind every process to the same cores
    return command, environment


def _visible(number: int) -> str:
    """Return the name by which a child sees only this device: an entry of our own CUDA_VISIBLE_DEVICES, if
    that is set.
    """
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return shown.split(",")[number].strip() if shown else str(number)


def _cores() -> int:
    return len(os.sched_getaffinity(0))
