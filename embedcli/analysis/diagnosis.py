"""What an issue needs to know of a machine: versions, devices, what `auto` takes, models, disks."""

import contextlib
import os
import platform
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import embedcli
from embedcli import encoder, machine
from embedcli.config import RunOptions
from embedcli.errors import AccessError, ConfigurationError, InputMissingError
from embedcli.files import make_exclusively
from embedcli.models import hub
from embedcli.store import publish

# What a run depends on, and the extras.
_LIBRARIES = (
    *("torch", "transformers", "tokenizers", "accelerate", "pyarrow", "numpy", "huggingface-hub"),
    *("openvino", "ray", "pyspark", "duckdb", "matplotlib", "peft"),
)
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
# As many tokens as pay for every preparation, and as few as pay for none.
_LONG, _SHORT = 10**9, 0

Lines = Iterator[tuple[str, str]]


def diagnose(folder: str) -> Lines:
    """Yield names and values: of this program, this machine, and the disk of a folder.

    Raises InputMissingError, AccessError where the folder can't be written.
    """
    yield "embedcli", f"{embedcli.__version__}  ({Path(embedcli.__file__).parent})"
    yield "python", f"{platform.python_version()}  ({sys.executable})"
    yield "system", f"{platform.system()} {platform.release()} {platform.machine()}"
    versions = machine.versions(_LIBRARIES)
    yield "libraries", ", ".join(f"{name} {version}" for name, version in versions.items())
    yield from _devices()
    yield from _choices()
    yield from _models()
    settings = [name for name in sorted(os.environ) if name.startswith("EMBEDCLI_")]
    yield "settings", ", ".join(f"{name}={os.environ[name]}" for name in settings) or "none"
    yield from _disk(Path(folder))


def _devices() -> Lines:
    cpu = machine.cpu()
    flags = [flag for flag in _FLAGS if flag in cpu.flags]
    tiles = "usable" if cpu.has_tiles else "announced, for compiled code alone"
    beside = f"; matrix tiles {tiles}" if cpu.announces_tiles else ""
    yield "cpu", f"{cpu.vendor or 'unknown'}, {machine.cores()} cores, {' '.join(flags)}{beside}"
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    yield "memory", f"{pages / 2**30:.1f} GiB"
    devices = encoder.cuda_devices() if machine.may_have_cuda() else []
    yield "cuda", "; ".join(devices) or "no device"


def _choices() -> Lines:
    """Tell what `auto` takes for a BERT model on this machine's CPU."""
    for name, tokens in (("long runs", _LONG), ("short runs", _SHORT)):
        choice = encoder.choose_for_cpu(RunOptions(expected_tokens=tokens), "bert", False)
        compiled = ", compiled" if choice.compiled else ""
        yield name, f"{choice.dtype} by {choice.backend}{compiled}: {choice.reason}"


def _models() -> Lines:
    try:
        files = hub.find(None)
        yield "bundled", f"{files.id}, its weights are as published"
    except ConfigurationError as error:
        yield "bundled", f"{error.message} ({error.hint})" if error.hint else error.message
    cache = hub.cache_folder()
    names = sorted(path.name.removeprefix("models--") for path in cache.glob("models--*"))
    listed = ", ".join(name.replace("--", "/") for name in names) or "no models"
    yield "hub's cache", f"{cache}: {listed}"
    kept = encoder.conversions_folder()
    yield "conversions", f"{kept}: {sum(path.is_dir() for path in kept.glob('*'))} kept"


def _disk(folder: Path) -> Lines:
    """Tell what the disk of a folder can do that a run needs."""
    if not folder.is_dir():
        raise InputMissingError(f"{folder}: no such folder")
    yield "folder", f"{folder.resolve()}  ({_kind_of(folder)})"
    yield "space", f"{shutil.disk_usage(folder).free / 10**9:,.1f} GB free"
    try:
        probe = tempfile.TemporaryDirectory(prefix=f".embedcli-{secrets.token_hex(4)}", dir=folder)
    except PermissionError:
        raise AccessError(f"{folder}: can't be written", "name another folder") from None
    with probe as name:
        inside = Path(name)
        exclusive = make_exclusively(inside / "a", b"x") and not make_exclusively(inside / "a", b"")
        abilities = {
            "makes files exclusively": exclusive,
            "has hard links": _can_link(inside),
            "exchanges folders in one step": publish.can_exchange(inside),
        }
    can = [name for name, is_able in abilities.items() if is_able]
    lacks = [name for name, is_able in abilities.items() if not is_able]
    yield "abilities", ", ".join(can) + (f"; not: {', '.join(lacks)}" if lacks else "")


def _can_link(folder: Path) -> bool:
    try:
        os.link(folder / "a", folder / "b")
    except OSError:
        return False
    return True


def _kind_of(folder: Path) -> str:
    """Return the kind of a folder's file system, as Linux names it."""
    best, kind = "", "unknown"
    with contextlib.suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, place, name, *_ = line.split()
            if folder.resolve().is_relative_to(place) and len(place) >= len(best):
                best, kind = place, name
    return kind
