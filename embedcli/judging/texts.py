"""Small inputs read whole: queries, pairs, samples. JSONL or Parquet, by the same strict reader as a corpus."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcli import sources
from embedcli.config import InputOptions
from embedcli.errors import DataError
from embedcli.records import Records


@dataclass(frozen=True)
class Texts:
    """All rows of an input: the texts, the columns that a template names, and the values of each row."""

    texts: list[str]
    fields: Mapping[str, list[object]]
    rows: list[dict[str, Any]]


def units(path: str, options: InputOptions) -> Iterator[Records]:
    """An input's records, a unit at a time. Raises InputMissingError, DataError at the first bad row."""
    with tempfile.TemporaryDirectory(prefix="embedcli-") as spool:
        corpus = sources.plan(sources.find([path]), options, Path(spool))
        take = sources.reader(corpus, options)
        for unit in corpus.units:
            yield take(unit)


def read(path: str, options: InputOptions) -> Texts:
    """An input whole. Raises what `units` raises."""
    texts: list[str] = []
    fields: dict[str, list[object]] = {name: [] for name in options.fields}
    rows: list[dict[str, Any]] = []
    for records in units(path, options):
        texts += records.texts
        rows += records.table.to_pylist()
        for name, values in records.fields.items():
            fields[name] += values
    return Texts(texts, fields, rows)


def pairs(path: str, left: str, right: str) -> tuple[list[str], list[str]]:
    """Two columns of texts. Raises what `units` raises; DataError where the second is no string."""
    found: tuple[list[str], list[str]] = [], []
    for records in units(path, InputOptions(left, columns=(), fields=(right,))):
        for text, other, place in zip(records.texts, records.fields[right], records.places, strict=True):
            if not isinstance(other, str):
                raise DataError(f"{path}:{place}: column {right!r} holds no text", f"--pairs {left},{right}")
            found[0].append(text)
            found[1].append(other)
    return found
