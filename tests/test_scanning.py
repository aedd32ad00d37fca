"""Planning by several processes gives what one gives, and ends as one would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from embedcli.config import InputOptions
from embedcli.errors import DataError, DeviceError
from embedcli.records import InputFile
from embedcli.sources import lines as jsonl
from embedcli.sources import parquet, scanning
from embedcli.sources.cuts import Grain

GRAIN = Grain(rows=64, bytes=2**16)


@pytest.fixture
def at_once(monkeypatch):
    """Have all ranges, which are small, planned by processes."""

    def start():
        monkeypatch.setattr(scanning, "_PARALLEL_BYTES", 0)
        monkeypatch.setattr(jsonl, "_RANGE_BYTES", 2**14)
        monkeypatch.setattr(parquet, "_RANGE_BYTES", 2**12)

    return start


def jsonl_of(path, count=2_000):
    rows = [{"id": i, "text": f"text {i}", "late": i if i > 1_500 else None} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def plan(path, format_name="jsonl", place="line"):
    file = InputFile(path.name, str(path), format_name, place)
    reader = jsonl if format_name == "jsonl" else parquet
    return reader.plan([file], InputOptions(), GRAIN)


def test_several_processes_plan_jsonl_as_one_does(tmp_path, at_once):
    path = jsonl_of(tmp_path / "c.jsonl")
    alone = plan(path)
    at_once()
    assert plan(path) == alone


def test_an_input_that_is_reached_by_a_descriptor_is_planned_by_processes(tmp_path, at_once):
    """A copy of standard input lies in the staging directory, which is reached so."""
    alone = plan(jsonl_of(tmp_path / "c.jsonl"))
    folder = os.open(tmp_path, os.O_RDONLY)
    at_once()
    planned = plan(Path(f"/proc/self/fd/{folder}/c.jsonl"))
    os.close(folder)
    assert planned.units == alone.units


def test_several_processes_plan_parquet_as_one_does(tmp_path, at_once):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "c.parquet"
    table = pa.table({"text": [f"text {i}" for i in range(3_000)], "n": range(3_000)})
    pq.write_table(table, path, row_group_size=200)
    alone = plan(path, "parquet", "row")
    at_once()
    assert plan(path, "parquet", "row") == alone


def test_a_bad_row_is_told_by_its_line_in_the_file(tmp_path, at_once):
    path = jsonl_of(tmp_path / "c.jsonl")
    path.write_text(path.read_text().replace('"text": "text 1234"', '"text": 5'))
    at_once()
    with pytest.raises(DataError, match=r"c.jsonl:1235: column 'text' is a number") as error:
        plan(path)
    assert "--on-error reject" in error.value.hint


def test_a_process_that_dies_ends_the_run_with_69(at_once):
    at_once()
    with (
        pytest.raises(DeviceError, match="a process that read the input died"),
        scanning.map_in_order(os._exit, [3, 3], 1) as results,
    ):
        list(results)


_PLANS = """
from embedcli.sources import scanning
scanning._PARALLEL_BYTES = 0
if __name__ == "__main__":
    with scanning.map_in_order(abs, [-1, -2, -3], 1) as results:
        print(list(results))
"""


def test_a_process_of_planning_takes_no_module_from_the_current_folder(tmp_path):
    (tmp_path / "program.py").write_text(_PLANS)
    (tmp_path / "here").mkdir()
    for name in (*sys.stdlib_module_names, "numpy", "embedcli"):
        (tmp_path / "here" / f"{name}.py").write_text("raise SystemExit('taken')")
    ran = subprocess.run(
        [sys.executable, tmp_path / "program.py"],
        cwd=tmp_path / "here",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout) == (0, "[1, 2, 3]\n"), ran.stderr
