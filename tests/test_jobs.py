"""`embedcli run`: jobs of a file are the options of encode, checked before the first one starts."""

import json
import os

import pytest

from tests.runs import table, write_corpus


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "etc").mkdir()
    write_corpus(tmp_path / "etc" / "c.jsonl", 20)
    return tmp_path


def write(folder, content):
    path = folder / "etc" / "jobs.toml"
    path.write_text(content)
    return path


JOBS = """
[defaults]
model = "hash:8"
template = "{text}"
role = "passage"

[jobs.first]
inputs = "c.jsonl"
output = "first.parquet"
columns = ["id"]

[jobs.second]
inputs = ["c.jsonl"]
output = "second.parquet"
role = "query"
max-length = 3
update = true
"""


def test_jobs_run_in_their_folder_with_what_all_share(cli, folder):
    jobs = write(folder, JOBS)
    ran = cli("run", jobs, "--reports", "reports", "--log")
    assert ran.code == 0, ran.err
    assert "20 rows = 20 out + 0 rejected" in ran.err
    assert table(folder / "etc" / "first.parquet").column_names[:2] == ["id", "embedding"]
    second = json.loads((folder / "reports" / "second.json").read_text())
    assert (second["recipe"]["role"], second["recipe"]["max_length"]) == ("query", 3)
    assert sorted(os.listdir(folder / "reports")) == ["first.json", "second.json"]


def test_a_job_is_chosen_by_its_name(cli, folder):
    jobs = write(folder, JOBS)
    assert cli("run", jobs, "second").code == 0
    assert not (folder / "etc" / "first.parquet").exists()
    ran = cli("run", jobs, "secnd")
    assert (ran.code, "did you mean second?" in ran.err) == (2, True)


def test_a_dry_run_embeds_nothing(cli, folder):
    ran = cli("run", write(folder, JOBS), "--dry-run")
    assert (ran.code, "to embed" in ran.out.decode()) == (0, True)
    assert sorted(os.listdir(folder / "etc")) == ["c.jsonl", "jobs.toml"]


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (("max-length", "max-lenth"), 2, "[jobs.second]: unknown key 'max_lenth'"),
        (("max-length", "max-lenth"), 2, "did you mean max_length?"),
        (("[defaults]", "[default]"), 2, "did you mean defaults?"),
        (("update = true", "update = 1"), 2, "[jobs.second]: update: true or false"),
        (("max-length = 3", "max-length = 'x'"), 2, "[jobs.second]: Invalid value"),
        (('inputs = ["c.jsonl"]', ""), 2, "[jobs.second]: Missing argument"),
        (("[jobs.first]", "[jobs.first"), 78, "not TOML"),
    ],
)
def test_what_is_wrong_is_said_before_the_first_job_starts(cli, folder, change, code, message):
    ran = cli("run", write(folder, JOBS.replace(*change)))
    assert (ran.code, message in ran.err) == (code, True), ran.err
    assert sorted(os.listdir(folder / "etc")) == ["c.jsonl", "jobs.toml"]


def test_a_job_that_fails_keeps_no_other_from_running(cli, folder):
    jobs = write(folder, JOBS.replace('"c.jsonl"\n', '"none.jsonl"\n', 1))
    ran = cli("run", jobs, "--reports", "r")
    assert (ran.code, "first: none.jsonl: no such file" in ran.err) == (66, True)
    assert (folder / "etc" / "second.parquet").exists()
    codes = [json.loads((folder / "r" / f"{name}.json").read_text())["exit_code"] for name in ("first", "second")]  # fmt: skip
    assert codes == [66, 0]
    assert cli("run", folder / "none.toml").code == 66
