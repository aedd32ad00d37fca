"""Cutting before tokenizing: the ids are those of the whole text, for every kind of tokenizer that is
cut for, at whatever texts; all other kinds aren't cut for.
"""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, trainers
from tokenizers import normalizers as norm
from tokenizers import pre_tokenizers as pre

from embedcli.encoder import cutting, tokenizer
from embedcli.models.facts import FamilyFacts
from embedcli.models.hub import ModelFiles
from embedcli.models.request import ModelRequest
from embedcli.models.spec import read_spec
from embedcli.records import Rendered
from tests.tiny import ODD_TEXTS, WORDS

GPT2, LLAMA3, QWEN2 = sorted(cutting._WORD_PATTERNS, key=len)
# What a cut might go wrong at: marks, joiners, characters that join what follows, all sorts of white space, other
# scripts, parts of words, added tokens, things that normalizers change.
PIECES = [
    *WORDS.split(),
    *ODD_TEXTS,
    *" \n\t\r\u00a0\u3000\u2028\u200d\u200b\ufeff\x00\x85",
    *"0123456789aAzZßİıΣσς.,;:!?'\"-_/\\()[]<>|▁Ġ",
    "'s",
    "'LL",
    "\u0301",
    "\u0345",
    "\u0600",
    "\u0d4e",
    "\U000110bd",
    "\u1100\u1161\u11a8",
    "각",
    "が",
    "か\u3099",
    "。",
    "，",
    "海は",
    "日本語。",
    "Привет мир",
    "घर में",
    "ภาษาไทย",
    "ﬁ ½ ⅷ Ⅷ ℌ",
    "👩\u200d👩\u200d👧",
    "  ",
    "    ",
    "\n\n",
    "a\n",
    "x ",
    "[SEP]",
    "[MASK]",
    " [MASK] ",
    "<odd>",
]
TEXTS = st.builds(
    lambda pieces, times, end: "".join(pieces) * times + "".join(end),
    st.lists(st.sampled_from(PIECES) | st.text(max_size=5), min_size=1, max_size=12),
    st.integers(10, 60),
    st.lists(st.sampled_from(PIECES), max_size=9),
)
# Few pieces, often side by side, so that tokens reach across whatever they may.
_RANDOM = random.Random(18)
CORPUS = ["".join(_RANDOM.choices(_RANDOM.sample(PIECES, 4), k=60)) for _ in range(400)]


TRAINERS = {
    "BPE": trainers.BpeTrainer,
    "Unigram": trainers.UnigramTrainer,
    "WordLevel": trainers.WordLevelTrainer,
    "WordPiece": trainers.WordPieceTrainer,
}


def trained(kind, normalizer, splitter, **options):
    """A tokenizer of some thousand tokens."""
    made = Tokenizer(getattr(models, kind)(**options))
    if normalizer is not None:
        made.normalizer = normalizer
    if splitter is not None:
        made.pre_tokenizer = splitter
    special = ["[PAD]", "[UNK]", "[SEP]", "[MASK]"]
    alphabet = pre.ByteLevel.alphabet() + [chr(code) for code in range(33, 127)] + ["▁"]
    settings = {"vocab_size": 3000, "special_tokens": special, "show_progress": False}
    if kind != "WordLevel":
        settings["initial_alphabet"] = alphabet
    if kind == "Unigram":
        settings["unk_token"] = "[UNK]"
    trainer = TRAINERS[kind](**settings)
    made.train_from_iterator([WORDS, *CORPUS], trainer)
    made.add_special_tokens([AddedToken("[MASK]", lstrip=True, rstrip=True)])
    made.add_tokens([AddedToken("<odd>", normalized=True), AddedToken("the", single_word=True)])
    return made


def after(*steps):
    return pre.Sequence(list(steps))


BYTES = pre.ByteLevel(add_prefix_space=False, use_regex=False)
UNDERSCORES = norm.Sequence([norm.Prepend("▁"), norm.Replace(" ", "▁")])
KINDS = {
    "BERT": lambda: trained("WordPiece", norm.BertNormalizer(), pre.BertPreTokenizer(), unk_token="[UNK]"),
    "BERT, cased": lambda: trained(
        "WordPiece",
        norm.BertNormalizer(lowercase=False, handle_chinese_chars=False),
        pre.BertPreTokenizer(),
        unk_token="[UNK]",
    ),
    "GPT-2": lambda: trained("BPE", None, pre.ByteLevel(add_prefix_space=False)),
    "RoBERTa": lambda: trained("BPE", None, pre.ByteLevel(add_prefix_space=True)),
    "ModernBERT": lambda: trained("BPE", norm.NFC(), pre.ByteLevel(add_prefix_space=False)),
    "Llama 3": lambda: trained(
        "BPE", None, after(pre.Split(Regex(LLAMA3), "isolated"), BYTES), ignore_merges=True
    ),
    "Qwen2": lambda: trained("BPE", norm.NFC(), after(pre.Split(Regex(QWEN2), "isolated"), BYTES)),
    "GPT-2, digits": lambda: trained(
        "BPE", norm.NFKC(), after(pre.Digits(), pre.Split(Regex(GPT2), "isolated"), BYTES)
    ),
    "XLM-R": lambda: trained(
        "Unigram",
        norm.Sequence([norm.Nmt(), norm.NFKC(), norm.Replace(Regex(" {2,}"), " ")]),
        pre.Metaspace(),
    ),
    "XLM-R, older": lambda: trained(
        "Unigram",
        norm.Sequence([norm.NFKC(), norm.Strip(left=False, right=True), norm.Replace(Regex(" {2,}"), "▁")]),
        after(pre.WhitespaceSplit(), pre.Metaspace()),
    ),
    "T5, first": lambda: trained("Unigram", norm.NFKC(), pre.Metaspace(prepend_scheme="first")),
    "ALBERT": lambda: trained(
        "Unigram",
        norm.Sequence(
            [norm.Replace("``", '"'), norm.NFKD(), norm.StripAccents(), norm.Lowercase(), norm.Strip()]
        ),
        pre.Metaspace(),
    ),
    "words": lambda: trained("WordLevel", norm.Lowercase(), pre.Whitespace(), unk_token="[UNK]"),
}  # fmt: skip
# Trained as if it had words, so that no token reaches across a space, as those of Llama and Gemma.
UNSPLIT = {
    "Llama 2": (UNDERSCORES, None),
    "Mistral": (None, pre.Metaspace(prepend_scheme="first", split=False)),
    "Gemma": (norm.Replace(" ", "▁"), pre.Split(" ", "merged_with_previous")),
}


