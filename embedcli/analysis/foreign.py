"""Files of vectors that another program saved again: they no longer say how their vectors were made."""

from dataclasses import replace

from embedcli.analysis.comparability import check_comparable
from embedcli.computation import Computation
from embedcli.errors import ConfigurationError
from embedcli.models.request import ModelRequest
from embedcli.models.resolve import resolve
from embedcli.store.provenance import ColumnProvenance
from embedcli.store.vector_file import VectorFile, is_ours, open_ours


def open_index(
    path: str, embedding_column: str | None, request: ModelRequest, like: str | None
) -> VectorFile:
    """Open a file of vectors. If it doesn't say how they were made, they are taken for vectors as in
    the file `like`, or for passages of the requested model.

    Raises InputMissingError, DataError, and ConfigurationError where that can't be.
    """
    if is_ours(path) or (like is None and request.model is None):
        file = open_ours(path, embedding_column)
        if like is not None:
            check_comparable(file, open_ours(like))
        return file
    made = open_ours(like).made if like is not None else _made_by(request)
    file = VectorFile(path, embedding_column, made)
    if like is None and file.dim < made.recipe.space.dim:  # cut, as Matryoshka models allow
        file = VectorFile(path, embedding_column, _made_by(replace(request, dim=file.dim)))
    if file.dim != file.made.recipe.space.dim:
        raise ConfigurationError(
            f"{path}: its vectors have {file.dim} dimensions, those of {like or request.model} "
            f"{file.made.recipe.space.dim}"
        )
    return file


def _made_by(request: ModelRequest) -> ColumnProvenance:
    """Say how a model's passages are made."""
    model = resolve(request, "passage")
    computation = Computation(device="", dtype="float32", compiled=False, backend="")
    return ColumnProvenance(model.recipe, model.template.source, "float32", (computation,))
