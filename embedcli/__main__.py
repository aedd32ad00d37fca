"""Lets `python -m embedcli` stand for the console script."""

from embedcli.cli import main

if __name__ == "__main__":  # processes that are spawned import this, too
    main()
