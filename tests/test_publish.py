"""Publishing, killed anywhere, whatever the recipe before and after: the same command goes on."""

import contextlib
import random
import shutil

import pytest

from embedcli.store import life, manifest, publish, staging
from tests.runs import content, counts, damage, encode, remove, staging_of, table, write_corpus


class Killed(BaseException):
    """The process is gone: nothing after this runs, not even the removal of staging."""


@pytest.fixture
def kill(monkeypatch):
    """Have the next run die before or after its output is put in place, and clean up nothing."""

    @contextlib.contextmanager
    def at(point):
        put_in_place = publish._put_in_place

        def die(stage, new, output):
            if point == "before":
                stage.intend(manifest.digest_of(new))
            else:
                put_in_place(stage, new, output)
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(publish, "_put_in_place", die)
            patch.setattr(staging, "_remove_all", lambda path, name: None)
            patch.setattr(staging.shutil, "rmtree", lambda path, **options: None)
            with pytest.raises(Killed):
                yield

    return at


@pytest.mark.parametrize("point", ["before", "after"])
@pytest.mark.parametrize("kind", ["out.parquet", "out/"])
@pytest.mark.parametrize("earlier", ["nothing", "same recipe", "another recipe"])
def test_killed_while_it_publishes_the_same_command_goes_on(
    cli, kill, tmp_path, point, kind, earlier
):
    corpus = write_corpus(tmp_path / "c.jsonl", rows=300)
    output = f"{tmp_path}/{kind}"
    if earlier != "nothing":
        options = ("--max-length", "5") if earlier == "another recipe" else ()
        assert encode(cli, corpus, output, *options)[0].code == 0
        corpus.write_text(corpus.read_text() + '{"id": 300, "text": "one more"}\n')
    options = ("--overwrite",) if earlier == "another recipe" else ()
    with kill(point):
        encode(cli, corpus, output, *options)
    assert staging_of(output.rstrip("/")).exists()
    ran, _ = encode(cli, corpus, output, *options)
    assert ran.code == 0, ran.err
    assert not staging_of(output.rstrip("/")).exists()
    whole = f"{tmp_path}/whole{'/' if kind == 'out/' else '.parquet'}"
    assert encode(cli, corpus, whole)[0].code == 0
    assert table(output).equals(table(whole))
    if kind == "out.parquet":
        assert content(output) == content(whole)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["out", "out/"])
def test_damage_of_what_a_run_was_about_to_publish_is_done_again(
    cli, kill, tmp_path, monkeypatch, kind, full
):
    # Where a damaged sign of life tells nothing, it is watched for a while.
    monkeypatch.setattr(life, "WATCHED_SECONDS", 1)
    corpus, output = write_corpus(tmp_path / "c.jsonl", rows=3_000), f"{tmp_path}/{kind}"
    with corpus.open("a") as lines:
        lines.write('{"id": 3000, "text": null}\n')
    reject = ("--on-error", "reject")
    assert encode(cli, corpus, f"{tmp_path}/whole-{kind}", *reject)[0].code == 3
    with kill("before"):
        encode(cli, corpus, output, *reject)
    place, kept = staging_of(tmp_path / "out"), tmp_path / "kept"
    place.rename(kept)
    names = sorted(path.relative_to(kept) for path in kept.rglob("*") if path.is_file())
    assert {name.parts[0] for name in names} >= {"parts", "publishing", "signature"}
    for seed in range(300 if full else 16):
        shutil.copytree(kept, place)
        victim = names[seed % len(names)]
        damage(place / victim, random.Random(seed))
        ran, report = encode(cli, corpus, output, *reject)
        assert ran.code in (3, 78), (victim, ran.err)
        if ran.code == 3:
            assert table(output).equals(table(f"{tmp_path}/whole-{kind}")), victim
            assert counts(report, "rows_out", "rejected") == (3_000, 1)
            assert cli("verify", output).code == 0
        shutil.rmtree(place, ignore_errors=True)
        remove(tmp_path / "out")


@pytest.mark.parametrize("kind", ["out.parquet", "out/"])
def test_leftovers_of_a_run_that_had_published_are_no_unfinished_work(cli, kill, tmp_path, kind):
    corpus = write_corpus(tmp_path / "c.jsonl", rows=300)
    output = f"{tmp_path}/{kind}"
    assert encode(cli, corpus, output)[0].code == 0
    with kill("after"):
        encode(cli, corpus, output, "--max-length", "7", "--overwrite")
    assert (staging_of(output.rstrip("/")) / "parts").exists()
    ran, report = encode(cli, corpus, output, "--max-length", "7", "--update")
    assert ran.code == 0, ran.err  # the former output's parts, exchanged, are of another recipe
    assert report["counts"]["reused"] == 300
    ran, report = encode(cli, corpus, output, "--max-length", "9", "--overwrite")
    assert (ran.code, report["counts"]["embedded"]) == (0, 300)


