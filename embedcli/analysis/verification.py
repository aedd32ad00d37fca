"""Is a file of vectors as it was written, and are its vectors what the model gives?"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from embedcli import encoder, templates
from embedcli.analysis.queries import embed_with, read_units
from embedcli.analysis.similarity import cosines, sample
from embedcli.config import REJECTS_NAME, InputOptions, RunOptions, rejects_beside
from embedcli.errors import DataError, EmbedcliError
from embedcli.escaping import count
from embedcli.models import families
from embedcli.models.request import ModelRequest
from embedcli.models.resolve import resolve_like
from embedcli.records import Reject
from embedcli.store import digest, manifest, parts, reuse
from embedcli.store.parts import Hashes
from embedcli.store.vector_file import VectorFile, is_sealed, open_ours, part_files
from embedcli.templates import Template

# Of a normalized vector, as encode promises it; float16 rounds each number to 3 digits.
_NORM_ERROR = 1e-3
# Least cosine to float32 by the dtype that the weights had. Half precision is worst on short texts.
LEAST_COSINE = {"float32": 0.9999, "float16": 0.99, "bfloat16": 0.99}
_ROWS_NAMED = 5


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, and what it showed. good: None where it couldn't be looked at."""

    name: str
    good: bool | None
    result: str
    rows: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Verdict:
    """All checks of a file."""

    file: str
    checks: list[Check]

    @property
    def good(self) -> bool:
        """Tell whether nothing bad was found."""
        return all(check.good is not False for check in self.checks)

    def to_json(self) -> dict[str, object]:
        """Return all of it."""
        return {
            "file": self.file,
            "good": self.good,
            "checks": [asdict(check) for check in self.checks],
        }


@dataclass(frozen=True)
class VerifyOptions:
    """How to verify. The texts are in the file itself, or in the corpus that it was made from.

    sample: how many rows to encode again; None for all. least_cosine None goes by the dtype of the
    weights.
    """

    request: ModelRequest
    corpus: str | None
    input: InputOptions
    sample: int | None
    least_cosine: float | None
    device: str


def verify(path: str, options: VerifyOptions, embedding_column: str | None = None) -> Verdict:
    """Look at every byte, every vector, every text's hash; encode a sample again.

    Raises InputMissingError; DataError where so much is damaged that nothing can be read;
    ConfigurationError where the model isn't there.
    """
    checks = list(_check_digests(path))
    is_good = all(check.good is not False for check in checks)
    try:
        file = open_ours(path, embedding_column)
        checks.append(_check_vectors(file))
        checks += _check_rejects(file)
        checks += _check_texts(file, options)
    except Exception as error:  # of damaged bytes libraries say all kinds of things
        if is_good and not isinstance(error, DataError):
            raise
        message = (
            error.message
            if isinstance(error, EmbedcliError)
            else f"{type(error).__name__}: {error}"
        )
        checks.append(Check("reading", False, " ".join(message.split())[:300]))
    return Verdict(path, checks)


def _check_digests(path: str) -> Iterator[Check]:
    """Check each file's own digest; of a directory the manifest's, too, and whether the parts are
    those it lists.
    """
    if _is_of_engine(path):
        yield Check("seal", None, "not checked: another program wrote it, with our encoder")
        return
    files = part_files(path)
    sound = {file: _is_whole(file) for file in files}
    if Path(path).is_dir():
        manifest_path = str(Path(path) / manifest.NAME)
        sound[manifest_path] = manifest.is_whole(Path(path))
        if sound[manifest_path]:
            listed = {(part.file, part.sha256) for part in manifest.read(Path(path)).parts}
            present = {(Path(file).name, digest.read(file, parts.DIGEST_MARK)) for file in files}
            differing = sorted({name for name, _ in listed ^ present})
            if differing:
                names = ", ".join(differing[:_ROWS_NAMED])
                yield Check("parts", False, f"not those that {manifest_path} lists: {names}")
    changed = [file for file, is_whole in sound.items() if is_whole is False]
    without = [file for file, is_whole in sound.items() if is_whole is None]
    if changed:
        yield Check(
            "seal",
            False,
            f"bytes have changed since it was written: {', '.join(changed[:_ROWS_NAMED])}",
        )
    elif without:
        names = ", ".join(without[:_ROWS_NAMED])
        yield Check("seal", False, f"no seal: rewritten by another program, or damaged: {names}")
    else:
        yield Check("seal", True, f"every byte is as it was written ({count(len(sound), 'file')})")


