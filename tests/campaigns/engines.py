"""Engines that lose a process in the middle of a corpus: the work is complete, no row is there twice,
and the vectors are those of the command line.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY, run_process, start
from tests.engines import vectors_by_id, write_corpus
from tests.runs import HASH, content, staging_of

_PATIENCE_SECONDS = 120.0


def kill_when_at_work(marks: Path, rng: random.Random, kill: Callable[[int], None]) -> str:
    """Kill a process that left a mark, some moments later; return why that wasn't possible."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not any(marks.iterdir()):
        if time.monotonic() > deadline:
            return "nobody began to work"
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 0.6))
    victims = [int(mark.name) for mark in marks.iterdir() if Path(f"/proc/{mark.name}").exists()]
    if not victims:
        return "nobody was at work"
    kill(rng.choice(victims))
    return ""


def _campaign(
    number: int | None,
    seed: int,
    embed: Callable[[Path, Path], "subprocess.Popen[bytes]"],
    kill: Callable[[int], None],
) -> tuple[int, list[str]]:
    """Have an engine embed a corpus again and again, each time with one process killed."""
    rng = random.Random(seed)
    count = 20 if number is None else number
    faults = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder)
        ran = run_process("encode", folder / "corpus", *HASH, "-o", folder / "whole.parquet")
        assert ran.code == 0, ran.err
        whole = vectors_by_id(folder / "whole.parquet")
        for turn in range(count):
            marks, output = folder / f"marks{turn}", folder / f"out{turn}"
            marks.mkdir()
            process = embed(marks, output)
            fault = kill_when_at_work(marks, rng, kill)
            _, err = process.communicate(timeout=600)
            if process.returncode:
                fault = f"the engine gave up: {err.decode()[-500:]}"
            elif not fault and vectors_by_id(output) != whole:
                fault = "rows were lost, doubled or others"
            if fault:
                faults.append(f"kill {turn}: {fault}")
            shutil.rmtree(output, ignore_errors=True)
    return count, faults


def _driver(*arguments: object) -> "subprocess.Popen[bytes]":
    """Start an engine's driver."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "PYSPARK_PYTHON": sys.executable,
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", "tests.engines", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, cwd=REPOSITORY
    )


def _kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)


def kill_ray_data(number: int | None, seed: int) -> tuple[int, list[str]]:
    """Kill actors of Ray Data."""
    return _campaign(number, seed, lambda *paths: _driver("Ray Data", *paths), _kill)


def kill_spark(number: int | None, seed: int) -> tuple[int, list[str]]:
    """Kill executors of Spark, or the Python processes that they started."""
    rng = random.Random(seed)

    def kill(worker: int) -> None:
        """Kill a Python worker, or its executor: the parent of the worker's parent, a JVM."""
        _kill(_parent(_parent(worker)) if rng.random() < 0.7 else worker)

    return _campaign(number, seed, lambda *paths: _driver("Spark", *paths), kill)


def _parent(process: int) -> int:
    status = Path(f"/proc/{process}/stat").read_text()
    return int(status.rpartition(")")[2].split()[1])


def kill_ray_runs(number: int | None, seed: int) -> tuple[int, list[str]]:
    """Kill a node of a cluster, or the command, while `--engine ray` is at work: the same command then
    gives the bytes of a single run.
    """
    from ray.cluster_utils import Cluster

    rng = random.Random(seed)
    count = 20 if number is None else number
    faults = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = folder / "corpus.jsonl"
        write_long_corpus(corpus)
        assert run_process("encode", corpus, *HASH, "-o", folder / "whole.parquet").code == 0
        whole = content(folder / "whole.parquet")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            for turn in range(count):
                kind = ("node", "driver")[turn % 2]
                fault = _kill_ray_run(cluster, kind, corpus, folder / f"{turn}.parquet", rng, whole)
                if fault:
                    faults.append(f"kill {turn}, of the {kind}: {fault}")
        finally:
            cluster.shutdown()
    return count, faults


def write_long_corpus(path: Path) -> None:
    """Write a corpus of many units."""
    words = " ".join(f"word{number}" for number in range(200))
    with open(path, "w") as stream:
        for number in range(40_000):
            stream.write(json.dumps({"id": number, "text": f"{number} {words}"}) + "\n")


def _kill_ray_run(
    cluster: Any, kind: str, corpus: Path, output: Path, rng: random.Random, whole: object
) -> str:
    node = cluster.add_node(num_cpus=1)
    arguments = ["encode", corpus, *HASH, "-o", output, "--engine", f"ray://{cluster.address}"]
    process = start(*arguments, start_new_session=True)
    parts = staging_of(str(output)) / "parts"
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while process.poll() is None and not (parts.exists() and any(parts.iterdir())):
        if time.monotonic() > deadline:
            return "nobody began to work"
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 1.0))
    is_killed = process.poll() is None
    if kind == "node":
        cluster.remove_node(node, allow_graceful=False)
    elif is_killed:
        os.killpg(process.pid, signal.SIGKILL)
    _, err = process.communicate(timeout=600)
    if kind == "driver":
        cluster.remove_node(node, allow_graceful=False)
        ran = run_process(*arguments)
        code, err = ran.code, ran.err.encode()
    else:
        code = process.returncode
    if not is_killed:
        return "it was done before it was killed"
    if code:
        return f"ends with {code}: {err.decode()[-500:]}"
    if content(output) != whole:
        return "the bytes are others"
    return "its staging directory stayed" if staging_of(str(output)).exists() else ""
