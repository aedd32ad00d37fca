"""The report: written however the run ends; rejected rows are named, not only counted."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from embedcli.encoder.hashing import HashEncoder
from embedcli.store import staging
from tests.conftest import start
from tests.runs import HASH, encode, staging_of, table, write_corpus


def write(path, *texts):
    path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts)))
    return path


def test_a_run_that_fails_reports_why(cli, tmp_path):
    corpus = write(tmp_path / "c.jsonl", "a", None)
    output = tmp_path / "o.parquet"
    ran, report = encode(cli, corpus, output)
    assert (ran.code, report["exit_code"]) == (65, 65)
    assert report["error"] == f"{corpus}:2: column 'text' is null"
    assert report["hint"]
    assert report["started"] <= report["ended"]
    ran, report = encode(cli, tmp_path / "none.jsonl", output)
    assert (ran.code, report["exit_code"]) == (66, 66)
    with staging.open_staging(output, "token"):
        ran, report = encode(cli, write(tmp_path / "c.jsonl", "a"), output)
    assert (ran.code, report["exit_code"]) == (75, 75)
    ran, report = encode(cli, corpus, output)
    assert (ran.code, report["exit_code"], report["error"]) == (0, 0, "")


def test_a_run_that_is_interrupted_reports_it(tmp_path):
    corpus = write_corpus(tmp_path / "c.jsonl", rows=100_000)
    output, report = tmp_path / "o.parquet", tmp_path / "r.json"
    process = start("encode", corpus, *HASH, "-o", output, "--report", report)
    while not staging_of(output).exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    content = json.loads(report.read_text())
    assert (content["exit_code"], "SIGINT" in content["error"]) == (130, True)


# The encoder is interrupted, and what the interruption breaks raises an error of its own.
BROKEN = """
import signal, sys
from embedcli import cli
from embedcli.encoder import hashing

def prepare(self, rendered):
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        raise {error}

hashing.HashEncoder.prepare = prepare
cli.main()
"""


@pytest.mark.parametrize("error", ["OSError('read')", "RuntimeError('release unlocked lock')"])
def test_what_a_signal_breaks_is_not_the_reason(error, tmp_path):
    corpus = write(tmp_path / "c.jsonl", "a")
    report = tmp_path / "r.json"
    options = ("-o", tmp_path / "o.parquet", "--report", report, "--retry", 3)
    command = [sys.executable, "-c", BROKEN.format(error=error), "encode", corpus, *HASH, *options]
    ran = subprocess.run([*map(str, command)], capture_output=True, check=False, timeout=60)
    assert ran.returncode == 143, ran.stderr
    assert b"SIGTERM" in ran.stderr
    assert b"trying again" not in ran.stderr
    assert json.loads(report.read_text())["exit_code"] == 143


def test_a_report_takes_the_place_of_no_file_of_another_kind(cli, tmp_path):
    corpus = write(tmp_path / "c.jsonl", None)
    for name in ("c.jsonl", "notes.txt", "o.parquet"):
        report = tmp_path / name
        before = report.read_bytes() if report.exists() else b"mine"
        if name == "notes.txt":
            report.write_bytes(before)
        ran = cli("encode", corpus, *HASH, "-o", tmp_path / "o.parquet", "--report", report)
        assert ran.code
        assert (report.read_bytes() if report.exists() else b"mine") == before


@pytest.mark.parametrize("kind", ["o.parquet", "o/"])
def test_rejected_rows_are_told_with_their_file_and_the_first_reason(cli, tmp_path, kind):
    corpus = write(tmp_path / "c.jsonl", "a", None, "b", None)
    ran, report = encode(cli, corpus, f"{tmp_path}/{kind}", "--on-error", "reject")
    rejects = f"{tmp_path}/o/_rejects.jsonl" if kind == "o/" else f"{tmp_path}/{kind}.rejects.jsonl"
    reasons = [f"{corpus}:{line}: column 'text' is null" for line in (2, 4)]
    assert (report["rejects"], report["first_rejects"]) == (rejects, reasons)
    assert f"listed in {rejects}; the first: {reasons[0]}" in ran.err
    assert len(Path(rejects).read_text().splitlines()) == 2


def test_a_vector_that_its_type_can_not_hold_is_rejected(cli, tmp_path, monkeypatch):
    real = HashEncoder.encode

    def encode_large(self, rendered, on_batch):
        encoded = real(self, rendered, on_batch)
        large = [text.endswith("b") for text in rendered.strings]
        encoded.vectors[large] *= 1e6
        return encoded

    monkeypatch.setattr(HashEncoder, "encode", encode_large)
    corpus = write(tmp_path / "c.jsonl", "a", "b")
    options = ("--no-normalize", "--on-error", "reject")
    output = tmp_path / "o.parquet"
    ran, report = encode(cli, corpus, output, *options, "--vector-type", "float16")
    assert ran.code == 3, ran.err
    assert "too large for float16" in report["first_rejects"][0]
    vectors = np.array(table(output)["embedding"].to_pylist(), np.float32)
    assert (len(vectors), np.isfinite(vectors).all()) == (1, True)
    ran, _ = encode(cli, corpus, output, *options, "--overwrite")
    assert (ran.code, table(output).num_rows) == (0, 2)
