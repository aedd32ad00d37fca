"""A file of vectors for Python programs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedcli.analysis import search as exact
from embedcli.analysis.comparability import query_role
from embedcli.analysis.foreign import open_index
from embedcli.analysis.search import Hit
from embedcli.api.encoder import Array, Encoder
from embedcli.api.errors import in_python
from embedcli.errors import ConfigurationError
from embedcli.models.request import ModelRequest
from embedcli.recipe import Recipe
from embedcli.store.vector_file import VectorFile


class Vectors:
    """A file or folder of vectors that embedcli, or an engine with its encoder, wrote."""

    def __init__(
        self, path: str, embedding_column: str | None = None, like: str | None = None
    ) -> None:
        """Open it and read its provenance; `like` is a file that has it, where another program saved
        this one again. Raises EmbedcliError where it has none.
        """
        with in_python():
            self._file: VectorFile = open_index(path, embedding_column, ModelRequest(), like)
        self._like = like or path
        self._encoders: dict[str, Encoder] = {}

    def __len__(self) -> int:
        """Rows, those without a vector included."""
        return self._file.rows

    def __repr__(self) -> str:
        file = self._file
        return f"Vectors({file.path!r}: {file.rows:,} rows, {file.dim} dimensions)"

    @property
    def path(self) -> str:
        """The path as it was given."""
        return self._file.path

    @property
    def recipe(self) -> Recipe:
        """What makes the vectors what they are: model, role, template, max length."""
        return self._file.recipe

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        return self._file.dim

    @property
    def columns(self) -> list[str]:
        """The columns that were carried over."""
        return self._file.carried

    def array(self) -> Array:
        """Return all vectors, float32 [rows, dim]; NaN where a row has none. Raises EmbedcliError where
        the file is damaged.
        """
        with in_python():
            vectors = np.full((len(self), self.dim), np.nan, np.float32)
            for block in self._file.blocks():
                vectors[block.rows] = block.vectors
        return vectors

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return columns of all rows, by default those carried over. Raises EmbedcliError."""
        names = self.columns if columns is None else list(columns)
        with in_python():
            exact.check_columns([self._file], names)
            return pa.concat_tables(block.table for block in self._file.blocks(names))

    def encoder(self, role: str | None = None, **options: Any) -> Encoder:
        """Return an encoder of texts that are to be compared with these: by default of queries, for
        passages. `options` are those of `Encoder`.
        """
        return Encoder.like(self._like, role=query_role(self._file, role), **options)

    def search(
        self,
        queries: Sequence[str] | npt.NDArray[Any],
        k: int = 10,
        *,
        role: str | None = None,
        where: str | None = None,
        columns: Sequence[str] | None = None,
    ) -> list[list[Hit]]:
        """Return for each query the k nearest rows, best first: exactly, by the scalar product.

        `queries` are texts, which are encoded in `role`, or vectors [n, dim] of the same space.
        `where` is an SQL condition on the rows' columns, `columns` are those that hits show, by
        default all. Raises EmbedcliError, TypeError where the queries are neither.
        """
        if not isinstance(queries, np.ndarray):
            queries = self._encoder(role).encode(queries)
        with in_python():
            if queries.ndim != 2 or queries.shape[1] != self.dim:
                raise ConfigurationError(
                    f"queries have the shape {queries.shape}, the vectors of {self.path} "
                    f"{self.dim} dimensions"
                )
            names = self.columns if columns is None else list(columns)
            exact.check_columns([self._file], names)
            vectors = np.ascontiguousarray(queries, np.float32)
            return exact.search([self._file], vectors, k, names, where)

    def _encoder(self, role: str | None) -> Encoder:
        name = query_role(self._file, role)
        if name not in self._encoders:
            self._encoders[name] = self.encoder(name)
        return self._encoders[name]
