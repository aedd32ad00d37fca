"""One tiny random model for each architecture that a family stands for, and an independent way to
the same vectors.

Each row: how the model's folder is built as its authors publish it, and a reference, most often
sentence-transformers on a folder that says outright what the family file knows. `python -m
tests.families` writes the table of templates/README.md.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embedcli import encoder, templates
from embedcli.config import RunOptions
from embedcli.models import families, hub
from embedcli.models.request import ModelRequest
from embedcli.models.spec import ModelSpec, read_spec
from tests import tiny

TANH, IDENTITY = "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"
TEXTS = [
    *tiny.ODD_TEXTS,
    "Приливы 🌊🌙 👩‍👩‍👧",
    "because the moon pulls the water " * 20,
    "x" * 300,
    *(f"text number {index} " + "word " * (index % 9) for index in range(52)),
]


@dataclass(frozen=True)
class Case:
    """A family's architecture: its folder, the role tried, and how the reference differs from the
    folder.
    """

    build: Callable[[Path], Path]
    role: str = "query"
    task: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    # the reference's folder: the same weights with the tokenizer, config and pooling made explicit
    tokenizer: Mapping[str, Any] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    masked: bool = False
    normalize: bool = True
    short: bool = False
    reference: Callable[[Path, templates.Template, Sequence[str]], np.ndarray] | None = None


def build(kind: str, **options: Any) -> Callable[[Path], Path]:
    return lambda path: tiny.model(path, kind, **options)


def own_code(path: Path, **config: Any) -> Path:
    """Let the folder's config say what a repository with code of its own says."""
    import json

    raw = json.loads((path / "config.json").read_text())
    raw["auto_map"] = {"AutoModel": "modeling_own.Own"}
    tiny.write_json(path / "config.json", {**raw, **config})
    return path


XLMR = {"type_vocab_size": 1}
AROUND = {"before": ("<s>",), "after": ("</s>",)}
BEGUN = {"before": ("<s>",)}
GQA = {"num_key_value_heads": 2, "head_dim": 8}
QWEN = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def nv_embed(path: Path) -> Path:
    """NV-Embed's folder: a Mistral under `embedding_model.`, latent attention beside it, a config
    of its own kind.
    """
    import json

    import safetensors.torch
    import torch

    tiny.model(path, "Mistral", tokenizer=BEGUN, **GQA)
    weights = safetensors.torch.load_file(path / "model.safetensors")
    shapes = {
        "latents": (8, 32),
        **{
            f"cross_attend_blocks.0.{norm}.{part}": (32,)
            for norm in ("norm", "norm_context")
            for part in ("weight", "bias")
        },
        "cross_attend_blocks.0.fn.to_q.weight": (24, 32),
        "cross_attend_blocks.0.fn.to_kv.weight": (48, 32),
        "cross_attend_blocks.0.fn.to_out.weight": (32, 24),
        "cross_attend_blocks.1.norm.weight": (32,),
        "cross_attend_blocks.1.norm.bias": (32,),
        "cross_attend_blocks.1.fn.net.0.weight": (256, 32),
        "cross_attend_blocks.1.fn.net.0.bias": (256,),
        "cross_attend_blocks.1.fn.net.2.weight": (32, 128),
        "cross_attend_blocks.1.fn.net.2.bias": (32,),
    }
    torch.manual_seed(1)
    latent = {
        f"latent_attention_model.{name}": torch.randn(shape) * 0.3 for name, shape in shapes.items()
    }
    merged = {**{f"embedding_model.{name}": value for name, value in weights.items()}, **latent}
    safetensors.torch.save_file(merged, path / "model.safetensors", metadata={"format": "pt"})
    text = json.loads((path / "config.json").read_text())
    dims = {
        "num_latents_value": 8,
        "num_cross_heads": 3,
        "cross_dim_head": 8,
        "latent_dim": 32,
        "hidden_dim": 32,
    }
    tiny.write_json(
        path / "config.json",
        {
            "model_type": "nvembed",
            "hidden_size": 32,
            "auto_map": {"AutoModel": "modeling_nvembed.NVEmbedModel"},
            "text_config": {**text, "model_type": "bidir_mistral"},
            "latent_attention_config": dims,
        },
    )
    (path / "modules.json").unlink()
    return path


