"""Texts in memory into vectors: rendered, each distinct one once, encoded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from embedcli import encoder, templates
from embedcli.errors import ConfigurationError, RowFault
from embedcli.records import Rendered
from embedcli.run.unit import Numbers, rows_without, select_rendered
from embedcli.store import parts, reuse
from embedcli.store.parts import EmbeddingColumns, Hashes
from embedcli.templates import Template


@dataclass(frozen=True)
class RenderedTexts:
    """The texts of some rows, rendered, and which of them are equal.

    good: the rows without a fault; faults: the others, by row. rendered, hashes (16-byte voids): by
    good row. first_rows: the first good row that has each distinct text; text_numbers: for each good
    row the number of its distinct text.
    """

    good: Numbers
    faults: Mapping[int, RowFault]
    rendered: Rendered
    hashes: Hashes
    first_rows: Numbers
    text_numbers: Numbers

    @property
    def distinct(self) -> Rendered:
        """Each distinct text once, in the order in which they first come."""
        return select_rendered(self.rendered, self.first_rows)


def render_texts(
    template: Template, texts: Sequence[str], fields: Mapping[str, Sequence[object]]
) -> RenderedTexts:
    """Render texts; `fields` are the columns that the template names, by row."""
    rendered, faults = templates.render(template, texts, fields)
    good = rows_without(len(texts), faults)
    rendered = select_rendered(rendered, good)
    hashes = reuse.text_hashes(rendered.strings)
    first_rows, text_numbers = reuse.distinct(hashes)
    return RenderedTexts(good, faults, rendered, hashes, first_rows, text_numbers)


def check_template(template: Template, model: encoder.Encoder, max_length: int) -> None:
    """See that a template leaves room for a text. Raises ConfigurationError."""
    empty, _ = templates.render(template, [""], {name: [""] for name in template.fields})
    if model.count_tokens(empty.strings)[0] >= max_length:
        raise ConfigurationError(
            f"the template alone takes all {max_length} tokens of the max length",
            "raise --max-length",
        )


def embed_texts(
    model: encoder.Encoder, texts: RenderedTexts, vector_type: str = "float32"
) -> tuple[EmbeddingColumns, dict[int, RowFault]]:
    """Return the columns of all rows, those of a row without a vector zeros, and why it has none, by
    row. Raises DeviceError.
    """
    encoded = model.encode(model.prepare(texts.distinct), lambda rows, tokens: None)
    reasons = dict(encoded.failed)
    for number in parts.rows_too_large(encoded.vectors, vector_type):
        reasons.setdefault(number, parts.TOO_LARGE)
    faults = dict(texts.faults)
    for row, number in zip(texts.good.tolist(), texts.text_numbers.tolist(), strict=True):
        if number in reasons:
            faults[row] = RowFault("no-vector", reasons[number])
    count = len(texts.good) + len(texts.faults)
    columns = EmbeddingColumns.zeros(np.zeros(count, "V16"), encoded.vectors.shape[1])
    columns.vectors[texts.good] = encoded.vectors[texts.text_numbers]
    columns.hashes[texts.good] = texts.hashes
    columns.tokens[texts.good] = encoded.tokens[texts.text_numbers]
    columns.truncated[texts.good] = encoded.truncated[texts.text_numbers]
    return columns, faults
