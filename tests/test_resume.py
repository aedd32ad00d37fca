"""Resume: what an interrupted run finished is kept, and the same command gives what an undisturbed
run gives.
"""

import json
import os
import random
import shutil
import signal
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedcli.computation import Computation
from embedcli.encoder import libraries_of
from embedcli.encoder.hashing import HashEncoder
from embedcli.errors import Interrupted
from embedcli.models.request import ModelRequest
from embedcli.models.resolve import resolve
from embedcli.run import planning
from embedcli.run.steps import UnitSteps
from embedcli.store import life
from embedcli.store import staging as store_staging
from tests.conftest import run_process
from tests.runs import (
    HASH,
    counts,
    damage,
    encode,
    poisoned,
    remove,
    staging_of,
    start_encode,
    table,
    wait_for,
    write_corpus,
)


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus.jsonl")


@pytest.fixture
def whole(cli, corpus, tmp_path):
    """The output of an undisturbed run."""
    assert encode(cli, corpus, tmp_path / "whole.parquet")[0].code == 0
    return tmp_path / "whole.parquet"


@pytest.fixture
def interrupt(cli, monkeypatch):
    """Run until some units are done, then end as Ctrl-C does."""

    def run(corpus, output, after=3, *options):
        real, left = UnitSteps.finish, [after]

        def finish(self, draft, model, *rest):
            left[0] -= 1
            if left[0] < 0:
                raise Interrupted(signal.SIGINT)
            return real(self, draft, model, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(UnitSteps, "finish", finish)
            ran, _ = encode(cli, corpus, output, *options)
        assert ran.code == 130
        return ran

    return run


@pytest.fixture
def fail_17(monkeypatch):
    """A model that gives no vector for text number 17."""
    real = HashEncoder.encode

    def failing(self, rendered, on_batch):
        encoded = real(self, rendered, on_batch)
        odd = {
            row: "it is 17"
            for row, text in enumerate(rendered.strings)
            if text.endswith(" 17 of the corpus, with words enough to fill its unit to the brim")
        }
        encoded.failed.update(odd)
        return encoded

    monkeypatch.setattr(HashEncoder, "encode", failing)


@pytest.mark.parametrize("kind", ["out.parquet", "out/"])
def test_the_same_command_continues_and_gives_the_same_bytes(
    kind, cli, corpus, interrupt, tmp_path
):
    encode(cli, corpus, f"{tmp_path}/whole-{kind}")
    output = f"{tmp_path}/{kind}"
    ran = interrupt(corpus, output)
    assert (
        "finished work is kept (units: 3, rows: 7,062 of 12,000): the same command continues"
        in ran.err
    )
    assert not (tmp_path / kind).exists()
    ran, report = encode(cli, corpus, output)
    assert ran.code == 0
    resumed, embedded, rows = counts(report, "resumed", "embedded", "rows_out")
    assert (resumed > 5000, embedded > 3000, resumed + embedded, rows) == (
        True,
        True,
        12_000,
        12_000,
    )
    if kind == "out/":
        names = [path.name for path in sorted((tmp_path / "out").iterdir())]
        assert names == [path.name for path in sorted((tmp_path / "whole-out").iterdir())]
        assert all(
            (tmp_path / "out" / n).read_bytes() == (tmp_path / "whole-out" / n).read_bytes()
            for n in names
        )
    else:
        assert (tmp_path / kind).read_bytes() == (tmp_path / f"whole-{kind}").read_bytes()
    assert not staging_of(output.rstrip("/")).exists()


def test_finished_work_is_reused_where_rows_were_added_and_moved(cli, corpus, interrupt, tmp_path):
    output = tmp_path / "out.parquet"
    interrupt(corpus, output, 3)
    finished = sum(
        pq.read_metadata(part).num_rows for part in (staging_of(output) / "parts").iterdir()
    )
    lines = corpus.read_text().splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    corpus.write_text("".join([json.dumps({"id": -1, "text": "a new row"}) + "\n", *lines]))
    interrupt(corpus, output, 1)  # interrupted once more, on the changed corpus
    ran, report = encode(cli, corpus, output)
    assert ran.code == 0
    embedded_again = 1 + 12_000 - finished
    assert counts(report, "rows_out", "rejected") == (12_001, 0)
    assert counts(report, "embedded")[0] <= embedded_again
    assert counts(report, "resumed")[0] >= finished
    encode(cli, corpus, tmp_path / "fresh.parquet")
    assert table(output).equals(table(tmp_path / "fresh.parquet"))


def test_a_unit_that_is_as_it_was_keeps_its_part_when_rows_are_added(
    cli, corpus, interrupt, tmp_path
):
    output = tmp_path / "out.parquet"
    interrupt(corpus, output, 3)
    with corpus.open("a") as stream:
        stream.write('{"id": 12000, "text": "one more"}\n')
    ran, report = encode(cli, corpus, output)
    assert ran.code == 0
    assert counts(report, "resumed")[0] > 5000
    encode(cli, corpus, tmp_path / "fresh.parquet")
    assert output.read_bytes() == (tmp_path / "fresh.parquet").read_bytes()


def test_fresh_starts_over(cli, corpus, interrupt, whole, tmp_path):
    output = tmp_path / "out.parquet"
    interrupt(corpus, output)
    ran, report = encode(cli, corpus, output, "--fresh")
    assert (ran.code, counts(report, "resumed", "embedded")) == (0, (0, 12_000))
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        (
            "--role",
            "query",
            "role is 'passage' in the unfinished work, 'query' requested; template is 'passage: {text}' in",
        ),
        ("--max-length", "9", "max_length is 512 in the unfinished work, 9 requested"),
        ("--dim", "32", "dim is 64 in the unfinished work, 32 requested"),
        (
            "--template",
            "p {text}",
            "template is 'passage: {text}' in the unfinished work, 'p {text}' requested",
        ),
        ("--no-normalize", None, "normalized is True in the unfinished work, False requested"),
        ("--model", "hash:32", "dim is 64 in the unfinished work, 32 requested"),
        ("--dtype", "bfloat16", "dtype is 'float32' in the unfinished work, 'bfloat16' requested"),
        (
            "--vector-type",
            "float16",
            "vector_type is 'float32' in the unfinished work, 'float16' requested",
        ),
    ],
)
def test_another_recipe_is_refused_with_both_values(
    option, value, said, cli, corpus, interrupt, tmp_path
):
    output = tmp_path / "out.parquet"
    interrupt(corpus, output)
    parts = {path.name: path.read_bytes() for path in (staging_of(output) / "parts").iterdir()}
    ran, _ = encode(cli, corpus, output, option, *([value] if value else []))
    assert ran.code == 78
    assert said in ran.err
    assert "--fresh" in ran.err
    assert {
        path.name: path.read_bytes() for path in (staging_of(output) / "parts").iterdir()
    } == parts
    assert not output.exists()


