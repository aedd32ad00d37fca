"""Text that somebody else wrote, made fit to be shown: nothing in it moves the cursor, hides text or
reorders it.
"""

import json
import re
import unicodedata

_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
# C0 but what JSON escapes itself, DEL and C1, soft hyphen, bidirectional and other invisible marks,
# separators of lines, tags, lone surrogates.
_INVISIBLE = re.compile(
    "[\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u08e2\u180e\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\U000110bd\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f]"
)


def count(number: int, noun: str) -> str:
    """Return a number of things: `1 row`, `1,200 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def safe(text: object, limit: int | None = None) -> str:
    """Return a string fit for a terminal: control, format and surrogate characters escaped, cut to `limit`
    characters.
    """
    string = str(text)
    if limit is not None and len(string) > limit:
        string = string[:limit] + "…"
    return "".join(_escaped(character) for character in string)


def _escaped(character: str) -> str:
    if character.isprintable() or character == " ":
        return character
    if character in _NAMED:
        return _NAMED[character]
    code = ord(character)
    if unicodedata.category(character) == "Zs":
        return " "
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def in_json(line: str) -> str:
    """Return JSON with its invisible characters escaped: the same value to whoever parses it."""
    return _INVISIBLE.sub(lambda match: json.dumps(match.group())[1:-1], line)


def as_json(value: object) -> str:
    """Return a value as JSON in one line, in which nothing invisible stands unescaped."""
    return in_json(json.dumps(value, ensure_ascii=False))