def unsplit(normalizer, splitter):
    made = trained("BPE", None, pre.Metaspace(), unk_token="[UNK]", fuse_unk=True)
    if normalizer is not None:
        made.normalizer = normalizer
    made.pre_tokenizer = splitter
    return made


KINDS |= {name: lambda steps=steps: unsplit(*steps) for name, steps in UNSPLIT.items()}


@pytest.fixture(scope="module", params=KINDS)
def backend(request):
    return KINDS[request.param]()


def tokenizer_of(backend, max_length, **changes):
    files = ModelFiles("test", (), "", None, hash_dim=8)
    spec = read_spec(files, FamilyFacts(), ModelRequest(max_length=max_length))
    return tokenizer.Tokenizer(backend, replace(spec, source="static", **changes))


def ids_of(backend, text):
    return backend.encode(text, add_special_tokens=False).ids


@given(text=TEXTS, share=st.floats(0.1, 1))
def test_tokens_of_a_head_are_the_first_of_the_whole(backend, text, share):
    cuts = cutting.find_cuts(backend)
    head = cuts.head(text, int(share * len(text)))
    if head is not None:
        ids = ids_of(backend, head)
        assert text.startswith(head)
        assert ids == ids_of(backend, text)[: len(ids)]


@given(text=TEXTS, size=st.integers(1, 99))
def test_tokens_of_a_tail_are_the_last_of_the_whole(backend, text, size):
    start = cutting.find_cuts(backend).tail_start(text, size, len(text))
    if start is not None:
        ids = ids_of(backend, text[start:])
        assert ids == ids_of(backend, text)[-len(ids) :]


@given(
    texts=st.lists(TEXTS, min_size=1, max_size=4),
    max_length=st.integers(1, 12),
    side=st.sampled_from(["left", "right"]),
    around=st.sampled_from([("", ""), ("query: ", ""), ("", " end"), ("a", "b."), ("in ", "\n[SEP]")]),
)  # fmt: skip
def test_ids_are_those_of_the_whole_text(backend, texts, max_length, side, around):
    before, behind = around
    rendered = Rendered(
        [before + text + behind for text in texts],
        [len(before)] * len(texts),
        [len(before + text) for text in texts],
    )
    cutting_one = tokenizer_of(backend, max_length, truncation_side=side)
    whole = tokenizer_of(backend, max_length, truncation_side=side)
    assert cutting_one._cuts is not None
    whole._cuts = None
    outcomes = []
    for each in (cutting_one, whole):
        try:
            tokens = each.encode(rendered)
            outcomes.append((tokens.as_lists(), tokens.truncated.tolist()))
        except tokenizer.ConfigurationError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    ("normalizer", "splitter", "added"),
    [
        (norm.Replace(Regex("a b"), "c"), pre.Whitespace(), "x"),
        (norm.Replace("a b", "c"), pre.Whitespace(), "x"),
        (None, pre.Split(Regex(r"\w+ \w+"), "isolated"), "x"),
        (None, pre.Split(" ", "merged_with_previous"), "x"),
        (None, None, "x"),
        (None, pre.UnicodeScripts(), "x"),
        (None, pre.Whitespace(), "two words"),
        (None, pre.Whitespace(), AddedToken("word", rstrip=True)),
    ],
)
def test_what_may_look_across_a_cut_is_not_cut_for(normalizer, splitter, added):
    made = trained("BPE", normalizer, splitter)
    made.add_tokens([added])
    assert cutting.find_cuts(made) is None


def test_tokens_that_reach_across_a_space_are_seen_in_the_vocabulary():
    made = Tokenizer(models.BPE())
    made.normalizer = UNDERSCORES
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
    made.train_from_iterator([WORDS] * 3, trainer)
    assert cutting.find_cuts(made) is None


def test_the_work_does_not_grow_with_the_text(backend, monkeypatch):
    seen = []

    class Spy:
        def __init__(self, inner):
            self._inner = inner

        def encode_batch_fast(self, strings, **options):
            seen.extend(map(len, strings))
            return self._inner.encode_batch_fast(strings, **options)

        def __getattr__(self, name):
            return getattr(self._inner, name)

    made = tokenizer_of(backend, 16)
    made._backend = Spy(backend)
    text = f"{WORDS} " * 5000
    made.encode(Rendered([text], [0], [len(text)]))
    assert sum(seen) < 1000
