"""On a terminal: names, texts and values from outside can't move its cursor, colour or reorder it;
programs get the same strings back.
"""

import json
import os
import pty
import re

import pytest

from tests.conftest import start
from tests.runs import HASH, encode

# Blink, a window's title, C1's own CSI, right-to-left marks, backspace, delete, nothing at all.
HOSTILE = "a\x1b[5;31;42mb\x1b]0;title\x07c\x9b31md\u202ee\u2066f\x08g\x7fh\u200bi\rj"
# What Rich writes of its own: styles, and for its bar: hide the cursor, up a line, erase it.
OWN = re.compile(r"\x1b\[(\?25[lh]|\d*[AK]|[\d;]*m)")


def on_a_terminal(*args, **options):
    """Run the program with a terminal for both of its streams; gives its code and what it wrote."""
    ours, terminal = pty.openpty()
    process = start(*args, stdout=terminal, stderr=terminal, **options)
    os.close(terminal)
    written = b""
    try:
        while block := os.read(ours, 2**16):
            written += block
    except OSError:  # Linux's way to say that the other side is closed
        pass
    os.close(ours)
    return process.wait(), written.decode()


def check_shown(written):
    assert "\x1b[5;31;42m" not in written
    rest = OWN.sub("", written).replace("\r", "").replace("\n", "")
    assert rest.isprintable(), [character for character in rest if not character.isprintable()]
    assert "\\u202e" in rest, "what is hidden should be shown"


def corpus_of(folder, name="c"):
    """Hostile rows in a file of a hostile name; the second one is bad."""
    path = folder / f"{name}.jsonl"
    rows = [{"id": HOSTILE, "text": HOSTILE}, {"id": 1, HOSTILE: 3}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


REJECT = ("--on-error", "reject")
ENCODED = {
    "with rejects": (REJECT, 3),
    "a bad row": ((), 65),
    "a dry run": ((*REJECT, "--dry-run"), 0),
    "a text column": (("--text-column", HOSTILE), 65),
    "columns": (("--columns", HOSTILE), 65),
    "a template": ((*REJECT, "--template", f"{HOSTILE} {{text}}"), 3),
    "a model": (("--model", f"./{HOSTILE}"), 78),
}


@pytest.mark.parametrize("case", ENCODED)
def test_encode_lets_nothing_hostile_through(case, tmp_path):
    options, code = ENCODED[case]
    corpus = corpus_of(tmp_path, HOSTILE)
    output = tmp_path / f"{HOSTILE}.parquet"
    ended, written = on_a_terminal("encode", corpus, *HASH, "-o", output, *options)
    assert ended == code, written
    check_shown(written)


@pytest.fixture
def index(cli, tmp_path):
    output = tmp_path / f"{HOSTILE}.parquet"
    options = ("--on-error", "reject", "--template", f"{HOSTILE} {{text}}")
    assert encode(cli, corpus_of(tmp_path), output, *options)[0].code == 3
    return output


SHOWN = {
    "search": lambda index: ("search", index, HOSTILE, "--role", "passage"),
    "search as JSON": lambda index: ("search", index, HOSTILE, "--role", "passage", "--json"),
    "inspect": lambda index: ("inspect", index),
    "verify": lambda index: ("verify", index),
    "render": lambda index: ("templates", "render", "hash:8", HOSTILE, "--role", "query"),
}


@pytest.mark.parametrize("verb", SHOWN)
def test_other_verbs_let_nothing_hostile_through(verb, index):
    ended, written = on_a_terminal(*SHOWN[verb](index))
    assert ended == 0, written
    check_shown(written)


def test_programs_get_the_strings_back(cli, index):
    ran = cli("search", index, HOSTILE, "--role", "passage", "--json")
    assert ran.code == 0, ran.err
    [line] = ran.lines
    assert line.isprintable()
    found = json.loads(line)
    assert (found["query"], found["record"]["text"], found["record"]["id"]) == (HOSTILE,) * 3
    ran = cli("inspect", index, "--json")
    assert "".join(ran.out.decode().split("\n")).isprintable()
    [column] = json.loads(ran.out)["provenance"]["columns"].values()
    assert column["recipe"]["template"] == f"{HOSTILE} {{text}}"
    [line, *_] = cli("templates", "render", "hash:8", HOSTILE, "--role", "query").lines
    assert line.isprintable()
    assert json.loads(line).endswith(HOSTILE)
