"""May two files of vectors be compared, and in which roles?"""

from embedcli.errors import ConfigurationError
from embedcli.models.families import main_name
from embedcli.models.resolve import check_same_space
from embedcli.store.vector_file import VectorFile


def check_comparable(first: VectorFile, second: VectorFile) -> None:
    """See that two files' vectors are of one space. Raises ConfigurationError that names both."""
    check_same_space(first.recipe.space, second.recipe.space, first.path, second.path)


def query_role(index: VectorFile, role: str | None) -> str:
    """Return the role of texts that are to find an index's: queries for passages; a symmetric role
    finds its own.
    """
    if role is not None:
        return main_name(role)
    return "query" if index.role == "passage" else index.role


def check_roles(index: VectorFile, queries: VectorFile, role: str) -> None:
    """See that queries were encoded in the role that is meant.

    Raises ConfigurationError that names both recipes.
    """
    if queries.role == role:
        return
    raise ConfigurationError(
        f"{queries.path} holds vectors of role {queries.role!r} (template {queries.recipe.template!r}), "
        f"where role {role!r} is meant to find the {index.role!r} of {index.path} "
        f"(template {index.recipe.template!r})",
        f"encode it with --role {role}; or say that it is meant: --role {queries.role}",
    )
