"""What runs a model: by facts of the machine and of what is asked for, the same each time."""

import dataclasses

import pytest

from embedcli import machine
from embedcli.config import RunOptions
from embedcli.encoder import choice
from embedcli.errors import ConfigurationError

AMX = machine.Cpu("GenuineIntel", frozenset({"amx_bf16", "avx512_bf16"}), 0x20)
HIDDEN = dataclasses.replace(AMX, cpuid_level=0x16)
ZEN4 = machine.Cpu("AuthenticAMD", frozenset({"avx512_bf16"}), 0x10)
COOPER_LAKE = machine.Cpu("GenuineIntel", frozenset({"avx512_bf16"}), 0x16)
OLD = machine.Cpu("GenuineIntel", frozenset({"avx2"}), 0x16)
MANY = 20_000_000


def chosen(monkeypatch, cpu, installed=True, compiler=True, is_converted=False, **options):
    monkeypatch.setattr(machine, "cpu", lambda: cpu)
    monkeypatch.setattr(choice, "has_openvino", lambda: installed)
    monkeypatch.setattr(choice, "_has_compiler", lambda: compiler)
    options = RunOptions(**{"device": "cpu", **options})
    found = choice.choose_for_cpu(options, "bert", is_converted)
    return found.backend, found.dtype, found.compiled


@pytest.mark.parametrize(
    ("cpu", "options", "expected"),
    [
        (AMX, {"expected_tokens": MANY}, ("openvino", "bfloat16", False)),
        (AMX, {"expected_tokens": 100}, ("torch", "bfloat16", False)),
        (AMX, {"is_converted": True}, ("openvino", "bfloat16", False)),
        (AMX, {"is_converted": True, "dtype": "float32"}, ("openvino", "float32", False)),
        (AMX, {"is_converted": True, "dtype": "float16"}, ("torch", "float16", False)),
        (AMX, {"is_converted": True, "compile": "on"}, ("torch", "bfloat16", True)),
        (AMX, {"is_converted": True, "backend": "torch"}, ("torch", "bfloat16", False)),
        (AMX, {"is_converted": True, "plain": True}, ("torch", "bfloat16", False)),
        (AMX, {"installed": False, "expected_tokens": MANY}, ("torch", "bfloat16", True)),
        (AMX, {"installed": False, "expected_tokens": MANY, "compiler": False}, ("torch", "bfloat16", False)),
        (AMX, {"installed": False, "expected_tokens": 1_000_000}, ("torch", "bfloat16", False)),
        (HIDDEN, {"expected_tokens": MANY}, ("torch", "bfloat16", True)),
        (HIDDEN, {"expected_tokens": 100}, ("torch", "float32", False)),
        (HIDDEN, {"expected_tokens": MANY, "dtype": "float32"}, ("torch", "float32", False)),
        (HIDDEN, {"expected_tokens": 200_000, "dtype": "bfloat16"}, ("torch", "bfloat16", True)),
        (HIDDEN, {"compile": "if-possible"}, ("torch", "bfloat16", True)),
        (HIDDEN, {"backend": "openvino"}, ("openvino", "float32", False)),
        (ZEN4, {"expected_tokens": MANY}, ("openvino", "bfloat16", False)),
        (ZEN4, {"installed": False, "expected_tokens": MANY}, ("torch", "bfloat16", False)),
        (COOPER_LAKE, {"installed": False, "expected_tokens": MANY}, ("torch", "float32", False)),
        (OLD, {"expected_tokens": MANY}, ("openvino", "float32", False)),
        (OLD, {"installed": False, "expected_tokens": MANY}, ("torch", "float32", False)),
        (machine.Cpu(), {"installed": False}, ("torch", "float32", False)),
    ],
)  # fmt: skip
def test_facts_decide(monkeypatch, cpu, options, expected):
    assert chosen(monkeypatch, cpu, **options) == expected


def test_a_model_that_was_never_measured_is_left_to_torch(monkeypatch):
    monkeypatch.setattr(machine, "cpu", lambda: AMX)
    monkeypatch.setattr(choice, "has_openvino", lambda: True)
    options = RunOptions(expected_tokens=MANY)
    left = choice.choose_for_cpu(options, "unheard-of", is_converted=True)
    assert left.backend == "torch"
    assert "openvino" not in left.reason


@pytest.mark.parametrize(("cpu", "tokens"), [(AMX, 150_000), (ZEN4, 250_000), (OLD, 350_000)])
def test_a_conversion_pays_from_so_many_tokens_on(monkeypatch, cpu, tokens):
    assert chosen(monkeypatch, cpu, expected_tokens=tokens)[0] == "openvino"
    assert chosen(monkeypatch, cpu, expected_tokens=tokens - 1)[0] == "torch"


def test_a_folder_named_openvino_is_not_openvino(tmp_path, monkeypatch):
    """Repositories of sentence-transformers have one."""
    (tmp_path / "openvino").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(choice.metadata, "version", _not_installed)
    assert not choice.has_openvino()


def _not_installed(name):
    raise choice.metadata.PackageNotFoundError(name)


def test_what_was_chosen_gives_the_same_reason_when_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(machine, "cpu", lambda: AMX)
    for installed in (True, False):
        monkeypatch.setattr(choice, "has_openvino", lambda there=installed: there)
        by_itself = choice.choose_for_cpu(RunOptions(expected_tokens=MANY), "bert", False)
        again = RunOptions(
            backend=by_itself.backend,
            dtype=by_itself.dtype,
            compile="on" if by_itself.compiled else "off",
        )
        assert choice.choose_for_cpu(again, "bert", True) == by_itself


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"device": "cuda:0"}, "--device cpu"),
        ({"compile": "on"}, "--compile auto"),
        ({"dtype": "float16"}, "--dtype bfloat16"),
    ],
)
def test_openvino_with_what_it_has_not_is_refused(monkeypatch, options, hint):
    monkeypatch.setattr(choice, "has_openvino", lambda: True)
    with pytest.raises(ConfigurationError) as raised:
        choice.check(RunOptions(backend="openvino", **options))
    assert hint in raised.value.hint


def test_openvino_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(choice, "has_openvino", lambda: False)
    with pytest.raises(ConfigurationError) as raised:
        choice.check(RunOptions(backend="openvino"))
    assert "embedcli[openvino]" in raised.value.hint


def test_the_first_cpu_of_cpuinfo_counts(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text(
        "vendor_id\t: AuthenticAMD\ncpuid level\t: 16\nflags\t\t: fpu avx512_bf16\n\nflags : x\n"
    )
    assert machine.read_cpu(path) == machine.Cpu(
        "AuthenticAMD", frozenset({"fpu", "avx512_bf16"}), 16
    )
    assert machine.read_cpu(tmp_path / "none") == machine.Cpu()
