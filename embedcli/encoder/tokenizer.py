"""Rendered strings into token ids, cut so that the template stays whole.

Special tokens are put around by us, not by the tokenizer: so their ids are known, and a text that is too long loses
tokens of its own, never those of the template around it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Normalizers

from embedcli.errors import ConfigurationError
from embedcli.models.spec import ModelSpec
from embedcli.records import Rendered

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Tokens:
    """The token ids of n texts, special ones included, one text after the other.

    ids: int32 [total]; starts: int64 [n], where each text begins; lengths: int32 [n]; truncated: bool [n], was it cut;
    skipped: int32 [n], how many first tokens pooling leaves out.
    """

    ids: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.bool_]
    skipped: npt.NDArray[np.int32]

    def rows(self, indices: npt.NDArray[np.intp]) -> npt.NDArray[np.int32]:
        """The ids of some texts, one after the other."""
        return self.ids[_ranges(self.starts[indices], self.lengths[indices])]

    def as_lists(self) -> list[list[int]]:
        """The ids of each text."""
        ends = self.starts + self.lengths
        return [self.ids[start:end].tolist() for start, end in zip(self.starts, ends, strict=True)]


class Tokenizer:
    """A model's tokenizer with its max length and its special tokens.

    `before` and `after` are the ids that the model was trained to find around every text.
    """

    def __init__(self, tokenizer: Any, spec: ModelSpec) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        if spec.lower_case:
            own = self._backend.normalizer
            self._backend.normalizer = Normalizers([Lowercase(), own] if own else [Lowercase()])
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.pads_left: bool = tokenizer.padding_side == "left"
        self._pooled = spec.pooled
        self._prompt_sizes: dict[str, int] = {}
        self.before, self.after = _special_ids(self._backend)
        begin, end = (self._id_of(token) for token in (spec.facts.begin_token, spec.facts.end_token))
        if begin is not None and self.before[:1] != [begin]:
            self.before = [begin, *self.before]
        if end is not None and self.after[-1:] != [end]:
            self.after = [*self.after, end]
        self._room = spec.max_length - len(self.before) - len(self.after)
        if self._room < 1:
            limit = spec.max_length
            raise ConfigurationError(f"--max-length {limit} leaves no room for text beside the special tokens")

    def _id_of(self, token: str | None) -> int | None:
        if token is None:
            return None
        found: int | None = self._backend.token_to_id(token)
        if found is None:
            raise ConfigurationError(f"the tokenizer has no token {token!r}, which the template's family asks for")
        return found

    def count(self, strings: list[str]) -> list[int]:
        """Tokens of each string, special ones included, nothing cut."""
        special = len(self.before) + len(self.after)
        return [
            special + len(encoding) for encoding in self._backend.encode_batch_fast(strings, add_special_tokens=False)
        ]

    def encode(self, rendered: Rendered) -> Tokens:
        """Tokenize; texts over the max length lose their last tokens before the template's end."""
        inner: list[list[int]] = []
        truncated = np.zeros(len(rendered.strings), np.bool_)
        for first in range(0, len(rendered.strings), _ROWS_AT_ONCE):
            rows = slice(first, first + _ROWS_AT_ONCE)
            # Without offsets, which only texts with something behind them need, once they are cut.
            encodings = self._backend.encode_batch_fast(rendered.strings[rows], add_special_tokens=False)
            inner += [encoding.ids for encoding in encodings]
        for row, ids in enumerate(inner):
            if len(ids) > self._room:
                inner[row], truncated[row] = self._cut(ids, rendered.strings[row], rendered.stops[row]), True
        skipped = [self._prompt_size(*row) for row in zip(rendered.strings, rendered.starts, strict=True)]
        return self._joined(inner, truncated, np.array(skipped, np.int32))

    def _joined(
        self, inner: list[list[int]], truncated: npt.NDArray[np.bool_], skipped: npt.NDArray[np.int32]
    ) -> Tokens:
        """All texts' ids in one array, with the special ones around each."""
        before, after = len(self.before), len(self.after)
        sizes = np.fromiter(map(len, inner), np.int64, len(inner))
        lengths = sizes + before + after
        starts = np.cumsum(lengths) - lengths
        ids = np.empty(int(lengths.sum()), np.int32)
        ids[_ranges(starts + before, sizes)] = np.fromiter(chain.from_iterable(inner), np.int32, int(sizes.sum()))
        ids[starts[:, None] + np.arange(before)] = self.before
        ids[(starts + lengths)[:, None] - after + np.arange(after)] = self.after
        return Tokens(ids, starts, lengths.astype(np.int32), truncated, skipped)

    def _cut(self, ids: list[int], string: str, text_stop: int) -> list[int]:
        """The first tokens, then those that reach beyond `text_stop`, the template's end: as many as there is room."""
        if text_stop == len(string):
            return ids[: self._room]
        offsets = self._backend.encode(string, add_special_tokens=False).offsets
        return _without_middle(ids, offsets, self._room, text_stop)

    def _prompt_size(self, string: str, start: int) -> int:
        """How many first tokens are the prompt's, for models that pool the text alone.

        Counted as the models' authors do: the prompt is tokenized by itself. NV-Embed's count leaves out the special
        token before it, so that the prompt's last token is pooled.
        """
        if self._pooled == "all" or not start:
            return 0
        prompt = string[:start]
        if prompt not in self._prompt_sizes:
            own = len(self._backend.encode(prompt, add_special_tokens=False).ids)
            self._prompt_sizes[prompt] = own + (len(self.before) if self._pooled == "text" else 0)
        return self._prompt_sizes[prompt]


def _without_middle(ids: list[int], offsets: Sequence[tuple[int, int]], room: int, text_stop: int) -> list[int]:
    end = next((index for index, (_, stop) in enumerate(offsets) if stop > text_stop), len(ids))
    tail = ids[end:]
    if len(tail) >= room:
        raise ConfigurationError(f"the template's end alone has {len(tail)} tokens, more than --max-length allows")
    return ids[: room - len(tail)] + tail


def _ranges(starts: npt.NDArray[np.int64], lengths: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The numbers from each start on, as many as its length says, one range after the other."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)


def _special_ids(backend: Any) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after a text."""
    inner = backend.encode("a", add_special_tokens=False).ids
    whole = backend.encode("a", add_special_tokens=True).ids
    for start in range(len(whole) - len(inner) + 1):
        if whole[start : start + len(inner)] == inner:
            return whole[:start], whole[start + len(inner) :]
    raise ConfigurationError("the tokenizer changes texts when it adds special tokens: not supported")
