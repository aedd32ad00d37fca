"""Rendered strings into token ids, cut so that the template stays whole.

Special tokens are put around by us, not by the tokenizer: so their ids are known, and a text that is too long loses
tokens of its own, never those of the template around it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Normalizers

from embedcli.errors import ConfigurationError
from embedcli.records import Rendered

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Tokens:
    """Token ids of each text, special tokens included, and whether the text was cut."""

    ids: list[list[int]]
    truncated: list[bool]


class Tokenizer:
    """A model's tokenizer with its max length and its special tokens.

    `before` and `after` are the ids that the model was trained to find around every text.
    """

    def __init__(self, tokenizer: Any, max_length: int, append_eos: bool = False, lower_case: bool = False) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        if lower_case:
            own = self._backend.normalizer
            self._backend.normalizer = Normalizers([Lowercase(), own] if own else [Lowercase()])
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.pads_left: bool = tokenizer.padding_side == "left"
        self.max_length = max_length
        self.before, self.after = _special_ids(self._backend)
        if append_eos and (not self.after or self.after[-1] != tokenizer.eos_token_id):
            self.after = [*self.after, tokenizer.eos_token_id]
        if len(self.before) + len(self.after) >= max_length:
            raise ConfigurationError(f"--max-length {max_length} leaves no room for text beside the special tokens")

    def count(self, strings: list[str]) -> list[int]:
        """Tokens of each string, special ones included, nothing cut."""
        special = len(self.before) + len(self.after)
        return [special + len(encoding) for encoding in self._backend.encode_batch(strings, add_special_tokens=False)]

    def encode(self, rendered: Rendered) -> Tokens:
        """Tokenize; texts over the max length lose their last tokens before the template's end."""
        ids: list[list[int]] = []
        truncated: list[bool] = []
        room = self.max_length - len(self.before) - len(self.after)
        for start in range(0, len(rendered.strings), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            encodings = self._backend.encode_batch(rendered.strings[rows], add_special_tokens=False)
            for encoding, string, stop in zip(encodings, rendered.strings[rows], rendered.stops[rows], strict=True):
                inner = encoding.ids
                cut = len(inner) > room
                if cut:
                    inner = _cut(inner, encoding.offsets, room, stop if stop < len(string) else None)
                ids.append([*self.before, *inner, *self.after])
                truncated.append(cut)
        return Tokens(ids, truncated)


def _cut(ids: list[int], offsets: Sequence[tuple[int, int]], room: int, text_stop: int | None) -> list[int]:
    """The first tokens, then those that reach beyond `text_stop`, the template's end, `room` in all."""
    if text_stop is None:
        return ids[:room]
    end = next((index for index, (_, stop) in enumerate(offsets) if stop > text_stop), len(ids))
    tail = ids[end:]
    if len(tail) >= room:
        raise ConfigurationError(f"the template's end alone has {len(tail)} tokens, more than --max-length allows")
    return ids[: room - len(tail)] + tail


def _special_ids(backend: Any) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after a text."""
    inner = backend.encode("a", add_special_tokens=False).ids
    whole = backend.encode("a", add_special_tokens=True).ids
    for start in range(len(whole) - len(inner) + 1):
        if whole[start : start + len(inner)] == inner:
            return whole[:start], whole[start + len(inner) :]
    raise ConfigurationError("the tokenizer changes texts when it adds special tokens: not supported")
