"""What claims cost: `python -m tests.benchmarks.claims [UNITS] [WORKERS]`.

Workers take units and finish them at once, as processes on one folder, so that all the time that
passes is that of claims, results and signs of life. Compared with the time of a unit of 8,192 rows.
"""

import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

from embedcli.store.claims import ClaimBoard, taking_part
from embedcli.store.staging import Staging

# Rows a second of one device: MiniLM on two CPU cores, and a fast GPU with a small model.
_SPEEDS = {"1,000 rows/s": 1_000, "20,000 rows/s": 20_000}
_ROWS = 8_192


def _work(folder: str, number: int, units: int) -> tuple[int, float, float]:
    stage = Staging(Path(folder), Path(folder) / "o", "token")
    with taking_part(ClaimBoard(stage, f"worker-{number}", range(units))) as board:
        started, cpu, count = time.perf_counter(), time.process_time(), 0
        while (unit := board.next_unit()) is not None:
            board.begin(unit)
            board.beat(stage="encoding", unit=unit, rows=0, of=_ROWS, tokens=0)
            board.finish(unit, {"rows": _ROWS})
            count += 1
        return count, time.perf_counter() - started, time.process_time() - cpu


def main(units: int = 100_000, workers: int = 4) -> None:
    """Print the cost of a unit, and its share of a unit's time."""
    with tempfile.TemporaryDirectory() as folder:
        stage = Staging(Path(folder), None, "token")
        for name in ("results", "attempts", "run"):
            (Path(folder) / name).mkdir()
        stage.begin_run()
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            ends = pool.starmap(_work, [(folder, number, units) for number in range(workers)])
    counts, walls, cpus = zip(*ends, strict=True)
    assert sum(counts) == units, counts
    wall, cpu = sum(walls) / units * 1000, sum(cpus) / units * 1000
    print(f"{units:,} units, {workers} workers: {wall:.2f} ms a unit, {cpu:.2f} ms of CPU")
    for name, speed in _SPEEDS.items():
        print(f"  of a unit at {name}: {wall / (_ROWS / speed * 1000):.2%}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
