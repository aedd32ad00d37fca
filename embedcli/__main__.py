"""Lets `python -m embedcli` stand for the console script."""

from embedcli.cli import main

main()
