"""Small inputs read whole, and texts encoded to match a file of vectors: queries, pairs, samples."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from embedcli import encoder, sources
from embedcli.analysis.comparability import check_comparable, check_roles, query_role
from embedcli.config import InputOptions, RunOptions
from embedcli.errors import DataError
from embedcli.models.request import ModelRequest
from embedcli.models.resolve import ResolvedModel, resolve_like
from embedcli.records import Records
from embedcli.run.texts import embed_texts, render_texts
from embedcli.store.parts import Vectors
from embedcli.store.vector_file import VectorFile, is_ours, open_ours
from embedcli.templates import Template


@dataclass(frozen=True)
class Texts:
    """All rows of an input: the texts, the columns that a template names, and the values of each row."""

    texts: list[str]
    fields: Mapping[str, list[object]]
    rows: list[dict[str, object]]


@dataclass(frozen=True)
class Queries:
    """What is looked for: n texts (empty where only vectors are known), float32 [n, dim], the other
    values of each.

    warnings: what a user should know of how they were encoded.
    """

    texts: list[str]
    vectors: Vectors
    rows: list[dict[str, object]]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class QueryEncoder:
    """Turns queries into vectors that compare with an index's.

    `role` None takes the one that the index calls for.
    """

    index: VectorFile
    request: ModelRequest
    role: str | None
    run: RunOptions
    input: InputOptions

    def resolve(self) -> ResolvedModel:
        """Return the index's model, with the template of the queries' role. Raises ConfigurationError."""
        role = query_role(self.index, self.role)
        return resolve_like(self.request, role, self.index.made, self.index.path)

    def encode_texts(self, strings: Sequence[str]) -> Queries:
        """Encode texts. Raises what resolving, loading and encoding raise."""
        model = self.resolve()
        vectors = embed(model, strings, self.run)
        return Queries(list(strings), vectors, [{} for _ in strings], model.warnings)

    def read_file(self, path: str) -> Queries:
        """Encode the texts of a file; take the vectors of a file that encode wrote.

        Raises ConfigurationError where those are of another space or role, and what reading raises.
        """
        vectors_there = open_if_ours(path)
        if vectors_there is not None:
            return self.take_vectors(vectors_there)
        model = self.resolve()
        texts = read_texts(path, replace(self.input, fields=model.template.fields))
        vectors = embed(model, texts.texts, self.run, texts.fields)
        return Queries(texts.texts, vectors, texts.rows, model.warnings)

    def take_vectors(self, file: VectorFile) -> Queries:
        """Take the vectors of a file that encode wrote.

        Raises ConfigurationError where they don't compare.
        """
        check_comparable(self.index, file)
        check_roles(self.index, file, query_role(self.index, self.role))
        vectors, numbers = file.all_vectors()
        records = file.take(numbers.tolist(), file.carried)
        rows = [records[number] for number in numbers.tolist()]
        texts = [str(row.get(self.input.text_column, "")) for row in rows]
        return Queries(texts, vectors, rows)


def open_if_ours(path: str) -> VectorFile | None:
    """Open a file as one of vectors, if encode wrote it."""
    return open_ours(path) if is_ours(path) else None


def embed(
    model: ResolvedModel,
    texts: Sequence[str],
    options: RunOptions,
    fields: Mapping[str, Sequence[object]] | None = None,
) -> Vectors:
    """Encode texts to vectors float32 [n, dim] with the template of the model's role, in one process.

    Raises DataError where a text gives no vector, and what loading raises.
    """
    return embed_with(encoder.load(model.spec, options), model.template, texts, fields or {})


def embed_with(
    model: encoder.Encoder,
    template: Template,
    texts: Sequence[str],
    fields: Mapping[str, Sequence[object]],
) -> Vectors:
    """Encode texts with a loaded model to float32 [n, dim].

    Raises DataError where a text gives no vector.
    """
    absent = [name for name in template.fields if name not in fields]
    if absent:
        raise DataError(
            f"the template {template.string!r} names {absent[0]!r}, which these texts don't have"
        )
    columns, faults = embed_texts(model, render_texts(template, texts, fields))
    if faults:
        row, fault = min(faults.items())
        raise DataError(f"text {row + 1} ({texts[row][:60]!r}): {fault.reason}", fault.hint)
    return columns.vectors


def read_units(path: str, options: InputOptions) -> Iterator[Records]:
    """Yield an input's records, a unit at a time.

    Raises InputMissingError, DataError at the first bad row.
    """
    with tempfile.TemporaryDirectory(prefix="embedcli-") as spool:
        corpus = sources.plan(sources.find([path]).names, options, Path(spool))
        read = sources.reader(corpus, options)
        for unit in corpus.units:
            yield read(unit)


def read_texts(path: str, options: InputOptions) -> Texts:
    """Read an input whole. Raises what `read_units` raises."""
    texts: list[str] = []
    fields: dict[str, list[object]] = {name: [] for name in options.fields}
    rows: list[dict[str, object]] = []
    for records in read_units(path, options):
        texts += records.texts
        rows += records.table.to_pylist()
        for name, values in records.fields.items():
            fields[name] += values
    return Texts(texts, fields, rows)


def read_pairs(path: str, first_column: str, second_column: str) -> tuple[list[str], list[str]]:
    """Read two columns of texts.

    Raises what `read_units` raises; DataError where the second is no string.
    """
    texts: list[str] = []
    partners: list[str] = []
    for records in read_units(
        path, InputOptions(first_column, columns=(), fields=(second_column,))
    ):
        for text, partner, place in zip(
            records.texts, records.fields[second_column], records.places, strict=True
        ):
            if not isinstance(partner, str):
                raise DataError(
                    f"{path}:{place.number}: column {second_column!r} holds no text",
                    f"--pairs {first_column},{second_column}",
                )
            texts.append(text)
            partners.append(partner)
    return texts, partners
