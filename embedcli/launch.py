"""Processes and devices: the rank that a launcher gives, the devices of this machine, and starting
workers on them.

The only place that knows accelerate. Nothing is ever gathered or synchronized between processes:
whoever works takes units by claims in a shared folder (store/claims.py).
"""

import contextlib
import json
import os
import secrets
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from embedcli.config import RunOptions
from embedcli.errors import ConfigurationError, DeviceError, UsageError


@dataclass(frozen=True)
class World:
    """This process among those that `accelerate launch` or `torchrun` started; alone without them.

    `token` is the same for all of them, and new in each run.
    """

    token: str
    rank: int = 0
    size: int = 1
    local_rank: int = 0


def join(options: RunOptions) -> World:
    """Find this process's rank.

    Raises ConfigurationError where accelerate and the launcher's environment disagree: each process
    would believe that it is alone, and embed the whole corpus.
    """
    size = int(os.environ.get("WORLD_SIZE") or 1)
    if size <= 1:
        return World(secrets.token_hex(8))
    if options.num_processes is not None:
        raise UsageError("--num-processes: the launcher has settled how many processes there are")
    os.environ.setdefault(
        "OMP_NUM_THREADS", str(max(1, _cores() // int(os.environ.get("LOCAL_WORLD_SIZE") or size)))
    )
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    # Ranks and one word at the start are all that is wanted of it, so the CPU's backend will do; without `cpu`
    # accelerate calls each process rank 0 of 1 where there is no GPU.
    state = PartialState(cpu=True)
    announced, joined = (int(os.environ["RANK"]), size), (state.process_index, state.num_processes)
    if announced != joined:
        raise ConfigurationError(
            f"the launcher says rank {announced[0]} of {announced[1]}, accelerate says rank {joined[0]} of {joined[1]}",
            "start it by torchrun, or by accelerate launch --multi_gpu",
        )
    token: str = broadcast_object_list([secrets.token_hex(8)])[0]
    world = World(token, state.process_index, state.num_processes, state.local_process_index)
    state.destroy_process_group()
    return world


def devices(options: RunOptions, needs_torch: bool, world: World) -> list[str]:
    """List the device of each process that should work here.

    Imports torch where a CUDA device may be meant.
    """
    if not needs_torch or options.device == "cpu":
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
    if world.size > 1:
        return [f"cuda:{world.local_rank % count}"]
    return [f"cuda:{number % count}" for number in range(options.num_processes or count)]


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
