"""A model as an OpenVINO graph: converted once from torch, tried against it, and kept in the user's
cache.

A conversion is a folder, named by a digest of all that it depends on:

    graph.xml, graph.bin    ids, mask and ranks [n, T] to vectors float32 [n, full_dim]
    tokenizer.json          as transformers makes it of the model's files
    conversion.json         the padding, how near the graph's vectors came to torch's, digests of the rest

It says nothing of paths or texts. Whoever can write there could change vectors, so a folder of
another user is not believed.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

import msgspec

from embedcli import machine
from embedcli.encoder import environment
from embedcli.errors import ConfigurationError, DeviceError, as_foreseen
from embedcli.files import rename
from embedcli.models.spec import ModelSpec
from embedcli.processes import pool

_VERSION = 2
_FILES = ("graph.xml", "graph.bin", "tokenizer.json")
_LIBRARIES = ("openvino", "torch", "transformers", "tokenizers")
# Least cosines to torch's float32: the same, and what counts as accurate.
LEAST_COSINES = {"float32": 0.99999, "bfloat16": 0.9998}

# One thread a batch is best, but OpenVINO 2026.4 divides by zero where it fuses a decoder's layers for one thread.
_THREADS = (1, 2)
# With less on the disk, a conversion has failed for want of space.
_LEAST_SPACE = 2**26


class NotConvertedError(ConfigurationError):
    """OpenVINO can't run a model, or not accurately enough."""


@dataclass(frozen=True)
class Conversion:
    """What a conversion's folder holds, beside the graph and the tokenizer.

    key: the folder's name. threads: how many run a batch. cosines: the least to torch's float32, by
    the dtypes that this CPU has. problem: why there is no graph; empty where there is one. digests:
    sha256 of the other files.
    """

    key: str = ""
    pad_id: int = 0
    threads: int = 1
    cosines: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)


def is_ready(spec: ModelSpec) -> bool:
    """Tell whether a usable conversion lies in the cache."""
    conversion = _read(_folder(spec))
    return conversion is not None and not conversion.problem


def converted(spec: ModelSpec, dtype: str) -> tuple[Path, Conversion]:
    """Return the folder of a model's conversion, which is made where there is none yet, or where it is
    damaged.

    Raises NotConvertedError where OpenVINO can't run the model, or not accurately in `dtype`, or
    where there is no place for it. That, too, is found out once.
    """
    folder = _folder(spec)
    try:
        conversion = _read_whole(folder) or _make(spec, folder)
    except OSError as error:
        raise NotConvertedError(
            f"OpenVINO's graph can't be kept in {folder}: {error.strerror}",
            "set XDG_CACHE_HOME, or --backend torch",
        ) from None
    name = spec.files.id
    if conversion.problem:
        raise NotConvertedError(
            f"{name}: OpenVINO can't run it: {conversion.problem}",
            f"--backend torch; to have it tried again, remove {folder}",
        )
    if dtype not in conversion.cosines:
        raise NotConvertedError(
            f"{name}: OpenVINO can't run it in {dtype}, which this CPU doesn't have",
            "--dtype float32, or --backend torch",
        )
    if conversion.cosines[dtype] < LEAST_COSINES[dtype]:
        raise NotConvertedError(
            f"{name}: by OpenVINO in {dtype} its vectors have a cosine of "
            f"{conversion.cosines[dtype]:.5f} to exact ones",
            "--dtype float32, or --backend torch",
        )
    return folder, conversion


def _read(folder: Path) -> Conversion | None:
    """Return what a folder of this user says of itself; None where it isn't there."""
    try:
        status = folder.stat()
        if status.st_uid == os.geteuid() and not status.st_mode & 0o022:
            content = (folder / "conversion.json").read_bytes()
            conversion = msgspec.json.decode(content, type=Conversion)
            return conversion if conversion.key == folder.name else None
    except (OSError, msgspec.DecodeError):
        pass
    return None


def _read_whole(folder: Path) -> Conversion | None:
    """Return what a folder says of itself; None where its files aren't what was written."""
    conversion = _read(folder)
    if conversion is None or conversion.problem:
        return conversion
    try:
        is_whole = conversion.digests == _digests(folder, conversion.digests)
    except OSError:
        return None
    return conversion if is_whole else None


