"""All processes of a run compute as the first that loaded the model."""

from types import SimpleNamespace

import pytest

from embedcli.computation import Computation
from embedcli.config import RunOptions
from embedcli.errors import ConfigurationError
from embedcli.run import loading
from embedcli.store.staging import Staging


@pytest.fixture
def stage(tmp_path):
    (tmp_path / "run").mkdir()
    return Staging(tmp_path, tmp_path / "o", "token")


def job_of(run):
    return SimpleNamespace(run=run, template=None, spec=SimpleNamespace(max_length=8))


@pytest.fixture
def load(stage, monkeypatch):
    """A function that loads on a machine of a kind; gives the options that the model was asked for."""
    monkeypatch.setattr(loading, "check_template", lambda *facts: None)

    def on(dtype, compiled=False, can_compile=True, run=None):
        asked = []

        def model(spec, options):
            asked.append((options.dtype, options.compile))
            wanted = dtype if options.dtype == "auto" else options.dtype
            code = compiled if options.compile == "auto" else options.compile == "on"
            return SimpleNamespace(computation=Computation("cpu", wanted, code and can_compile))

        monkeypatch.setattr(loading.encoder, "load", model)
        job = job_of(run or RunOptions())
        loaded = loading.load_model(job, stage, "cpu")
        return asked, (loaded.computation.dtype, loaded.computation.compiled)

    on.stage = stage
    return on


def test_the_first_decides_and_the_others_obey(load):
    assert load("bfloat16", compiled=True) == ([("auto", "auto")], ("bfloat16", True))
    assert load("float32") == ([("bfloat16", "on")], ("bfloat16", True))


def test_of_two_at_once_the_later_loads_again(load, stage, monkeypatch):
    """It has loaded its own way when the other one's word appears."""
    real = loading._agree
    first = loading._Agreement("torch", "bfloat16", compiled=False)
    monkeypatch.setattr(loading, "_agree", lambda stage, mine: real(stage, first))
    assert load("float32") == ([("auto", "auto"), ("bfloat16", "off")], ("bfloat16", False))


def test_what_a_cpu_began_goes_on_so_where_there_are_gpus(stage, monkeypatch):
    """Nobody has named the device, which OpenVINO can't use."""
    (stage.run / "computation.json").write_text(
        '{"backend": "openvino", "dtype": "float32", "compiled": false}'
    )
    monkeypatch.setattr(loading, "check_template", lambda *facts: None)
    asked = []

    def model(spec, options):
        asked.append((options.backend, options.device))
        return SimpleNamespace(computation=Computation("cpu", "float32", backend="openvino"))

    monkeypatch.setattr(loading.encoder, "load", model)
    for device in ("auto", "cuda"):
        job = job_of(RunOptions(device=device))
        loading.load_model(job, stage, "cuda:0")
    assert asked == [("openvino", "cpu"), ("openvino", "cuda:0")]


def test_the_error_names_what_the_others_do(load, monkeypatch):
    load("bfloat16")

    def fails(spec, options):
        raise ConfigurationError("no bfloat16 here")

    monkeypatch.setattr(loading.encoder, "load", fails)
    job = job_of(RunOptions())
    with pytest.raises(ConfigurationError, match="others of this run compute in bfloat16 by torch"):
        loading.load_model(job, load.stage, "cpu")


def test_who_cannot_compute_so_is_refused(load):
    load("bfloat16", compiled=True)
    with pytest.raises(
        ConfigurationError,
        match="in bfloat16 by torch, others of this run in bfloat16 by torch, comp",
    ):
        load("float32", can_compile=False)
