"""The speed of a GPU's path: `python -m tests.benchmarks.gpu [--minutes 20] [--only NAME]`.

Prints one line of JSON as each case ends, so that a run that is cut loses one case. Models are of real
shapes with random weights (tests/shapes.py); needs torch, transformers, numpy, safetensors, tokenizers
and msgspec. Cases, in this order:

    machine     versions and memory
    peak        TFLOP/s of bfloat16 products: of large squares, and of each model's own matrices
    encode      embed() on tokens that are ready: tokens/s, share of the peak, memory, launches, idle time
    peer        transformers by itself: texts sorted by length, padded; interleaved with ours
    trace       where the time of three packs goes, by kernel
    processes   one process and two on one GPU
    tokenizer   tokens/s and the nanoseconds of the lock for each, by the number of processes
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial

import numpy as np
import torch
import transformers

from embedcli.encoder.batching import batches, packs
from embedcli.encoder.forward import embed
from embedcli.errors import EmbedcliError
from tests import shapes

BUDGETS = (4096, 8192, 16_384, 32_768, 65_536)
ROUNDS = 3


def lengths_of(count, seed=0):
    """Texts as corpora have them: 106 tokens on average, 256 at most."""
    drawn = np.random.default_rng(seed).lognormal(4.5, 0.6, count)
    return np.clip(drawn, 4, 256).astype(np.int32)


def work_of(config, lengths):
    """FLOPs of some texts: products of every token, and its attention to the others."""
    hidden, inner = config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or hidden // heads
    keys = 2 * size * getattr(config, "num_key_value_heads", heads)
    # Decoders and ModernBERT have gates: a third matrix between states and the inner layer.
    gates = 3 if config.model_type in ("qwen2", "qwen3", "modernbert") else 2
    weights = hidden * (2 * heads * size + keys) + gates * hidden * inner
    attention = 4 * heads * size * (lengths.astype(np.float64) ** 2).sum()
    return config.num_hidden_layers * (2 * weights * float(lengths.sum()) + attention)


def seconds_of(run, rounds=ROUNDS):
    """Median seconds of a run, and the share of it in which the GPU was at work."""
    run()
    walls = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        walls.append(time.perf_counter() - started)
    return statistics.median(walls)


def machine():
    yield {
        "gpu": torch.cuda.get_device_name(),
        "memory_gb": round(torch.cuda.mem_get_info()[1] / 2**30, 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cores": len(os.sched_getaffinity(0)),
    }


def matrices_of(config):
    hidden, inner = config.hidden_size, config.intermediate_size
    return [(hidden, hidden), (hidden, inner), (inner, hidden)]


def peak_of(sides, rows=32_768):
    """FLOP/s of products of rows with such matrices."""
    pairs = [(torch.randn(rows, a, device="cuda").bfloat16(), torch.randn(a, b, device="cuda").bfloat16()) for a, b in sides]  # fmt: skip

    def run():
        for left, right in pairs:
            left @ right

    work = 2 * rows * sum(a * b for a, b in sides)
    return work / seconds_of(run, 10)


def peaks():
    yield {"of": "8192 x 8192", "tflops": round(peak_of([(8192, 8192)], 8192) / 1e12, 1)}
    for name, shape in shapes.SHAPES.items():
        peak = peak_of(matrices_of(shape.new_config()))
        yield {"of": name, "tflops": round(peak / 1e12, 1)}


def encode():
    for name in shapes.SHAPES:
        count = 1000 if "7b" in name else 20_000 if name == "minilm" else 5000
        lengths = lengths_of(count)
        tokens = shapes.tokens_of(lengths)
        model = shapes.model_of(name, "cuda", torch.bfloat16)
        peak = peak_of(matrices_of(model.transformer.config))
        # Compiling takes a minute: at the ends of the sweep.
        ways = [*((False, budget) for budget in BUDGETS), (True, BUDGETS[0]), (True, BUDGETS[-1])]
        for is_compiled, budget in ways:
            sized = dataclasses.replace(model, batch_tokens=budget)
            try:
                yield _encoded(name, sized, tokens, peak, is_compiled)
            except (EmbedcliError, RuntimeError) as error:
                yield {"model": name, "budget": budget, "compiled": is_compiled, "error": str(error)[:200]}  # fmt: skip
        del model, sized
        torch.cuda.empty_cache()


def _encoded(name, model, tokens, peak, is_compiled):
    if is_compiled:
        model = shapes.compiled(model)
    cuts = list(packs(tokens.lengths, model.batch_tokens))

    @torch.inference_mode()
    def run():
        for rows in cuts:
            embed(model, tokens, rows)

    torch.cuda.reset_peak_memory_stats()
    seconds = seconds_of(run)
    total = int(tokens.lengths.sum())
    rate = work_of(model.transformer.config, tokens.lengths) / seconds
    few = cuts[:3]
    launches, busy = _profiled(partial(_run, model, tokens, few))
    busy *= total / int(tokens.lengths[np.concatenate(few)].sum())
    return {
        "model": name,
        "budget": model.batch_tokens,
        "compiled": is_compiled,
        "attention": model.packing.kernel if model.packing else "padded",
        "tokens_per_s": round(total / seconds),
        "tflops": round(rate / 1e12, 1),
        "of_peak": round(rate / peak, 3),
        "memory_gb": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "launches_per_pack": round(launches / len(few)),
        "gpu_idle": round(max(0.0, 1 - busy / seconds), 3),
    }


def _profiled(run):
    """Count the launches of a run and the seconds of its kernels."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    kernels = [event for event in profile.events() if event.device_type.name == "CUDA"]
    return len(kernels), sum(event.device_time for event in kernels) / 1e6


