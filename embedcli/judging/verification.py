"""Is a file of vectors as it was written, and are its vectors what the model gives?"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcli import encoder, registry, templates
from embedcli.choosing import Wanted, choose_like
from embedcli.config import InputOptions, RunOptions
from embedcli.errors import DataError, EmbedcliError
from embedcli.job.draft import text_hashes
from embedcli.judging import spaces, texts
from embedcli.judging.spaces import Index, embed_with
from embedcli.store import describe, parts, publish, reuse, seal
from embedcli.templates import Template

# Of a normalized vector, as encode promises it; float16 rounds each number to 3 digits.
_NORM_ERROR = 1e-3
# Least cosine to float32 by the format that the weights had. Half precision is worst on short texts.
LEAST = {"float32": 0.9999, "float16": 0.99, "bfloat16": 0.99}
Hashes = npt.NDArray[Any]
_NAMED = 5


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. good: None where it couldn't be."""

    name: str
    good: bool | None
    said: str
    rows: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Verdict:
    """What was found in a file."""

    file: str
    checks: list[Check]

    @property
    def good(self) -> bool:
        """Nothing bad was found."""
        return all(check.good is not False for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """All of it, for `--json`."""
        return {"file": self.file, "good": self.good, "checks": [asdict(check) for check in self.checks]}


@dataclass(frozen=True)
class Source:
    """Where the texts are: in the file itself, or in the corpus that it was made from.

    sample None encodes all again.
    """

    wanted: Wanted
    corpus: str | None
    reading: InputOptions
    sample: int | None
    least: float | None
    device: str


def verify(path: str, source: Source, embedding_column: str | None = None) -> Verdict:
    """Look at every byte, every vector, every text's hash; encode a sample again.

    Raises InputMissingError; DataError where so much is damaged that nothing can be read; ConfigurationError where
    the model isn't there.
    """
    checks = list(_seals(path))
    whole = all(check.good for check in checks)
    try:
        index = spaces.open_index(path, embedding_column)
        checks.append(_vectors(index))
        checks += _against_texts(index, source)
    except Exception as error:  # of damaged bytes libraries say all kinds of things
        if whole and not isinstance(error, DataError):
            raise
        said = error.message if isinstance(error, EmbedcliError) else f"{type(error).__name__}: {error}"
        checks.append(Check("reading", False, " ".join(said.split())[:300]))
    return Verdict(path, checks)


def _seals(path: str) -> Iterator[Check]:
    """Each file's own digest; of a directory the manifest's, too, and whether the parts are those it lists."""
    files = describe.files_of(path)
    found = {file: _is_whole(file, parts.SEAL_MARK) for file in files}
    if Path(path).is_dir():
        manifest = str(Path(path) / parts.MANIFEST)
        found[manifest] = _is_whole(manifest, parts.MANIFEST_MARK)
        listed = {part["file"] for part in publish.manifest_of(Path(path))["parts"]} if found[manifest] else set()
        if found[manifest] and listed != {Path(file).name for file in files}:
            other = sorted(listed ^ {Path(file).name for file in files})
            yield Check("parts", False, f"not those that {manifest} lists: {', '.join(other[:_NAMED])}")
    changed = [file for file, whole in found.items() if whole is False]
    bare = [file for file, whole in found.items() if whole is None]
    if changed:
        yield Check("seal", False, f"bytes have changed since it was written: {', '.join(changed[:_NAMED])}")
    elif bare:
        yield Check("seal", False, f"no seal: rewritten by another program, or damaged: {', '.join(bare[:_NAMED])}")
    else:
        yield Check("seal", True, f"every byte is as it was written ({_count(len(found), 'file')})")


def _is_whole(file: str, mark: bytes) -> bool | None:
    try:
        return seal.is_whole(file, mark)
    except FileNotFoundError:
        return None


def _vectors(index: Index) -> Check:
    """Finite, not missing, of the norm that they should have. Reading checks the pages."""
    normalized, bad, rows = index.said["recipe"]["space"]["normalized"], [], 0
    for block in describe.blocks(index.path, index.head):
        norms = np.linalg.norm(block.vectors, axis=1)
        good = np.isfinite(norms) & (np.abs(norms - 1) <= _NORM_ERROR if normalized else norms > 0)
        bad += block.rows[~good].tolist()
        rows += len(block.rows) + block.missing
        bad += np.setdiff1d(np.arange(block.first, rows), block.rows).tolist() if block.missing else []
    kind = "of norm 1" if normalized else "not zero"
    if bad:
        return Check("vectors", False, f"{_count(len(bad), 'row')} not finite and {kind}: {_rows(bad)}", sorted(bad))
    return Check("vectors", True, f"{_count(rows, 'row')}, all finite and {kind}")


def _against_texts(index: Index, source: Source) -> Iterator[Check]:
    """The hashes, and a sample of vectors, against the texts, wherever those are."""
    template = _template(index)
    names = [source.reading.text_column, *template.fields]
    if source.corpus is not None:
        yield from _against_corpus(index, template, source, source.corpus)
    elif missing := [name for name in names if name not in index.head.columns]:
        yield Check(
            "texts", None, f"not checked: the file carries no column {missing[0]!r}; --corpus FILE has the texts"
        )
    else:
        yield from _against_own(index, template, source, names)


def _against_own(index: Index, template: Template, source: Source, names: Sequence[str]) -> Iterator[Check]:
    sample, wrong = spaces.sample(index.head.rows, source.sample), []
    again = _Again()
    for block in describe.blocks(index.path, index.head, names):
        columns = block.table.to_pydict()
        texts, fields = [str(text) for text in columns[names[0]]], {name: columns[name] for name in names[1:]}
        hashes = _rendered_hashes(template, texts, fields)
        good = hashes == _there(index, block.hashes)
        wrong += (block.first + np.flatnonzero(~good)).tolist()
        for at in _within(sample, block.first, len(texts)):
            if good[at]:
                again.add(block.first + at, texts[at], {name: values[at] for name, values in fields.items()})
    if wrong:
        yield Check("texts", False, f"{_count(len(wrong), 'row')} whose hash is another text's: {_rows(wrong)}", wrong)
    else:
        yield Check("texts", True, f"{_count(index.head.rows, 'row')}, each hash is its text's")
    yield _encoded_again(index, template, source, again)


def _against_corpus(index: Index, template: Template, source: Source, corpus: str) -> Iterator[Check]:
    here = describe.hashes(index.path, index.head)
    rows_of = {bytes(here[row]): row for row in spaces.sample(index.head.rows, source.sample).tolist()}
    hashes, again = [], _Again()
    for records in texts.units(corpus, replace(source.reading, columns=(), fields=template.fields)):
        hashes.append(_rendered_hashes(template, records.texts, records.fields))
        for at, key in enumerate(map(bytes, hashes[-1])):
            if (row := rows_of.pop(key, None)) is not None:
                again.add(row, records.texts[at], {name: values[at] for name, values in records.fields.items()})
    yield from _staleness(here, np.concatenate([np.empty(0, "V16"), *hashes]), corpus)
    yield _encoded_again(index, template, source, again)


def _within(sample: npt.NDArray[np.int64], first: int, count: int) -> list[int]:
    """Those of the sample that are in a block, counted from its first row."""
    start, stop = np.searchsorted(sample, [first, first + count])
    return (sample[start:stop] - first).tolist()


def _rendered_hashes(template: Template, strings: Sequence[str], fields: Mapping[str, Sequence[object]]) -> Hashes:
    rendered, _ = templates.render(template, strings, fields)
    return text_hashes(rendered.strings)


def _there(index: Index, hashes: Hashes | None) -> Hashes:
    if hashes is None:
        raise DataError(f"{index.path}: no column of hashes beside {index.head.embedding_column!r}")
    return hashes


@dataclass
class _Again:
    """Texts to encode again, and the rows of the file whose vectors they should give."""

    rows: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    fields: defaultdict[str, list[object]] = field(default_factory=lambda: defaultdict(list))

    def add(self, row: int, text: str, fields: Mapping[str, object]) -> None:
        self.rows.append(row)
        self.texts.append(text)
        for name, value in fields.items():
            self.fields[name].append(value)


def _template(index: Index) -> Template:
    """The template that the file says it was made with. Needs no model."""
    recipe, origin = index.said["recipe"], index.said["template_origin"]
    if origin == registry.OWN_PROMPTS:  # a literal prefix: braces in it are no fields
        return registry.with_prefix(recipe["template"].removesuffix("{text}"), index.role)
    return templates.parse(recipe["template"], index.role, index.path)


def _staleness(own: Hashes, others: Hashes, corpus: str) -> Iterator[Check]:
    """What the corpus has and the file hasn't, and the other way round."""
    here, there = reuse.prefixes(own), reuse.prefixes(others)
    missing, stale = np.flatnonzero(~np.isin(there, here)).tolist(), np.flatnonzero(~np.isin(here, there)).tolist()
    if not missing and not stale:
        yield Check("corpus", True, f"{_count(len(others), 'row')} of {corpus}, all in the file, and none besides")
    if missing:
        yield Check("corpus", False, f"{_count(len(missing), 'row')} of {corpus} have no vector here: {_rows(missing)}")
    if stale:
        said = f"{_count(len(stale), 'row')} here have a text that {corpus} hasn't: {_rows(stale)}"
        yield Check("stale", False, said, stale)


def _encoded_again(index: Index, template: Template, source: Source, again: _Again) -> Check:
    """A sample by the plainest path: one text at a time, in float32, without packs, not compiled."""
    if not again.rows:
        return Check("vectors again", None, "not checked: no text to encode")
    wanted = replace(source.wanted, max_length=index.said["recipe"]["max_length"])
    choice = choose_like(wanted, index.role, index.said, index.path)
    model = encoder.load(choice.checkpoint, RunOptions(source.device, "float32", 1, compile="off", plain=True))
    exact = embed_with(model, template, again.texts, again.fields)
    rows, stored = again.rows, describe.vectors(index.path, index.head, again.rows)
    cosines = spaces.cosines(stored, exact)
    formats = str(index.said["dtype"]).split(", ")
    least = source.least if source.least is not None else min(LEAST.get(name, LEAST["float32"]) for name in formats)
    bad = [row for row, cosine in zip(rows, cosines, strict=True) if cosine < least]
    said = f"{_count(len(rows), 'row')} encoded again: least cosine {cosines.min():.6f}, mean {cosines.mean():.6f}"
    return Check("vectors again", not bad, f"{said}; below {least}: {_rows(bad)}" if bad else said, bad)


def _rows(rows: Sequence[int]) -> str:
    """Row numbers from 0, as Parquet's readers count them."""
    return f"row {', '.join(map(str, sorted(rows)[:_NAMED]))}{', …' if len(rows) > _NAMED else ''}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
