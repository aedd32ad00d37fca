"""What this machine has: its CPU, and whether there may be a CUDA device. Imports no torch."""

import contextlib
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

# The CPUID leaf that describes matrix tiles.
_TILE_LEAF = 0x1E
# What the drivers of NVIDIA (also under WSL and on Jetson) and AMD leave in /dev.
_GPU_DEVICES = ("nvidia*", "dxg", "nvmap", "kfd")


@dataclass(frozen=True)
class Cpu:
    """What /proc/cpuinfo says of the CPU; nothing on other systems than Linux."""

    vendor: str = ""
    flags: frozenset[str] = frozenset()
    cpuid_level: int = 0

    @property
    def announces_tiles(self) -> bool:
        """Can compiled code use tiles for bfloat16? It goes by the announcement and knows their shapes."""
        return "amx_bf16" in self.flags

    @property
    def has_bfloat16(self) -> bool:
        """Are there instructions for bfloat16 that the libraries can use?"""
        return "avx512_bf16" in self.flags or self.has_tiles

    @property
    def has_tiles(self) -> bool:
        """Can the libraries use tiles, too?"""
        return self.announces_tiles and self.cpuid_level >= _TILE_LEAF


@cache
def cpu() -> Cpu:
    """Return this machine's CPU."""
    return read_cpu(Path("/proc/cpuinfo"))


def read_cpu(path: Path) -> Cpu:
    """Read the first CPU of a file such as /proc/cpuinfo; an empty one where there is no such file."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return Cpu()
    values = {}
    for name in ("vendor_id", "flags", "cpuid level"):
        line = re.search(rf"^{name}\s*:\s*(.*)$", text, re.MULTILINE)
        values[name] = line.group(1) if line is not None else ""
    level = values["cpuid level"]
    return Cpu(
        values["vendor_id"],
        frozenset(values["flags"].split()),
        int(level) if level.isdecimal() else 0,
    )


def versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    installed = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def user_cache() -> Path | None:
    """Return the folder of the user's caches; None of a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None


def cores() -> int:
    """Count the cores that this process may use: its share, where a launcher or we have said so."""
    share = os.environ.get("OMP_NUM_THREADS", "")
    return int(share) if share.isdecimal() and int(share) else len(os.sched_getaffinity(0))


@cache
def may_have_cuda() -> bool:
    """Tell whether it is worth asking torch for CUDA devices, which takes its import."""
    try:
        if metadata.version("torch").endswith("+cpu"):
            return False
    except metadata.PackageNotFoundError:
        return False
    return sys.platform != "linux" or any(any(Path("/dev").glob(name)) for name in _GPU_DEVICES)