def peer():
    """Interleave ours and what a careful script would do: sort, pad, transformers with sdpa, mean."""
    for name in ("minilm", "qwen3-0.6b", "qwen2-7b"):
        lengths = lengths_of(1000 if "7b" in name else 5000)
        tokens = shapes.tokens_of(lengths)
        model = shapes.model_of(name, "cuda", torch.bfloat16)
        plain = dataclasses.replace(model, packing=None)
        padded = {size: list(batches(lengths, size * 256)) for size in (32, 256, 1024)}
        ours = list(packs(lengths, model.batch_tokens))
        ways = {"embedcli": (model, ours)} | {f"padded, {size}": (plain, cuts) for size, cuts in padded.items()}  # fmt: skip
        seconds = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, (runner, cuts) in ways.items():
                model.transformer.set_attn_implementation(
                    "embedcli_packed" if way == "embedcli" else model.packing.own
                )
                seconds[way].append(seconds_of(partial(_run, runner, tokens, cuts), 1))
        medians = {way: statistics.median(values) for way, values in seconds.items()}
        best = min(value for way, value in medians.items() if way != "embedcli")
        rates = {way: round(int(lengths.sum()) / value) for way, value in medians.items()}
        yield {"model": name, "tokens_per_s": rates, "times": round(best / medians["embedcli"], 2)}
        del model, plain, ways
        torch.cuda.empty_cache()


@torch.inference_mode()
def _run(model, tokens, cuts):
    for rows in cuts:
        embed(model, tokens, rows)


def processes():
    """Two processes on one GPU against one: do small models leave it idle?"""
    for count in (1, 2):
        command = [sys.executable, "-m", "tests.benchmarks.gpu", "--share"]
        started = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)
        ]
        rates = [json.loads(process.communicate()[0])["tokens_per_s"] for process in started]
        yield {"processes": count, "tokens_per_s": sum(rates)}


def share():
    model = shapes.model_of("minilm", "cuda", torch.bfloat16)
    tokens = shapes.tokens_of(lengths_of(20_000))
    cuts = list(packs(tokens.lengths, model.batch_tokens))
    _run(model, tokens, cuts)
    started, rounds = time.perf_counter(), 0
    while time.perf_counter() - started < 10:
        _run(model, tokens, cuts)
        torch.cuda.synchronize()
        rounds += 1
    seconds = time.perf_counter() - started
    print(json.dumps({"tokens_per_s": round(rounds * int(tokens.lengths.sum()) / seconds)}))


def tokenizer():
    """Tokenize in processes of their own: words of a trained WordPiece vocabulary."""
    from tests.benchmarks.tokenizer import measurements

    yield from measurements((0, 1, 4, 8, 12))


def trace():
    for name in ("minilm", "qwen3-0.6b"):
        model = shapes.model_of(name, "cuda", torch.bfloat16)
        tokens = shapes.tokens_of(lengths_of(3000))
        cuts = list(packs(tokens.lengths, model.batch_tokens))[:3]
        _run(model, tokens, cuts)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            _run(model, tokens, cuts)
            torch.cuda.synchronize()
        kernels = sorted(profile.key_averages(), key=lambda event: -event.device_time_total)[:12]
        total = sum(event.device_time_total for event in profile.key_averages())
        shares = {event.key[:60]: round(event.device_time_total / total, 3) for event in kernels}
        yield {"model": name, "ms": round(total / 1e3, 2), "shares": shares}


CASES = {
    "machine": machine,
    "peak": peaks,
    "encode": encode,
    "peer": peer,
    "trace": trace,
    "processes": processes,
    "tokenizer": tokenizer,
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--only", action="append", choices=CASES)
    parser.add_argument("--share", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: nothing can be measured")
    if options.share:
        share()
        return
    deadline = time.monotonic() + 60 * options.minutes
    for case in options.only or CASES:
        for measurement in _told(CASES[case]()):
            print(json.dumps({"case": case, **measurement}), flush=True)
            if time.monotonic() > deadline:
                print(json.dumps({"case": case, "cut": f"{options.minutes} minutes are over"}))
                return


def _told(measurements):
    """Yield measurements; an error ends a case, not the others."""
    try:
        yield from measurements
    except Exception as error:
        yield {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}


if __name__ == "__main__":
    main()
