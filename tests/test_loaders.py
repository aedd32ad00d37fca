"""Every block of the chapter on other tools runs and prints what it shows."""

import io
import os
import re
import subprocess
import sys
import sysconfig
from contextlib import redirect_stdout

import pytest

from tests.conftest import REPOSITORY

CHAPTER = (REPOSITORY / "embedcli" / "store" / "LOADERS.md").read_text(encoding="utf-8")
# A block of code, and the mark before it.
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S
)
FRAMES, REST = CHAPTER.split("<!-- loaders -->")


def blocks(text):
    """The blocks of code: what they need, their language, themselves, and what they print."""
    for match in BLOCK.finditer(text):
        lines = match["code"].splitlines(keepends=True)
        shown = [line[2:] for line in lines if line.startswith("# ")]
        if lines[0].startswith("# "):  # a heading, not what it prints
            shown = shown[1:]
        yield match["mark"] or "", match["language"], match["code"], "".join(shown)


def run_all(text, passed_over=()):
    """Run all blocks in the current folder, in one interpreter; tell how many."""
    names = {"__name__": "__main__"}
    count = 0
    for mark, language, code, shown in blocks(text):
        if mark in passed_over:
            continue
        if language == "sh":
            path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
            subprocess.run(
                ["bash", "-ec", code],
                env={**os.environ, "PATH": path},
                check=True,
                capture_output=True,
            )
            continue
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(code, "LOADERS.md", "exec"), names)
        assert printed.getvalue() == shown, code
        count += 1
    return count


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "sample_data").symlink_to(REPOSITORY / "sample_data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMBEDCLI_DTYPE", "float32")
    return tmp_path


def first_block():
    return next(block for block in BLOCK.finditer(CHAPTER))[0]


@pytest.mark.torch
def test_frames(place):
    text = FRAMES.replace(first_block(), "")
    before, _, after = text.partition("## Arrays and data frames")
    assert run_all(first_block() + "\n" + after, passed_over={"engine: spark"}) == 5
    assert run_all(before) == 0  # the search of a file that lost its provenance


@pytest.mark.loaders
@pytest.mark.torch
def test_indexes_and_databases(place, monkeypatch):
    pgserver = pytest.importorskip("pgserver")
    server = pgserver.get_server(place / "postgres")
    try:
        monkeypatch.setenv("DATABASE_URL", server.get_uri())
        assert run_all(first_block() + "\n" + REST) == 11
    finally:
        server.cleanup()


@pytest.mark.engines
def test_spark(place, monkeypatch):
    pytest.importorskip("pyspark")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    code = next(code for mark, _, code, _ in blocks(FRAMES) if mark == "engine: spark")
    run_all(first_block())
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "240 array<float>\n"
