"""What a family of models states about its pipeline."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Pooling(StrEnum):
    """How the states of a text's tokens become one vector; in the order in which several are joined."""

    CLS = "cls"  # the first token
    MAX = "max"
    MEAN = "mean"
    MEAN_SQRT_LEN = "mean_sqrt_len"  # the sum over the square root of the number of tokens
    WEIGHTED_MEAN = "weighted_mean"  # later tokens weigh more
    LAST_TOKEN = "last_token"

    @property
    def flag(self) -> str:
        """The key of sentence-transformers' configs up to version 5."""
        return _SPELLINGS[self][0]

    @classmethod
    def parse(cls, mode: object) -> "Pooling":
        """Read a pooling by any of its published names. Raises ValueError."""
        for pooling, (_, later) in _SPELLINGS.items():
            if mode in (pooling.value, later):
                return pooling
        raise ValueError(mode)


# sentence-transformers' key up to version 5, and its mode from then on.
_SPELLINGS = {
    Pooling.CLS: ("pooling_mode_cls_token", "cls"),
    Pooling.MEAN: ("pooling_mode_mean_tokens", "mean"),
    Pooling.MAX: ("pooling_mode_max_tokens", "max"),
    Pooling.MEAN_SQRT_LEN: ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
    Pooling.WEIGHTED_MEAN: ("pooling_mode_weightedmean_tokens", "weightedmean"),
    Pooling.LAST_TOKEN: ("pooling_mode_lasttoken", "lasttoken"),
}

PooledTokens = Literal["all", "text", "from_last_prompt_token"]


@dataclass(frozen=True)
class FamilyFacts:
    """What a template family states about a pipeline; None leaves a fact to the model's own folder.

    max_length: tokens, special ones included. normalize: are vectors meant to have norm 1?
    begin_token, end_token: tokens that stand around every text, whether or not the tokenizer adds
    them. attention: `bidirectional` or `causal`, where the class would do otherwise. pooled: the
    tokens that pooling takes: `all`, `text` (what follows the prompt), or `from_last_prompt_token`.
    layer_norm: the vector is layer-normed before it is truncated. dense_by_dim: the folder of the
    Dense layer for `{dim}` dimensions. dims: dimensions that the model was trained to be truncated
    to. own_code: is the repository's own code `required`, or `replaced` by what we do? refused: why
    its models can't be run here at all. native: a model with the same weights for a native class.
    native_class: transformers' name of the class. latent_attention: NV-Embed's block before
    pooling. float16: may the model run in it?
    """

    pooling: Pooling | None = None
    max_length: int | None = None
    normalize: bool | None = None
    begin_token: str | None = None
    end_token: str | None = None
    attention: Literal["bidirectional", "causal"] | None = None
    pooled: PooledTokens | None = None
    layer_norm: bool | None = None
    dense_by_dim: str | None = None
    dims: tuple[int, ...] | None = None
    own_code: Literal["required", "replaced"] | None = None
    refused: str | None = None
    native: str | None = None
    native_class: str | None = None
    latent_attention: bool | None = None
    float16: bool | None = None
