"""What users would take instead of embedcli, one run each: `python peers.py NAME CORPUS OUTPUT MODEL`.

Each reads the JSONL, embeds it as its documentation says, and writes Parquet. Imports nothing of
embedcli, so that a peer may run in an environment of its own.
"""

import contextlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

LENGTH = 256
# Of one batch of a careful script: sorted by length, padded to the longest.
BATCH_TOKENS = 4096


def texts_of(corpus):
    return [json.loads(line)["text"] for line in corpus.open(encoding="utf-8")]


def write(vectors, path):
    values = pa.array(vectors.astype(np.float32).ravel())
    column = pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])
    pq.write_table(pa.table({"embedding": column}), path)


def sentence_transformers(batch_size=32, **options):
    def run(corpus, output, model):
        from sentence_transformers import SentenceTransformer

        encoder = SentenceTransformer(str(model), device="cpu", **options)
        encoder.max_seq_length = LENGTH
        texts = texts_of(corpus)
        write(encoder.encode(texts, batch_size=batch_size, normalize_embeddings=True), output)

    return run


def pooled(model):
    """The model as one graph: token ids and mask to normalized means."""
    import torch
    import transformers

    class Pooled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            options = {"attn_implementation": "eager"}
            self.inner = transformers.AutoModel.from_pretrained(model, **options).eval()

        def forward(self, input_ids, attention_mask):
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
            states = self.inner(**inputs).last_hidden_state
            mask = attention_mask[:, :, None].to(states.dtype)
            return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)

    ids, mask = torch.ones((2, 8), dtype=torch.int64), torch.ones((2, 8), dtype=torch.int64)
    mask[1, 6:] = 0  # of a mask of ones alone, a tracer would make no mask at all
    return Pooled(), (ids, mask)


def sorted_batches(corpus, model):
    """Rows, ids and mask of batches of like length, as a careful script would make them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LENGTH)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts_of(corpus))]
    order, start = np.argsort([-len(row) for row in ids], kind="stable"), 0
    while start < len(order):
        width = len(ids[order[start]])
        rows = order[start : start + max(1, BATCH_TOKENS // width)]
        batch = np.zeros((len(rows), width), np.int64)
        mask = np.zeros_like(batch)
        for index, row in enumerate(rows):
            batch[index, : len(ids[row])], mask[index, : len(ids[row])] = ids[row], 1
        yield rows, batch, mask
        start += len(rows)


def in_order(vectors):
    return np.stack([vectors[row] for row in range(len(vectors))])


def openvino(precision):
    def run(corpus, output, model):
        import openvino as ov

        module, example = pooled(model)
        graph = ov.convert_model(module, example_input=example)
        settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": precision}
        queue = ov.AsyncInferQueue(ov.Core().compile_model(graph, "CPU", settings))
        vectors = {}

        def keep(request, rows):
            vectors.update(zip(rows, request.get_output_tensor().data.copy(), strict=True))

        queue.set_callback(keep)
        for rows, ids, mask in sorted_batches(corpus, model):
            queue.start_async([ids, mask], rows.tolist())
        queue.wait_all()
        write(in_order(vectors), output)

    return run


def onnxruntime(corpus, output, model):
    import onnxruntime as ort
    import torch

    module, example = pooled(model)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    shapes = ({0: batch, 1: length}, {0: batch, 1: length})
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        path = f"{folder}/model.onnx"
        options = {"dynamic_shapes": shapes, "dynamo": True, "verbose": False}
        torch.onnx.export(module, example, path, **options)
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names, vectors = [each.name for each in session.get_inputs()], {}
    for rows, ids, mask in sorted_batches(corpus, model):
        inputs = dict(zip(names, (ids, mask), strict=True))
        vectors.update(zip(rows.tolist(), session.run(None, inputs)[0], strict=True))
    write(in_order(vectors), output)


PEERS = {
    "sentence-transformers as installed": sentence_transformers(),
    "sentence-transformers, bfloat16, batches of 64": sentence_transformers(
        64, model_kwargs={"dtype": "bfloat16"}
    ),
    "sentence-transformers, its OpenVINO backend": sentence_transformers(backend="openvino"),
    "OpenVINO, float32, throughput": openvino("f32"),
    "OpenVINO, bfloat16, throughput": openvino("bf16"),
    "ONNX Runtime, float32": onnxruntime,
}

if __name__ == "__main__":
    name, corpus, output, model = sys.argv[1:]
    PEERS[name](Path(corpus), Path(output), Path(model))