@pytest.mark.parametrize("kind", ["out.parquet", "out/"])
def test_rejects_of_another_run_are_noticed_and_mended(cli, kill, tmp_path, kind):
    corpus, output = tmp_path / "c.jsonl", f"{tmp_path}/{kind}"
    lines = [f'{{"id": {i}, "text": "text {i}"}}' for i in range(20)]
    corpus.write_text("\n".join([*lines, '{"id": 20}']) + "\n")
    reject = ("--on-error", "reject")
    assert encode(cli, corpus, output, *reject)[0].code == 3
    ran = cli("verify", output)
    assert (ran.code, "is of the same run" in ran.out.decode()) == (0, True)
    corpus.write_text("\n".join([*lines[:10], '{"id": 30}']) + "\n")
    with kill("before"):
        encode(cli, corpus, output, *reject)
    ran = cli("verify", output)
    if kind == "out/":  # the two appear in one step
        assert (ran.code, "is of the same run" in ran.out.decode()) == (0, True)
        assert (tmp_path / "out" / "_rejects.jsonl").exists()
    else:
        assert (ran.code, "rejects.jsonl is of another run" in ran.out.decode()) == (65, True)
    assert encode(cli, corpus, output, *reject)[0].code == 3
    assert cli("verify", output).code == 0
    assert table(output).num_rows == 10


@pytest.fixture
def without_exchange(monkeypatch):
    """A file system that can't exchange directories, as NFS."""
    monkeypatch.setattr(publish, "_exchange", lambda path, second_path: False)


def test_without_exchange_a_directory_is_replaced_in_two_steps_and_a_warning(
    cli, without_exchange, tmp_path
):
    corpus = write_corpus(tmp_path / "c.jsonl", rows=300)
    assert encode(cli, corpus, f"{tmp_path}/out/")[0].code == 0
    corpus.write_text(corpus.read_text() + '{"id": 300, "text": "one more"}\n')
    ran, _ = encode(cli, corpus, f"{tmp_path}/out/", "--update")
    assert (ran.code, "can't exchange directories" in ran.err) == (0, True)
    assert table(tmp_path / "out").num_rows == 301
    assert not staging_of(f"{tmp_path}/out").exists()


def test_killed_between_two_renames_the_former_output_comes_back(
    cli, without_exchange, monkeypatch, tmp_path
):
    corpus = write_corpus(tmp_path / "c.jsonl", rows=300)
    output = tmp_path / "out"
    assert encode(cli, corpus, f"{output}/")[0].code == 0
    before = content(output)
    corpus.write_text(corpus.read_text() + '{"id": 300, "text": "one more"}\n')
    rename = publish.files.rename

    def die(source, target):
        if target == output:
            raise Killed
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(publish.files, "rename", die)
        patch.setattr(staging, "_remove_all", lambda path, name: None)
        patch.setattr(staging.shutil, "rmtree", lambda path, **options: None)
        with pytest.raises(Killed):
            encode(cli, corpus, f"{output}/", "--update")
    assert not output.exists()
    with staging.open_staging(output, "next", keep=True):
        assert content(output) == before
    ran, report = encode(cli, corpus, f"{output}/", "--update")
    assert (ran.code, report["counts"]["rows_out"]) == (0, 301)


def test_a_directory_without_rejects_has_no_list_of_them(cli, tmp_path):
    corpus, output = tmp_path / "c.jsonl", f"{tmp_path}/out/"
    corpus.write_text('{"text": "a"}\n{"text": null}\n')
    reject = ("--on-error", "reject")
    assert encode(cli, corpus, output, *reject)[0].code == 3
    assert (tmp_path / "out" / "_rejects.jsonl").exists()
    corpus.write_text('{"text": "a"}\n')
    assert encode(cli, corpus, output, *reject, "--update")[0].code == 0
    assert not (tmp_path / "out" / "_rejects.jsonl").exists()
    assert cli("verify", output).code == 0
    (tmp_path / "out" / "_rejects.jsonl").write_text("mine")
    assert encode(cli, corpus, output, *reject, "--update")[0].code == 73
