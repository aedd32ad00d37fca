"""What a model's folder says of tokens: how many a text may have, which end of a long one is cut, and
which tokens stand around every text.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from embedcli.errors import ConfigurationError
from embedcli.models.contents import Contents
from embedcli.models.facts import FamilyFacts
from embedcli.models.layout import Pipeline
from embedcli.models.request import ModelRequest
from embedcli.models.schemas import MAX_TOKENIZER_BYTES, read_json

# Their position table starts after the padding index.
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet"}
# A table of static vectors takes texts of any length; this is what is called any.
_STATIC_MAX_LENGTH = 2**20


def truncation_side(pipeline: Pipeline) -> Literal["left", "right"]:
    """Return the end of a long text that is cut, as transformers reads it: the settings, then
    tokenizer_config.json, then tokenizer.json.
    """
    if pipeline.source == "static":  # sentence-transformers reads nothing else for it
        side = _json_truncation(pipeline.folder).get("direction")
        return "left" if str(side).lower() == "left" else "right"
    config = read_json(pipeline.folder / "tokenizer_config.json")
    side = pipeline.settings.tokenizer_options.get("truncation_side")
    if side is None and isinstance(config, dict):
        side = config.get("truncation_side")
    if side is None:
        side = _json_truncation(pipeline.folder).get("direction")
    return "left" if str(side).lower() == "left" else "right"


def _json_truncation(folder: Path) -> Mapping[str, Any]:
    """Return what tokenizer.json says of truncation, without parsing its vocabulary."""
    try:
        content = (folder / "tokenizer.json").read_bytes()
    except OSError:
        return {}
    found = re.search(rb'"truncation":\s*(\{[^{}]*\})', content)
    try:
        return json.loads(found.group(1)) if found else {}
    except ValueError:
        return {}


def added_tokens(pipeline: Pipeline, facts: FamilyFacts) -> tuple[str | None, str | None]:
    """Return the tokens that we put around every text: the family's, or those that
    tokenizer_config.json says are added, where the tokenizer itself adds none.

    transformers 5 doesn't look at add_eos_token any more; the models were trained with it.
    """
    begin, end, folder = facts.begin_token, facts.end_token, pipeline.folder
    if pipeline.source == "static":
        return begin, end
    config = read_json(folder / "tokenizer_config.json")
    if not isinstance(config, dict):
        return begin, end
    if begin is None and config.get("add_bos_token") is True:
        begin = _missing_token(folder, config.get("bos_token"))
    if end is None and config.get("add_eos_token") is True:
        end = _missing_token(folder, config.get("eos_token"))
    return begin, end


def _missing_token(folder: Path, value: object) -> str | None:
    """Return a special token, unless the tokenizer puts it around texts itself."""
    token = _token(value)
    tokenizer = read_json(folder / "tokenizer.json", MAX_TOKENIZER_BYTES)
    if token is None or not isinstance(tokenizer, dict):
        return None
    adds_it = json.dumps(token) in json.dumps(tokenizer.get("post_processor"))
    return None if adds_it else token


def _token(value: object) -> str | None:
    """Return a token as tokenizer_config.json writes it, a string or an object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _max_positions(config: Mapping[str, Any]) -> int | None:
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions < 1:
        return None
    if config.get("model_type") not in _OFFSET_POSITIONS:
        return positions
    padding = config.get("pad_token_id", 1)
    return positions - (padding + 1 if isinstance(padding, int) else 2)


def read_max_length(
    content: Contents,
    pipeline: Pipeline,
    facts: FamilyFacts,
    request: ModelRequest,
    role: str,
) -> tuple[int, str]:
    """Return the maximum tokens of a text, and who says so: the user, the family, or the model's
    own configs.
    """
    positions = _max_positions(content.config)
    # Rotary and relative positions have no end; a table of learnt ones has.
    table = positions if content.has_position_table else None
    if request.max_length is not None and table is not None and request.max_length > table:
        raise ConfigurationError(
            f"--max-length {request.max_length}: {content.base} has {table} positions"
        )
    settings = pipeline.settings
    of_role = {"query": settings.query_length, "passage": settings.document_length}.get(role)
    tokenizer = read_json(pipeline.folder / "tokenizer_config.json")
    tokenizer_limit = tokenizer.get("model_max_length") if isinstance(tokenizer, dict) else None
    truncation = _json_truncation(pipeline.folder)
    known: tuple[tuple[str, object], ...] = (
        ("option", request.max_length),
        ("family", facts.max_length),
        ("sentence_bert_config.json", of_role),
        ("sentence_bert_config.json", settings.tokenizer_options.get("model_max_length")),
        ("sentence_bert_config.json", settings.max_seq_length),
        ("tokenizer_config.json", tokenizer_limit),
        ("config.json", positions),
    )
    if pipeline.source == "static":  # sentence-transformers reads nothing else for it
        known = (
            ("option", request.max_length),
            ("tokenizer.json", truncation.get("max_length")),
            ("no limit", _STATIC_MAX_LENGTH),
        )
    for origin, value in known:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
            continue
        # What the tokenizer says is a default, which sentence-transformers cuts to the config's.
        most = positions if origin == "tokenizer_config.json" else table
        if most is not None and value > most:
            return most, "config.json"
        return int(value), origin
    raise ConfigurationError(f"{content.base}: its max length is not known", "pass --max-length")
