"""A sample of each campaign; `python -m tests.campaigns NAME` runs all of it."""

import pytest

from tests.campaigns import hostile, inputs, kills

SEED = 11


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("attack", "number"),
    [
        (hostile.attack_folders, 60),
        (hostile.attack_metadata, 120),
        (inputs.attack_inputs, 100),
        (kills.kill_runs, 16),
        (kills.change_inputs, 10),
    ],
)
def test_what_was_made_to_do_harm_does_none(attack, number):
    count, faults = attack(number, SEED)
    assert count == number
    assert faults == []
