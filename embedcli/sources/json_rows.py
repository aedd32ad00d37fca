"""One line of JSONL into one strict JSON object, or into the reason why not.

Most lines are parsed by msgspec, which is five times as fast as the standard library. A line that it
doesn't take is parsed again by the standard library's parser, whose hooks tell what is wrong with it.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import msgspec

from embedcli.errors import RowFault

Row = dict[str, Any]

BOM = b"\xef\xbb\xbf"
MISSING = object()
_MAX_NESTING = 256
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class Line(NamedTuple):
    """One line of JSONL, or several empty ones.

    lines: how many; offset: of its first byte in the file; size: in bytes; content: None where it
    is longer than allowed; digest: 8 bytes over it.
    """

    lines: int
    offset: int
    size: int
    content: bytes | None
    digest: bytes


class BadRowError(Exception):
    """A line that gives no record."""

    def __init__(self, code: str, reason: str, hint: str = "") -> None:
        self.fault = RowFault(code, reason, hint)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise BadRowError("duplicate-key", f"duplicate key {name[:200]!r}")
            seen.add(name)
    return row


def _finite(literal: str) -> float:
    value = float(literal)
    if not math.isfinite(value):
        raise BadRowError("number", f"number {literal[:40]} is out of range")
    return value


def _refuse_constant(literal: str) -> float:
    raise BadRowError("number", f"{literal} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_no_duplicates,
    parse_float=_finite,
    parse_constant=_refuse_constant,
    strict=True,
)


_decode = msgspec.json.Decoder().decode


def parse_all(lines: Sequence[bytes], content: bytes) -> list[Row] | None:
    """Parse the objects of lines, five times as fast as one by one; `content` are all of them.

    None where one is not a strict JSON object in UTF-8: `parse` tells which, and why. What msgspec
    takes is strict, but for keys that stand twice: of those it keeps the last.
    """
    try:
        rows = list(map(_decode, lines))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if set(map(type, rows)) != {dict}:
        return None
    # Each key and each string has two quotes; with a key that stands twice some are left over.
    quotes = content.count(b'"')
    if b"\\" in content:
        quotes -= content.replace(b"\\\\", b"").count(b'\\"')
    return rows if quotes == 2 * _strings_in(rows, _MAX_NESTING + 1) else None


def _strings_in(values: Iterable[Any], depth: int) -> int:
    """Count the strings in values, keys among them; -1 where they are nested deeper than `depth`."""
    values = list(values)
    count = 0
    while values:
        if not depth:
            return -1
        objects = [value for value in values if type(value) is dict]
        lists = [value for value in values if type(value) is list]
        types = Counter(map(type, values))
        count += types[str] + sum(map(len, objects))
        values = list(chain.from_iterable([*map(dict.values, objects), *lists]))
        depth -= 1
    return count


def parse(line: Line, limit: int) -> Row:
    """Parse a line's object. Raises BadRowError for all that is not one strict JSON object in UTF-8."""
    if line.content is None:
        raise too_long(limit)
    rows = parse_all([line.content], line.content)
    return rows[0] if rows is not None else _parse_strictly(line, line.content)


def too_long(limit: int) -> BadRowError:
    """Return what is wrong with a line of more bytes than allowed."""
    return BadRowError(
        "too-long", f"the line is longer than {limit} bytes", "--max-row-bytes raises the limit"
    )


def not_utf8(byte: int, offset: int) -> BadRowError:
    """Return what is wrong with a line that isn't UTF-8 from an offset of its file on."""
    return BadRowError("not-utf8", f"byte {byte:#04x} at offset {offset} is not UTF-8")


def _parse_strictly(line: Line, whole_content: bytes) -> Row:
    content = whole_content.removeprefix(BOM)
    try:
        value = _DECODER.decode(content.decode())
    except UnicodeDecodeError as error:
        position = line.offset + len(whole_content) - len(content) + error.start
        raise not_utf8(content[error.start], position) from None
    except json.JSONDecodeError as error:
        position = (
            line.offset + len(whole_content) - len(content) + len(error.doc[: error.pos].encode())
        )
        raise BadRowError(
            "not-json", f"not valid JSON: {error.msg.removesuffix(' at')} at byte offset {position}"
        ) from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:  # int() refuses beyond 4,300 digits
        raise BadRowError("number", "an integer has too many digits") from None
    if not isinstance(value, dict):
        raise BadRowError(
            "not-object", f'a {_json_type(value)}, not an object like {{"text": ...}}'
        )
    if content.count(b"[") + content.count(b"{") > _MAX_NESTING and _depth(value) > _MAX_NESTING:
        raise _too_deep()
    if _SURROGATE.search(content):
        _refuse_lone_surrogates(value)
    return value


def _too_deep() -> BadRowError:
    return BadRowError("nesting", f"values are nested more than {_MAX_NESTING} levels deep")


def _refuse_lone_surrogates(value: Row) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        raise BadRowError(
            "surrogate", f"lone surrogate \\u{code:04x} in a string: not Unicode text"
        ) from None


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        nested = [item for item in level if isinstance(item, (dict, list))]
        level = [
            inner
            for item in nested
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def _json_type(value: object) -> str:
    names = {
        bool: "boolean",
        int: "number",
        float: "number",
        str: "string",
        list: "list",
        dict: "object",
    }
    return names.get(type(value), "null")


def lookup(row: Row, name: str) -> Any:
    """Return the value under a key, or under a dotted path of keys; MISSING where there is none."""
    value: Any = row.get(name, MISSING)
    if value is not MISSING:
        return value
    value = row
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return MISSING
        value = value[part]
    return value


def text_of(row: Row, name: str) -> str:
    """Return the string under `name`. Raises BadRowError where there is none."""
    value = lookup(row, name)
    if isinstance(value, str):
        return value
    if value is MISSING:
        keys = ", ".join(list(row)[:20]) or "none"
        raise BadRowError(
            "text-missing",
            f"no column {name!r} (columns here: {keys})",
            "--text-column names another",
        )
    if value is None:
        raise BadRowError("text-null", f"column {name!r} is null")
    raise BadRowError("text-type", f"column {name!r} is a {_json_type(value)}, not a string")
