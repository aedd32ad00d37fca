"""What must be settled before torch is imported. Imports no torch itself.

A trap of virtual machines: matrix tiles (AMX) that are announced but not described. oneDNN reads
the tiles' shapes from CPUID leaves 0x1D and 0x1E. Some hypervisors pass the AMX flags on and cut
those leaves off; oneDNN then configures no tile, and the first bfloat16 product ends the process
with SIGILL.
"""

import os
import sys

from embedcli import machine


def prepare() -> None:
    """Set the environment for torch, transformers, tokenizers and OpenVINO."""
    _avoid_undescribed_tiles(machine.cpu())
    # transformers would send the model's name to a conversion service and load what comes back.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    # The choice made here keeps the tokenizers' warning about forks away.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # When it is imported, OpenVINO would tell its makers, by a process that it forks; without this it has a stub.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def _avoid_undescribed_tiles(cpu: machine.Cpu) -> None:
    """Keep oneDNN away from tiles that this CPU doesn't describe."""
    if cpu.announces_tiles and not cpu.has_tiles:
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