def test_what_only_changes_the_speed_is_no_other_recipe(cli, corpus, interrupt, tmp_path):
    interrupt(corpus, tmp_path / "out.parquet")
    ran, report = encode(
        cli, corpus, tmp_path / "out.parquet", "--batch-tokens", 100, "--num-processes", 2
    )
    assert (ran.code, counts(report, "rows_out")) == (0, (12_000,))
    assert counts(report, "resumed")[0] > 5000


def test_other_columns_are_another_file_but_no_other_vectors(cli, corpus, interrupt, tmp_path):
    interrupt(corpus, tmp_path / "out.parquet")
    ran, report = encode(
        cli, corpus, tmp_path / "out.parquet", "--columns", "id", "--embedding-column", "v"
    )
    assert ran.code == 0
    assert counts(report, "resumed")[0] > 5000
    assert table(tmp_path / "out.parquet").column_names == [
        "id",
        "v",
        "v_hash",
        "v_tokens",
        "v_truncated",
    ]


LONG_AGO, FAR_AHEAD = 0, 130 * 365 * 86_400  # 1970 and about 2100


@pytest.mark.parametrize("moment", [LONG_AGO, FAR_AHEAD], ids=["1970", "2100"])
def test_no_time_of_a_file_is_believed(moment, cli, corpus, interrupt, whole, tmp_path):
    output = tmp_path / "out.parquet"
    write_corpus(tmp_path / "small.jsonl", 3)
    assert encode(cli, tmp_path / "small.jsonl", output)[0].code == 0
    interrupt(corpus, output)
    place = staging_of(output)
    for path in (corpus, output, place, *place.rglob("*")):
        os.utime(path, (moment, moment))
    ran, report = encode(cli, corpus, output)
    assert (ran.code, counts(report, "resumed")[0] > 5000) == (0, True), ran.err
    assert output.read_bytes() == whole.read_bytes()
    os.utime(output, (moment, moment))
    ran, report = encode(cli, corpus, output, "--update")
    assert (ran.code, counts(report, "embedded")) == (0, (0,))
    assert output.read_bytes() == whole.read_bytes()