def nv_embed_reference(
    path: Path, template: templates.Template, texts: Sequence[str]
) -> np.ndarray:
    """NV-Embed by its paper and card: one text at a time, no padding, the block written out."""
    import json
    import math

    import safetensors.torch
    import torch
    import transformers

    raw = json.loads((path / "config.json").read_text())
    config = transformers.MistralConfig(
        **{k: v for k, v in raw["text_config"].items() if k != "model_type"}
    )
    weights = safetensors.torch.load_file(path / "model.safetensors")
    backbone = transformers.MistralModel(config).eval()
    backbone.load_state_dict(
        {k.removeprefix("embedding_model."): v for k, v in weights.items() if k[0] == "e"}
    )
    w = {k.removeprefix("latent_attention_model."): v for k, v in weights.items() if k[0] == "l"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    instruction = template.prefix

    def norm(x, name):
        return torch.nn.functional.layer_norm(x, (32,), w[f"{name}.weight"], w[f"{name}.bias"])

    vectors = []
    for text in texts:
        ids = [
            *tokenizer(instruction + text)["input_ids"][: tiny.LENGTH - 1],
            tokenizer.eos_token_id,
        ]
        everything = torch.zeros(
            1, 1, len(ids), len(ids)
        )  # a mask that hides nothing: bidirectional
        with torch.no_grad():
            x = backbone(torch.tensor([ids]), attention_mask=everything).last_hidden_state[0]
            block = "cross_attend_blocks.0"
            q = norm(x, f"{block}.norm") @ w[f"{block}.fn.to_q.weight"].T
            k, v = (
                norm(w["latents"], f"{block}.norm_context") @ w[f"{block}.fn.to_kv.weight"].T
            ).chunk(2, dim=-1)
            heads = []
            for h in range(3):
                part = slice(8 * h, 8 * h + 8)
                heads.append((q[:, part] @ k[:, part].T / math.sqrt(8)).softmax(-1) @ v[:, part])
            x = torch.cat(heads, -1) @ w[f"{block}.fn.to_out.weight"].T + x
            block = "cross_attend_blocks.1"
            value, gate = (
                norm(x, f"{block}.norm") @ w[f"{block}.fn.net.0.weight"].T
                + w[f"{block}.fn.net.0.bias"]
            ).chunk(2, -1)
            x = (
                (value * torch.nn.functional.gelu(gate)) @ w[f"{block}.fn.net.2.weight"].T
                + w[f"{block}.fn.net.2.bias"]
                + x
            )
        vectors.append(x[len(tokenizer.tokenize(instruction)) :].mean(dim=0).numpy())
    return normalized(np.array(vectors))


def jina_v3(path: Path) -> Path:
    """The native class with a LoRA adapter for each retrieval role, in folders as the repository
    has them.
    """
    import peft
    import torch
    import transformers

    tiny.model(path, "JinaEmbeddingsV3", tokenizer=AROUND, type_vocab_size=1)
    for seed, name in enumerate(("retrieval_query", "retrieval_passage")):
        base = transformers.AutoModel.from_pretrained(path)
        torch.manual_seed(seed)
        config = peft.LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=["q_proj", "k_proj", "v_proj", "fc1", "fc2"],
            init_lora_weights=False,
        )
        peft.get_peft_model(base, config).save_pretrained(path / name)
    return path


