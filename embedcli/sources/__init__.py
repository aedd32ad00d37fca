"""Files into units of records: finds the inputs, cuts them into units, reads a unit.

Knows nothing of roles, models and outputs.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from embedcli.config import InputOptions
from embedcli.errors import DataError
from embedcli.records import Corpus, Records, Unit, stop_at_first
from embedcli.sources import jsonl, parquet
from embedcli.sources.files import changed, find, open_input
from embedcli.sources.sizes import unit_bytes

# Per format: plan(files, options, bytes per unit) -> Corpus, and open_reader() -> read(corpus, unit, options).
_FORMATS: dict[str, Any] = {"jsonl": jsonl, "parquet": parquet}


__all__ = ["find", "grown", "plan", "reader"]


def plan(names: Sequence[str], options: InputOptions, spool: Path) -> Corpus:
    """Cut the inputs that `find` found into units.

    Compressed and unseekable inputs are written out under `spool` first.
    Raises InputMissingError, AccessError or DataError before any row is encoded.
    """
    files = [open_input(name, spool / f"input-{index}") for index, name in enumerate(names)]
    formats = {file.format for file in files}
    if len(formats) > 1:
        example = {file.format: file.name for file in files}
        raise DataError(
            f"{example['jsonl']} is JSONL and {example['parquet']} is Parquet", "give inputs of one format in one run"
        )
    total = sum(Path(file.path).stat().st_size for file in files)
    corpus: Corpus = _FORMATS[formats.pop()].plan(files, options, unit_bytes(total))
    return corpus


def grown(corpus: Corpus) -> list[str]:
    """What was appended to the inputs since they were planned, for people to know."""
    notes = []
    for index, file in enumerate(corpus.files):
        end = max((unit.stop for unit in corpus.units if unit.file == index), default=0)
        if file.format == "jsonl" and file.identity and (more := _size(file.path) - end) > 0:
            notes.append(f"{file.name}: grew by {more:,} bytes during the run: they are left for the next one")
    return notes


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # gone by now, and read to its end
        return 0


def reader(corpus: Corpus, options: InputOptions) -> Callable[[Unit], Records]:
    """A function that reads units of the corpus; cheapest when they come in order.

    It raises DataError at the first bad row unless rejects are wanted, InputChangedError where a file is not what was
    planned.
    """
    read_format: Callable[[Corpus, Unit, InputOptions], Records] = _FORMATS[corpus.files[0].format].open_reader()

    def read(unit: Unit) -> Records:
        file = corpus.files[unit.file]
        records = read_format(corpus, unit, options)
        found = len(records.texts) + len(records.rejects)
        if found != unit.rows:
            raise changed(file, f"{found} rows where {unit.rows} were, from {file.place} {unit.first}")
        stop_at_first(records.rejects, options.on_error)
        return records

    return read
