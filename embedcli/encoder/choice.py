"""What runs a model fastest on this machine: backend, dtype, compilation.

Facts decide, never a timing, which doesn't repeat: the CPU's flags, the model's class, what is
installed. The table is made from measurements, which tests/benchmarks/README.md keeps.
"""

import importlib.util
import os
import shutil
from dataclasses import dataclass
from typing import NamedTuple

from embedcli import machine
from embedcli.config import RunOptions
from embedcli.errors import ConfigurationError


class _Row(NamedTuple):
    """What is fastest on a kind of CPU.

    kind: in words; dtype: what torch runs fastest by itself; compiled_from: how many tokens pay for
    compiling to bfloat16, None where that is slower; openvino: is it faster than torch?
    """

    kind: str
    dtype: str
    compiled_from: int | None
    openvino: bool

    @property
    def fastest(self) -> str:
        """What is fastest of all."""
        if self.openvino:
            return f"{self.dtype} by openvino"
        return "compiled bfloat16 by torch" if self.compiled_from else f"{self.dtype} by torch"


# 15 to 30 seconds of compilation against what a token saves; measured with MiniLM (384 x 1536). Both grow with the
# layers, so that their number drops out. Where the libraries use the tiles, too, compiled code gains a tenth.
_TILES = _Row("a CPU with matrix tiles (AMX)", "bfloat16", 10_000_000, openvino=True)
_HIDDEN_TILES = _Row(
    "a CPU whose matrix tiles (AMX) only compiled code can use", "float32", 500_000, openvino=False
)
# Intel's own are as fast in float32.
_AMD_BFLOAT16 = _Row("an AMD CPU with AVX512-BF16", "bfloat16", None, openvino=True)
_OTHER = _Row("a CPU without fast bfloat16", "float32", None, openvino=True)
# Asked for bfloat16, the alternative to compiled code is slower than float32.
_COMPILED_BFLOAT16_FROM = 150_000

# Models that were converted and measured; others are converted on demand.
_CONVERTED = {"bert", "distilbert", "electra", "mpnet", "modernbert", "roberta", "xlm-roberta"}
# A conversion takes about 10 s; it is kept.
_CONVERSION_FROM = 300_000


@dataclass(frozen=True)
class Choice:
    """How a model is to be computed, and why so."""

    backend: str
    dtype: str
    compiled: bool
    reason: str


def choose_for_cpu(options: RunOptions, model_type: str, is_converted: bool) -> Choice:
    """Choose for a CPU. `is_converted`: a conversion of the model lies ready."""
    row = _row()
    if options.backend == "openvino" or _takes_openvino(row, options, model_type, is_converted):
        return _explained(row, "openvino", _dtype(options, row.dtype), compiled=False)
    compiled = _compiles(row, options)
    fastest = "bfloat16" if compiled and row.compiled_from else row.dtype
    return _explained(row, "torch", _dtype(options, fastest), compiled)


def _dtype(options: RunOptions, fastest: str) -> str:
    return fastest if options.dtype == "auto" else options.dtype


def _explained(row: _Row, backend: str, dtype: str, compiled: bool) -> Choice:
    """Say why: by facts of the machine alone, so that a run that was interrupted says the same."""
    fastest = row.fastest
    if f"{'compiled ' if compiled else ''}{dtype} by {backend}" == fastest:
        reason = f"fastest on {row.kind}"
    else:
        missing = ", which isn't installed" if row.openvino and not has_openvino() else ""
        reason = f"long runs are fastest on {row.kind} in {fastest}{missing}"
    return Choice(backend, dtype, compiled, reason)


def check(options: RunOptions) -> None:
    """See that the options go together. Raises ConfigurationError."""
    if options.backend != "openvino":
        return
    if options.device.startswith("cuda"):
        raise ConfigurationError(
            f"--device {options.device}: OpenVINO runs on CPUs", "--device cpu"
        )
    if options.compile == "on":
        raise ConfigurationError("--compile on: OpenVINO compiles by itself", "--compile auto")
    if options.dtype == "float16":
        raise ConfigurationError(
            "--dtype float16: OpenVINO's CPU code has none", "--dtype bfloat16, or float32"
        )
    if not has_openvino():
        raise ConfigurationError(
            "--backend openvino: it isn't installed",
            "pip install 'embedcli[openvino]', or --backend torch",
        )


def has_openvino() -> bool:
    """Tell whether OpenVINO is installed."""
    return importlib.util.find_spec("openvino") is not None


def _has_compiler() -> bool:
    """Tell whether there is a C++ compiler."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def _row() -> _Row:
    cpu = machine.cpu()
    if cpu.has_tiles:
        return _TILES
    if cpu.announces_tiles:
        return _HIDDEN_TILES
    if cpu.vendor == "AuthenticAMD" and "avx512_bf16" in cpu.flags:
        return _AMD_BFLOAT16
    return _OTHER


def _takes_openvino(row: _Row, options: RunOptions, model_type: str, is_converted: bool) -> bool:
    if options.backend != "auto" or options.plain or options.compile == "on":
        return False
    if not row.openvino or model_type not in _CONVERTED or not has_openvino():
        return False
    if options.dtype not in ("auto", "float32", row.dtype):
        return False
    return is_converted or (options.expected_tokens or 0) >= _CONVERSION_FROM


def _compiles(row: _Row, options: RunOptions) -> bool:
    """Tell whether compiled code is asked for, or pays."""
    if options.compile in ("on", "off"):
        return options.compile == "on"
    if not _has_compiler() or row.compiled_from is None:
        return False
    if options.compile == "if-possible":
        return True
    least = {"auto": row.compiled_from, "bfloat16": min(row.compiled_from, _COMPILED_BFLOAT16_FROM)}
    if row.dtype == "bfloat16":
        least["bfloat16"] = row.compiled_from
    return (options.expected_tokens or 0) >= least.get(options.dtype, float("inf"))