def jina_v3_reference(path: Path, template: templates.Template, texts: Sequence[str]) -> np.ndarray:
    """The adapter beside the weights instead of merged into them, one text at a time."""
    import peft
    import torch
    import transformers

    model = peft.PeftModel.from_pretrained(
        transformers.AutoModel.from_pretrained(path).eval(), path / "retrieval_query"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    vectors = []
    for text in texts:
        inputs = tokenizer(
            template.prefix + text, truncation=True, max_length=tiny.LENGTH, return_tensors="pt"
        )
        with torch.no_grad():
            vectors.append(model(**inputs).last_hidden_state[0].mean(dim=0).numpy())
    return normalized(np.array(vectors))


def nomic_reference(path: Path, template: templates.Template, texts: Sequence[str]) -> np.ndarray:
    """Mean pooling by sentence-transformers, then the card's layer norm."""
    import torch

    plain = sentence_transformers_vectors(
        path, [template.prefix + text for text in texts], normalize=False
    )
    return normalized(torch.nn.functional.layer_norm(torch.from_numpy(plain), (32,)).numpy())


def t5(path: Path) -> Path:
    config = {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 1,
    }
    return tiny.model(
        path, "T5", tokenizer={"after": ("</s>",)}, layout={"dense": [(24, IDENTITY)]}, **config
    )


def stella(path: Path) -> Path:
    own_code(
        tiny.model(
            path,
            "Qwen2",
            tokenizer=QWEN,
            layout={"dense": [(24, IDENTITY)], "normalize": False},
            **GQA,
        )
    )
    (path / "2_Dense").rename(path / "2_Dense_24")
    modules = (path / "modules.json").read_text().replace('"2_Dense"', '"2_Dense_24"')
    (path / "modules.json").write_text(modules)
    tiny._dense(path / "2_Dense_12", 32, 12, IDENTITY)
    return path


CASES: dict[str, Case] = {
    "e5": Case(lambda path: tiny.bert(path, positions=tiny.LENGTH, max_length=tiny.LENGTH)),
    "multilingual-e5": Case(build("XLMRoberta", tokenizer=AROUND, **XLMR)),
    "multilingual-e5-instruct": Case(build("XLMRoberta", tokenizer=AROUND, **XLMR)),
    "bge-en": Case(lambda path: tiny.bert(path, "cls", positions=tiny.LENGTH, max_length=tiny.LENGTH)),
    "bge-m3": Case(build("XLMRoberta", tokenizer=AROUND, layout={"pooling": "cls"}, **XLMR)),
    "all-mpnet": Case(build("MPNet", tokenizer=AROUND)),
    "multi-qa-mpnet-dot": Case(build("MPNet", tokenizer=AROUND, layout={"pooling": "cls", "normalize": False}), normalize=False),
    "e5-mistral": Case(build("Mistral", tokenizer=BEGUN, layout={"pooling": "lasttoken"}, **GQA), tokenizer=AROUND),
    "sfr": Case(build("Mistral", tokenizer={**BEGUN, "side": "left"}, layout={"pooling": "lasttoken"}, **GQA), tokenizer={**AROUND, "side": "left"}),
    "bge-icl": Case(build("Mistral", tokenizer=BEGUN, layout={"pooling": "lasttoken"}, **GQA), tokenizer=AROUND, short=True),
    "gte-qwen2": Case(
        lambda path: own_code(tiny.model(path, "Qwen2", tokenizer=QWEN, layout={"pooling": "lasttoken"}, **GQA)),
        tokenizer={**QWEN, "after": ("<|endoftext|>",)},
        config={"is_causal": False},
    ),
    "stella-1.5b": Case(stella, config={"is_causal": False}),
    "qwen3-embedding": Case(build("Qwen3", tokenizer={**QWEN, "after": ("<|endoftext|>",), "side": "left"}, layout={"pooling": "lasttoken"}, **GQA)),
    "bge-gemma2": Case(
        build("Gemma2", tokenizer={"before": ("<bos>",)}, layout={"pooling": "lasttoken"}, query_pre_attn_scalar=8, **GQA),
        tokenizer={"before": ("<bos>",), "after": ("<eos>",)},
    ),
    "gritlm": Case(
        lambda path: own_code(tiny.model(path, "Mistral", tokenizer=BEGUN, **GQA)),
        task="Find it", config={"is_causal": False}, masked=True,
    ),
    "nv-embed": Case(nv_embed, reference=nv_embed_reference),
    "instructor": Case(t5, masked=True),
    "embeddinggemma": Case(
        build("Gemma3Text", tokenizer={"before": ("<bos>",), "after": ("<eos>",)}, layout={"dense": [(48, IDENTITY), (32, IDENTITY)]},
              use_bidirectional_attention=True, query_pre_attn_scalar=8, sliding_window=16, **GQA),
        role="passage",
    ),
    "nomic-v1.5": Case(build("NomicBert", tokenizer=AROUND), reference=nomic_reference),
    "granite-r2": Case(build("ModernBert", tokenizer=AROUND, layout={"pooling": "cls", "normalize": False}, local_attention=16, cls_token_id=0, sep_token_id=2)),
    "gte-en": Case(build("Gte", tokenizer=AROUND, layout={"pooling": "cls"})),
    "jina-v3": Case(jina_v3, reference=jina_v3_reference),
    "nemotron-8b": Case(
        lambda path: own_code(tiny.model(path, "Llama", tokenizer={**BEGUN, "side": "left"}, **GQA), model_type="llama_bidirec"),
        config={"is_causal": False, "model_type": "llama"},
    ),
}  # fmt: skip


def normalized(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def sentence_transformers_vectors(
    path: Path, texts: Sequence[str], normalize: bool = True, **options: Any
) -> np.ndarray:
    import sentence_transformers

    model = sentence_transformers.SentenceTransformer(
        str(path), device="cpu", local_files_only=True
    )
    found = model.encode(
        list(texts), normalize_embeddings=normalize, show_progress_bar=False, **options
    )
    return np.asarray(found)


def reference_vectors(
    case: Case, path: Path, template: templates.Template, texts: Sequence[str]
) -> np.ndarray:
    """The same vectors by another way."""
    import json

    if case.reference is not None:
        return case.reference(path, template, texts)
    with tempfile.TemporaryDirectory() as folder:
        explicit = shutil.copytree(path, Path(folder) / "model")
        raw = {
            k: v
            for k, v in json.loads((path / "config.json").read_text()).items()
            if k != "auto_map"
        }
        tiny.write_json(explicit / "config.json", {**raw, **case.config})
        if case.tokenizer is not None:
            tiny.byte_pairs(explicit, **case.tokenizer)
        if case.masked:
            pooling = {
                "word_embedding_dimension": 32,
                "pooling_mode_mean_tokens": True,
                "include_prompt": False,
            }
            tiny.write_json(explicit / "1_Pooling" / "config.json", pooling)
            return sentence_transformers_vectors(explicit, texts, prompt=template.prefix)
        rendered, _ = templates.render(template, texts, {})
        return sentence_transformers_vectors(explicit, rendered.strings, normalize=case.normalize)


@dataclass(frozen=True)
class Ours:
    """What embedcli gives for a case."""

    encoded: encoder.Encoded
    template: templates.Template
    first: int
    last: int
    packing: Any


def spec_of(
    name: str, path: Path, dim: int | None = None, **changes: Any
) -> tuple[ModelSpec, templates.Template]:
    """Describe a model as its family does; `changes` replace facts, to see that they matter."""
    from dataclasses import replace

    case, family = CASES.get(name), families.find_family([], name)
    assert family is not None
    files = hub.find(str(path))
    role, task = (case.role, case.task) if case else ("query", None)
    template = families.choose_template(files.id, role, task, name, family)
    facts = replace(family.facts, **changes)
    request = ModelRequest(max_length=tiny.LENGTH, dim=dim)
    return read_spec(files, facts, request, template.role, family.adapters), template


def ours(
    name: str, path: Path, texts: Sequence[str], dim: int | None = None, **changes: Any
) -> Ours:
    """Encode with the family's template and facts."""
    spec, template = spec_of(name, path, dim, **changes)
    model: Any = encoder.load(spec, RunOptions(device="cpu", dtype="float32", backend="torch"))
    rendered, _ = templates.render(template, texts, {})
    ids = model.prepare(rendered).as_lists()[4]
    encoded = model.encode(model.prepare(rendered), lambda rows, tokens: None)
    return Ours(encoded, template, ids[0], ids[-1], model._model.packing)


def texts_of(case: Case) -> list[str]:
    """All texts, or those short enough that nothing is cut."""
    return [text for text in TEXTS if len(text.encode()) < 20] if case.short else TEXTS


def parity(name: str, path: Path) -> tuple[float, float, Ours]:
    """Least cosine and largest difference between the two ways, over rows that have a vector."""
    case = CASES[name]
    texts = texts_of(case)
    found = ours(name, path, texts)
    reference = reference_vectors(case, path, found.template, texts)
    kept = [index for index in range(len(texts)) if index not in found.encoded.failed]
    left, right = found.encoded.vectors[kept], reference[kept]
    if not case.normalize:
        scale = np.linalg.norm(right, axis=1, keepdims=True)
        left, right = left / scale, right / scale
    return float((left * right).sum(axis=1).min()), float(np.abs(left - right).max()), found


# Families whose architecture is that of another row.
LIKE = {
    "arctic-v1.5": "bge-en", "arctic-v2": "bge-m3", "f2llm": "qwen3-embedding", "f2llm-v2": "qwen3-embedding",
    "granite-multilingual-r2": "granite-r2", "gte-modernbert": "granite-r2", "gte-multilingual": "gte-en",
    "gte-qwen2-1.5b": "gte-qwen2", "harrier": "qwen3-embedding", "harrier-27b": "qwen3-embedding",
    "linq": "e5-mistral", "modernbert-embed": "granite-r2", "mxbai": "bge-en", "nv-embed-v1": "nv-embed",
    "octen": "qwen3-embedding", "paraphrase-multilingual-minilm": "e5", "sfr-mistral": "sfr",
}  # fmt: skip
BEGIN, END = "<!-- families: python -m tests.families -->", "<!-- /families -->"
HEAD = [
    "family",
    "models",
    "query",
    "passage",
    "further roles",
    "vectors checked on",
    "least cosine",
    "largest difference",
    "first, last id",
]


def known_columns(family: families.Family) -> list[str]:
    """What a row of the table says without running anything."""
    shown = {role: _code(string) for role, string in family.roles.items()}
    others = ", ".join(role for role in family.roles if role not in ("query", "passage"))
    name = f"`{family.name}`" + (" ⚠" if family.unsure else "")
    checked = {"all-minilm": "the real model", "hash": "no model"}.get(family.name, "")
    if family.name in LIKE:
        checked = f"as `{LIKE[family.name]}`"
    elif family.name in CASES:
        checked = "tiny model"
    elif family.facts.refused is not None:
        checked = "refused: its code is its own"
    elif family.facts.own_code == "required":
        checked = "runs only by its own code"
    models = ", ".join(dict.fromkeys(model.partition("/")[2] or model for model in family.models))
    return [
        name,
        models,
        shown.get("query", ""),
        shown.get("passage", ""),
        others,
        checked or "not checked",
    ]


def _code(string: str) -> str:
    return "`` " + string.replace("\n", "⏎").replace("|", "\\|") + " ``"


def row(columns: Sequence[str]) -> str:
    return f"| {' | '.join(columns)} |"


def table() -> str:
    """The table of families, with the parity of those that have a tiny model."""
    rows = [row(HEAD), row(["---"] * len(HEAD))]
    with tempfile.TemporaryDirectory() as folder:
        for family in families.families():
            figures = ["", "", ""]
            if family.name in CASES:
                cosine, difference, found = parity(
                    family.name, CASES[family.name].build(Path(folder) / family.name)
                )
                figures = [f"{cosine:.7f}", f"{difference:.0e}", f"{found.first}, {found.last}"]
            rows.append(row([*known_columns(family), *figures]))
    return "\n".join(rows)


if __name__ == "__main__":
    readme = Path(__file__).parent.parent / "templates" / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    readme.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}", encoding="utf-8")