def _digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    digests = {}
    for name in names:
        with (folder / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _make(spec: ModelSpec, folder: Path) -> Conversion:
    """Convert a model into a folder. Of several processes one does it, the others wait."""
    folder.parent.mkdir(0o700, parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: each converts
            pass
        else:
            for leftover in folder.parent.glob(f"{folder.name}.unfinished-*"):
                shutil.rmtree(leftover, ignore_errors=True)  # of a process that was killed
        conversion = _read_whole(folder)
        if conversion is not None:
            return conversion
        unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.unfinished-", dir=folder.parent))
        try:
            conversion = _convert(spec, unfinished)
            names = [] if conversion.problem else _FILES
            digests = _digests(unfinished, names)
            conversion = replace(conversion, key=folder.name, digests=digests)
            (unfinished / "conversion.json").write_bytes(msgspec.json.encode(conversion))
            shutil.rmtree(folder, ignore_errors=True)
            rename(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return conversion


def _convert(spec: ModelSpec, folder: Path) -> Conversion:
    """Convert in a process of its own, which brings torch and may die of OpenVINO's faults.

    Raises NotConvertedError where it was killed, which says nothing of the model.
    """
    for threads in _THREADS:
        with pool(1) as child:
            tracing = child.submit(_trace, spec, folder, threads)
            (process,) = child._processes.values()  # there is no other way to its exit code
            try:
                return tracing.result()
            except BrokenProcessPool:
                process.join()
                if process.exitcode in (-signal.SIGKILL, -signal.SIGTERM):
                    raise _interrupted(spec, "it was killed") from None
            except (MemoryError, DeviceError, ImportError) as error:
                raise _interrupted(spec, str(error)) from None
    return Conversion(problem="it dies of it")


def _interrupted(spec: ModelSpec, reason: str) -> NotConvertedError:
    """Return the error for what says nothing of the model, and is not kept."""
    return NotConvertedError(
        f"{spec.files.id}: can't be converted for OpenVINO: {reason}",
        "is there too little memory? --backend torch",
    )


def _trace(spec: ModelSpec, folder: Path, threads: int) -> Conversion:
    environment.prepare()
    from embedcli.encoder.tracing import trace

    try:
        return trace(spec, folder, threads)
    except NotConvertedError as error:
        return Conversion(problem=error.message)
    except Exception as error:  # the converter's own, of many kinds
        # What torch can't run either, or what has nothing to do with the model, is not kept.
        if isinstance(error, ImportError) or as_foreseen(error) is not None:
            raise
        if shutil.disk_usage(folder).free < _LEAST_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from None
        return Conversion(problem=" ".join(f"{type(error).__name__}: {error}".split())[:200])


def cache_folder() -> Path:
    """Return where all conversions are kept."""
    return (machine.user_cache() or Path("/nonexistent")) / "embedcli" / "openvino"


def _folder(spec: ModelSpec) -> Path:
    """Return where a model's conversion is kept."""
    # The space is one for all roles; a role may have weights and modules of its own.
    folders = [spec.base, spec.folder, *spec.adapters]
    folders += [module.folder for module in (*spec.token_modules, *spec.text_modules)]
    depends_on = {
        "version": _VERSION,
        "digests": [spec.weights, spec.tokenizer, spec.config],
        "pipeline": [spec.model_type, *spec.pipeline],
        "modules": [str(module.dense) for module in spec.text_modules],
        "folders": [_inside(path, spec.files.path) for path in folders],
        "full_dim": spec.full_dim,
        "libraries": {name: metadata.version(name) for name in _LIBRARIES},
        "cpu": sorted(machine.cpu().flags),
    }
    name = hashlib.sha256(json.dumps(depends_on, sort_keys=True, default=str).encode()).hexdigest()[
        :32
    ]
    return cache_folder() / name


def _inside(path: Path | None, model: Path | None) -> str:
    return "" if path is None or model is None else os.path.relpath(path, model)
