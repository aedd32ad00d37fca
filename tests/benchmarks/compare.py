"""embedcli against its peers, whole runs: `python -m tests.benchmarks.compare CORPUS.jsonl.gz`.

Every contender reads the same JSONL, embeds it with the same model at the same maximum length, and
writes Parquet, in a process of its own. Rounds are interleaved, medians shown. A run of ten texts
shows what starting takes; the rest of a whole run is steady state, beside which stands the share of
the rate at which this machine multiplies the model's own matrices. Peers that aren't installed are
left out: the extra `benchmark` brings them, but for sentence-transformers' OpenVINO backend, whose
needs contradict it: `--python-of-optimum` names the Python of an environment that has it.
"""

import argparse
import contextlib
import gzip
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from embedcli.encoder import environment
from embedcli.models import hub
from tests.benchmarks import peers

EMBEDCLI = {
    "embedcli": [],
    "embedcli, float32": ["--dtype", "float32"],
    "embedcli, torch": ["--backend", "torch"],
    "embedcli, torch, float32": ["--backend", "torch", "--dtype", "float32"],
}
EXACT = "embedcli, torch, float32"
BASE = "sentence-transformers as installed"
OF_OPTIMUM = "sentence-transformers, its OpenVINO backend"
NEEDS = {"OpenVINO": "openvino", "ONNX": "onnxruntime", "sentence": "sentence_transformers"}
FEW = 10


@dataclass
class Timing:
    """Seconds of the runs of a contender: whole ones, and those of a few texts."""

    whole: list[float] = field(default_factory=list)
    few: list[float] = field(default_factory=list)
    few_cpu: list[float] = field(default_factory=list)

    @property
    def steady(self):
        return statistics.median(self.whole) - statistics.median(self.few)


def command_of(name, corpus, output, model, python_of_optimum):
    if name in EMBEDCLI:
        options = f"--role passage --template {{text}} --max-length {peers.LENGTH} --fresh -q"
        command = [sys.executable, "-m", "embedcli", "encode", corpus, "-o", output]
        return [*command, *options.split(), *EMBEDCLI[name]]
    python = python_of_optimum if name == OF_OPTIMUM else sys.executable
    return [python, peers.__file__, name, corpus, output, model]


def run(command, output):
    """Seconds of a process, and of its and its children's CPU time; None where it fails."""
    output.unlink(missing_ok=True)  # another contender's: embedcli would not overwrite it
    before, started = os.times(), time.perf_counter()
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    seconds, after = time.perf_counter() - started, os.times()
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        print(f"ended with {done.returncode}: {''.join(last)[:150]}", file=sys.stderr)
        return None
    cpu = after.children_user + after.children_system
    return seconds, cpu - before.children_user - before.children_system


def vectors_in(path):
    column = pq.read_table(path)["embedding"].combine_chunks()
    return column.values.to_numpy().reshape(len(column), -1)


def matrix_rates(shapes):
    """FLOP/s of products of such matrices, 2,048 tokens at a time, by dtype: the better of torch as it
    is, and compiled.
    """
    import torch

    from embedcli.encoder import compiling
    from embedcli.errors import ConfigurationError

    class Products(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(*shape) for shape in shapes)

        def forward(self, inputs):
            return [layer(rows) for layer, rows in zip(self.layers, inputs, strict=True)]

    work, rates = 2 * 2048 * sum(a * b for a, b in shapes), {}
    for dtype in (torch.bfloat16, torch.float32):
        plain = Products().to(dtype).eval()
        inputs = [torch.randn(2048, shape[0], dtype=dtype) for shape in shapes]
        ways = [plain]
        if dtype == torch.bfloat16:
            with contextlib.suppress(ConfigurationError):  # no C++ compiler
                ways.append(compiling.compile_model(plain, lambda way, rows=inputs: way(rows)))
        with torch.inference_mode():
            seconds = min(median_seconds(way, inputs) for way in ways)
        rates[str(dtype).removeprefix("torch.")] = work / seconds
    return rates


