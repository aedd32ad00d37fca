"""What only a GPU shows. test_attention.py, test_memory.py and test_fake_cuda.py are the twins on a CPU.

Under EMBEDCLI_REQUIRE_GPU=1 a missing GPU, or a missing package, is a failure. Runs with torch,
transformers, numpy, safetensors, tokenizers and msgspec; the whole runs at the end need all packages.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from embedcli.encoder import forward, memory
from embedcli.encoder.forward import TorchEncoder, embed
from embedcli.encoder.model import LoadedModel
from tests import shapes
from tests.conftest import REQUIRES_GPU, run_process, start

pytestmark = pytest.mark.gpu

LENGTHS = [2, 63, 64, 65, 127, 128, 129, 300, 511, 512, 1, 7, 7, 7, 90, 40]
SMALL = {
    "qwen2-7b": {
        "hidden_size": 512,
        "num_attention_heads": 8,
        "intermediate_size": 1024,
        "head_dim": 64,
    }
}
FAMILIES = list(shapes.SHAPES)
HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _gpu():
    if not torch.cuda.is_available():
        if REQUIRES_GPU:
            pytest.fail("no CUDA device, though EMBEDCLI_REQUIRE_GPU=1")
        pytest.skip("needs a CUDA device")
    torch.cuda.empty_cache()
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def model_of(name, dtype=torch.bfloat16, **changes):
    return shapes.model_of(name, "cuda", dtype, **(SMALL.get(name, {}) | changes))


def encoded(model, tokens):
    return TorchEncoder(model).encode(tokens, lambda rows, count: None)


def exact(model, tokens):
    """The padded vectors of transformers on a CPU, in float32."""
    reference = dataclasses.replace(model.in_float32(torch.device("cpu")), packing=None)
    if model.packing is not None:
        reference.transformer.set_attn_implementation(model.packing.own)
    return encoded(reference, tokens).vectors


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_kernel_for_any_length_is_found(name, dtype):
    packing = model_of(name, dtype).packing
    assert (packing.kernel, packing.reason) == ("varlen", "")


@pytest.mark.parametrize(
    ("dtype", "least"),
    [(torch.float32, 1 - 1e-5), (torch.bfloat16, 0.999), (torch.float16, 0.9999)],
    ids=str,
)
@pytest.mark.parametrize("name", FAMILIES)
def test_vectors_are_the_padded_ones_of_a_cpu(name, dtype, least):
    model, tokens = model_of(name, dtype, num_hidden_layers=4), shapes.tokens_of(LENGTHS)
    vectors = encoded(model, tokens).vectors
    assert (vectors * exact(model, tokens)).sum(axis=1).min() >= least
    alone = encoded(model, shapes.tokens_of(LENGTHS[:1])).vectors
    assert np.isfinite(alone).all()


@pytest.mark.parametrize(
    "lengths", [[2] * 33_000, [512] * 200, [1] * 70_000], ids=["2", "512", "1"]
)
def test_large_packs(lengths):
    model, tokens = model_of("minilm"), shapes.tokens_of(lengths)
    encoded_texts = encoded(dataclasses.replace(model, batch_tokens=1 << 18), tokens)
    assert not encoded_texts.failed
    few = shapes.tokens_of(lengths)
    rows = np.arange(0, len(lengths), len(lengths) // 16)
    with torch.inference_mode():
        apart = embed(model, few, rows).cpu().numpy()
    assert np.abs(apart - encoded_texts.vectors[rows]).max() <= 1e-3


def test_the_same_bytes_twice_and_nearly_so_in_other_packs():
    model, tokens = model_of("minilm"), shapes.tokens_of(LENGTHS * 50)
    first, second = (encoded(model, tokens).vectors for _ in range(2))
    assert first.tobytes() == second.tobytes()
    other = encoded(dataclasses.replace(model, batch_tokens=2000), tokens).vectors
    assert np.abs(first - other).max() <= 1e-3


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_no_copy_of_a_pack_waits_for_the_gpu(name):
    model, tokens = model_of(name, num_hidden_layers=2), shapes.tokens_of(LENGTHS)
    rows = np.arange(len(LENGTHS))
    embed(model, tokens, rows)  # what is set up once may wait
    try:
        torch.cuda.set_sync_debug_mode("error")
        embed(model, tokens, rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_batches_that_do_not_fit_are_halved_and_nothing_is_lost():
    model, tokens = model_of("minilm"), shapes.tokens_of([128] * 512)
    expected = encoded(model, tokens).vectors
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    _leave_room_for(160 * 2**20)
    encoder = TorchEncoder(model)
    halved = encoder.encode(tokens, lambda rows, count: None)
    assert not halved.failed
    assert encoder._budget < model.batch_tokens
    assert np.abs(halved.vectors - expected).max() <= 1e-3
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() <= before + 2**20


def test_a_text_that_never_fits_is_told_and_the_others_are_encoded():
    model = model_of("minilm", max_position_embeddings=200_000)
    tokens = shapes.tokens_of([16, 190_000, 32])
    _leave_room_for(160 * 2**20)
    failed = encoded(model, tokens).failed
    assert set(failed) == {1}
    assert "don't fit" in failed[1]


def test_a_row_without_a_finite_vector_is_repaired_where_float32_does_not_fit(monkeypatch):
    model, tokens = model_of("minilm", num_hidden_layers=2), shapes.tokens_of([8, 9, 10])
    expected = encoded(model, tokens).vectors
    in_float32 = LoadedModel.in_float32

    def spoiled(model, tokens, rows):
        vectors = embed(model, tokens, rows)
        return vectors if model.dtype == torch.float32 else vectors * torch.nan

    def without_room(model, device):
        if device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return in_float32(model, device)

    monkeypatch.setattr(forward, "embed", spoiled)
    monkeypatch.setattr(LoadedModel, "in_float32", without_room)
    repaired = encoded(model, tokens)
    assert not repaired.failed
    np.testing.assert_allclose(repaired.vectors, expected, atol=1e-2)


def _leave_room_for(size):
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + size) / total)


def test_the_words_of_an_exhausted_gpu_are_known():
    _leave_room_for(2**20)
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**30, device="cuda")
    assert memory.is_exhausted(raised.value)


def test_compiled_code_gives_the_same_vectors():
    model, tokens = model_of("qwen3-0.6b", num_hidden_layers=4), shapes.tokens_of(LENGTHS)
    vectors = encoded(shapes.compiled(model), tokens).vectors
    assert (vectors * encoded(model, tokens).vectors).sum(axis=1).min() >= 0.999


# Whole runs.


@pytest.fixture
def corpus(tmp_path):
    for package in ("duckdb", "msgspec", "pyarrow", "typer"):
        if REQUIRES_GPU:
            __import__(package)
        pytest.importorskip(package)
    path = tmp_path / "c.jsonl"
    rows = (f"text {i} " + "of the sea and the moon " * (i % 30) for i in range(20_000))
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


def command(tiny_bert, corpus, output, *options):
    fixed = ["--role", "query", "--template", "{text}", "--model", tiny_bert, "--quiet"]
    return ["encode", corpus, *fixed, "-o", output, *options]


def test_processes_that_share_a_gpu_give_the_bytes_of_one(tiny_bert, corpus, tmp_path):
    outputs = [tmp_path / f"{count}.parquet" for count in (1, 2)]
    for count, output in enumerate(outputs, 1):
        ran = run_process(*command(tiny_bert, corpus, output, "--num-processes", count))
        assert ran.code == 0, ran.err
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_a_device_side_assert_is_a_lost_device(tmp_path):
    """An index out of range ends all use of the GPU by its process."""
    script = (
        "import torch\nfrom embedcli.errors import ending_of\n"
        "try:\n    torch.zeros(2, device='cuda')[torch.tensor([5], device='cuda')].cpu()\n"
        "except Exception as error:\n    raise SystemExit(ending_of(error).exit_code)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=False, env=environment
    )
    assert done.returncode == 69, done.stderr


def test_no_process_is_left_on_the_gpu_when_the_parent_is_killed(tiny_bert, corpus, tmp_path):
    process = start(*command(tiny_bert, corpus, tmp_path / "o.parquet", "--num-processes", 2))
    deadline = time.monotonic() + 60
    while len(_users_of_the_gpu()) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(5)
    assert _users_of_the_gpu() <= {os.getpid()}
    again = run_process(*command(tiny_bert, corpus, tmp_path / "o.parquet"))
    assert again.code == 0, again.err


def _users_of_the_gpu():
    query = ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    return set(map(int, listed))


def test_hidden_gpus_are_not_used(tiny_bert, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    report = tmp_path / "r.json"
    ran = run_process(*command(tiny_bert, corpus, tmp_path / "o.parquet", "--report", report))
    assert ran.code == 0, ran.err
    assert '"cpu"' in report.read_text()