def _is_of_engine(path: str) -> bool:
    """Tell whether an engine wrote a file or folder: it has no seal, and no counts of a run."""
    try:
        file = VectorFile(path)
    except EmbedcliError:
        return False
    if file.provenance is None or file.provenance.counts is not None:
        return False
    return not any(map(is_sealed, file.files))


def _is_whole(file: str) -> bool | None:
    try:
        return digest.is_whole(file, parts.DIGEST_MARK)
    except FileNotFoundError:
        return None


def _check_vectors(file: VectorFile) -> Check:
    """Check that vectors are finite, not missing, and of the norm that they should have.

    Reading checks the pages.
    """
    normalized = file.recipe.space.normalized
    bad: list[int] = []
    rows = 0
    for block in file.blocks():
        norms = np.linalg.norm(block.vectors, axis=1)
        right_norm = np.abs(norms - 1) <= _NORM_ERROR if normalized else norms > 0
        bad += block.rows[~(np.isfinite(norms) & right_norm)].tolist()
        rows += len(block.rows) + block.missing
        if block.missing:
            bad += np.setdiff1d(np.arange(block.first, rows), block.rows).tolist()
    kind = "of norm 1" if normalized else "not zero"
    if bad:
        result = f"{count(len(bad), 'row')} not finite and {kind}: {_name_rows(bad)}"
        return Check("vectors", False, result, sorted(bad))
    return Check("vectors", True, f"{count(rows, 'row')}, all finite and {kind}")