def median_seconds(way, inputs, rounds=30):
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        way(inputs)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def work_of(config, texts, model):
    """FLOPs of a corpus: each token's products, and its attention to the others of its text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(peers.LENGTH)
    lengths = np.array([len(encoding.ids) for encoding in tokenizer.encode_batch(texts)])
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    products = 2 * sum(a * b for a, b in shapes_of(config)) * lengths.sum()
    attention = 4 * hidden * (lengths**2).sum()
    return layers * float(products + attention), int(lengths.sum())


def shapes_of(config):
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    return [(hidden, hidden)] * 4 + [(hidden, inner), (inner, hidden)]


def read_texts(source):
    with (gzip.open if source.suffix == ".gz" else open)(source, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def write_corpus(texts, path):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def cpu_name():
    match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match.group(1) if match else platform.machine()


def contenders(only, without, python_of_optimum):
    absent = {*without, *([OF_OPTIMUM] if python_of_optimum is None else [])}
    names = [name for name in (*EMBEDCLI, *peers.PEERS) if name not in absent]
    for start, package in NEEDS.items():
        if importlib.util.find_spec(package) is None:
            names = [name for name in names if not name.startswith(start)]
    return [name for name in names if only is None or name.startswith(tuple(only))]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, help="the first so many only")
    parser.add_argument("--only", action="append", help="contenders whose name begins so")
    parser.add_argument("--without", action="append", default=[], help="a contender's whole name")
    parser.add_argument("--python-of-optimum", type=Path)
    options = parser.parse_args()
    environment.prepare()  # peers, too, are kept from instructions that this machine hasn't got
    model = hub.find(None).path
    texts = read_texts(options.corpus)[: options.texts]
    names = contenders(options.only, options.without, options.python_of_optimum)
    print(
        f"{len(texts):,} texts, {cpu_name()}, {len(os.sched_getaffinity(0))} cores, {options.rounds} rounds"
    )
    timings, vectors = {name: Timing() for name in names}, {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # conversions are made in the first round
        whole = write_corpus(texts, Path(folder) / "whole.jsonl")
        few = write_corpus(texts[:FEW], Path(folder) / "few.jsonl")
        output = Path(folder) / "out.parquet"
        for _ in range(options.rounds):
            for name in names:
                timing = timings[name]
                for corpus in (whole, few):
                    command = command_of(name, corpus, output, model, options.python_of_optimum)
                    measured = run(command, output)
                    if measured is None:
                        break
                    if corpus == few:
                        timing.few.append(measured[0])
                        timing.few_cpu.append(measured[1])
                    else:
                        timing.whole.append(measured[0])
                        vectors[name] = vectors_in(output)
                        speed = len(texts) / measured[0]
                        print(f"{name}: {speed:.0f} texts/s", file=sys.stderr, flush=True)
    report(texts, model, timings, vectors)


def report(texts, model, timings, vectors):
    timings = {name: timing for name, timing in timings.items() if timing.few}
    config = json.loads((model / "config.json").read_text())
    rates = matrix_rates(shapes_of(config))
    work, tokens = work_of(config, texts, model)
    print(
        "Matrix rates: "
        + ", ".join(f"{name} {rate / 1e12:.2f} TFLOP/s" for name, rate in rates.items())
    )
    print(f"{tokens:,} tokens, {work / tokens / 1e6:.1f} MFLOP each\n")
    best = max(rates, key=rates.get)
    base = statistics.median(timings.get(BASE, next(iter(timings.values()))).whole)
    exact = vectors.get(EXACT, next(iter(vectors.values())))
    print(
        f"| | texts/s | times | start-up: s, CPU s | steady: texts/s | of the {best} rate | least cosine |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, timing in timings.items():
        seconds = statistics.median(timing.whole)
        cells = [
            f"{len(texts) / seconds:.0f}",
            f"{base / seconds:.1f}",
            f"{statistics.median(timing.few):.1f}, {statistics.median(timing.few_cpu):.1f}",
            f"{(len(texts) - FEW) / timing.steady:.0f}",
            f"{work / timing.steady / rates[best]:.0%}",
            f"{(vectors[name] * exact).sum(axis=1).min():.5f}",
        ]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
