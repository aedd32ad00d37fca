"""Units overlap: one is read while one is encoded and one is written; and a run knows which of them
it waited for.
"""

import threading

import numpy as np
import pytest

from embedcli.encoder.hashing import HashEncoder
from embedcli.recipe import Recipe, Space, TemplateSource
from embedcli.run.job import WAITING_FOR_INPUT, WAITING_FOR_OUTPUT, Summary
from embedcli.run.steps import UnitSteps
from tests.runs import content, encode, write_corpus

PATIENCE = 30


def test_the_next_unit_is_read_and_the_last_written_while_one_is_encoded(
    cli, tmp_path, monkeypatch
):
    corpus = write_corpus(tmp_path / "c.jsonl")
    assert encode(cli, corpus, tmp_path / "calm")[0].code == 0
    read, written = threading.Semaphore(0), threading.Semaphore(0)
    read_unit, finish, real, met = UnitSteps.read, UnitSteps.finish, HashEncoder.encode, []

    def reading(self, index):
        state = read_unit(self, index)
        read.release()
        return state

    def writing(self, unit, failed):
        found = finish(self, unit, failed)
        written.release()
        return found

    def encoding(self, prepared, on_batch):
        """Each unit but the last goes on only when one more has been read, and the one before has
        been written.
        """
        number = len(met)
        wanted = [read] * (2 if number == 0 else 1) if number < 4 else []
        wanted += [written] if number else []
        met.append(all(one.acquire(timeout=PATIENCE) for one in wanted))
        return real(self, prepared, on_batch)

    monkeypatch.setattr(UnitSteps, "read", reading)
    monkeypatch.setattr(UnitSteps, "finish", writing)
    monkeypatch.setattr(HashEncoder, "encode", encoding)
    assert encode(cli, corpus, tmp_path / "met")[0].code == 0
    assert met == [True] * 5
    assert content(tmp_path / "met") == content(tmp_path / "calm")


def test_what_cannot_be_written_ends_the_run_and_what_was_written_before_is_kept(
    cli, tmp_path, monkeypatch
):
    corpus, finish = write_corpus(tmp_path / "c.jsonl"), UnitSteps.finish

    def full(self, state, failed):
        if state.index == 2:
            raise OSError(28, "No space left on device", "part")
        return finish(self, state, failed)

    monkeypatch.setattr(UnitSteps, "finish", full)
    ran, _ = encode(cli, corpus, tmp_path / "o")
    assert (ran.code, "part: No space left on device" in ran.err) == (74, True)
    monkeypatch.setattr(UnitSteps, "finish", finish)
    ran, report = encode(cli, corpus, tmp_path / "o")
    assert (ran.code, report["counts"]["resumed"] > 0) == (0, True)
    assert encode(cli, corpus, tmp_path / "calm")[0].code == 0
    assert content(tmp_path / "o") == content(tmp_path / "calm")


@pytest.mark.parametrize(
    ("seconds", "limited_by"),
    [
        ({}, ""),
        ({"reading": 5.0}, ""),
        ({"encoding": 3.0, WAITING_FOR_INPUT: 1.0, WAITING_FOR_OUTPUT: 2.0}, "encoding"),
        ({"encoding": 3.0, WAITING_FOR_OUTPUT: 4.0}, "writing"),
        (
            {"encoding": 3.0, WAITING_FOR_INPUT: 4.0, "reading": 1.0, "tokenizing": 2.0},
            "tokenizing",
        ),
    ],
)
def test_the_stage_that_was_waited_for_limits_the_run(seconds, limited_by):
    space = Space("m", "", "", "", "", (), 1, True)
    summary = Summary(
        "o", Recipe(space, "query", "{text}", 8), TemplateSource("option"), seconds=seconds
    )
    assert (summary.limited_by, summary.to_json()["limited_by"]) == (limited_by, limited_by)


def test_the_summary_names_the_stage(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("embedcli.console.run_summary._MEASURED_SECONDS", 0)
    corpus = write_corpus(tmp_path / "c.jsonl")
    ran, report = encode(cli, corpus, tmp_path / "o")
    assert f"limited by {report['limited_by']}" in ran.err
    assert np.isfinite(report["seconds"]["encoding"])
