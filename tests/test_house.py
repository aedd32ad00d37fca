"""The map of the package is the modules' own."""

from tests import house


def test_the_map_is_made_from_the_docstrings():
    readme = house.README.read_text(encoding="utf-8")
    assert house.with_map(readme) == readme, "python -m tests.house"
