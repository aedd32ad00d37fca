"""What a token costs the process that feeds the device: `python -m tests.benchmarks.tokenizer [CORPUS]`.

Its CPU time, all of which holds Python's lock or competes for it, for a token; with tokenizing in this process and
in others.
"""

import argparse
import gzip
import json
import time
from pathlib import Path

from embedcli.encoder.loading import load_tokenizer
from embedcli.encoder.tokenizer_processes import TokenizerProcesses
from embedcli.models import hub
from embedcli.models.facts import FamilyFacts
from embedcli.models.request import ModelRequest
from embedcli.models.spec import read_spec
from embedcli.records import Rendered
from tests.conftest import SAMPLE

TEXTS = 8000


def texts_of(corpus):
    with (gzip.open if corpus.suffix == ".gz" else open)(corpus, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    return (texts * (TEXTS // len(texts) + 1))[:TEXTS]


def measurements(counts, corpus=SAMPLE / "corpus.jsonl"):
    """Measure with so many processes; 0 is this one."""
    spec = read_spec(hub.find(None), FamilyFacts(), ModelRequest(max_length=256))
    tokenizer = load_tokenizer(spec)
    texts = texts_of(corpus)
    rendered = Rendered(texts, [0] * len(texts), [len(text) for text in texts])
    for count in counts:
        way = TokenizerProcesses(tokenizer, count) if count else tokenizer
        way.encode(rendered)
        cpu, wall = time.process_time(), time.perf_counter()
        tokens = len(way.encode(rendered).ids)
        yield {
            "processes": count,
            "ns_per_token": round((time.process_time() - cpu) / tokens * 1e9),
            "tokens_per_s": round(tokens / (time.perf_counter() - wall)),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, nargs="?", default=SAMPLE / "corpus.jsonl")
    for measurement in measurements((0, 1, 2), parser.parse_args().corpus):
        print(json.dumps(measurement), flush=True)


if __name__ == "__main__":
    main()
