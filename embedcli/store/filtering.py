"""Rows by an SQL condition on their columns. The only place that knows duckdb."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedcli.errors import UsageError


def columns(where: str, known: Sequence[str]) -> list[str]:
    """List the columns that a condition may name: those whose name stands in it.

    At least one, which counts the rows.

    Raises UsageError where there is none.
    """
    if not known:
        raise UsageError(f"--where {where!r}: the file carries no columns")
    named = [name for name in known if name.lower() in where.lower()]
    return named or list(known[:1])


def mask(table: pa.Table, where: str, known: Sequence[str]) -> npt.NDArray[np.bool_]:
    """For each row of a table, bool [n], whether the condition holds; where it is null, it doesn't.

    Raises UsageError where it is no condition on these columns.
    """
    import duckdb

    connection = duckdb.connect(config={"enable_external_access": "false", "threads": "1"})
    try:
        connection.register("rows", table)
        matches = connection.execute(
            f"SELECT coalesce(CAST(({where}) AS BOOLEAN), false) AS holds FROM rows"
        )
        holds = matches.fetchnumpy()["holds"]
    except duckdb.Error as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"--where {where!r}: {reason}", f"columns: {', '.join(known)}") from None
    finally:
        connection.close()
    if len(holds) != len(table):
        raise UsageError(f"--where must be a condition on rows: {where!r}")
    return np.asarray(holds, np.bool_)