SHIFTED_CLOCK = """
import time
real, real_ns = time.time, time.time_ns
time.time = lambda: real() + {seconds}
time.time_ns = lambda: real_ns() + {seconds} * 10**9
"""


@pytest.mark.parametrize("years", [-10, 10])
def test_no_clock_is_believed(years, corpus, interrupt, whole, tmp_path):
    output = tmp_path / "out.parquet"
    interrupt(corpus, output)
    environment = poisoned(tmp_path, SHIFTED_CLOCK.format(seconds=years * 365 * 86_400))
    ran = run_process("encode", corpus, *HASH, "-o", output, env=environment)
    assert (ran.code, "were finished by an interrupted run" in ran.err) == (0, True), ran.err
    assert output.read_bytes() == whole.read_bytes()


def files_below(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("seed", range(8))
def test_damage_in_staging_is_done_again(seed, cli, corpus, interrupt, whole, tmp_path):
    output, rng = tmp_path / "out.parquet", random.Random(seed)
    interrupt(corpus, output)
    files = files_below(staging_of(output))
    # Who held the lease: a bit of it may make it this process, which lives.
    for victim in rng.sample([file for file in files if "lease-" not in file.name], 2):
        damage(victim, rng)
    ran, _ = encode(cli, corpus, output)
    assert ran.code in (0, 78), ran.err
    if ran.code == 0:
        assert table(output).equals(table(whole))


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["out.parquet", "out/"])
def test_damage_of_any_file_in_staging_is_done_again(
    kind, cli, interrupt, fail_17, tmp_path, monkeypatch, full
):
    """Also of what is kept of rejected rows, of begun units, and of an earlier input's parts."""
    # Where a damaged sign of life tells nothing, it is watched for a while.
    monkeypatch.setattr(life, "WATCHED_SECONDS", 1)
    corpus, output = write_corpus(tmp_path / "c.jsonl"), tmp_path / kind.rstrip("/")
    reject = ("--on-error", "reject")
    interrupt(corpus, f"{tmp_path}/{kind}", 3, *reject)
    lines = corpus.read_text().splitlines(keepends=True)
    corpus.write_text("".join([*lines[-3_000:], *lines[:-3_000]]))
    interrupt(corpus, f"{tmp_path}/{kind}", 3, *reject)
    assert encode(cli, corpus, f"{tmp_path}/whole-{kind}", *reject)[0].code == 3
    place, kept, codes = staging_of(output), tmp_path / "kept", {}
    (place / "attempts" / "000003").write_text("xx")
    place.rename(kept)
    names = [path.relative_to(kept) for path in files_below(kept)]
    assert {name.parts[0] for name in names} >= {"parts", "earlier", "attempts", "signature"}
    for seed in range(300 if full else 16):
        shutil.copytree(kept, place)
        victim = names[seed % len(names)]
        damage(place / victim, random.Random(seed))
        ran, report = encode(cli, corpus, f"{tmp_path}/{kind}", *reject)
        codes[ran.code] = codes.get(ran.code, 0) + 1
        assert ran.code in (3, 78), (victim, ran.err)
        if ran.code == 3:
            assert table(output).equals(table(tmp_path / f"whole-{kind}")), victim
            assert counts(report, "rows_out", "rejected") == (11_999, 1)
        shutil.rmtree(place, ignore_errors=True)
        remove(output)
    print(f"\ndamage of {len(names)} files of {kind}: exit codes {codes}")


