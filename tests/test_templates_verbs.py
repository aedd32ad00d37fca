"""`embedcli templates`: what it tells of models, roles and strings."""

import json

from embedcli.models import families


def test_list_names_every_family(cli):
    ran = cli("templates", "list")
    for family in families.families():
        assert family.name in ran.out.decode()
    found = [json.loads(line) for line in cli("templates", "list", "--json").lines]
    assert [one["name"] for one in found] == [family.name for family in families.families()]
    assert (
        next(one for one in found if one["name"] == "nv-embed")["facts"]["latent_attention"] is True
    )


def test_show_says_where_each_fact_comes_from(cli, tiny_bert):
    out = cli("templates", "show", tiny_bert, "--template", "bge-en").out.decode()
    assert "Represent this sentence for searching relevant passages: {text}  (family bge-en)" in out
    assert "cls  (family bge-en)" in out
    assert "sha256" in out
    default = cli("templates", "show").out.decode()
    assert "256 tokens  (sentence_bert_config.json)" in default
    assert "53aa51172d142c89" in default


def test_show_tells_of_models_that_are_not_at_hand_and_fetches_nothing(cli):
    out = cli("templates", "show", "nvidia/NV-Embed-v2").out.decode()
    assert "not at hand: nvidia/NV-Embed-v2: not in the hub's cache" in out
    assert "from_last_prompt_token  (family nv-embed)" in out
    assert "not verified" in cli("templates", "show", "NovaSearch/stella_en_400M_v5").out.decode()


def test_show_of_a_models_own_prompts(cli, tiny_bert, tmp_path):
    import shutil

    from tests import tiny

    copy = shutil.copytree(tiny_bert, tmp_path / "m")
    tiny.write_json(
        copy / "config_sentence_transformers.json", {"prompts": {"query": "Q: ", "document": ""}}
    )
    assert "Q: {text}  (the model's own prompts)" in cli("templates", "show", copy).out.decode()
    ran = cli("templates", "show", "somebody/unknown")
    assert (ran.code, "unknown model" in ran.err) == (78, True)


def test_render_shows_the_exact_string(cli):
    ran = cli(
        "templates",
        "render",
        "intfloat/e5-mistral-7b-instruct",
        " a\n",
        "--role",
        "query",
        "--task",
        "Find",
    )
    assert json.loads(ran.lines[0]) == "Instruct: Find\nQuery:  a\n"
    ran = cli(
        "templates",
        "render",
        "embeddinggemma",
        "x",
        "--role",
        "document_with_title",
        "--field",
        "title=Moon",
    )
    assert json.loads(ran.lines[0]) == "title: Moon | text: x"
    ran = cli("templates", "render", "embeddinggemma", "x", "--role", "document_with_title")
    assert (ran.code, "--field title=..." in ran.err) == (2, True)
    assert cli("templates", "render", "somebody/unknown", "x", "--role", "query").code == 78


def test_render_shows_token_ids_where_the_model_is_at_hand(cli, tiny_bert):
    ran = cli(
        "templates", "render", tiny_bert, "the sea", "--role", "query", "--template", "e5", "--ids"
    )
    ids = json.loads(ran.lines[1])
    assert (ids[0], ids[-1]) == (2, 3)


def test_the_users_own_files_come_first_and_are_checked(cli, tmp_path, monkeypatch):
    own = tmp_path / "mine"
    own.mkdir()
    (own / "ours.toml").write_text(
        'models = ["intfloat/e5-base-v2"]\n[roles]\nquery = "own {text}"\n'
    )
    monkeypatch.setenv("EMBEDCLI_TEMPLATES", str(own))
    assert (
        json.loads(
            cli("templates", "render", "intfloat/e5-base-v2", "x", "--role", "query").lines[0]
        )
        == "own x"
    )
    (own / "ours.toml").write_text('modles = []\n[roles]\nquery = "{text}"\n')
    families._read_all.cache_clear()
    ran = cli("templates", "list")
    assert (ran.code, "unknown field `modles`" in ran.err) == (78, True)
    monkeypatch.setenv("EMBEDCLI_TEMPLATES", "/nowhere")
    assert cli("templates", "list").code == 78
    families._read_all.cache_clear()


def test_a_run_warns_of_what_is_not_verified_and_of_untrained_cuts(cli, tiny_bert, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "the sea"}\n')
    arguments = ("encode", tmp_path / "a.jsonl", "--role", "query", "--model", tiny_bert)
    assert (
        "family modernbert-embed is not verified"
        in cli(*arguments, "--template", "modernbert-embed").err
    )
    assert (
        "trained to be truncated to 512, 1024 dimensions, not to 8"
        in cli(*arguments, "--template", "mxbai", "--dim", 8).err
    )
