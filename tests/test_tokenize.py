"""Tokens: the same as the tokenizer's own, and when a text is too long it is cut, never the
template around it.
"""

from dataclasses import replace

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from embedcli import templates
from embedcli.encoder.tokenizer import Tokenizer
from embedcli.errors import ConfigurationError
from embedcli.models.facts import FamilyFacts
from embedcli.models.hub import ModelFiles
from embedcli.models.request import ModelRequest
from embedcli.models.spec import read_spec


@pytest.fixture(scope="module")
def backend(tiny_bert):
    return transformers.AutoTokenizer.from_pretrained(tiny_bert)


def encode(backend, template, texts, max_length):
    rendered, _ = templates.render(templates.parse(template, "query", "test"), texts, {})
    return tokenizer_of(backend, max_length).encode(rendered), rendered.strings


def listed(tokens):
    return tokens.as_lists()


def test_no_texts_have_no_ids(backend):
    tokens, _ = encode(backend, "{text}", [], 8)
    assert (listed(tokens), len(tokens.ids)) == ([], 0)


def tokenizer_of(backend, max_length, **changes):
    files = ModelFiles("test", (), "", None, hash_dim=8)
    spec = read_spec(files, FamilyFacts(), ModelRequest(max_length=max_length))
    return Tokenizer(backend.backend_tokenizer, replace(spec, **changes))


@given(texts=st.lists(st.text(max_size=80), min_size=1, max_size=5), max_length=st.integers(3, 40))
def test_without_a_suffix_the_ids_are_the_tokenizers_own(backend, texts, max_length):
    own = transformers.AutoTokenizer.from_pretrained(backend.name_or_path)
    tokens, strings = encode(backend, "query: {text}", texts, max_length)
    assert listed(tokens) == own(strings, truncation=True, max_length=max_length)["input_ids"]
    assert tokens.truncated.tolist() == [len(ids) > max_length for ids in own(strings)["input_ids"]]


@given(text=st.text(alphabet="abc the sea", max_size=200), max_length=st.integers(12, 40))
def test_a_suffix_stays_whole(backend, text, max_length):
    tokens, _ = encode(backend, "query: {text} [SEP]none", [text], max_length)
    suffix = backend(" [SEP]none", add_special_tokens=False)["input_ids"]
    ids = listed(tokens)[0]
    assert len(ids) <= max_length
    assert ids[-1 - len(suffix) :] == [*suffix, 3]
    if tokens.truncated[0]:
        assert len(ids) == max_length


def test_the_cut_text_is_a_beginning_of_the_text(backend):
    tokens, _ = encode(backend, "title {text} none", ["the sea rises and falls twice a day"], 9)
    assert backend.convert_ids_to_tokens(listed(tokens)[0]) == [
        "[CLS]",
        "title",
        "the",
        "sea",
        "rises",
        "and",
        "falls",
        "none",
        "[SEP]",
    ]


def test_an_end_longer_than_the_room_is_refused(backend):
    with pytest.raises(ConfigurationError, match="the template's end alone"):
        encode(backend, "{text} the sea rises and falls twice a day", ["moon moon moon"], 6)


def test_no_room_at_all_is_refused(backend):
    with pytest.raises(ConfigurationError, match="no room"):
        tokenizer_of(backend, 2)


def test_an_end_token_is_appended_where_the_tokenizer_adds_none_and_not_twice(backend):
    rendered, _ = templates.render(
        templates.parse("{text}", "query", "test"), ["", "the sea " * 9], {}
    )
    appended = tokenizer_of(backend, 8, end="[MASK]").encode(rendered)
    assert [(ids[0], ids[-1], len(ids)) for ids in listed(appended)] == [(2, 4, 3), (2, 4, 8)]
    assert tokenizer_of(backend, 8, end="[SEP]").after == [3]
    assert tokenizer_of(backend, 8, begin="[CLS]").before == [2]
    with pytest.raises(ConfigurationError, match=r"no token '</s>'"):
        tokenizer_of(backend, 8, end="</s>")


def test_what_the_tokenizers_file_says_of_padding_and_length_is_ignored(tiny_bert):
    backend = transformers.AutoTokenizer.from_pretrained(tiny_bert)
    backend.backend_tokenizer.enable_truncation(5)
    backend.backend_tokenizer.enable_padding(length=30)
    tokens, _ = encode(backend, "{text}", ["the sea rises and falls twice"], 20)
    assert len(listed(tokens)[0]) == 8
