"""A sample of each campaign; `python -m tests.campaigns NAME` runs all of it."""

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("hostile-folders", 60),
        ("hostile-metadata", 120),
        ("hostile-inputs", 100),
        ("kills", 16),
        ("changes", 10),
    ],
)
def test_what_was_made_to_do_harm_does_none(name, number):
    """In a process of its own: campaigns fork, and what is forked from a process where torch or the
    tokenizers have threads waits for ever.
    """
    sample = ["--number", str(number), "--seed", "11"]
    command = [sys.executable, "-m", "tests.campaigns", name, *sample]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{name}: {number} attacks, 0 faults" in done.stdout
