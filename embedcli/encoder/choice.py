"""What runs a model fastest on this machine: backend, dtype, compilation.

Facts decide, never a timing, which doesn't repeat: the CPU's flags, the model's class, what is
installed. The table is made from measurements, which tests/benchmarks/README.md keeps.
"""

import os
import shutil
from dataclasses import dataclass, replace
from importlib import metadata
from typing import NamedTuple

from embedcli import machine
from embedcli.config import RunOptions
from embedcli.errors import ConfigurationError


class _Row(NamedTuple):
    """What is fastest on a kind of CPU.

    kind: in words; dtype: what torch runs fastest by itself; compiled_from: how many tokens pay for
    compiling to bfloat16, converted_from: how many for a conversion to OpenVINO; None where that is
    slower.
    """

    kind: str
    dtype: str
    compiled_from: int | None
    converted_from: int | None

    def fastest(self, may_be_converted: bool) -> str:
        """Return what is fastest of all, for a model that OpenVINO may run or may not."""
        if may_be_converted and self.converted_from is not None:
            return f"{self.dtype} by openvino"
        return "compiled bfloat16 by torch" if self.compiled_from else f"{self.dtype} by torch"


# 15 to 30 seconds of compilation against what a token saves; measured with MiniLM (384 x 1536). Both grow with the
# layers, so that their number drops out. Where the libraries use the tiles, too, compiled code gains a tenth.
# A conversion, which is kept, takes 5 to 13 s longer than loading by torch, against what a token saves.
_TILES = _Row("a CPU with matrix tiles (AMX)", "bfloat16", 10_000_000, 150_000)
_HIDDEN_TILES = _Row(
    "a CPU whose matrix tiles (AMX) only compiled code can use", "float32", 500_000, None
)
# Intel's own are as fast in float32.
_AMD_BFLOAT16 = _Row("an AMD CPU with AVX512-BF16", "bfloat16", None, 250_000)
_OTHER = _Row("a CPU without fast bfloat16", "float32", None, 350_000)
# Asked for bfloat16, the alternative to compiled code is slower than float32.
_COMPILED_BFLOAT16_FROM = 150_000

# Models that were converted and measured; others are converted on demand.
_CONVERTED = {"bert", "distilbert", "electra", "mpnet", "modernbert", "roberta", "xlm-roberta"}


@dataclass(frozen=True)
class Choice:
    """How a model is to be computed, and why so; `note`: what people should know of it besides."""

    backend: str
    dtype: str
    compiled: bool
    reason: str = ""
    note: str = ""


def choose_for_cpu(options: RunOptions, model_type: str, is_converted: bool) -> Choice:
    """Choose for a CPU. `is_converted`: a conversion of the model lies ready."""
    row, may_be_converted = _row(), model_type in _CONVERTED
    if options.backend == "openvino" or (
        may_be_converted and _takes_openvino(row, options, is_converted)
    ):
        choice = Choice("openvino", _dtype(options, row.dtype), compiled=False)
    else:
        compiled = _compiles(row, options)
        fastest = "bfloat16" if compiled and row.compiled_from else row.dtype
        choice = Choice("torch", _dtype(options, fastest), compiled)
    return replace(choice, reason=_reason(row, choice, may_be_converted))


def _dtype(options: RunOptions, fastest: str) -> str:
    return fastest if options.dtype == "auto" else options.dtype


def _reason(row: _Row, choice: Choice, may_be_converted: bool) -> str:
    """Say why: by facts of machine and model alone, so that a run that was interrupted says the same."""
    fastest = row.fastest(may_be_converted)
    if f"{'compiled ' if choice.compiled else ''}{choice.dtype} by {choice.backend}" == fastest:
        return f"fastest on {row.kind}"
    is_missing = fastest.endswith("openvino") and not has_openvino()
    missing = ", which isn't installed" if is_missing else ""
    return f"long runs are fastest on {row.kind} in {fastest}{missing}"


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
    """Tell whether OpenVINO is installed: a folder of that name may be anything."""
    try:
        return bool(metadata.version("openvino"))
    except metadata.PackageNotFoundError:
        return False


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


def _takes_openvino(row: _Row, options: RunOptions, is_converted: bool) -> bool:
    if options.backend != "auto" or options.plain or options.compile == "on":
        return False
    if row.converted_from is None or not has_openvino():
        return False
    if options.dtype not in ("auto", "float32", row.dtype):
        return False
    return is_converted or (options.expected_tokens or 0) >= row.converted_from


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
