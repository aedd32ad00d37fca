"""Relevance judgments: BEIR's three columns with a header, or TREC's four."""

from pathlib import Path

from embedcli.errors import DataError, from_os_error


def read(path: str) -> dict[str, dict[str, int]]:
    """For each query the documents judged and how relevant they are; queries without a relevant one are left out.

    Raises InputMissingError, DataError naming the line that is neither.
    """
    try:
        content = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise from_os_error(error, path) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8") from None
    found: dict[str, dict[str, int]] = {}
    for number, line in enumerate(content.splitlines(), 1):
        parts = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or (number == 1 and not _is_number(parts[-1])):
            continue
        if len(parts) not in (3, 4) or not _is_number(parts[-1]):
            raise DataError(
                f"{path}:{number}: not a judgment: {line[:80]!r}",
                "query-id, corpus-id, score; or TREC's query-id, 0, corpus-id, score",
            )
        query, document = parts[0], parts[-2]
        found.setdefault(query, {})[document] = int(float(parts[-1]))
    relevant = {query: documents for query, documents in found.items() if max(documents.values()) > 0}
    if not relevant:
        raise DataError(f"{path}: no query has a relevant document")
    return relevant


def _is_number(value: str) -> bool:
    try:
        return float(value).is_integer()
    except ValueError:
        return False
