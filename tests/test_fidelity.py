"""Every model folder gives sentence-transformers' vectors, or is refused by name: cases of tests.fidelity."""

import pytest

from tests import fidelity

CASES = {case.name: case for case in fidelity.cases()}
# One of each kind, for the default suite.
SOME = [
    *("Bert, layout 6", "Qwen3, layout 5", "pooling ('mean', 'max', 'lasttoken'), layout 5"),
    *(
        "Bert weightedmean, include_prompt false",
        "TokenDense > TokenNormalize > Pooling > Normalize",
    ),
    *("Pooling > Normalize > Dense > Normalize", "Pooling > Dense:residual", "no 1_Pooling"),
    *(
        "settings modality_config with message",
        "settings query_length",
        "sentence_albert_config.json",
    ),
    *("truncation_side left", "add_eos_token, and none added", "similarity dot, no Normalize"),
    *("truncate_dim", "prompts query only, passage", "prompts passage and document"),
    *(
        "0_Transformer beside another model",
        "finetuned from e5, own prompts",
        "transformers_weights",
    ),
    *("weights of DistilBertForMaskedLM", "weights of MT5ForConditionalGeneration"),
    *("an adapter alone", "a pickled adapter", "StaticEmbedding", "model2vec"),
    *("Router, query", "Router, passage", "unknown role"),
]


def check(name: str) -> None:
    result = fidelity.run(CASES[name])
    assert fidelity.is_expected(CASES[name], result), f"{result}, not {CASES[name].expected}"


@pytest.mark.torch
@pytest.mark.parametrize("name", SOME)
def test_some_folders_give_the_right_vector_or_none(name):
    check(name)


@pytest.mark.heavy
@pytest.mark.parametrize("name", [name for name in CASES if name not in SOME])
def test_folders_give_the_right_vector_or_none(name):
    check(name)


def test_there_are_cases_enough():
    assert len(CASES) == len(fidelity.cases()) >= 170
