"""`embedcli clean`: throw away what interrupted runs left beside their outputs."""

from pathlib import Path
from typing import Annotated

import typer

from embedcli import console
from embedcli.errors import EXIT_OK, EmbedcliError, InputMissingError, LockedError, from_os_error


def clean(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATHS",
            help="Outputs, or folders that hold some. Default: the current folder.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed.")] = False,
) -> int:
    """Remove what interrupted runs left: their finished units, and so the way to continue them.

    Example: embedcli clean corpus.passage.parquet

    Exit codes: 0 done, also if there was nothing; 66 no such folder; 73 a folder that embedcli did
    not make; 75 a run is still at work there.
    """
    refused = [
        error
        for name in paths or ["."]
        for path in _leftovers(Path(name))
        if (error := _clean(path, dry_run))
    ]
    for error in refused[1:]:
        console.warn(error.message)
    if refused:
        raise refused[0]
    return EXIT_OK


def _clean(path: Path, dry_run: bool) -> EmbedcliError | None:
    """Remove a staging directory; gives the reason why not, so that the others are removed all the
    same.
    """
    from embedcli.store import staging

    if dry_run:
        if staging.is_marked(path):
            console.result(str(path))
        return None
    if not staging.is_marked(path) and not any(
        path.iterdir()
    ):  # nothing to remove, and perhaps nothing of ours
        return None
    try:
        finished, size = staging.remove_leftovers(path)
    except LockedError:
        return LockedError(f"{path}: a run is at work there", "wait for it, or end it")
    except EmbedcliError as error:
        return error
    except OSError as error:
        error.filename = str(path)
        return from_os_error(error)
    console.say(f"removed {finished:,} finished units, {console.size(size)}:")
    console.result(str(path))
    return None


def _leftovers(path: Path) -> list[Path]:
    """List the staging directories of an output, or of all outputs in a folder."""
    from embedcli.store import staging

    staging_path = staging.place_of(path)
    if staging_path.is_dir() and not staging_path.is_symlink():
        return [staging_path]
    if path.is_dir():
        return sorted(
            folder
            for folder in path.glob(".*.embedcli")
            if folder.is_dir() and not folder.is_symlink()
        )
    if not path.exists() and not path.absolute().parent.is_dir():
        raise InputMissingError(f"{path}: no such folder")
    return []
