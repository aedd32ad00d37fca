"""Files into units of records: finds the inputs, cuts them into units, reads a unit.

Knows nothing of roles, models and outputs.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from embedcli.config import InputOptions
from embedcli.errors import DataError
from embedcli.records import Corpus, InputFile, Records, Unit, stop_at_first
from embedcli.sources.files import FoundFiles, find, open_input
from embedcli.sources.formats import FORMATS, without_suffix
from embedcli.sources.identity import changed
from embedcli.sources.sizes import unit_bytes

__all__ = ["FoundFiles", "find", "grown", "plan", "reader", "without_suffix"]


def plan(names: Sequence[str], options: InputOptions, spool: Path) -> Corpus:
    """Cut the inputs that `find` found into units.

    Compressed and unseekable inputs are written out under `spool` first.
    Raises InputMissingError, AccessError or DataError before any row is encoded.
    """
    files: list[InputFile] = []
    total = 0
    for index, name in enumerate(names):
        limit = None if options.max_input_bytes is None else options.max_input_bytes - total
        files.append(open_input(name, spool / f"input-{index}", limit))
        total += Path(files[-1].path).stat().st_size
    for file in files:
        if file.format != files[0].format:
            titles = [
                f"{mixed.name} is {FORMATS[mixed.format].title}" for mixed in (files[0], file)
            ]
            raise DataError(" and ".join(titles), "give inputs of one format in one run")
    if options.columns is None:
        _refuse_partitions(files)
    return FORMATS[files[0].format].plan(files, options, unit_bytes(total))


def _refuse_partitions(files: Sequence[InputFile]) -> None:
    """Refuse columns that are in the names of folders alone (Hive's year=2024/), unless the columns
    to carry are named. Raises DataError.
    """
    for file in files:
        for part in Path(file.name).parts[:-1]:
            column, equals, value = part.partition("=")
            if equals and value and column.isidentifier():
                raise DataError(
                    f"{file.name}: the column {column!r} is in the name of its folder alone, "
                    "and would be lost",
                    "--columns names the files' own columns to carry; to have it, join them before: duckdb -c "
                    "\"copy (from read_parquet('FOLDER/**/*.parquet', hive_partitioning=true)) to 'all.parquet'\"",
                )


def grown(corpus: Corpus) -> list[str]:
    """Return what was appended to the inputs since they were planned, for people to know."""
    notes = []
    for index, file in enumerate(corpus.files):
        # A copy of this run's own has no identity.
        if not FORMATS[file.format].may_grow or not file.identity:
            continue
        end = max((unit.stop for unit in corpus.units if unit.file == index), default=0)
        appended = _size(file) - end
        if appended > 0:
            notes.append(
                f"{file.name}: grew by {appended:,} bytes during the run: they are left for the next one"
            )
    return notes


def _size(file: InputFile) -> int:
    try:
        return os.stat(file.path).st_size
    except OSError:  # gone by now, and read to its end
        return 0


def reader(corpus: Corpus, options: InputOptions) -> Callable[[Unit], Records]:
    """Return a function that reads units of the corpus; cheapest when they come in order.

    It raises DataError at the first bad row unless rejects are wanted, InputChangedError where a
    file is not what was planned.
    """
    read_unit = FORMATS[corpus.files[0].format].open_reader()

    def read(unit: Unit) -> Records:
        file = corpus.files[unit.file]
        records = read_unit(corpus, unit, options)
        rows = len(records.texts) + len(records.rejects)
        if rows != unit.rows:
            raise changed(
                file, f"{rows} rows where {unit.rows} were, from {file.place} {unit.first}"
            )
        stop_at_first(records.rejects, options.on_error)
        return records

    return read