def test_a_unit_without_vectors_does_not_hide_how_the_others_were_made(monkeypatch):
    parts = {"empty": SimpleNamespace(made=()), "full": SimpleNamespace(made=("bfloat16",))}
    monkeypatch.setattr(planning, "_files_in", lambda folders: list(parts))
    monkeypatch.setattr(planning, "_made_if_sound", parts.get)
    job = SimpleNamespace(differences_to_reuse=lambda made: {})
    stage = SimpleNamespace(parts=None, earlier=None)
    assert planning._left_behind(job, stage, dry=True) is parts["full"]
    del parts["full"]
    assert planning._left_behind(job, stage, dry=True) is parts["empty"]


def test_vectors_of_a_backend_that_is_not_known_here_are_kept(tmp_path):
    """A later version may have made them."""
    spec = resolve(ModelRequest("hash:8", template="{text}"), "query").spec
    made = [Computation("cpu", "float32", backend="onnx"), HashEncoder.computation]
    assert libraries_of(spec, made) == {"numpy", "pyarrow"}


def test_what_people_should_know_of_the_model_is_told_once(cli, corpus, monkeypatch):
    monkeypatch.setattr(HashEncoder, "note", "it runs on one leg")
    ran = encode(cli, corpus, corpus.with_name("o.parquet"))[0]
    assert ran.err.count("it runs on one leg") == 1


def test_rows_that_the_model_gives_no_vector_for_stay_rejected(
    cli, corpus, interrupt, fail_17, tmp_path
):
    output = tmp_path / "out.parquet"
    interrupt(corpus, output, 3, "--on-error", "reject")
    ran, report = encode(cli, corpus, output, "--on-error", "reject")
    assert (ran.code, counts(report, "rows_in", "rows_out", "rejected")) == (3, (12_000, 11_999, 1))
    assert counts(report, "resumed")[0] > 5000
    [line] = (tmp_path / "out.parquet.rejects.jsonl").read_text().splitlines()
    assert (json.loads(line)["line"], json.loads(line)["reason"]) == (18, "it is 17")
    assert 17 not in table(output)["id"].to_pylist()
    # Without rejecting, the rejected row is an error again, though its unit is finished.
    output.unlink()
    interrupt(corpus, output, 3, "--on-error", "reject")
    ran, _ = encode(cli, corpus, output)
    assert (ran.code, f"{corpus}:18: it is 17" in ran.err) == (65, True)


def test_a_bad_row_costs_no_finished_work(cli, tmp_path):
    corpus, output = tmp_path / "c.parquet", tmp_path / "out.parquet"
    texts = [f"text number {i}, which has some words to make it longer" * 3 for i in range(12_000)]
    pq.write_table(pa.table({"text": [*texts, None]}), corpus)
    ran, _ = encode(cli, corpus, output)
    assert (ran.code, "row 12001" in ran.err, "finished work is kept" in ran.err) == (
        65,
        True,
        True,
    )
    ran, report = encode(cli, corpus, output, "--on-error", "reject")
    assert ran.code == 3
    assert counts(report, "resumed")[0] > 8000


