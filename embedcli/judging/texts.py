"""Small inputs read whole: queries, pairs, samples. JSONL or Parquet, by the same strict reader as a corpus."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcli import sources
from embedcli.config import InputOptions


@dataclass(frozen=True)
class Texts:
    """All rows of an input: the texts, the columns that a template names, and the values of each row."""

    texts: list[str]
    fields: Mapping[str, list[object]]
    rows: list[dict[str, Any]]


def read(path: str, options: InputOptions) -> Texts:
    """Read an input whole. Raises InputMissingError, DataError at the first bad row."""
    texts: list[str] = []
    fields: dict[str, list[object]] = {name: [] for name in options.fields}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="embedcli-") as spool:
        corpus = sources.plan(sources.find([path]), options, Path(spool))
        take = sources.reader(corpus, options)
        for unit in corpus.units:
            records = take(unit)
            texts += records.texts
            rows += records.table.to_pylist()
            for name, values in records.fields.items():
                fields[name] += values
    return Texts(texts, fields, rows)


def lines(values: Sequence[str]) -> Texts:
    """The same from strings."""
    return Texts(list(values), {}, [{} for _ in values])
