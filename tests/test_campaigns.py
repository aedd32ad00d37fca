"""A sample of each campaign; `python -m tests.campaigns NAME` runs all of it."""

import pytest

from tests.campaigns import hostile

SEED = 11


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("attack", "number"), [(hostile.attack_folders, 60), (hostile.attack_metadata, 120)]
)
def test_what_was_made_to_do_harm_does_none(attack, number):
    count, faults = attack(number, SEED)
    assert count == number
    assert faults == []
