"""Templates: which one is chosen, and the exact string it gives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcli import templates
from embedcli.errors import ConfigurationError
from embedcli.models import families

TASK = "Given a web search query, retrieve relevant passages that answer the query"
BGE = "Represent this sentence for searching relevant passages: "
E5 = ["small", "base", "large"]
RENDERED = {
    ("sentence-transformers/all-MiniLM-L6-v2", "query"): "T",
    ("sentence-transformers/all-MiniLM-L6-v2", "passage"): "T",
    **{(f"intfloat/e5-{size}{v}", "query"): "query: T" for size in E5 for v in ("", "-v2")},
    **{(f"intfloat/e5-{size}{v}", "passage"): "passage: T" for size in E5 for v in ("", "-v2")},
    **{(f"intfloat/multilingual-e5-{size}", "query"): "query: T" for size in E5},
    **{(f"intfloat/multilingual-e5-{size}", "passage"): "passage: T" for size in E5},
    ("intfloat/e5-base-v2", "clustering"): "query: T",
    ("intfloat/multilingual-e5-large-instruct", "query"): f"Instruct: {TASK}\nQuery: T",
    ("intfloat/multilingual-e5-large-instruct", "passage"): "T",
    (
        "intfloat/multilingual-e5-large-instruct",
        "sts",
    ): "Instruct: Retrieve semantically similar text.\nQuery: T",
    ("intfloat/e5-mistral-7b-instruct", "query"): f"Instruct: {TASK}\nQuery: T",
    ("intfloat/e5-mistral-7b-instruct", "passage"): "T",
    **{(f"BAAI/bge-{size}-en-v1.5", "query"): f"{BGE}T" for size in E5},
    **{(f"BAAI/bge-{size}-en-v1.5", "passage"): "T" for size in E5},
    ("BAAI/bge-m3", "query"): "T",
    ("BAAI/bge-m3", "passage"): "T",
}


def chosen(model, role, task=None, option=None, prompts=None):
    family = families.find_family([model], option)
    return families.choose_template(model, role, task, option, family, prompts)


def rendered(template, text="T", **fields):
    strings, faults = templates.render(
        template, [text], {name: [value] for name, value in fields.items()}
    )
    assert not faults
    return strings.strings[0]


@pytest.mark.parametrize(("model", "role"), RENDERED)
def test_registered_models_are_rendered_byte_for_byte(model, role):
    assert rendered(chosen(model, role)) == RENDERED[model, role]


def test_every_role_of_every_family_parses_and_has_real_newlines():
    for family in families.families():
        assert family.source
        for role, string in family.roles.items():
            template = templates.parse(string, role, family.name, task=family.task or "T")
            assert "\\" not in template.string
            assert "\r" not in template.string


def test_document_is_another_word_for_passage():
    assert chosen("intfloat/e5-base-v2", "document") == chosen("intfloat/e5-base-v2", "passage")


def test_task_replaces_the_families_own():
    template = chosen("intfloat/e5-mistral-7b-instruct", "query", task="Find the {odd} one")
    assert rendered(template) == "Instruct: Find the {odd} one\nQuery: T"


@given(st.text(), st.text())
def test_texts_are_never_interpreted(text, title):
    template = templates.parse("a {title} b {text} c", "query", "test")
    assert rendered(template, text, title=title) == "a " + title + " b " + text + " c"


@given(st.text(min_size=1))
def test_the_texts_place_in_the_string_is_known(text):
    found, _ = templates.render(
        templates.parse("<{title}>{text}</s>", "query", "test"), [text], {"title": ["{text}"]}
    )
    assert found.strings[0][found.starts[0] : found.stops[0]] == text


def test_a_default_stands_in_for_nothing_and_for_an_empty_string():
    template = templates.parse("title: {title|none} | text: {text}", "passage", "test")
    found, faults = templates.render(template, ["T"] * 4, {"title": [None, "", "Moon", 7]})
    assert found.strings == [f"title: {title} | text: T" for title in ("none", "none", "Moon", "7")]
    assert not faults
    assert template.string == "title: {title|none} | text: {text}"


def test_a_missing_field_is_that_rows_fault():
    template = templates.parse("{title}: {text}", "passage", "test")
    found, faults = templates.render(template, ["a", "b", "c"], {"title": ["x", None, ["y"]]})
    assert found.strings[0] == "x: a"
    assert {index: fault.code for index, fault in faults.items()} == {
        1: "field-missing",
        2: "field-type",
    }


def test_a_string_option_wins_over_everything():
    template = chosen(
        "intfloat/e5-base-v2", "query", option="Q> {text}", prompts={"query": "other: "}
    )
    assert rendered(template) == "Q> T"
    assert str(template.source) == "--template"


def test_a_family_can_be_named_for_a_finetune():
    assert rendered(chosen("someone/finetuned", "query", option="e5")) == "query: T"


def test_a_file_of_the_users_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[roles]\nnote = "N:\\n{text}"\n')
    assert rendered(chosen("a/b", "note", option=str(path))) == "N:\nT"


def test_the_models_own_prompts_come_last_and_are_literal():
    prompts = {"query": "search_query: ", "document": "doc {x}: ", "corpus": "not this"}
    assert rendered(chosen("a/b", "query", prompts=prompts)) == "search_query: T"
    assert rendered(chosen("a/b", "passage", prompts=prompts)) == "doc {x}: T"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"role": "query"}, "no template is known"),
        ({"role": "query", "prompts": {"query": "", "document": ""}}, "no template is known"),
        ({"role": "sts", "prompts": {"query": "q: "}}, "no template for role 'sts'"),
        ({"role": "sts", "option": "bge-m3"}, "no template for role 'sts'"),
        ({"role": "query", "option": "no-such-family"}, "neither a template string"),
        ({"role": "query", "option": "./none.toml"}, "no such template file"),
        ({"role": "query", "option": "{body}"}, "neither a template string"),
        ({"role": "query", "option": "{text} and {text}"}, "exactly once"),
        ({"role": "query", "option": "{text} {text|x}"}, "exactly once"),
        ({"role": "query", "option": "{task}: {text}"}, "needs a task"),
        ({"role": "query", "option": "e5", "task": "Find"}, "has no {task}"),
        ({"role": "passage", "option": "e5-mistral", "task": "Find"}, "has no {task}"),
    ],
)
def test_refusals_say_what_and_how(arguments, message):
    with pytest.raises(ConfigurationError) as caught:
        chosen("someone/unknown", **arguments)
    assert message in caught.value.message
    assert caught.value.hint or "no such template file" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("roles = 3", "Expected `object`, got `int` - at `$.roles`"),
        ("", "missing required field `roles`"),
        ("[roles]", "[roles] is empty"),
        ("[roles]\nquery = 3", "Expected `str`, got `int` - at `$.roles[...]`"),
        ('[roles]\nquery = "no field"', "roles.query"),
        ('pooling = 3\n[roles]\nquery = "{text}"', "at `$.pooling`"),
        ('colour = "red"\n[roles]\nquery = "{text}"', "unknown field `colour`"),
        ("[roles", "not a readable template file"),
    ],
)
def test_broken_template_files_name_the_key(tmp_path, content, message):
    path = tmp_path / "broken.toml"
    path.write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        families.read_family(path)
    assert message in caught.value.message
    assert str(path) in caught.value.message


def test_a_literal_backslash_n_is_noticed():
    assert families.warn_literal_escape("Instruct: x\\nQuery: {text}")
    assert families.warn_literal_escape("Instruct: x\nQuery: {text}") is None
    assert families.warn_literal_escape("families\\named") is None
