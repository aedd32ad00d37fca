"""The input formats, a row each: how a file is recognized, cut into units, and read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from embedcli.config import InputOptions
from embedcli.records import Corpus, InputFile, Records, Segment
from embedcli.sources import arrow_ipc, lines, parquet
from embedcli.sources.cuts import Grain

PlanFiles = Callable[[Sequence[InputFile], InputOptions, Grain], Corpus]
ReadSegment = Callable[[Corpus, Segment, InputOptions], Records]


@dataclass(frozen=True)
class Format:
    """An input format.

    title: what people call it. suffixes: of the files that are looked for in folders; also_named:
    suffixes that such files have besides. magic: the first bytes of a file, empty for text. place:
    what people count in it. may_be_compressed: with gzip or zstd around it. may_grow: rows may be
    appended to a file while it is read. plan(files, options, grain) cuts files into units;
    open_reader() gives a function that reads segments, cheapest when they come in order.
    """

    title: str
    suffixes: tuple[str, ...]
    magic: bytes
    place: str
    may_be_compressed: bool
    may_grow: bool
    plan: PlanFiles
    open_reader: Callable[[], ReadSegment]
    also_named: tuple[str, ...] = ()


def _of_lines(
    title: str, suffixes: tuple[str, ...] = (), also_named: tuple[str, ...] = ()
) -> Format:
    return Format(
        title=title,
        suffixes=suffixes,
        magic=b"",
        place="line",
        may_be_compressed=True,
        may_grow=True,
        plan=lines.plan,
        open_reader=lines.open_reader,
        also_named=also_named,
    )


FORMATS = {
    "jsonl": _of_lines("JSONL", suffixes=(".jsonl", ".ndjson"), also_named=(".json",)),
    "csv": _of_lines("CSV", also_named=(".csv",)),
    "tsv": _of_lines("TSV", also_named=(".tsv",)),
    "lines": _of_lines("lines of text", also_named=(".txt",)),
    "parquet": Format(
        title="Parquet",
        suffixes=(".parquet",),
        magic=b"PAR1",
        place="row",
        may_be_compressed=False,
        may_grow=False,
        plan=parquet.plan,
        open_reader=parquet.open_reader,
    ),
    "arrow": Format(
        title="Arrow IPC",
        suffixes=(".arrow", ".feather"),
        magic=b"ARROW1\0\0",
        place="row",
        may_be_compressed=False,
        may_grow=False,
        plan=arrow_ipc.plan,
        open_reader=arrow_ipc.open_reader,
    ),
}
# Of the formats of lines the name decides, as no byte of theirs does.
TEXT_FORMATS = ("jsonl", "csv", "tsv", "lines")
_COMPRESSIONS = (".gz", ".zst")


def suffixes() -> tuple[str, ...]:
    """Return the suffixes of input files that are looked for in folders, with those of compressed
    ones.
    """
    patterns: list[str] = []
    for row in FORMATS.values():
        patterns += _with_compressions(row, row.suffixes)
    return tuple(patterns)


def format_of_name(name: str) -> str:
    """Return the format of lines that a file's name calls for; JSONL where it says nothing."""
    for format_name in TEXT_FORMATS:
        row = FORMATS[format_name]
        if name.endswith(tuple(_with_compressions(row, row.also_named))):
            return format_name
    return "jsonl"


def without_suffix(name: str) -> str:
    """Return a file's name without the suffix that its format calls for."""
    for row in FORMATS.values():
        for suffix in _with_compressions(row, row.suffixes + row.also_named):
            if name.endswith(suffix):
                return name.removesuffix(suffix)
    return name


def _with_compressions(row: Format, plain: tuple[str, ...]) -> list[str]:
    if not row.may_be_compressed:
        return list(plain)
    return [suffix + compression for suffix in plain for compression in ("", *_COMPRESSIONS)]
