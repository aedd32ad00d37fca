"""The READMEs are true: the reference is the program's, commands run and give what is shown, links lead
somewhere, and what the file format promises can be checked without us.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from embedcli.models import families as shipped
from tests import families, reference
from tests.conftest import REPOSITORY, SAMPLE

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
# Where commands are shown, in the order in which they are tried.
SHOWN = (
    "README.md",
    "templates/README.md",
    "embedcli/analysis/README.md",
    "embedcli/run/README.md",
)
ALL = [
    path
    for folder in (".", "embedcli", "templates", "tests", "sample_data", ".github")
    for path in (REPOSITORY / folder).glob("*.md" if folder == "." else "**/*.md")
]
TESTS = REPOSITORY / "tests"
# Lines that tell of the machine, not of the program.
TELLS_OF_THE_MACHINE = re.compile(
    r"time|speed|computed|because|made by|file|[\d,]+ of [\d,]+ rows, "  # progress, where it is slow
)


def blocks(language):
    for name in SHOWN:
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        yield from re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def table_of_families():
    text = (REPOSITORY / "templates" / "README.md").read_text(encoding="utf-8")
    return text.partition(families.BEGIN)[2].partition(families.END)[0].strip().splitlines()[2:]


def test_the_reference_is_the_programs_own():
    text = reference.README.read_text(encoding="utf-8")
    assert reference.with_reference(text) == text, "run: python -m tests.reference"


def test_the_manual_page_names_every_verb_and_option(cli):
    page = cli("man").out.decode().replace("\\-", "-")
    assert page.startswith(".TH EMBEDCLI 1")
    assert not re.search(r"^[.'](?!TH|SH|SS|PP|TP|nf|fi)", page, re.MULTILINE)
    for name, verb in reference.verbs().items():
        assert f'.SS "embedcli {name}' in page
        for option in re.findall(r"--[a-z][a-z-]+", reference.described(name, verb)):
            assert option in page


def test_the_readme_is_read_in_one_sitting():
    assert len(README.splitlines()) <= 280


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_the_excerpt_of_families_is_the_tables():
    excerpt = README.partition("<!-- excerpt -->")[2].partition("<!-- /excerpt -->")[0]
    rows = excerpt.strip().splitlines()[2:]
    assert len(rows) == 6
    table = table_of_families()
    assert all(any(line.startswith(row.rstrip(" |")) for line in table) for row in rows)
    assert f"{len(table)} model families" in README


def test_the_seal_can_be_checked_by_what_is_written_of_it(cli, tmp_path):
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n')
    cli(
        "encode",
        tmp_path / "c.jsonl",
        "--role",
        "query",
        "--model",
        "hash:8",
        "-o",
        tmp_path / "o.parquet",
    )
    content = (tmp_path / "o.parquet").read_bytes()
    mark = content.rindex(b"embedcli.sha256")
    digest = re.search(rb"[0-9a-f]{64}", content[mark:])[0]
    assert hashlib.sha256(content.replace(digest, b"0" * 64)).hexdigest().encode() == digest


def test_the_table_of_families_is_the_registrys_own():
    """All but the measured columns, which `python -m tests.families` writes."""
    shown = table_of_families()
    wanted = [
        families.row(families.known_columns(family)).rstrip(" |") for family in shipped.families()
    ]
    assert [line[: len(want)] for line, want in zip(shown, wanted, strict=True)] == wanted
    measured = [line for line in shown if " tiny model |" in line]
    assert len(measured) == len(families.CASES)
    assert all(float(line.split(" | ")[-3]) >= 0.99999 for line in measured)


def test_the_help_of_encode_fits_on_a_screen(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    lines = cli("encode", "--help").lines
    assert len(lines) < 90
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    groups = ["Input:", "Model and template:", "Output:", "Run:", "Speed:"]
    assert headings == ["Arguments:", *groups]  # no option is outside of a group


def test_every_verb_has_a_line_an_example_and_its_exit_codes():
    for name, verb in reference.verbs().items():
        assert f"Example: embedcli {name}" in verb.__doc__
        assert "Exit codes: 0" in verb.__doc__


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the sample data, as a reader has it."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(
        SAMPLE,
        folder / "sample_data",
        ignore=shutil.ignore_patterns("*.passage.parquet", "*.query.parquet"),
    )
    return folder


def run(command, place):
    path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    # bfloat16, where a machine chooses it, would change the last digit of what is shown
    environment = {**os.environ, "PATH": path, "COLUMNS": "120", "EMBEDCLI_DTYPE": "float32"}
    return subprocess.run(
        ["bash", "-c", command], cwd=place, env=environment, capture_output=True, text=True
    )


def shape(lines):
    """Lines with their numbers and spaces evened out; those that tell of the machine left out."""
    kept = [line for line in lines if line.strip() and not TELLS_OF_THE_MACHINE.match(line)]
    return [re.sub(r"\s+", " ", re.sub(r"\d[\d,.]*", "#", line)).strip() for line in kept]


def sessions():
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *output = part.splitlines()
            while command.endswith("\\"):
                command = command[:-1] + output.pop(0).lstrip("> ")
            yield command, output


@pytest.mark.heavy
def test_every_command_of_the_readmes_runs_and_gives_what_is_shown(place):
    ran = 0
    for command, output in sessions():
        done = run(command, place)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        if output:
            assert shape([*done.stderr.splitlines(), *done.stdout.splitlines()]) == shape(output), (
                command
            )
        ran += 1
    assert ran >= 4


def test_the_set_up_is_two_commands():
    marked = README.partition("<!-- set-up -->")[2].partition("<!-- /set-up -->")[0]
    assert len(re.findall(r"^pip install ", marked, re.MULTILINE)) == 2
    assert Path(REPOSITORY / ".ci" / "run").stat().st_mode & 0o111


def test_the_tests_that_hold_the_laws_are_there():
    table = (TESTS / "README.md").read_text()
    file = ""
    for module, name in re.findall(r"`(test_\w+)?(?:\.py)?(?:::(test_\w+))?`", table):
        file = module or file
        if name:
            assert f"def {name}(" in (TESTS / f"{file}.py").read_text(), (file, name)
