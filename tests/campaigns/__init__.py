"""Campaigns: attacks in hundreds, seeded, run when an issue closes; the test suite runs samples of them.

python -m tests.campaigns hostile-folders [--number N] [--seed S]
python -m tests.campaigns hostile-metadata [--number N] [--seed S]
"""
