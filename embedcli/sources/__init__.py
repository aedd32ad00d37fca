"""Files into units of records: finds the inputs, cuts them into units, reads a unit.

Knows nothing of roles, models and outputs.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from embedcli.config import InputOptions
from embedcli.errors import DataError
from embedcli.records import Corpus, InputFile, Places, Records, Unit, stop_at_first
from embedcli.sources import presenting
from embedcli.sources.cuts import grain_of
from embedcli.sources.files import FoundFiles, find, open_input
from embedcli.sources.formats import FORMATS, without_suffix
from embedcli.sources.identity import changed
from embedcli.sources.units import digest_of

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
        files.append(open_input(name, spool / f"input-{index}", limit, options.input_format))
        total += Path(files[-1].path).stat().st_size
    for file in files:
        if file.format != files[0].format:
            titles = [
                f"{mixed.name} is {FORMATS[mixed.format].title}" for mixed in (files[0], file)
            ]
            raise DataError(" and ".join(titles), "give inputs of one format in one run")
    if options.columns is None:
        _refuse_partitions(files)
    return FORMATS[files[0].format].plan(files, options, grain_of(total))


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
    ends = {segment.file: segment.stop for unit in corpus.units for segment in unit.segments}
    notes = []
    for index, file in enumerate(corpus.files):
        # A copy of this run's own has no identity.
        if not FORMATS[file.format].may_grow or not file.identity:
            continue
        appended = _size(file) - ends.get(index, 0)
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
    read_segment = FORMATS[corpus.files[0].format].open_reader()

    def read(unit: Unit) -> Records:
        segments = [read_segment(corpus, segment, options) for segment in unit.segments]
        for segment, records in zip(unit.segments, segments, strict=True):
            rows = len(records.texts) + len(records.rejects)
            if rows != segment.rows:
                file = corpus.files[segment.file]
                where = f"from {file.place} {segment.first}"
                raise changed(file, f"{rows} rows where {segment.rows} were, {where}")
        if digest_of(records.digests for records in segments) != unit.digest:
            first = unit.segments[0]
            raise changed(corpus.files[first.file], f"from line {first.first}")
        records = _join(segments)
        records = replace(
            records, table=presenting.present(records.table, options, corpus.json_columns)
        )
        stop_at_first(records.rejects, options.on_error)
        return records

    return read


def _join(segments: Sequence[Records]) -> Records:
    """Return the records of segments that follow one another as one."""
    if len(segments) == 1:
        return segments[0]
    chain = itertools.chain.from_iterable
    return Records(
        table=pa.concat_tables(records.table for records in segments),
        texts=list(chain(records.texts for records in segments)),
        fields={
            name: list(chain(records.fields[name] for records in segments))
            for name in segments[0].fields
        },
        places=Places.join([records.places for records in segments]),
        rejects=list(chain(records.rejects for records in segments)),
    )
