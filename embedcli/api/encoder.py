"""An encoder for Python programs: texts and Arrow tables into vectors, with the template of a role."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedcli.api import engines, loaded, tables
from embedcli.api.errors import in_python
from embedcli.computation import Computation
from embedcli.config import Backend, DType, InputOptions, OutputOptions, RunOptions, VectorType
from embedcli.errors import ConfigurationError, DataError, RowFault
from embedcli.models.request import ModelRequest
from embedcli.models.resolve import ResolvedModel, resolve, resolve_like
from embedcli.recipe import Recipe, describe_differences
from embedcli.records import Records
from embedcli.run.job import provenance_of
from embedcli.run.texts import embed_texts, render_texts
from embedcli.sources import in_memory
from embedcli.store import parts
from embedcli.store.parts import EmbeddingColumns
from embedcli.store.provenance import ColumnProvenance, Provenance
from embedcli.store.vector_file import open_ours

Array = npt.NDArray[np.float32]
Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)


@dataclass(frozen=True)
class _Setup:
    """What an encoder is made of: all that a copy of it in another process needs.

    like: the vectors that its own are to be compared with, and the name of their file. recipes: what
    its roles have turned out to be.
    """

    role: str
    request: ModelRequest
    run: RunOptions
    input: InputOptions
    output: OutputOptions
    on_error: Literal["raise", "null"]
    like: tuple[ColumnProvenance, str] | None = None
    recipes: Mapping[str, Recipe] = field(default_factory=dict)


class Encoder:
    """Turns texts into vectors by a model and the template of a role; loads the model when it is
    first needed.

    May be used by several threads: they take turns. Pickled, it is a recipe of some kB: the copy
    loads the model where it is, and raises `EmbedcliError` if that is another one.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        role: str,
        revision: str | None = None,
        trust_remote_code: bool = False,
        template: str | None = None,
        task: str | None = None,
        max_length: int | None = None,
        dim: int | None = None,
        normalize: bool | None = None,
        device: str = "auto",
        dtype: DType = "auto",
        backend: Backend = "auto",
        batch_tokens: int | None = None,
        text_column: str = "text",
        columns: Sequence[str] | None = None,
        embedding_column: str = "embedding",
        vector_type: VectorType = "float32",
        on_error: Literal["raise", "null"] = "raise",
    ) -> None:
        """Say which model and role; the names are those of the options of `embedcli encode`.

        `model`: `org/name`, `./folder`, or `hash:64`; None is the bundled all-MiniLM-L6-v2.
        `columns`: which columns of a table `embed` carries over; None for all. `on_error`: a text
        that gets no vector raises `EmbedcliError`, or comes as null (NaN in arrays).
        """
        request = ModelRequest(
            model, revision, trust_remote_code, template, task, max_length, dim, normalize
        )
        run = RunOptions(device, dtype, backend, batch_tokens)
        chosen = None if columns is None else tuple(columns)
        output = OutputOptions("", embedding_column=embedding_column, vector_type=vector_type)
        self._begin(_Setup(role, request, run, InputOptions(text_column, chosen), output, on_error))

    @classmethod
    def like(cls, path: str, *, role: str, **options: Any) -> "Encoder":
        """Return an encoder whose vectors compare with those of a file that embedcli wrote: its model,
        dimension and normalization, the template of `role` of the same family.

        `options` are the constructor's. Raises EmbedcliError where the file says nothing of its
        making.
        """
        with in_python():
            made = open_ours(path).made
        encoder = cls(role=role, **options)
        encoder._begin(replace(encoder._setup, like=(made, path)))
        return encoder

    def _begin(self, setup: _Setup) -> None:
        self._setup = setup
        self._resolved: dict[str, ResolvedModel] = {}
        self._loaded: dict[str, loaded.LoadedModel] = {}

    def __getstate__(self) -> _Setup:
        """Return the recipe, without the model."""
        recipe = self.recipe
        return replace(self._setup, recipes={**self._setup.recipes, self._setup.role: recipe})

    def __setstate__(self, setup: _Setup) -> None:
        self._begin(setup)

    def __repr__(self) -> str:
        setup = self._setup
        return f"Encoder({setup.request.model!r}, role={setup.role!r})"

    @property
    def recipe(self) -> Recipe:
        """What makes the vectors what they are: model, template, max length; vectors of equal
        recipes are interchangeable, of equal `recipe.space` comparable. Raises EmbedcliError.
        """
        with in_python():
            return self._resolve(None).recipe

    @property
    def dim(self) -> int:
        """How many numbers a vector has."""
        return self.recipe.space.dim

    @property
    def computation(self) -> Computation:
        """What computes the vectors, and why so. Loads the model."""
        with in_python():
            return self._load(self._resolve(None)).model.computation

    def encode(
        self,
        texts: Sequence[str],
        role: str | None = None,
        fields: Mapping[str, Sequence[object]] | None = None,
    ) -> Array:
        """Return the vectors of n texts, float32 [n, dim], in their order.

        `role` overrides the encoder's own. `fields` are the columns that the template names besides
        the text. Raises EmbedcliError where a text gets no vector, or with `on_error="null"` gives
        NaN in its place; TypeError where `texts` are no strings.
        """
        if isinstance(texts, str):
            raise TypeError("texts is one string: encode([text])")
        strings = list(texts)
        for text in strings:
            if not isinstance(text, str):
                raise TypeError(f"texts holds a {type(text).__name__}: {text!r:.60}")
        with in_python():
            resolved = self._resolve(role)
            absent = set(resolved.template.fields) - set(fields or {})
            if absent:
                raise DataError(
                    f"the template {resolved.template.string!r} names {min(absent)!r}",
                    f"fields={{{min(absent)!r}: [...]}}",
                )
            columns, faults = self._embed(resolved, strings, fields or {})
            self._raise_first("text", faults)
        columns.vectors[list(faults)] = np.nan
        return columns.vectors

    def embed(self, table: Rows, text_column: str | None = None) -> Rows:
        """Return a table or record batch with its columns and ours: vector, hash, tokens, truncated.

        The vectors are fixed-size lists of float32 (or `vector_type`) [dim]; the provenance stands
        in the schema's metadata. Texts are rendered, encoded and rejected as `embedcli encode` does
        in a file of this table. With `on_error="null"` a row without a vector has null in our
        columns, and the reason in one more, `embedding_error`. Raises EmbedcliError.
        """
        if isinstance(table, pa.RecordBatch):
            return tables.as_batch(self.embed(pa.Table.from_batches([table]), text_column))
        if not isinstance(table, pa.Table):
            raise TypeError(
                f"embed takes Arrow tables and record batches, not {type(table).__name__}: "
                'in Ray batch_format="pyarrow", for pandas pyarrow.Table.from_pandas(frame)'
            )
        with in_python():
            options = self._input(text_column)
            resolved = self._resolve(None)
            embed = partial(self._embed_records, resolved)
            columns, faults = tables.embed_table(table, resolved.spec.dim, options, embed)
            schema = self._schema(table.schema, options, self._made())
            vector_type = schema.field(self._setup.output.embedding_column).type
            return tables.assemble(table, columns, faults, schema, vector_type, options)

    __call__ = embed

    def embed_batches(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield each record batch with our columns, in the types that Spark's `mapInArrow` takes:
        vectors are lists of variable length, `schema` says what they are.
        """
        for batch in batches:
            yield engines.of_variable_length(self.embed(batch))

    def schema(self, schema: Any, text_column: str | None = None) -> Any:
        """Return the schema that `embed` gives a table of `schema`; loads no model.

        Takes and returns a pyarrow.Schema, or a pyspark StructType, whose vector column then carries
        the provenance. Raises EmbedcliError where a column is missing, or of another type.
        """
        with in_python():
            options = self._input(text_column)
            if isinstance(schema, pa.Schema):
                return self._schema(schema, options, ())
            arrow = engines.to_arrow(schema)
            return engines.to_spark(self._schema(arrow, options, ()), schema)

    @property
    def metadata(self) -> dict[str, str]:
        """The provenance as key and value of a file's metadata, for writers that drop the schema's."""
        with in_python():
            return {parts.METADATA_KEY.decode(): self._provenance(()).to_bytes().decode()}

    def _input(self, text_column: str | None) -> InputOptions:
        fields = self._resolve(None).template.fields
        options = replace(self._setup.input, fields=fields)
        return options if text_column is None else replace(options, text_column=text_column)

    def _schema(
        self, schema: pa.Schema, options: InputOptions, made: Sequence[Computation]
    ) -> pa.Schema:
        """Return the schema of a table's carried columns, ours, and the reasons for nulls."""
        output = self._setup.output
        carried = in_memory.schema_of(schema, options)
        described = parts.output_schema(carried, self._resolve(None).spec.dim, output)
        if self._setup.on_error == "null":
            reasons = pa.field(f"{output.embedding_column}_error", pa.string())
            described = described.append(reasons)
        return parts.with_provenance(described, self._provenance(made))

    def _provenance(self, made: Sequence[Computation]) -> Provenance:
        resolved = self._resolve(None)
        return provenance_of(resolved.spec, resolved.template, self._setup.output, made)

    def _made(self) -> list[Computation]:
        """Return what computes the vectors; nothing where none was needed yet."""
        role = self._setup.role
        return [self._loaded[role].model.computation] if role in self._loaded else []

    def _embed_records(
        self, resolved: ResolvedModel, records: Records
    ) -> tuple[EmbeddingColumns, dict[int, RowFault]]:
        self._raise_first(
            "the table: row", {reject.number - 1: reject.fault for reject in records.rejects}
        )
        columns, faults = self._embed(resolved, records.texts, records.fields)
        numbers = records.places.numbers
        self._raise_first(
            "the table: row", {int(numbers[row]) - 1: fault for row, fault in faults.items()}
        )
        return columns, faults

    def _embed(
        self, resolved: ResolvedModel, texts: Sequence[str], fields: Mapping[str, Sequence[object]]
    ) -> tuple[EmbeddingColumns, dict[int, RowFault]]:
        """Return the columns of all texts, zeros for those without a vector, and why they have none."""
        rendered = render_texts(resolved.template, texts, fields)
        if not len(rendered.good):
            return EmbeddingColumns.zeros(np.zeros(len(texts), "V16"), resolved.spec.dim), dict(
                rendered.faults
            )
        entry = self._load(resolved)
        with entry.lock:
            return embed_texts(entry.model, rendered, self._setup.output.vector_type)

    def _raise_first(self, where: str, faults: Mapping[int, RowFault]) -> None:
        """Raise the first row without a vector as DataError, unless it is to come as null."""
        if faults and self._setup.on_error == "raise":
            row, fault = min(faults.items())
            hint = 'on_error="null" gives null in its place'
            raise DataError(
                f"{where} {row}: {fault.reason}", "; ".join(filter(None, (fault.hint, hint)))
            )

    def _load(self, resolved: ResolvedModel) -> loaded.LoadedModel:
        role = resolved.template.role
        if role not in self._loaded:
            self._loaded[role] = loaded.load(resolved, self._setup.run)
        return self._loaded[role]

    def _resolve(self, role: str | None) -> ResolvedModel:
        """Find the model and the template of a role; the same as where this encoder was pickled."""
        setup = self._setup
        role = role or setup.role
        resolved = self._resolved.get(role)
        if resolved is None:
            if setup.like is None:
                resolved = resolve(setup.request, role)
            else:
                resolved = resolve_like(setup.request, role, *setup.like)
            self._check_same(role, resolved.recipe)
            for warning in resolved.warnings:
                warnings.warn(warning, stacklevel=4)
            self._resolved[role] = resolved
        return resolved

    def _check_same(self, role: str, recipe: Recipe) -> None:
        """See that a role is what it was where this encoder was pickled. Raises ConfigurationError."""
        before = self._setup.recipes.get(role)
        if before is not None and before.id != recipe.id:
            differing = describe_differences(before.differences(recipe), "the pickled encoder")
            raise ConfigurationError(
                f"this machine's model or template is another one: {differing}",
                "give all machines the same model folder, or name the model with its revision",
            )
