"""Where a long text may be cut before it is tokenized, so that its first and last tokens stay the same.

A tokenizer looks for added tokens, normalizes, splits into words (pre-tokenizer) and cuts each word
into tokens (model). A text may end behind a letter that a space follows, if no step looks across
that place: then the tokens of the beginning are the first tokens of the whole. Each step is known
by its type; a tokenizer with a step that isn't listed here is not cut for.

Where a tokenizer has no words (Llama, Gemma: spaces become `▁`), its vocabulary decides: if no token
holds a `▁` behind something else, none reaches across a space.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

# Letters and digits that all versions of Unicode know as such, and that no mark is part of. One that
# joins what follows (Unicode's Prepend) is none of them.
_LETTER = (
    "[0-9A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u03b1-\u03c9\u0410-\u044f\u0561-\u0586\u05d0-\u05ea"
    "\u0620-\u063a\u0641-\u064a\u0905-\u0939\u0e01-\u0e2e\u10d0-\u10f0\u3041-\u3094\u30a1-\u30fa"
    "\u4e00-\u9fa5\uac00-\ud7a3]"
)
_SPACE, _WHITESPACE, _PUNCTUATION = " ", " \n", " \n。，、！？；："
# What is inside one token reaches across a cut.
_ACROSS = re.compile(r"\w[\s▁]")
_ACROSS_WORDS = re.compile(r"[^▁]▁")

# Normalizers that change each character, or each grapheme, by itself.
_LOCAL_NORMALIZERS = {
    "BertNormalizer",
    "Lowercase",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Nmt",
    "Precompiled",
    "Prepend",
    "StripAccents",
    "Strip",
}
_SPACE_RUNS = (" {2,}", "\\s+")

# Regular expressions that end a match of letters or digits where anything else follows, by the models
# that brought them.
_WORD_PATTERNS = {
    # GPT-2
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    # Llama 3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    # Qwen2, Qwen3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


@dataclass(frozen=True)
class Cuts:
    """Where texts may be cut for a tokenizer.

    before: the characters that may follow a cut. from_end: do the tokens behind a cut stay the
    same, too, when what is before it is missing?
    """

    before: str
    from_end: bool

    def head(self, string: str, size: int) -> str | None:
        """Return a beginning of about `size` characters at most; None where there is no place to
        cut in its second half.
        """
        stop = None
        for match in re.finditer(f"{_LETTER}(?=[{self.before}])", string[size // 2 : size + 1]):
            stop = match.end()
        return None if stop is None else string[: size // 2 + stop]

    def tail_start(self, string: str, size: int, stop: int) -> int | None:
        """Return where an end begins that holds at least `size` characters before `stop`; None where
        it can't be told.
        """
        if not self.from_end:
            return None
        latest = max(0, stop - size)
        start = max(0, latest - size)
        place = None
        for match in re.finditer(f"{_LETTER}(?= {_LETTER})", string[start : latest + 2]):
            place = start + match.end()
        return place


def find_cuts(tokenizer: Any) -> Cuts | None:
    """Tell where texts may be cut for a tokenizer of the library tokenizers; None where nowhere."""
    added = tokenizer.get_added_tokens_decoder().values()
    if any(_ACROSS.search(token.content) or _eats_behind(token) for token in added):
        return None
    normalizers = _parts(tokenizer.normalizer, "normalizers")
    splitters = _parts(tokenizer.pre_tokenizer, "pretokenizers")
    if normalizers is None or splitters is None or not all(map(_is_local, normalizers)):
        return None
    before = _before(normalizers, splitters)
    if before is None or not _keeps_words(tokenizer, before):
        return None
    # At the start of a text, and only there, these put something before it, or take it away.
    from_end = not any(part["type"] == "Prepend" or part.get("strip_left") for part in normalizers)
    return Cuts(before or _SPACE, from_end)


def _parts(step: Any, name: str) -> list[dict[str, Any]] | None:
    """Return a step's parts as the library would save them; None for one written in Python."""
    if step is None:
        return []
    try:
        state = json.loads(step.__getstate__())
    except Exception:  # the library's own, of no particular kind
        return None
    return _flat(state, name)


def _flat(state: dict[str, Any], name: str) -> list[dict[str, Any]]:
    if state["type"] != "Sequence":
        return [state]
    return [part for inner in state[name] for part in _flat(inner, name)]


def _eats_behind(token: Any) -> bool:
    """Tell whether an added token takes the space behind it along, where a letter ends it."""
    return bool(token.rstrip and token.content[-1:].isalnum())


def _is_local(normalizer: dict[str, Any]) -> bool:
    """Tell whether a normalizer never looks across a cut."""
    if normalizer["type"] != "Replace":
        return normalizer["type"] in _LOCAL_NORMALIZERS
    pattern = normalizer["pattern"]
    if "Regex" in pattern:
        return pattern["Regex"] in _SPACE_RUNS
    return len(pattern["String"]) == 1 or not re.search(r"[\s▁]", pattern["String"])


def _before(normalizers: list[dict[str, Any]], splitters: list[dict[str, Any]]) -> str | None:
    """Return the characters before which words end: none where there are no words, None where it
    isn't known.
    """
    has_spaces = {"String": " "} not in [part.get("pattern") for part in normalizers]
    for splitter in splitters:
        before = _ends_of_words(splitter, has_spaces)
        if before != "":
            return before
        has_spaces &= splitter["type"] != "Metaspace"
    return None if has_spaces else ""


def _ends_of_words(splitter: dict[str, Any], has_spaces: bool) -> str | None:
    """Return the characters before which a pre-tokenizer ends words, whatever else it does; none if
    it only cuts elsewhere, None if it isn't known.
    """
    match splitter:
        case {"type": "Metaspace", "replacement": "▁"}:
            return _SPACE if splitter["split"] else ""
        case {"type": "Digits" | "Punctuation"}:
            return ""
        case {"type": "Split", "pattern": {"String": " "}} if not has_spaces:
            return ""  # Gemma's finds no space any more
        case {"type": "WhitespaceSplit"} if has_spaces:
            return _WHITESPACE
        case {"type": "BertPreTokenizer" | "Whitespace"} if has_spaces:
            return _PUNCTUATION
        case {"type": "ByteLevel", "use_regex": True} if has_spaces:
            return _PUNCTUATION
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"} if has_spaces:
            return _PUNCTUATION if regex in _WORD_PATTERNS else None
    return None


def _keeps_words(tokenizer: Any, before: str) -> bool:
    """Tell whether no token of the model reaches across a cut."""
    model = tokenizer.model
    kind = type(model).__name__
    if kind == "BPE" and model.dropout:
        return False
    if before:
        return kind in ("BPE", "Unigram", "WordLevel", "WordPiece")
    if kind not in ("BPE", "Unigram") or getattr(model, "end_of_word_suffix", None):
        return False
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    return "▁" in vocabulary and not any(map(_ACROSS_WORDS.search, vocabulary))
