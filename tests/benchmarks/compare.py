"""embedcli against its peers, whole runs: `python -m tests.benchmarks.compare CORPUS.jsonl.gz`.

Every contender reads the same JSONL, embeds it with the same model at the same max length, and
writes Parquet, in a process of its own; rounds are interleaved, medians shown. Peers that aren't
installed are left out: the extra `benchmark` brings them. The last line is the matrix rate that
this machine reaches on the model's own shapes.
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
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedcli.encoder import environment
from embedcli.models import hub

LENGTH = 256
COMPILED = "embedcli"  # as it is by itself


def texts_of(corpus):
    return [json.loads(line)["text"] for line in corpus.open(encoding="utf-8")]


def write(vectors, path):
    pq.write_table(
        pa.table(
            {
                "embedding": pa.FixedSizeListArray.from_arrays(
                    pa.array(vectors.ravel()), vectors.shape[1]
                )
            }
        ),
        path,
    )


def embedcli(*options):
    def run(corpus, output, model):
        command = [
            "encode",
            corpus,
            "--role",
            "passage",
            "--template",
            "{text}",
            "--max-length",
            LENGTH,
            "-o",
            output,
        ]
        subprocess.run(
            [sys.executable, "-m", "embedcli", *map(str, command), "-q", "--fresh", *options],
            check=True,
        )

    return run


def sentence_transformers(batch_size=32, **kwargs):
    def run(corpus, output, model):
        from sentence_transformers import SentenceTransformer

        encoder = SentenceTransformer(str(model), device="cpu", model_kwargs=kwargs)
        encoder.max_seq_length = LENGTH
        write(
            encoder.encode(texts_of(corpus), batch_size=batch_size, normalize_embeddings=True),
            output,
        )

    return run


def pooled(model):
    """The model as one graph: token ids and mask to normalized means."""
    import torch
    import transformers

    class Pooled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = transformers.AutoModel.from_pretrained(
                model, attn_implementation="eager"
            ).eval()

        def forward(self, input_ids, attention_mask):
            states = self.inner(
                input_ids=input_ids, attention_mask=attention_mask
            ).last_hidden_state
            mask = attention_mask[:, :, None].to(states.dtype)
            return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)

    ids, mask = torch.ones((2, 8), dtype=torch.int64), torch.ones((2, 8), dtype=torch.int64)
    mask[1, 6:] = 0  # of a mask of ones alone, a tracer would make no mask at all
    return Pooled(), (ids, mask)


def sorted_batches(corpus, model, tokens):
    """Rows, ids and mask of batches of like length, as a careful script would make them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LENGTH)
    ids = [one.ids for one in tokenizer.encode_batch(texts_of(corpus))]
    order, start = np.argsort([-len(one) for one in ids], kind="stable"), 0
    while start < len(order):
        width = len(ids[order[start]])
        rows = order[start : start + max(1, tokens // width)]
        batch = np.zeros((len(rows), width), np.int64)
        mask = np.zeros_like(batch)
        for at, row in enumerate(rows):
            batch[at, : len(ids[row])], mask[at, : len(ids[row])] = ids[row], 1
        yield rows, batch, mask
        start += len(rows)


def openvino(precision):
    def run(corpus, output, model):
        import openvino as ov

        module, example = pooled(model)
        graph = ov.convert_model(module, example_input=example)
        settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": precision}
        compiled = ov.Core().compile_model(graph, "CPU", settings)
        found = {}
        queue = ov.AsyncInferQueue(compiled)
        queue.set_callback(
            lambda request, rows: found.update(
                zip(rows, request.get_output_tensor().data.copy(), strict=True)
            )
        )
        for rows, ids, mask in sorted_batches(corpus, model, 4096):
            queue.start_async([ids, mask], rows.tolist())
        queue.wait_all()
        write(np.stack([found[row] for row in range(len(found))]), output)

    return run


def onnxruntime(corpus, output, model):
    import onnxruntime as ort
    import torch

    module, example = pooled(model)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
        shapes = ({0: batch, 1: length}, {0: batch, 1: length})
        torch.onnx.export(
            module,
            example,
            f"{folder}/model.onnx",
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
        session = ort.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])
    names, found = [one.name for one in session.get_inputs()], {}
    for rows, ids, mask in sorted_batches(corpus, model, 4096):
        found.update(
            zip(
                rows.tolist(),
                session.run(None, dict(zip(names, (ids, mask), strict=True)))[0],
                strict=True,
            )
        )
    write(np.stack([found[row] for row in range(len(found))]), output)


CONTENDERS = {
    COMPILED: embedcli(),
    "embedcli, float32": embedcli("--dtype", "float32"),
    "sentence-transformers as installed": sentence_transformers(),
    "sentence-transformers, bfloat16, batches of 64": sentence_transformers(
        64, torch_dtype="bfloat16"
    ),
    "OpenVINO, bfloat16, throughput": openvino("bf16"),
    "OpenVINO, float32, throughput": openvino("f32"),
    "ONNX Runtime, float32": onnxruntime,
}
NEEDS = {"OpenVINO": "openvino", "ONNX": "onnxruntime", "sentence": "sentence_transformers"}


def matrix_rate(model):
    """TFLOP/s of the model's own products in bfloat16, 2,048 tokens at a time: the better of torch
    as it is, and compiled.
    """
    import torch

    from embedcli.encoder import compiling

    config = json.loads((model / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes = [(hidden, hidden)] * 4 + [(hidden, inner), (inner, hidden)]
    layers = [torch.nn.Linear(*shape).bfloat16().eval() for shape in shapes]
    inputs = [torch.randn(2048, shape[0]).bfloat16() for shape in shapes]

    class All(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(layers)

        def forward(self, inputs):
            return [layer(one) for layer, one in zip(self.layers, inputs, strict=True)]

    plain = All().eval()
    work = 2 * 2048 * sum(a * b for a, b in shapes)
    with torch.inference_mode():
        ways = (
            [plain, compiling.compiled(plain, lambda one: one(inputs))]
            if compiling.has_compiler()
            else [plain]
        )
        return work / min(best_time(way, inputs) for way in ways) / 1e12


def best_time(way, inputs, rounds=30):
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        way(inputs)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def run_one(name, corpus, output, model):
    """Seconds of a contender's whole process, None where it fails, and its vectors."""
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.compare",
        "--one",
        name,
        str(corpus),
        "--output",
        str(output),
    ]
    output.unlink(missing_ok=True)  # another contender's: embedcli would not overwrite it
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        said = done.stderr.strip().splitlines()
        print(
            f"{name}: ended with {done.returncode}: {said[-1][:150] if said else ''}",
            file=sys.stderr,
        )
        return None, None
    flat = pq.read_table(output)["embedding"].combine_chunks()
    return seconds, flat.values.to_numpy().reshape(len(flat), -1)


def write_corpus(source, path, copies):
    """So many copies, each with its texts altered, so that nothing is reused."""
    with (gzip.open if source.suffix == ".gz" else open)(source, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    with path.open("w", encoding="utf-8") as stream:
        for copy in range(copies):
            for text in texts:
                stream.write(json.dumps({"text": f"{copy} {text}" if copy else text}) + "\n")
    return len(texts) * copies


def cpu_name():
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found.group(1) if found else platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--copies", type=int, default=4, help="how often embedcli, which compiles, gets the corpus"
    )
    parser.add_argument("--only", action="append", help="contenders whose name begins so")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    environment.prepare()  # peers, too, are kept from instructions that this machine hasn't got
    model = hub.find(None).path
    if wanted.one:
        CONTENDERS[wanted.one](wanted.corpus, wanted.output, model)
        return
    names = [
        name
        for name in CONTENDERS
        if all(
            importlib.util.find_spec(package)
            for start, package in NEEDS.items()
            if name.startswith(start)
        )
        and (wanted.only is None or name.startswith(tuple(wanted.only)))
    ]
    with tempfile.TemporaryDirectory() as folder:
        once, often, output = (
            Path(folder) / name for name in ("once.jsonl", "often.jsonl", "out.parquet")
        )
        rows = write_corpus(wanted.corpus, once, 1)
        write_corpus(wanted.corpus, often, wanted.copies)
        print(f"{rows:,} texts ({wanted.copies} times for {COMPILED}), {cpu_name()}, ", end="")
        print(f"{len(os.sched_getaffinity(0))} cores, {wanted.rounds} rounds", flush=True)
        speeds, vectors = {name: [] for name in names}, {}
        for _ in range(wanted.rounds):
            for name in names:
                took, found = run_one(name, often if name == COMPILED else once, output, model)
                if took is not None:
                    speeds[name].append(len(found) / took)
                    vectors[name] = found[:rows]
                    print(f"{name}: {speeds[name][-1]:.0f} texts/s", file=sys.stderr, flush=True)
        rate = matrix_rate(model)
    report(speeds, vectors)
    print(f"\nmatrix rate on the model's shapes, bfloat16: {rate:.2f} TFLOP/s")


def report(speeds, vectors):
    reference = vectors.get("embedcli, float32", next(iter(vectors.values())))
    medians = {name: statistics.median(found) for name, found in speeds.items() if found}
    base = next(
        (speed for name, speed in medians.items() if name.startswith("sentence")),
        next(iter(medians.values())),
    )
    print("\n| | texts/s | times | least cosine to float32 |\n|---|---|---|---|")
    for name, speed in medians.items():
        cosine = (vectors[name] * reference).sum(axis=1).min()
        print(f"| {name} | {speed:,.0f} | {speed / base:.1f} | {cosine:.5f} |", flush=True)


if __name__ == "__main__":
    main()
