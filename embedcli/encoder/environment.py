"""What must be settled before torch is imported. Imports no torch itself.

A trap of virtual machines: matrix tiles (AMX) that are announced but not described. oneDNN reads
the tiles' shapes from CPUID leaves 0x1D and 0x1E. Some hypervisors pass the AMX flags on and cut
those leaves off; oneDNN then configures no tile, and the first bfloat16 product ends the process
with SIGILL.
"""

import os
import re
from pathlib import Path

_TILE_LEAF = 0x1E


def prepare() -> None:
    """Set the environment for torch, transformers and tokenizers."""
    _avoid_undescribed_tiles()
    # transformers would send the model's name to a conversion service and load what comes back.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    # The choice made here keeps the tokenizers' warning about forks away.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


def has_tiles(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Tell whether bfloat16 products run on tiles.

    (Without them they are slower than float32: measured 0.6 times.)
    """
    announced, described = _tiles(cpuinfo)
    return announced and described


def announces_tiles(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Tell whether compiled code can use tiles: it goes by the announcement and knows their shapes."""
    return _tiles(cpuinfo)[0]


def _avoid_undescribed_tiles(cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Keep oneDNN away from tiles that this CPU doesn't describe."""
    announced, described = _tiles(cpuinfo)
    if announced and not described:
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")


def _tiles(cpuinfo: Path) -> tuple[bool, bool]:
    """Are tiles for bfloat16 announced, and are they described?"""
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        return False, False
    leaves = re.search(r"^cpuid level\s*:\s*(\d+)", text, re.MULTILINE)
    return "amx_bf16" in text, leaves is not None and int(leaves.group(1)) >= _TILE_LEAF
