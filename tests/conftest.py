"""What every test may lean on: the guard, a way to run the program, tiny models."""

import functools
import inspect
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import typer

# Machines differ in speed, and the same commit should pass or fail the same way everywhere.
hypothesis.settings.register_profile(
    "embedcli",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("embedcli")

REPOSITORY = Path(__file__).parent.parent
SAMPLE = REPOSITORY / "sample_data"

# Under nohup, or behind a script's `&`, they are ignored, also by what the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Before anything imports the hub's library.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = "/nonexistent/embedcli-tests-must-not-use-the-home-cache"
os.environ["DO_NOT_TRACK"] = "1"
os.environ["XDG_CACHE_HOME"] = str(Path(tempfile.gettempdir()) / "embedcli-tests-cache")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(tempfile.gettempdir()) / "embedcli-tests-compiled")
# Is a GPU, or a package, that is missing a failure of the tests that need it?
REQUIRES_GPU = os.environ.get("EMBEDCLI_REQUIRE_GPU") == "1"
for _name in [name for name in os.environ if name.startswith("EMBEDCLI_")]:
    del os.environ[_name]


class NetworkTouchedError(BaseException):
    """A test tried to leave the machine. No Exception: nothing may swallow it."""


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: Any, *rest: Any) -> None:
        if self.family != socket.AF_UNIX:
            self.close()
            raise NetworkTouchedError(address)

    def refuse_name(*address: Any, **_: Any) -> None:
        raise NetworkTouchedError(address)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse_name)


@dataclass
class Ran:
    """What a run of the program left behind."""

    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.decode().splitlines()


@functools.cache
def _command() -> typer.core.TyperCommand:
    """Build the program's command line once: that takes longer than many a run."""
    from embedcli.cli import app

    return typer.main.get_command(app)


@pytest.fixture
def cli(capfdbinary: pytest.CaptureFixture[bytes]) -> Iterator[Callable[..., Ran]]:
    """Run `embedcli` in this process: fast, and what it writes is read from the file descriptors."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in signals]

    def run(*args: object) -> Ran:
        capfdbinary.readouterr()
        try:
            _command()([str(arg) for arg in args], prog_name="embedcli")
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capfdbinary.readouterr()
        return Ran(code, out, err.decode())

    yield run
    for number, handler in zip(signals, before, strict=True):
        signal.signal(number, handler)


def start(*args: object, **options: Any) -> "subprocess.Popen[bytes]":
    """Start `embedcli` as a process of its own."""
    command = [sys.executable, "-m", "embedcli", *map(str, args)]
    pipes = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        **options,
    }
    return subprocess.Popen(command, **pipes)


def run_process(*args: object, input: bytes | None = None, **options: Any) -> Ran:  # noqa: A002
    """Run `embedcli` as a process of its own, with bytes on its standard input."""
    if input is not None:
        options["stdin"] = subprocess.PIPE
    process = start(*args, **options)
    out, err = process.communicate(input)
    return Ran(process.returncode, out, (err or b"").decode())


# What shows that a test starts processes, loads a model, or runs the program again and again.
_SLOW_SOURCES = (
    "run_process(",
    "start(",
    "start_encode(",
    "subprocess",
    "as_another_user(",
    "--num-processes",
)
_SLOW_FIXTURES = {
    "tiny_bert",
    "bert",
    "place_with_model",
    "folders",
    "outputs",
    "check",
    "interrupt",
}
_IMPORTS_TORCH = re.compile(
    r"^(import|from) (torch|transformers|sentence_transformers|datasets"
    r"|embedcli\.encoder\.loading|tests import shapes)",
    re.MULTILINE,
)


def _is_fast(item: pytest.Item) -> bool:
    if any(item.get_closest_marker(name) for name in ("heavy", "torch", "gpu")):
        return False
    function = getattr(item, "function", None)
    if function is None or _SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
        return False
    source = inspect.getsource(function)
    return not any(word in source for word in _SLOW_SOURCES)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _is_fast(item):
            item.add_marker(pytest.mark.fast)


class _TorchRefused:
    """Finds no module, and names the fast test that asks for torch."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "torch":
            pytest.fail("a fast test imports torch: mark it with @pytest.mark.torch")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out of the fast tier the files that import torch at their top."""
    if config.getoption("-m") == "fast" and collection_path.suffix == ".py":
        return bool(_IMPORTS_TORCH.search(collection_path.read_text())) or None
    return None


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.getoption("-m") == "fast":
        sys.meta_path.insert(0, _TorchRefused())  # type: ignore[arg-type]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="run the heavy tests in their full numbers (an hour)"
    )


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Are the full numbers wanted?"""
    return bool(request.config.getoption("--full"))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of the real class with a tokenizer of its own, in sentence-transformers' layout."""
    from tests import tiny

    return tiny.bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture
def meanwhile(monkeypatch):
    """Have something happen between planning and the first unit."""

    def happen(what):
        from embedcli import run

        make_plan = run.make_plan

        def planned(*args, **options):
            plan = make_plan(*args, **options)
            what()
            return plan

        monkeypatch.setattr(run, "make_plan", planned)

    return happen
