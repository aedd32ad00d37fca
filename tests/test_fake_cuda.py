"""The path of a pack through a GPU, on fake tensors: nothing waits, and the kernel gets what it takes."""

import shutil
import subprocess
import sys

import pytest

from tests import shapes
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.heavy

SCRIPT = """
import sys, numpy as np, torch
from pathlib import Path
from tests import fake_cuda, shapes
from embedcli.encoder import packing
from embedcli.encoder.forward import embed
name, kernel, folder = sys.argv[1:]
model = shapes.model_of(name, "cpu", torch.bfloat16, num_hidden_layers=3)
assert model.packing is not None
fake_cuda.install(Path(folder))
model, mode = fake_cuda.on_fake_gpu(model, kernel)
tokens = shapes.tokens_of([2, 63, 64, 65, 300, 511, 7, 7])
with torch.inference_mode(), mode, fake_cuda.Waits() as waits:
    vectors = embed(model, tokens, np.arange(8))
assert vectors.shape == (8, model.spec.dim) and vectors.device.type == "cuda"
assert vectors.dtype == torch.float32
print(waits.operations, *waits.waits, sep="; ")
"""


def run(name, kernel, folder):
    command = [sys.executable, "-c", SCRIPT, name, kernel, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    operations, *waits = done.stdout.strip().split("; ")
    return int(operations), waits


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("name", ["minilm", "modernbert", "qwen3-0.6b"])
def test_nothing_in_a_pack_waits_for_the_gpu(name, tmp_path):
    operations, waits = run(name, "varlen", tmp_path)
    assert not waits
    assert operations > 30
    assert name in shapes.SHAPES
    # One call a layer instead of one a length: far fewer launches.
    assert operations < run(name, "groups", tmp_path)[0]
