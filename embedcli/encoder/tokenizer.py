"""Rendered strings into token ids, truncated so that the template stays whole.

Special tokens are put around by us, not by the tokenizer: so their ids are known, and a text that
is too long loses tokens of its own, never those of the template around it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Normalizers

from embedcli.encoder.cutting import Cuts, find_cuts
from embedcli.errors import ConfigurationError
from embedcli.models.spec import ModelSpec
from embedcli.records import Rendered

_TEXTS_AT_ONCE = 1024
# Prompts whose length is remembered.
_MOST_PROMPTS = 1024
# Characters of a long text that are tokenized first, for each token that it may keep; if they don't
# suffice, so many times as many.
_CHARACTERS_A_TOKEN, _GROWTH = 8, 4


@dataclass(frozen=True)
class Tokens:
    """The token ids of n texts, special ones included, one text after the other.

    ids: int32 [total]; starts: int64 [n], where each text begins; lengths: int32 [n]; truncated:
    bool [n], was it cut; skipped: int32 [n], how many first tokens pooling leaves out.
    """

    ids: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.bool_]
    skipped: npt.NDArray[np.int32]

    def ids_of(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.int32]:
        """Return the ids of some texts, one after the other."""
        return self.ids[_ranges(self.starts[rows], self.lengths[rows])]

    def contain(self, token_id: int, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
        """Tell which texts contain a token, bool [rows]; none of them is empty."""
        lengths = self.lengths[rows]
        starts = np.cumsum(lengths) - lengths
        return (
            np.add.reduceat(self.ids_of(rows) == token_id, starts) > 0 if len(rows) else starts > 0
        )

    def as_lists(self) -> list[list[int]]:
        """Return the ids of each text."""
        ends = self.starts + self.lengths
        return [self.ids[start:end].tolist() for start, end in zip(self.starts, ends, strict=True)]


class Tokenizer:
    """A model's tokenizer with its max length and its special tokens.

    `before` and `after` are the ids that the model was trained to find around every text.
    """

    def __init__(
        self, backend: Any, spec: ModelSpec, pad_id: int = 0, pads_left: bool = False
    ) -> None:
        self._id = spec.files.id
        self._backend = backend
        self._backend.no_truncation()
        self._backend.no_padding()
        if spec.lower_case:
            normalizer = self._backend.normalizer
            self._backend.normalizer = Normalizers(
                [Lowercase(), normalizer] if normalizer else [Lowercase()]
            )
        self.pad_id = pad_id
        self.pads_left = pads_left
        self._cuts_left = spec.truncation_side == "left"
        self._pooled = spec.pooled
        self._prompt_lengths: dict[str, int] = {}
        self.before: list[int] = []
        self.after: list[int] = []
        if spec.source != "static":  # whose tables were made for texts alone
            with self._errors_named():
                self.before, self.after = _special_ids(self._backend)
        begin = self._id_of(spec.begin)
        end = self._id_of(spec.end)
        # Some models were trained with a token that their tokenizer doesn't add.
        if begin is not None and self.before[:1] != [begin]:
            self.before = [begin, *self.before]
        if end is not None and self.after[-1:] != [end]:
            self.after = [*self.after, end]
        self._max_inner = spec.max_length - len(self.before) - len(self.after)
        if self._max_inner < 1:
            raise ConfigurationError(
                f"--max-length {spec.max_length} leaves no room for text beside the special tokens"
            )

    def _id_of(self, token: str | None) -> int | None:
        if token is None:
            return None
        token_id: int | None = self._backend.token_to_id(token)
        if token_id is None:
            raise ConfigurationError(
                f"the tokenizer has no token {token!r}, which is to stand around every text"
            )
        return token_id

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        """Raise ConfigurationError where the tokenizer fails: its file is odd, no text is at fault."""
        try:
            yield
        except ConfigurationError:
            raise
        except BaseException as error:
            if not is_failure(error):
                raise
            reason = " ".join(str(error).split())[:300]
            raise ConfigurationError(f"{self._id}: its tokenizer fails: {reason}") from None

    def save(self, path: Path) -> None:
        """Write what a Tokenizer of the same spec can be made of again."""
        self._backend.save(str(path), pretty=False)

    def count(self, strings: list[str]) -> list[int]:
        """Count the tokens of each string, special ones included, untruncated."""
        special = len(self.before) + len(self.after)
        with self._errors_named():
            encodings = self._backend.encode_batch_fast(strings, add_special_tokens=False)
        return [special + len(encoding) for encoding in encodings]

    def encode(self, rendered: Rendered) -> Tokens:
        """Tokenize; texts over the max length lose their last tokens before the template's end."""
        inner: list[list[int]] = []
        for start in range(0, len(rendered.strings), _TEXTS_AT_ONCE):
            inner += self._first_ids(rendered.strings[start : start + _TEXTS_AT_ONCE])
        truncated = np.zeros(len(inner), np.bool_)
        for row, ids in enumerate(inner):
            if len(ids) > self._max_inner:
                inner[row] = self._truncate(
                    ids, rendered.strings[row], rendered.starts[row], rendered.stops[row]
                )
                truncated[row] = True
        prompts = zip(rendered.strings, rendered.starts, strict=True)
        skipped = [self._prompt_length(string, start) for string, start in prompts]
        return self._join(inner, truncated, np.array(skipped, np.int32))

    @cached_property
    def _cuts(self) -> Cuts | None:
        return find_cuts(self._backend)

    def _first_ids(self, strings: list[str]) -> list[list[int]]:
        """Return the ids of each string; of one that has too many, at least one more than fits."""
        ids: list[list[int]] = [[] for _ in strings]
        rows, size = list(range(len(strings))), self._max_inner * _CHARACTERS_A_TOKEN
        while rows:
            heads = [self._head(strings[row], size) for row in rows]
            with self._errors_named():
                # Without offsets, which only texts with something behind them need, once they are truncated.
                encodings = self._backend.encode_batch_fast(heads, add_special_tokens=False)
            too_short = []
            for row, head, encoding in zip(rows, heads, encodings, strict=True):
                ids[row] = encoding.ids
                if len(head) < len(strings[row]) and len(ids[row]) <= self._max_inner:
                    too_short.append(row)
            rows, size = too_short, size * _GROWTH
        return ids

    def _head(self, string: str, size: int) -> str:
        """Return the string's beginning, if it is long and can be cut."""
        if len(string) <= 2 * size or self._cuts is None:
            return string
        return self._cuts.head(string, size) or string

    def _join(
        self,
        inner: list[list[int]],
        truncated: npt.NDArray[np.bool_],
        skipped: npt.NDArray[np.int32],
    ) -> Tokens:
        """Put all texts' ids into one array, with the special ones around each."""
        before, after = len(self.before), len(self.after)
        inner_lengths = np.fromiter(map(len, inner), np.int64, len(inner))
        lengths = inner_lengths + before + after
        stops = np.cumsum(lengths)
        starts = stops - lengths
        ids = np.empty(int(lengths.sum()), np.int32)
        inner_ids = np.fromiter(chain.from_iterable(inner), np.int32, int(inner_lengths.sum()))
        ids[_ranges(starts + before, inner_lengths)] = inner_ids
        # [n, before] and [n, after]: the same special tokens around each text.
        ids[starts[:, None] + np.arange(before)] = self.before
        ids[stops[:, None] - after + np.arange(after)] = self.after
        return Tokens(ids, starts, lengths.astype(np.int32), truncated, skipped)

    def _truncate(self, ids: list[int], string: str, start: int, stop: int) -> list[int]:
        """Keep the tokens of the template around the text, and as many of the text's as fit: its
        first ones, or its last where the model cuts on the left. `ids`: the string's first ones.
        """
        if not self._cuts_left:
            end = self._ids_behind(string, stop) if stop < len(string) else []
            self._check_room(end, "end")
            return ids[: self._max_inner - len(end)] + end
        begin = self._ids_before(string, start) if start else []
        self._check_room(begin, "start")
        return begin + self._last_ids(string, self._max_inner - len(begin))

    def _check_room(self, ids: list[int], which: str) -> None:
        if len(ids) >= self._max_inner:
            raise ConfigurationError(
                f"the template's {which} alone has {len(ids)} tokens, more than --max-length allows"
            )

    def _ids_before(self, string: str, start: int) -> list[int]:
        """Return the ids before the first token that begins at `start` or behind it."""
        for head in (self._head(string, start + _CHARACTERS_A_TOKEN), string):
            encoding = self._backend.encode(head, add_special_tokens=False)
            for index, (token_start, token_stop) in enumerate(encoding.offsets):
                if token_start >= start and token_stop > token_start:
                    ids: list[int] = encoding.ids[:index]
                    return ids
        return []

    def _ids_behind(self, string: str, stop: int) -> list[int]:
        """Return the ids from the first token on that ends behind `stop`."""
        place = self._tail_start(string, _CHARACTERS_A_TOKEN, stop)
        encoding = self._backend.encode(string[place:], add_special_tokens=False)
        for index, (_, token_stop) in enumerate(encoding.offsets):
            if place + token_stop > stop:
                ids: list[int] = encoding.ids[index:]
                return ids
        return []

    def _last_ids(self, string: str, count: int) -> list[int]:
        size = count * _CHARACTERS_A_TOKEN
        while True:
            place = self._tail_start(string, size, len(string))
            ids: list[int] = self._backend.encode(string[place:], add_special_tokens=False).ids
            if len(ids) >= count or not place:
                return ids[-count:]
            size *= _GROWTH

    def _tail_start(self, string: str, size: int, stop: int) -> int:
        """Return where an end begins that holds `size` characters before `stop`; 0 where that isn't
        worth a cut, or can't be told.
        """
        if stop <= 2 * size or self._cuts is None:
            return 0
        return self._cuts.tail_start(string, size, stop) or 0

    @property
    def can_be_sent(self) -> bool:
        """Tell whether another process can have it: not with steps written in Python."""
        try:
            return bool(self._backend.to_str())
        except Exception:  # of the library's own, which knows no kind for it
            return False

    def _prompt_length(self, string: str, start: int) -> int:
        """Return how many first tokens are the prompt's, for models that pool the text alone.

        Counted as the models' authors do: the prompt is tokenized by itself. NV-Embed's count
        leaves out the special token before it, so that the prompt's last token is pooled.
        """
        if self._pooled == "all" or not start:
            return 0
        prompt = string[:start]
        if prompt not in self._prompt_lengths:
            if len(self._prompt_lengths) == _MOST_PROMPTS:  # each text may have one of its own
                self._prompt_lengths.clear()
            length = len(self._backend.encode(prompt, add_special_tokens=False).ids)
            if self._pooled == "text":
                length += len(self.before)
            self._prompt_lengths[prompt] = length
        return self._prompt_lengths[prompt]


def is_failure(error: BaseException) -> bool:
    """Tell whether an error is one of the tokenizers' library: its panics are no Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _ranges(starts: npt.NDArray[np.int64], lengths: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the numbers from each start on, as many as its length says, one range after the other."""
    if not len(lengths):
        return np.empty(0, np.int64)
    ends = np.cumsum(lengths)
    # Each range begins at its start: what the running number has counted before it is taken off.
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1])


def _special_ids(backend: Any) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer puts before and after a text."""
    for text in ("a", "1", "the", "\u4e00"):  # a normalizer may remove some
        inner = backend.encode(text, add_special_tokens=False).ids
        ids = backend.encode(text, add_special_tokens=True).ids
        for start in range(len(ids) - len(inner) + 1) if inner else ():
            if ids[start : start + len(inner)] == inner:
                return ids[:start], ids[start + len(inner) :]
    raise ConfigurationError(
        "the tokenizer changes texts when it adds special tokens: not supported"
    )
