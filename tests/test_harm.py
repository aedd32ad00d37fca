"""What belongs to the user stays: no option, no empty input and no other user can destroy or
replace it.
"""

import ast
import contextlib
import gzip
import json
import os
import pickle
import random
import re
import shutil
import stat
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import run_process, start
from tests.runs import HASH, children, content, encode, staging_of, table, wait_for, write_corpus

PACKAGE = Path(__file__).parent.parent / "embedcli"
OTHER_USER = 65534


def tree(folder):
    """All files below a folder by name, with their bytes."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.fixture
def place(tmp_path, cli, monkeypatch):
    """A folder with a corpus, an index of ours, a foreign file, a folder output; the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("c.jsonl").write_text('{"id": 1, "text": "a"}\n{"id": 2, "text": "b"}\n')
    Path("notes.txt").write_text("mine")
    Path("other.parquet").write_bytes(b"not ours")
    Path("link.jsonl").symlink_to("c.jsonl")
    Path("twice.jsonl").write_text('{"text": "b"}\n')
    assert cli("encode", "c.jsonl", *HASH, "-o", "index.parquet").code == 0
    assert cli("encode", "c.jsonl", *HASH, "-o", "d/").code == 0
    return tmp_path


# Options, and what the message names. `c.jsonl` is the input.
REFUSED = {
    "rejects over the input": (
        "-o o.parquet --on-error reject --rejects c.jsonl",
        "c.jsonl: is one of the inputs",
    ),
    "rejects over a file": (
        "-o o.parquet --on-error reject --rejects notes.txt",
        "was not written by embedcli",
    ),
    "rejects over an index": (
        "-o o.parquet --on-error reject --rejects index.parquet",
        "was not written by embedcli",
    ),
    "rejects over the output": (
        "-o o.parquet --on-error reject --rejects o.parquet",
        "is the output, too",
    ),
    "report over the input": ("-o o.parquet --report c.jsonl", "c.jsonl: is one of the inputs"),
    "report over the input, otherwise spelled": (
        "-o o.parquet --report d/../c.jsonl",
        "is one of the inputs",
    ),
    "report over a link to the input": ("-o o.parquet --report link.jsonl", "is one of the inputs"),
    "report over a file": (
        "-o o.parquet --report notes.txt",
        "notes.txt: exists and was not written by embedcli",
    ),
    "report over an index": ("-o o.parquet --report index.parquet", "was not written by embedcli"),
    "report over the output": ("-o o.parquet --report o.parquet", "is the output, too"),
    "report over the rejects": (
        "-o o.parquet --on-error reject --rejects r.jsonl --report r.jsonl",
        "is that of the rejects",
    ),
    "report in the output": ("-o d/ --report d/report.json", "lies inside the output"),
    "report in an output to come": ("-o new/ --report new/report.json", "lies inside the output"),
    "rejects in the output": (
        "-o d/ --on-error reject --rejects d/r.jsonl",
        "lies inside the output",
    ),
    "output over the input": ("-o c.jsonl", "c.jsonl"),
    "output over a file": ("-o other.parquet", "was not written by embedcli"),
    "output on a device": ("-o /dev/null", "is a pipe or a device"),
    "report on the output's stream": (
        "-o - --format jsonl --report /dev/stdout",
        "is the output, too",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_of_others_are_refused(case, place, cli):
    options, message = REFUSED[case]
    before = tree(place)
    ran = cli("encode", "c.jsonl", *HASH, "-q", *options.split())
    assert ran.code == 73, ran.err
    assert message in ran.err
    assert tree(place) == before


def test_a_report_replaces_a_report_and_rejects_replace_rejects(place, cli):
    bad = Path("bad.jsonl")
    bad.write_text('{"text": "a"}\n{"text": null}\n')
    options = (
        "--on-error",
        "reject",
        "--rejects",
        "r.jsonl",
        "--report",
        "report.json",
        "-o",
        "o.parquet",
    )
    for _ in range(2):
        assert cli("encode", bad, *HASH, *options).code == 3
    (line,) = Path("r.jsonl").read_text().splitlines()
    assert json.loads(line)["kind"] == "embedcli reject"
    assert json.loads(Path("report.json").read_text())["kind"] == "embedcli report"
    bad.write_text('{"text": "a"}\n')
    assert cli("encode", bad, *HASH, *options).code == 0
    assert not Path("r.jsonl").exists()


def test_empty_files_may_be_replaced(place, cli):
    for name in ("o.parquet", "r.jsonl", "report.json"):
        Path(name).touch()
    bad = Path("bad.jsonl")
    bad.write_text('{"text": "a"}\n{"text": null}\n')
    options = (
        "--on-error",
        "reject",
        "--rejects",
        "r.jsonl",
        "--report",
        "report.json",
        "-o",
        "o.parquet",
    )
    assert cli("encode", bad, *HASH, *options, "--update").code == 3
    assert all(Path(name).stat().st_size for name in ("o.parquet", "r.jsonl", "report.json"))


def test_pipes_and_descriptors_are_written_to(place):
    options = ("--on-error", "reject", "--rejects", "/dev/stderr", "--report", "/dev/fd/2", "-q")
    Path("bad.jsonl").write_text('{"text": "a"}\n{"text": null}\n')
    Path("log").write_text("first\n")
    with open("log", "ab") as log:
        ran = run_process("encode", "bad.jsonl", *HASH, "-o", "o.parquet", *options, stderr=log)
    assert ran.code == 3
    first, reject, *report = Path("log").read_text().splitlines()
    assert first == "first"
    assert json.loads(reject)["line"] == 2
    assert json.loads("".join(report))["counts"]["rejected"] == 1

    os.mkfifo("pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append(Path("pipe").read_bytes()))
    reader.start()
    assert run_process("encode", "c.jsonl", *HASH, "-o", "p.parquet", "--report", "pipe").code == 0
    reader.join(60)
    assert json.loads(read[0])["kind"] == "embedcli report"
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)


def test_the_name_of_an_unfinished_file_is_no_way_to_another(place, cli):
    for name in (".report.json.embedcli-tmp", ".report.json.tmp"):
        Path(name).symlink_to("notes.txt")
    assert cli("encode", "c.jsonl", *HASH, "-o", "o.parquet", "--report", "report.json").code == 0
    assert Path("notes.txt").read_text() == "mine"
    assert json.loads(Path("report.json").read_text())["counts"]["rows_out"] == 2


def test_results_and_pictures_replace_their_own_kind_only(place, cli):
    Path("queries.jsonl").write_text('{"id": "q", "text": "a"}\n')
    Path("qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\t1\t1\n")
    files = (
        "--corpus",
        "c.jsonl",
        "--queries",
        "queries.jsonl",
        "--qrels",
        "qrels.tsv",
        "--model",
        "hash:64",
    )
    for name in ("mine.json", "other.parquet", "queries.jsonl"):
        Path("mine.json").write_text('{"precious": 1}')
        before = tree(place)
        assert cli("eval", *files, "--per-query", name).code in (2, 73)
        assert tree(place) == before
    for name in ("r.json", "r.json", "r.parquet", "r.parquet"):
        ran = cli("eval", *files, "--per-query", name)
        assert ran.code == 0, ran.err
    Path("mine.png").write_bytes(b"\x89PNG of mine")
    texts = ("probe", "a b", "c d", "b c", "--model", "hash:64", "-i", "search")
    assert cli(*texts, "--plot", "mine.png").code == 73
    assert Path("mine.png").read_bytes() == b"\x89PNG of mine"
    for name in ("p.png", "p.png", "p.svg", "p.svg", "p.pdf", "p.pdf"):
        ran = cli(*texts, "--plot", name)
        assert ran.code == 0, ran.err


FOREIGN = {
    "a file": {"README.md": "mine"},
    "a folder": {"sub/data.txt": "mine"},
    "a Parquet file": {"part-mine.parquet": "mine"},
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_folder_with_files_of_others_is_refused(case, place, cli):
    for name, text in FOREIGN[case].items():
        Path("d", name).parent.mkdir(exist_ok=True)
        Path("d", name).write_text(text)
    before = tree(place)
    ran = cli("encode", "c.jsonl", *HASH, "-o", "d/")
    assert ran.code == 73
    assert next(iter(FOREIGN[case])).split("/")[0] in ran.err
    assert tree(place) == before


@pytest.mark.parametrize(
    "manifest", ["{}", '{"parts": []}', '{"parts": [{"file": "keep.txt", "rows": 1}]}', "["]
)
def test_a_name_alone_makes_no_folder_ours(manifest, place, cli):
    Path("mine").mkdir()
    Path("mine/_embedcli.json").write_text(manifest)
    Path("mine/keep.txt").write_text("mine")
    before = tree(place)
    ran = cli("encode", "c.jsonl", *HASH, "-o", "mine/")
    assert ran.code == 73
    assert "keep.txt" in ran.err
    assert tree(place) == before


def test_what_comes_into_the_folder_during_a_run_stays(place, cli, meanwhile):
    meanwhile(lambda: Path("d/late.txt").write_text("mine"))
    ran = cli("encode", "c.jsonl", *HASH, "-o", "d/")
    assert ran.code == 73
    assert "late.txt" in ran.err
    assert Path("d/late.txt").read_text() == "mine"


@pytest.mark.parametrize("verb", ["encode", "clean", "clean by name"])
def test_a_folder_named_like_ours_stays(verb, place, cli):
    folder = staging_of("o.parquet")
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    arguments = {
        "encode": ("encode", "c.jsonl", *HASH, "-o", "o.parquet"),
        "clean": ("clean", "."),
        "clean by name": ("clean", "o.parquet"),
    }
    ran = cli(*arguments[verb])
    assert ran.code == 73, ran.err
    assert "mine.txt" in ran.err
    assert (folder / "mine.txt").read_text() == "mine"


def test_clean_goes_on_behind_a_folder_that_is_not_ours(place, cli):
    Path(".a.embedcli").mkdir()
    Path(".a.embedcli/mine.txt").write_text("mine")
    Path(".z.embedcli").mkdir()
    Path(".z.embedcli/embedcli-staging").touch()
    assert cli("clean", ".").code == 73
    assert Path(".a.embedcli/mine.txt").exists()
    assert not Path(".z.embedcli").exists()


EMPTY = {
    "nothing": "",
    "blank lines": "\n\n",
    "rejected rows alone": '{"text": null}\nnot JSON\n',
}


@pytest.mark.parametrize("update", [(), ("--update",)], ids=["anew", "update"])
@pytest.mark.parametrize("output", ["index.parquet", "d/", "new.parquet"])
@pytest.mark.parametrize("case", EMPTY)
def test_an_empty_upstream_wipes_nothing(case, output, update, place, cli):
    Path("empty.jsonl").write_text(EMPTY[case])
    before = tree(place)
    options = ("--on-error", "reject", "-o", output, *update)
    ran = cli("encode", "empty.jsonl", *HASH, *options)
    assert ran.code == 65, ran.err
    assert "nothing was changed" in ran.err
    assert tree(place) == before
    assert not staging_of(output.rstrip("/")).exists()
    ran = cli("encode", "empty.jsonl", *HASH, *options, "--allow-empty")
    assert ran.code == (3 if "null" in EMPTY[case] else 0), ran.err
    assert len(table(output)) == 0


def test_what_an_interrupted_run_left_outlives_an_empty_upstream(place, cli):
    left = staging_of("o.parquet") / "parts"
    left.mkdir(parents=True)
    (left.parent / "embedcli-staging").touch()
    left.parent.chmod(0o700)
    os.link("index.parquet", left / "part-000000-00000000.parquet")
    Path("empty.jsonl").touch()
    assert cli("encode", "empty.jsonl", *HASH, "-o", "o.parquet").code == 65
    assert list(left.parent.rglob("part-*.parquet"))


def test_a_filter_without_matches_gives_an_empty_stream(place):
    as_jsonl = ("encode", "-", *HASH, "-o", "-", "--format", "jsonl")
    first, second = (run_process(*as_jsonl, *more, input=b"") for more in ((), ("--allow-empty",)))
    assert (first.code, first.out) == (second.code, second.out) == (0, b"")
    ran = run_process("encode", "-", *HASH, "-o", "-", input=b"")
    assert ran.code == 0
    assert pa.ipc.open_stream(ran.out).read_all().num_rows == 0


def test_another_recipe_replaces_an_output_on_demand_only(place, cli):
    other = ("--role", "query", "--model", "hash:32", "--max-length", "7")
    for output in ("index.parquet", "d/"):
        before = tree(place)
        for update in ((), ("--update",), ("--dry-run",)):
            ran = cli("encode", "c.jsonl", *other, "-o", output, *update)
            assert ran.code == 78, ran.err
            for field in (
                "model is 'hash:64' in ",
                "'hash:32' requested",
                "role is",
                "dim is 64",
                "max_length is 512",
            ):
                assert field in ran.err
            assert "--overwrite" in ran.err
            assert tree(place) == before
        assert cli("encode", "c.jsonl", *other, "-o", output, "--overwrite").code == 0
        assert table(output)["embedding"].type.list_size == 32
    ran = cli("encode", "c.jsonl", *HASH, "-o", "index.parquet", "--vector-type", "float16")
    assert ran.code == 78


def test_overwrite_with_update_reuses_what_it_can(place, cli):
    _, report = encode(cli, "c.jsonl", "index.parquet", "--update", "--overwrite")
    assert report["counts"]["reused"] == 2
    other = (
        "--role",
        "passage",
        "--model",
        "hash:32",
        "--overwrite",
        "--update",
        "--report",
        "r.json",
    )
    assert cli("encode", "c.jsonl", *other, "-o", "index.parquet").code == 0
    assert json.loads(Path("r.json").read_text())["counts"]["embedded"] == 2
    assert cli("encode", "c.jsonl", *other, "-o", "index.parquet").code == 0
    assert json.loads(Path("r.json").read_text())["counts"]["reused"] == 2


def test_overwrite_goes_on_where_another_recipe_was_interrupted(place, cli):
    left = staging_of("o.parquet") / "parts"
    left.mkdir(parents=True)
    (left.parent / "embedcli-staging").touch()
    left.parent.chmod(0o700)
    os.link("index.parquet", left / "part-000000-00000000.parquet")
    other = ("--role", "passage", "--model", "hash:32", "-o", "o.parquet")
    assert cli("encode", "c.jsonl", *other).code == 78
    assert cli("encode", "c.jsonl", *other, "--overwrite").code == 0
    assert table("o.parquet")["embedding"].type.list_size == 32


# Inputs that change while a run reads them.


def rows_of(words, order=range(12_000)):
    return [
        {
            "id": i,
            "text": f"text {i:06} {words} with words enough to fill a unit to the brim and over it",
        }
        for i in order
    ]


def write(path, rows):
    if str(path).endswith(".parquet"):
        pq.write_table(
            pa.Table.from_pylist(rows),
            path,
            row_group_size=2_000,
            compression="none",
            use_dictionary=False,
        )
    else:
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SHUFFLED = random.Random(0).sample(range(12_000), 12_000)
CHANGES = {
    "other words": rows_of("bbb"),
    "another order": rows_of("aaa", SHUFFLED),
    "fewer rows": rows_of("aaa", range(9_000)),
    "more rows at the front": rows_of("aaa", range(-1_000, 12_000)),
}


@pytest.mark.parametrize("way", ["replaced", "rewritten"])
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("change", CHANGES)
def test_an_input_that_changes_is_never_published(
    change, kind, processes, way, tmp_path, cli, meanwhile
):
    corpus = write(tmp_path / f"c.{kind}", rows_of("aaa"))

    def change_it():
        if way == "replaced":
            os.replace(write(tmp_path / f"new.{kind}", CHANGES[change]), corpus)
        else:
            write(corpus, CHANGES[change])

    meanwhile(change_it)
    output = tmp_path / "out.parquet"
    ran = cli("encode", corpus, *HASH, "-o", output, "--num-processes", processes)
    assert ran.code == 75, ran.err
    assert f"{corpus}: was changed while the run read it" in ran.err
    assert not output.exists()
    again = cli(
        "encode", corpus, *HASH, "-o", output
    )  # nothing happens meanwhile: planning sees what is there
    assert again.code in (0, 75)


def test_a_run_that_was_refused_goes_on(tmp_path, cli, meanwhile, monkeypatch):
    corpus = write(tmp_path / "c.jsonl", rows_of("aaa"))
    with monkeypatch.context():
        meanwhile(lambda: write(corpus, rows_of("bbb")))
        assert cli("encode", corpus, *HASH, "-o", tmp_path / "out.parquet").code == 75
    monkeypatch.undo()
    assert cli("encode", corpus, *HASH, "-o", tmp_path / "out.parquet").code == 0
    assert table(tmp_path / "out.parquet")["text"].to_pylist() == [
        row["text"] for row in rows_of("bbb")
    ]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_file_that_is_touched_or_copied_is_the_same(kind, tmp_path, cli, meanwhile):
    corpus = write(tmp_path / f"c.{kind}", rows_of("aaa"))

    def touch():
        os.replace(write(tmp_path / "copy", rows_of("aaa")) if kind == "jsonl" else corpus, corpus)
        os.utime(corpus)

    meanwhile(touch)
    ran = cli("encode", corpus, *HASH, "-o", tmp_path / "out.parquet", "--num-processes", "2")
    assert ran.code == 0, ran.err


@pytest.mark.parametrize("end", ["\n", ""], ids=["whole line", "line without an end"])
def test_a_log_that_only_grows_gives_the_planned_rows(end, tmp_path, cli, meanwhile):
    corpus = write(tmp_path / "c.jsonl", rows_of("aaa"))
    corpus.write_text(corpus.read_text().removesuffix("\n") + end)

    def grow():
        with open(corpus, "a") as stream:
            stream.write("" if end else "\n")
            stream.write('{"id": -1, "text": "appended"}\n')

    meanwhile(grow)
    ran = cli("encode", corpus, *HASH, "-o", tmp_path / "out.parquet")
    assert ran.code == 0, ran.err
    assert f"{corpus}: grew by" in ran.err
    assert table(tmp_path / "out.parquet")["id"].to_pylist() == list(range(12_000))


def test_a_changed_copy_of_a_compressed_input_does_not_matter(tmp_path, cli, meanwhile):
    corpus = tmp_path / "c.jsonl.gz"
    corpus.write_bytes(gzip.compress(b'{"text": "a"}\n'))
    meanwhile(lambda: corpus.write_bytes(gzip.compress(b'{"text": "b"}\n')))
    assert cli("encode", corpus, *HASH, "-o", tmp_path / "out.parquet").code == 0
    assert table(tmp_path / "out.parquet")["text"].to_pylist() == ["a"]


# Rows that nothing can be made of.


def test_a_unit_of_bad_rows_alone(tmp_path, cli):
    path = tmp_path / "nulls.parquet"
    texts = pa.array([f"text {i}" for i in range(16_384)] + [None] * 16_384, pa.string())
    pq.write_table(pa.table({"text": texts}), path)
    assert cli("encode", path, *HASH, "-o", tmp_path / "o.parquet").code == 65
    ran = cli("encode", path, *HASH, "-o", tmp_path / "o.parquet", "--on-error", "reject")
    assert ran.code == 3, ran.err
    assert len(table(tmp_path / "o.parquet")) == 16_384
    pq.write_table(pa.table({"text": pa.array([None, None], pa.string())}), path)
    ran = cli("encode", path, *HASH, "-o", tmp_path / "p.parquet", "--on-error", "reject")
    assert ran.code == 65
    assert "all 2 rows were rejected" in ran.err


def test_an_empty_text_without_any_token(tmp_path, cli, tiny_bert):
    """Tokenizers of GPT-2's and Qwen's kind add no special tokens: nothing is left of an empty text."""
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "a"}\n{"text": ""}\n{"text": "b"}\n')
    options = ("--role", "query", "--template", "{text}", "--model", model, "--dtype", "float32")
    ran = cli("encode", path, *options, "-o", tmp_path / "o.parquet")
    assert ran.code == 65, ran.err
    assert f"{path}:2: it has no tokens" in ran.err
    ran = cli("encode", path, *options, "-o", tmp_path / "o.parquet", "--on-error", "reject")
    assert ran.code == 3, ran.err
    assert table(tmp_path / "o.parquet")["text"].to_pylist() == ["a", "b"]


def test_the_way_out_that_is_no_way_out_is_not_offered(tmp_path, cli):
    path = tmp_path / "c.data"
    path.write_text("id,text\n1,a\n")
    ran = cli("encode", path, *HASH, "-o", tmp_path / "o.parquet")
    assert ran.code == 65
    assert "--on-error" not in ran.err
    assert "--input-format csv" in ran.err
    path.write_text('{"text": "a"}\nnot JSON\n')
    assert "--on-error reject" in cli("encode", path, *HASH, "-o", tmp_path / "o.parquet").err


# Other users of the same machine.


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_nothing_is_pickled(path):
    """Where others could put bytes: our own processes speak to each other through pipes alone."""
    names = {
        alias.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    names |= {
        node.module
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
    }
    allowed = {"multiprocessing"} if path == PACKAGE / "processes.py" else set()
    refused = {"pickle", "marshal", "shelve", "multiprocessing", "cloudpickle", "dill"}
    assert not names & (refused - allowed)


def test_the_command_line_of_a_worker_tells_nothing(tmp_path):
    corpus = write_corpus(tmp_path / "c.jsonl", rows=60_000)
    process = start(
        "encode",
        corpus,
        *HASH,
        "-o",
        tmp_path / "o.parquet",
        "--num-processes",
        "2",
        "--device",
        "cpu",
    )
    temporary = wait_for(lambda: list(staging_of(tmp_path / "o.parquet").glob("tmp-*")))[0]

    def workers():
        """The command lines of two workers, once they are that: a new process has its parent's at
        first.
        """
        lines = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children(process.pid)]
        return [line for line in lines if b"embedcli.run.worker" in line]

    lines = wait_for(workers)
    process.communicate()
    assert process.returncode == 0
    token = temporary.name.removeprefix("tmp-").encode()
    assert all(b"embedcli.run.worker" in line and token not in line for line in lines)


class Payload:
    """What a pickle that is trusted runs."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def attack(folder, canary):
    """Do what another user can who may rename in the folder: put a staging directory of his own in
    the place of ours.

    With all that a worker might read from it, as soon and as often as he can, until the output is
    there. Gives how often he did.
    """
    name, swapped, end = folder / ".out.parquet.embedcli", 0, time.monotonic() + 120
    while time.monotonic() < end and not (folder / "out.parquet").exists():
        try:
            tokens = {"0" * 16}
            for process in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    tokens |= {
                        word
                        for word in process.read_text().split("\0")
                        if re.fullmatch("[0-9a-f]{16}", word)
                    }
            mine = folder / f"mine-{swapped}"
            mine.mkdir(exist_ok=True)
            mine.chmod(0o777)
            (mine / "embedcli-staging").touch()
            for inside in ("claims", "workers", "beats", "failed"):
                (mine / "run" / inside).mkdir(parents=True, exist_ok=True)
            for token in tokens:
                (mine / f"tmp-{token}").mkdir(exist_ok=True)
            for file in ("work.pickle", "plan.json", "computation.json"):
                (mine / "run" / file).write_bytes(pickle.dumps(Payload(canary)))
            name.rename(folder / f"away-{swapped}")
            mine.rename(name)
            swapped += 1
            time.sleep(0.3)
        except OSError:
            time.sleep(0.002)
    return swapped


def as_another_user(function, *args):
    """Call a function in a process of another user's; gives its process id.

    It ends with what the function gave.
    """
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(OTHER_USER)
            os.setuid(OTHER_USER)
            os._exit(function(*args))
        except BaseException:
            os._exit(0)
    return pid


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
@pytest.mark.parametrize("mode", [0o2775, 0o777], ids=["2775", "777"])
def test_another_user_brings_in_neither_code_nor_data(mode, tmp_path):
    shared, canary = tmp_path / "shared", tmp_path / "canary" / "touched"
    for folder in (shared, canary.parent):
        folder.mkdir()
        os.chown(folder, 0, OTHER_USER)
    shared.chmod(mode)
    canary.parent.chmod(0o777)
    for parent in tmp_path.parents:
        if parent.stat().st_mode & 0o001 == 0:
            parent.chmod(parent.stat().st_mode | 0o001)  # pytest's folders are closed to others
    tmp_path.chmod(0o755)
    corpus = write_corpus(tmp_path / "c.jsonl", rows=60_000)
    assert run_process("encode", corpus, *HASH, "-o", tmp_path / "alone.parquet", "-q").code == 0
    attacker = as_another_user(attack, shared, canary)
    options = ("--num-processes", "2", "--device", "cpu", "-q")
    ran = run_process("encode", corpus, *HASH, "-o", shared / "out.parquet", *options)
    swapped = os.waitstatus_to_exitcode(os.waitpid(attacker, 0)[1]) if ran.code == 0 else 0
    assert not canary.exists(), "another user's code was run"
    assert ran.code == 0, ran.err
    assert swapped > 0, "the attack did not get as far as swapping"
    assert content(shared / "out.parquet") == content(tmp_path / "alone.parquet")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_a_staging_directory_of_another_user_is_refused(tmp_path, cli):
    corpus = write_corpus(tmp_path / "c.jsonl", rows=10)
    folder = staging_of(tmp_path / "o.parquet")
    folder.mkdir()
    (folder / "embedcli-staging").touch()
    os.chown(folder, OTHER_USER, OTHER_USER)
    ran = cli("encode", corpus, *HASH, "-o", tmp_path / "o.parquet")
    assert ran.code == 77, ran.err
    os.chown(folder, 0, 0)
    folder.chmod(0o777)
    assert cli("encode", corpus, *HASH, "-o", tmp_path / "o.parquet").code == 77
    folder.chmod(0o700)
    assert cli("encode", corpus, *HASH, "-o", tmp_path / "o.parquet").code == 0


def test_what_a_swapped_name_leads_to_is_not_removed(tmp_path):
    """Another of the user's own folders, put under our name by somebody else, outlives the run."""
    corpus = write_corpus(tmp_path / "c.jsonl", rows=60_000)
    precious = tmp_path / "project"
    precious.mkdir()
    (precious / "thesis.txt").write_text("mine")
    output, name = tmp_path / "o.parquet", staging_of(tmp_path / "o.parquet")
    process = start("encode", corpus, *HASH, "-o", output)
    wait_for(lambda: list(name.glob("parts/part-*")))
    name.rename(tmp_path / "away")
    precious.rename(name)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert (name / "thesis.txt").read_text() == "mine"
    assert len(table(output)) == 60_000


@pytest.mark.parametrize("kind", ["out", "out/"])
def test_an_output_that_is_moved_away_during_an_update_stays_whole(kind, tmp_path, cli, meanwhile):
    corpus, output, away = tmp_path / "c.jsonl", tmp_path / "out", tmp_path / "away"
    command = ("encode", corpus, *HASH, "-o", f"{tmp_path}/{kind}", "--update")
    write(corpus, rows_of("aaa"))
    assert cli(*command).code == 0
    before = content(output)
    write(corpus, rows_of("bbb"))
    meanwhile(lambda: None if away.exists() else output.rename(away))
    ran = cli(*command)
    # 65 while its vectors are looked up by its name: an update needs them until the end.
    assert (ran.code, "is gone" in ran.err) in ((0, False), (65, True)), ran.err
    assert content(away) == before
    assert cli(*command).code == 0
    assert table(output)["text"].to_pylist() == [row["text"] for row in rows_of("bbb")]
    assert content(away) == before


@pytest.mark.parametrize("kind", ["out", "out/"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_folder_that_is_renamed_during_a_run_is_no_missing_input(
    processes, kind, tmp_path, cli, meanwhile
):
    corpus, old, new = (
        write(tmp_path / "c.jsonl", rows_of("aaa")),
        tmp_path / "old",
        tmp_path / "new",
    )
    old.mkdir()
    options = (*HASH, "--num-processes", processes)
    meanwhile(lambda: old.rename(new) if old.exists() else None)
    ran = cli("encode", corpus, *options, "-o", f"{old}/{kind}")
    assert (ran.code, f"{old}: the folder is gone" in ran.err) == (74, True), ran.err
    assert not old.exists()
    ran = cli("encode", corpus, *options, "-o", f"{new}/{kind}")
    assert (ran.code, "were finished by an interrupted run" in ran.err) == (0, True), ran.err
    assert os.listdir(new) == ["out"]
    assert len(table(new / "out")) == 12_000


# What a second look at all of this found.


def test_an_input_on_standard_input_is_an_input_too(place):
    bad = '{"text": "a"}\n{"text": null}\n'
    for name, options in (
        ("in.jsonl", ("-o", "o.parquet", "--on-error", "reject", "--rejects", "in.jsonl")),
        ("in.jsonl", ("-o", "o.parquet", "--report", "in.jsonl")),
        ("index.parquet", ("-o", "index.parquet", "--columns", "id")),
    ):
        if name == "in.jsonl":
            Path(name).write_text(bad)
        before = Path(name).read_bytes()
        with open(name, "rb") as stdin:
            ran = run_process("encode", "-", *HASH, *options, stdin=stdin)
        assert ran.code == 73, ran.err
        assert Path(name).read_bytes() == before


def test_a_link_is_no_output(place, cli):
    Path("folder-link").symlink_to("d")
    Path("file-link").symlink_to("index.parquet")
    Path("dangling").symlink_to("nowhere")
    Path("loop").symlink_to("loop")
    before = tree(place)
    for name in ("folder-link", "file-link", "dangling", "dangling/", "loop"):
        for more in ((), ("--dry-run",)):
            ran = cli("encode", "c.jsonl", *HASH, "-o", name, *more)
            assert ran.code == 73, (name, ran.err)
    assert tree(place) == before


def test_a_link_in_the_staging_directory_is_not_followed(place, cli):
    mine = Path("mine")
    mine.mkdir()
    (mine / "part-000000-00000000.parquet").write_text("mine")
    left = staging_of("o.parquet")
    left.mkdir(mode=0o700)
    (left / "embedcli-staging").touch()
    (left / "parts").symlink_to(mine.resolve())
    assert cli("encode", "c.jsonl", *HASH, "-o", "o.parquet").code == 0
    assert (mine / "part-000000-00000000.parquet").read_text() == "mine"


def test_a_picture_that_names_the_program_is_not_ours(place, cli):
    Path("hand.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg"><!-- how embedcli works --></svg>'
    )
    before = Path("hand.svg").read_bytes()
    assert (
        cli("probe", "a b", "c d", "--model", "hash:64", "-i", "x", "--plot", "hand.svg").code == 73
    )
    assert Path("hand.svg").read_bytes() == before


def test_places_that_would_swallow_themselves(place, cli):
    inside = staging_of("o.parquet") / "parts"
    inside.mkdir(parents=True)
    (inside.parent / "embedcli-staging").touch()
    inside.parent.chmod(0o700)
    shutil.copy("index.parquet", inside / "part-000000-00000000.parquet")
    for arguments in (
        (inside, "-o", "o.parquet", "--columns", "id", "--fresh"),
        ("c.jsonl", "-o", "."),
        ("c.jsonl", "-o", ".."),
        ("c.jsonl", "-o", ""),
        ("c.jsonl", "-o", "w.parquet", "--report", ".w.parquet.embedcli"),
    ):
        ran = cli("encode", *arguments, *HASH)
        assert ran.code == 73, (arguments, ran.err)
    assert (inside / "part-000000-00000000.parquet").exists()


@pytest.mark.parametrize(
    "key",
    [b"[]", b"nope", b'{"format_version": 1}', b'{"format_version": 2}', b"\xff", b"[" * 10**5],
)
def test_a_key_that_says_nothing(key, place, cli):
    schema = pq.read_table("index.parquet").schema
    pq.write_table(
        pq.read_table("index.parquet").replace_schema_metadata({b"embedcli": key}), "odd.parquet"
    )
    assert schema.metadata
    for options in ((), ("--update",)):
        ran = cli("encode", "c.jsonl", *HASH, "-o", "odd.parquet", *options)
        assert ran.code == 78, ran.err
    for verb in ("inspect", "verify"):
        assert cli(verb, "odd.parquet").code == 65
    assert cli("encode", "c.jsonl", *HASH, "-o", "odd.parquet", "--overwrite").code == 0


def test_values_that_python_has_not(place, cli):
    for column in (
        pa.array([2**31 - 1], pa.date32()),
        pa.array([2**62], pa.timestamp("us")),
        pa.array([1], pa.timestamp("us", tz="Nowhere/Land")),
    ):
        pq.write_table(pa.table({"text": ["a"], "odd": column}), "odd.parquet")
        ran = cli("encode", "odd.parquet", *HASH, "-o", "-", "--format", "jsonl")
        assert ran.code == 65, ran.err
        assert "--columns" in ran.err


def test_descriptors_that_are_not_there(place):
    for number in ("4", "99999999999999999999"):
        ran = run_process(
            "encode", "c.jsonl", *HASH, "-o", "o.parquet", "--report", f"/dev/fd/{number}"
        )
        assert ran.code == 73, ran.err
        assert not Path("o.parquet").exists()


def test_a_line_limit_beyond_all_limits(place, cli):
    assert cli("encode", "c.jsonl", *HASH, "-o", "o.parquet", "--max-row-bytes", 2**63).code == 2
    assert cli("encode", "c.jsonl", *HASH, "-o", "o.parquet", "--max-row-bytes", 2**40).code == 0


def test_standard_input_by_its_name_reaches_workers(tmp_path):
    corpus = write_corpus(tmp_path / "c.jsonl")
    options = ("--num-processes", "2", "--device", "cpu", "-q")
    for name in ("/dev/stdin", "-"):
        with open(corpus, "rb") as stdin:
            ran = run_process(
                "encode", name, *HASH, "-o", tmp_path / "o.parquet", *options, stdin=stdin
            )
        assert ran.code == 0, ran.err
        assert len(table(tmp_path / "o.parquet")) == 12_000


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_an_input_that_is_no_file_any_more(kind, tmp_path, cli, meanwhile):
    corpus = write(tmp_path / f"c.{kind}", rows_of("aaa"))

    def turn():
        corpus.unlink()
        corpus.mkdir()

    meanwhile(turn)
    ran = cli("encode", corpus, *HASH, "-o", tmp_path / "out.parquet")
    assert ran.code == 75, ran.err


def test_a_compressed_input_that_is_rewritten_while_it_is_read(tmp_path, cli, monkeypatch):
    corpus = tmp_path / "c.jsonl.gz"
    corpus.write_bytes(gzip.compress(os.urandom(2**20)))
    read = gzip.GzipFile.read

    def reading(self, size=-1):
        content = read(self, size)
        corpus.write_bytes(b"\x1f\x8b another export writes here")
        return content

    monkeypatch.setattr(gzip.GzipFile, "read", reading)
    ran = cli("encode", corpus, *HASH, "-o", tmp_path / "out.parquet")
    assert ran.code == 75, ran.err


def test_a_dry_run_of_an_empty_upstream_ends_as_the_run_would(place, cli):
    Path("bad.jsonl").write_text('{"text": null}\n')
    assert (
        cli(
            "encode", "bad.jsonl", *HASH, "-o", "o.parquet", "--on-error", "reject", "--dry-run"
        ).code
        == 65
    )


def test_clean_leaves_an_empty_folder_without_our_mark(place, cli):
    Path(".mine.embedcli").mkdir()
    assert cli("clean", ".").code == 0
    assert Path(".mine.embedcli").is_dir()
    assert not list(Path(".mine.embedcli").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
@pytest.mark.parametrize("option", ["-o", "--rejects", "--report"])
def test_what_only_its_owner_can_replace_is_found_before_anything_is_encoded(cli, tmp_path, option):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(folder.stat().st_mode | 0o055)
    corpus = write_corpus(shared / "c.jsonl", rows=3)
    corpus.chmod(0o644)
    (shared / "taken").touch()  # of root
    names = {"-o": "o.parquet", "--rejects": "r.jsonl", "--report": "report.json", option: "taken"}

    # All that is needed is imported here: another user may not be able to read this Python.
    assert cli("encode", corpus, *HASH, "-o", tmp_path / "first.parquet").code == 0

    def run():
        os.chdir(shared)
        options = [part for pair in names.items() for part in pair]
        return cli("encode", "c.jsonl", *HASH, *options, "--on-error", "reject", "-q").code

    _, status = os.waitpid(as_another_user(run), 0)
    assert os.waitstatus_to_exitcode(status) == 77
    reported = set() if option == "--report" else {"report.json"}
    assert {path.name for path in shared.iterdir()} == {"c.jsonl", "taken"} | reported


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_a_folder_that_cannot_be_written_is_found_before_a_model_is_looked_for(cli, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    corpus = write_corpus(shared / "c.jsonl", rows=3)
    for path in (tmp_path, tmp_path.parent, tmp_path.parent.parent, corpus):
        path.chmod(path.stat().st_mode | 0o055)
    # All that is needed is imported here: another user may not be able to read this Python.
    assert cli("encode", corpus, *HASH, "-o", tmp_path / "first.parquet").code == 0
    shared.chmod(0o555)

    def run():
        os.chdir(shared)
        return cli("encode", "c.jsonl", "--role", "query", "--model", "./none", "-o", "o").code

    _, status = os.waitpid(as_another_user(run), 0)
    assert os.waitstatus_to_exitcode(status) == 77
    assert os.listdir(shared) == ["c.jsonl"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_clean_goes_on_behind_a_folder_of_another_user(place, cli):
    for name in (".a.embedcli", ".z.embedcli"):
        Path(name).mkdir(mode=0o700)
        Path(name, "embedcli-staging").touch()
    os.chown(".a.embedcli", OTHER_USER, OTHER_USER)
    ran = cli("clean", ".")
    assert (ran.code, ".a.embedcli: belongs to another user" in ran.err) == (77, True), ran.err
    assert Path(".a.embedcli/embedcli-staging").exists()
    assert not Path(".z.embedcli").exists()


def test_the_ways_out_that_are_offered_lead_out(tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text('id,text\n1,"a, b"\n2,c\n')
    assert "--input-format csv, tsv or lines" in cli("encode", "FILE", *HASH, "-o", "o").err
    assert cli("encode", "FILE", *HASH, "-o", "o", "--input-format", "csv").code == 0
    assert table("o")["text"].to_pylist() == ["a, b", "c"]
    Path("FILE").write_text('a line\nand one with "quotes"\n')
    lines = ("--input-format", "lines", "--overwrite")
    assert cli("encode", "FILE", *HASH, "-o", "o", *lines).code == 0
    assert table("o")["text"].to_pylist() == ["a line", 'and one with "quotes"']