def test_nothing_is_left_where_nothing_was_finished(cli, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": null}\n')
    assert cli("encode", tmp_path / "a.jsonl", *HASH, "-o", tmp_path / "out.parquet").code == 65
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_clean_throws_leftovers_away(cli, corpus, interrupt, tmp_path):
    output = tmp_path / "out.parquet"
    interrupt(corpus, output)
    assert cli("clean", "--dry-run", tmp_path).lines == [str(staging_of(output))]
    assert staging_of(output).exists()
    ran = cli("clean", output)
    assert (ran.code, ran.lines, "removed 3 finished units" in ran.err) == (
        0,
        [str(staging_of(output))],
        True,
    )
    assert not staging_of(output).exists()
    assert corpus.exists()
    assert cli("clean", tmp_path).code == 0
    assert cli("clean", tmp_path / "no" / "such").code == 66


def test_clean_leaves_a_run_at_work_alone(cli, tmp_path):
    from embedcli.store import staging

    with staging.open_staging(tmp_path / "o", "t"):
        ran = cli("clean", tmp_path)
        assert (ran.code, "at work" in ran.err) == (75, True)
        assert staging_of(tmp_path / "o").exists()


def test_clean_leaves_a_run_of_another_process_alone(cli, tmp_path):
    corpus, output = write_corpus(tmp_path / "c.jsonl", 60_000), tmp_path / "out"
    process = start_encode(corpus, output)
    wait_for(lambda: list(staging_of(output).glob("parts/part-*")))
    refused = [cli("clean", name).code for name in (output, tmp_path)]
    _, err = process.communicate()
    assert (process.returncode, refused) == (0, [75, 75]), err
    assert table(output).num_rows == 60_000


def test_a_published_but_not_removed_staging_does_no_harm(
    cli, corpus, interrupt, whole, tmp_path, monkeypatch
):
    output = tmp_path / "out.parquet"
    monkeypatch.setattr(store_staging, "_remove_all", lambda path, name: None)
    assert encode(cli, corpus, output)[0].code == 0
    monkeypatch.undo()
    assert staging_of(output).exists()
    ran, report = encode(cli, corpus, output)  # a run of its own: nothing was left unfinished
    assert (ran.code, counts(report, "resumed", "embedded")) == (0, (0, 12_000))
    assert output.read_bytes() == whole.read_bytes()


def test_a_dry_run_says_what_would_be_done_and_does_nothing(cli, corpus, interrupt, tmp_path):
    output = tmp_path / "out.parquet"
    interrupt(corpus, output)
    before = {path: path.stat().st_mtime_ns for path in (staging_of(output) / "parts").iterdir()}
    report = tmp_path / "r.json"
    ran = cli("encode", corpus, *HASH, "-o", output, "--dry-run", "--report", report)
    found = json.loads(report.read_text())
    assert ran.code == 0
    assert (
        found["unchanged"] + found["to_embed"] + found["duplicates"] + found["rejected"]
        == found["rows"]
        == 12_000
    )
    assert found["unchanged"] > 5000
    assert found["tokens"] == 17 * found["to_embed"]
    assert found["needed_bytes"] > 64 * 4 * 12_000
    assert {
        path: path.stat().st_mtime_ns for path in (staging_of(output) / "parts").iterdir()
    } == before
    assert not output.exists()


def test_a_dry_run_ends_with_73_where_the_disk_is_too_small(cli, corpus, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    ran = cli("encode", corpus, *HASH, "-o", tmp_path / "o.parquet", "--dry-run")
    assert (ran.code, "the disk has 1.0 MB" in ran.err) == (73, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl"]


def test_duplicates_within_a_unit_are_encoded_once(cli, tmp_path, monkeypatch):
    asked = []
    real = HashEncoder.encode
    monkeypatch.setattr(
        HashEncoder,
        "encode",
        lambda self, rendered, b: (asked.extend(rendered.strings), real(self, rendered, b))[1],
    )
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"id": i, "text": f"t{i % 7}"}) + "\n" for i in range(50))
    )
    ran, report = encode(cli, tmp_path / "a.jsonl", tmp_path / "o.parquet")
    assert sorted(asked) == sorted(f"passage: t{i}" for i in range(7))
    assert counts(report, "embedded", "duplicates", "rows_out") == (50, 43, 50)
    assert "43 rows repeat a text of their unit" in ran.err
    found = table(tmp_path / "o.parquet")
    assert found["id"].to_pylist() == list(range(50))
    vectors = found["embedding"].to_pylist()
    assert all(vectors[i] == vectors[i % 7] for i in range(50))
    assert len({tuple(vector) for vector in vectors}) == 7


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_is_named_also_where_the_system_does_not(tmp_path, processes):
    """A write to an open file fails without a file's name."""
    code = "import os\nfrom embedcli.store import claims\n"
    code += "def full(self, *rest): raise OSError(28, os.strerror(28))\nclaims.ClaimBoard.finish = full\n"
    environment = poisoned(tmp_path, code)
    corpus = write_corpus(tmp_path / "c.jsonl", 20_000)
    ran = run_process(
        "encode", corpus, *HASH, "-o", tmp_path / "o", "--num-processes", processes, env=environment
    )
    assert ran.code == 74, ran.err
    assert f"{staging_of(tmp_path / 'o')}: No space left on device" in ran.err