def _check_rejects(file: VectorFile) -> Iterator[Check]:
    """Check that the list of rejected rows beside a file is that of the same run."""
    counts = file.provenance.counts if file.provenance is not None else None
    path = Path(file.path) / REJECTS_NAME
    if not path.is_file():
        path = Path(rejects_beside(file.path))
    expected = counts.rejects_sha256 if counts is not None else ""
    if not path.is_file():
        if expected:
            yield Check("rejects", None, f"not checked: {path} isn't there")
        return
    with open(path, "rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if sha256 == expected:
        yield Check("rejects", True, f"{path} is of the same run")
    else:
        yield Check(
            "rejects", False, f"{path} is of another run: the same encode command again repairs it"
        )


def _check_texts(file: VectorFile, options: VerifyOptions) -> Iterator[Check]:
    """Check the hashes, and a sample of vectors, against the texts, wherever those are."""
    template = _template_of(file)
    columns = [options.input.text_column, *template.fields]
    absent = [name for name in columns if name not in file.columns]
    if options.corpus is not None:
        yield from _check_against_corpus(file, template, options, options.corpus)
    elif absent:
        yield Check(
            "texts",
            None,
            f"not checked: the file carries no column {absent[0]!r}; --corpus FILE has the texts",
        )
    else:
        yield from _check_own_texts(file, template, options, columns)


def _template_of(file: VectorFile) -> Template:
    """Return the template that the file says it was made with. Needs no model."""
    string = file.recipe.template
    if file.made.template_source.kind == "prompts":  # a literal prefix: braces in it are no fields
        return families.from_prefix(string.removesuffix("{text}"), file.role)
    return templates.parse(string, file.role, file.path, file.made.template_source)


@dataclass
class _SampledTexts:
    """Texts to encode again, and the rows of the file whose vectors they should give."""

    rows: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    fields: defaultdict[str, list[object]] = field(default_factory=lambda: defaultdict(list))

    def add(
        self, row: int, texts: Sequence[str], fields: Mapping[str, Sequence[object]], position: int
    ) -> None:
        """Add the text at a position of some columns."""
        self.rows.append(row)
        self.texts.append(texts[position])
        for name, values in fields.items():
            self.fields[name].append(values[position])


def _check_own_texts(
    file: VectorFile, template: Template, options: VerifyOptions, columns: Sequence[str]
) -> Iterator[Check]:
    """Check the texts that the file carries."""
    sampled_rows = sample(file.rows, options.sample)
    sampled = _SampledTexts()
    wrong: list[int] = []
    for block in file.blocks(columns):
        values = block.table.to_pydict()
        texts = [str(text) for text in values[columns[0]]]
        fields = {name: values[name] for name in columns[1:]}
        if block.hashes is None:
            raise DataError(f"{file.path}: no column of hashes beside {file.names.vector!r}")
        matches = _rendered_hashes(template, texts, fields) == block.hashes
        wrong += (block.first + np.flatnonzero(~matches)).tolist()
        start, stop = np.searchsorted(sampled_rows, [block.first, block.first + len(texts)])
        for row in sampled_rows[start:stop].tolist():
            position = row - block.first
            if matches[position]:
                sampled.add(row, texts, fields, position)
    if wrong:
        result = f"{count(len(wrong), 'row')} whose hash is another text's: {_name_rows(wrong)}"
        yield Check("texts", False, result, wrong)
    else:
        yield Check("texts", True, f"{count(file.rows, 'row')}, each hash is its text's")
    yield _check_sample(file, template, options, sampled)


def _check_against_corpus(
    file: VectorFile, template: Template, options: VerifyOptions, corpus: str
) -> Iterator[Check]:
    """Check that the file has the corpus's texts, and none besides."""
    stored = file.hashes()
    row_of_hash = {bytes(stored[row]): row for row in sample(file.rows, options.sample).tolist()}
    sampled = _SampledTexts()
    corpus_hashes = [np.empty(0, "V16")]
    rejects: list[Reject] = []
    reading = replace(options.input, columns=(), fields=template.fields, on_error="reject")
    for records in read_units(corpus, reading):
        rejects += records.rejects
        hashes = _rendered_hashes(template, records.texts, records.fields)
        corpus_hashes.append(hashes)
        for position, key in enumerate(map(bytes, hashes)):
            row = row_of_hash.pop(key, None)
            if row is not None:
                sampled.add(row, records.texts, records.fields, position)
    yield from _check_staleness(stored, np.concatenate(corpus_hashes), corpus)
    if rejects:
        first = rejects[0].as_error().message
        yield Check(
            "bad rows", None, f"{count(len(rejects), 'row')} passed over; the first: {first}"
        )
    yield _check_sample(file, template, options, sampled)


def _rendered_hashes(
    template: Template, strings: Sequence[str], fields: Mapping[str, Sequence[object]]
) -> Hashes:
    rendered, _ = templates.render(template, strings, fields)
    return reuse.text_hashes(rendered.strings)


def _check_staleness(stored: Hashes, corpus_hashes: Hashes, corpus: str) -> Iterator[Check]:
    """Check what the corpus has and the file hasn't, and the other way round."""
    stored_prefixes, corpus_prefixes = (
        reuse.hash_prefixes(stored),
        reuse.hash_prefixes(corpus_hashes),
    )
    absent = np.flatnonzero(~np.isin(corpus_prefixes, stored_prefixes)).tolist()
    stale = np.flatnonzero(~np.isin(stored_prefixes, corpus_prefixes)).tolist()
    if not absent and not stale:
        rows = count(len(corpus_hashes), "row")
        yield Check("corpus", True, f"{rows} of {corpus}, all in the file, and none besides")
    if absent:
        rows = count(len(absent), "row")
        yield Check(
            "corpus", False, f"{rows} of {corpus} have no vector here: {_name_rows(absent)}"
        )
    if stale:
        rows = count(len(stale), "row")
        yield Check(
            "stale",
            False,
            f"{rows} here have a text that {corpus} hasn't: {_name_rows(stale)}",
            stale,
        )


def _check_sample(
    file: VectorFile, template: Template, options: VerifyOptions, sampled: _SampledTexts
) -> Check:
    """Encode a sample by the plainest path: one text at a time, in float32, without packs, not
    compiled.
    """
    if not sampled.rows:
        reason = "--sample 0" if options.sample == 0 else "no text to encode"
        return Check("vectors again", None, f"not checked: {reason}")
    request = replace(options.request, max_length=file.recipe.max_length)
    resolved = resolve_like(request, file.role, file.made, file.path)
    model = encoder.load(resolved.spec, RunOptions.reference(options.device))
    exact = embed_with(model, template, sampled.texts, sampled.fields)
    agreement = cosines(file.vectors(sampled.rows), exact)
    least = options.least_cosine
    if least is None:
        # Spark's schema is there before the first vector is: it doesn't say what computed them.
        dtypes = file.made.dtypes or LEAST_COSINE
        least = min(LEAST_COSINE.get(dtype, LEAST_COSINE["float32"]) for dtype in dtypes)
    bad = [row for row, cosine in zip(sampled.rows, agreement, strict=True) if cosine < least]
    result = (
        f"{count(len(sampled.rows), 'row')} encoded again: "
        f"least cosine {agreement.min():.6f}, mean {agreement.mean():.6f}"
    )
    if bad:
        result += f"; below {least}: {_name_rows(bad)}"
    return Check("vectors again", not bad, result, bad)


def _name_rows(rows: Sequence[int]) -> str:
    """Name some rows by their numbers from 0, as Parquet's readers count them."""
    suffix = ", …" if len(rows) > _ROWS_NAMED else ""
    return f"row {', '.join(map(str, sorted(rows)[:_ROWS_NAMED]))}{suffix}"
