"""`embedcli doctor`: what an issue needs to know of this machine."""

from typing import Annotated

import typer

from embedcli import console
from embedcli.commands import options
from embedcli.errors import EXIT_OK


def doctor(
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Where outputs are written to.")
    ] = ".",
    as_json: options.AsJson = False,
) -> int:
    """Print what an issue needs: versions, devices, what auto takes and why, models, the disk.

    Example: embedcli doctor /data

    Exit codes: 0 done; 66 no such folder; 77 it can't be written.
    """
    from embedcli.analysis import diagnosis

    lines = list(diagnosis.diagnose(folder))
    if as_json:
        console.result(console.as_json(dict(lines)))
    else:
        console.table(lines, to_stdout=True)
    return EXIT_OK
