"""Does every model folder give the right vector, or none? `python -m tests.fidelity` prints a table.

Each case builds a tiny random model of a real class in a folder, with one thing that folders out
there have, and compares embedcli with sentence-transformers. An outcome is one of

    agree       every vector is sentence-transformers', to 1e-5
    direction   the same but for the length: sentence-transformers doesn't normalize, we do
    warned      vectors differ by intent, and the run says so in a warning
    refused     ConfigurationError that names what isn't supported
    DIFFER      a silent difference, and a fault
    CRASH       any other exception, and a fault
"""

import json
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests import tiny

TEXTS = [
    *tiny.ODD_TEXTS,
    "because the moon pulls the water " * 3,
    "the sea rises and falls " * 40,
    "literal {text} and </s> [SEP] in it",
    "literal <pad> and [PAD] in the sea",
    "Приливы и отливы 🌊🌙",
    *(f"text number {index} " + "word " * index for index in range(8)),
]
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
TANH = "torch.nn.modules.activation.Tanh"
IDENTITY = "torch.nn.modules.linear.Identity"


@dataclass(frozen=True)
class Case:
    """A folder to build, the role to encode, and what should come of it."""

    name: str
    build: Callable[[Path], None]
    expected: str = "agree"
    role: str = "query"
    template: str | None = "{text}"


def edit(path: Path, name: str, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    file = path / name
    value = json.loads(file.read_text()) if file.exists() else {}
    value.update(changes)
    tiny.write_json(file, {key: entry for key, entry in value.items() if entry is not None})


def bert(**layout: Any) -> Callable[[Path], None]:
    return lambda path: tiny.bert(path, **layout) and None


def edited(name: str, _base: Callable[[Path], None] | None = None, **changes: Any):
    """A BERT with changed keys in one of its files."""

    def build(path: Path) -> None:
        (_base or bert())(path)
        edit(path, name, **changes)

    return build


def settings(**changes: Any) -> Callable[[Path], None]:
    return edited("sentence_bert_config.json", **changes)


def sentence(**changes: Any) -> Callable[[Path], None]:
    return edited("config_sentence_transformers.json", **changes)


def prompts(**named: str) -> Callable[[Path], None]:
    return sentence(prompts=named)


BYTE_LEVEL = {"before": ["<s>"], "after": ["</s>"]}
LAST = {"pooling": "lasttoken"}
# Class: what its config needs, its tokenizer, its layout.
ARCHITECTURES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "Roberta": ({"type_vocab_size": 1}, BYTE_LEVEL, {}),
    "XLMRoberta": ({"type_vocab_size": 1}, BYTE_LEVEL, {}),
    "Camembert": ({"type_vocab_size": 1}, BYTE_LEVEL, {}),
    "MPNet": ({}, BYTE_LEVEL, {}),
    "DistilBert": ({"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}, BYTE_LEVEL, {}),
    "DebertaV2": ({}, BYTE_LEVEL, {}),
    "Electra": ({"embedding_size": 32}, BYTE_LEVEL, {}),
    "Albert": ({"embedding_size": 32}, BYTE_LEVEL, {}),
    "Ernie": ({}, BYTE_LEVEL, {}),
    "ModernBert": ({"num_hidden_layers": 3, "cls_token_id": 0, "sep_token_id": 2}, BYTE_LEVEL, {}),
    "EuroBert": ({"num_key_value_heads": 2, "head_dim": 8}, BYTE_LEVEL, {}),
    "Qwen2": ({"num_key_value_heads": 2}, {"after": ["</s>"]}, LAST),
    "Qwen3": ({"num_key_value_heads": 2, "head_dim": 8}, {"after": ["</s>"]}, LAST),
    "Mistral": ({"num_key_value_heads": 2, "sliding_window": None}, BYTE_LEVEL, LAST),
    "Llama": ({"num_key_value_heads": 2}, BYTE_LEVEL, LAST),
    "Gemma2": ({"num_key_value_heads": 2, "head_dim": 8}, BYTE_LEVEL, {}),
    "Gemma3Text": ({"num_key_value_heads": 2, "head_dim": 8}, BYTE_LEVEL, {}),
    "Phi3": ({"num_key_value_heads": 2}, BYTE_LEVEL, LAST),
    "GPT2": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 162}, BYTE_LEVEL, {}),
    "GPTNeoX": ({}, BYTE_LEVEL, LAST),
    "OPT": ({"ffn_dim": 64, "word_embed_proj_dim": 32}, BYTE_LEVEL, {}),
    "T5": ({"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}, BYTE_LEVEL, {}),
    "Ministral": (
        {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 200},
        BYTE_LEVEL,
        LAST,
    ),
    "SmolLM3": ({"num_key_value_heads": 2}, BYTE_LEVEL, LAST),
    "Granite": ({"num_key_value_heads": 2}, BYTE_LEVEL, LAST),
    "Olmo2": ({"num_key_value_heads": 2}, BYTE_LEVEL, LAST),
    "Cohere": ({"num_key_value_heads": 2}, BYTE_LEVEL, LAST),
    "Starcoder2": ({"num_key_value_heads": 2}, BYTE_LEVEL, LAST),
    "Bart": (
        {
            **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64},
            **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_ffn_dim": 64},
        },
        BYTE_LEVEL,
        {},
    ),
    "Longformer": ({"attention_window": [8, 8]}, BYTE_LEVEL, {}),
    "Bloom": ({"n_layer": 2, "n_head": 4}, BYTE_LEVEL, LAST),
    "NomicBert": ({}, BYTE_LEVEL, {}),
    "BigBird": ({}, BYTE_LEVEL, {}),
}


def architecture(kind: str, generation: int = 5, **layout: Any) -> Callable[[Path], None]:
    config, tokenizer, own_layout = ARCHITECTURES[kind]
    merged = {**own_layout, "generation": generation, **layout}
    return lambda path: tiny.model(path, kind, tokenizer, merged, **config) and None


def _architectures() -> Iterator[Case]:
    for generation in (5, 6):
        yield Case(f"Bert, layout {generation}", bert(generation=generation))
        for kind in ARCHITECTURES:
            yield Case(f"{kind}, layout {generation}", architecture(kind, generation))
    for kind in ("Qwen2", "Llama", "Mistral"):

        def bidirectional(path: Path, kind: str = kind) -> None:
            architecture(kind, pooling="mean")(path)
            edit(path, "config.json", is_causal=False)

        yield Case(f"{kind}, is_causal false", bidirectional)
    for kind in ("Qwen2", "Llama", "ModernBert"):
        # The config's length is that of the training: positions that are computed have no end.
        longer = edited("config.json", architecture(kind), max_position_embeddings=32)
        yield Case(f"{kind}, longer than its max_position_embeddings", longer)
    relative = {
        **{"position_biased_input": False, "relative_attention": True, "pos_att_type": "p2c|c2p"},
        **{"max_position_embeddings": 32, "max_relative_positions": 32},
    }
    yield Case(
        "DebertaV2, longer than its max_position_embeddings",
        lambda path: tiny.model(path, "DebertaV2", BYTE_LEVEL, {}, **relative) and None,
    )
    narrow = {"ffn_dim": 64, "word_embed_proj_dim": 16}
    yield Case(
        "OPT with a projection",
        lambda path: tiny.model(path, "OPT", BYTE_LEVEL, {}, **narrow) and None,
    )


def _poolings() -> Iterator[Case]:
    modes = list(tiny.POOLING_FLAGS)
    for generation in (5, 6):
        for mode in [*modes, ("cls", "mean"), ("mean", "max", "lasttoken")]:
            yield Case(
                f"pooling {mode}, layout {generation}", bert(pooling=mode, generation=generation)
            )
    for mode in modes:
        for kind in ("Bert", "Qwen2"):

            def without_prompt(path: Path, mode: str = mode, kind: str = kind) -> None:
                if kind == "Bert":
                    tiny.bert(path, pooling=mode)
                else:
                    architecture(kind, pooling=mode)(path)
                edit(path, "1_Pooling/config.json", include_prompt=False)
                edit(path, "config_sentence_transformers.json", prompts={"query": "represent: "})

            yield Case(f"{kind} {mode}, include_prompt false", without_prompt, template=None)
    yield Case("no pooling flag", edited("1_Pooling/config.json", pooling_mode_mean_tokens=False))
    yield Case(
        "unknown pooling", edited("1_Pooling/config.json", pooling_mode="median"), "refused: median"
    )
    yield Case("unknown key of Pooling", edited("1_Pooling/config.json", p=2), "refused: `p`")
    yield Case("ill-typed pooling_mode", edited("1_Pooling/config.json", pooling_mode=5), "refused")
    yield Case("no 1_Pooling", removed("1_Pooling"), "refused: 1_Pooling/config.json")


def removed(*names: str, base: Callable[[Path], None] | None = None) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        (base or bert())(path)
        for name in names:
            shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink()

    return build


def modules(*kinds: str, base: Callable[[Path], None] | None = None) -> Callable[[Path], None]:
    """A BERT whose modules.json lists these, with what each needs in its folder."""

    def build(path: Path) -> None:
        (base or bert(normalize=False))(path)
        entries, width, level = [], 32, "token_embeddings"
        for index, kind in enumerate(kinds):
            folder = "" if kind == "Transformer" else f"{index}_{kind}"
            name = kind.split(":")[0]
            if folder:
                level = "sentence_embedding" if name == "Pooling" else level
                width = _write_module(path, folder, kind, width, level)
            types = {
                "Transformer": "Transformer",
                "TokenDense": "Dense",
                "TokenNormalize": "Normalize",
            }
            entries.append(
                {
                    "idx": index,
                    "name": str(index),
                    "path": folder,
                    "type": f"sentence_transformers.models.{types.get(name, name)}",
                }
            )
        tiny.write_json(path / "modules.json", entries)

    return build


def _write_module(path: Path, folder: str, kind: str, width: int, level: str) -> int:
    import safetensors.torch
    import torch

    name, _, option = kind.partition(":")
    (path / folder).mkdir(exist_ok=True)
    if name == "Pooling":
        source = json.loads((path / "1_Pooling" / "config.json").read_text())
        tiny.write_json(
            path / folder / "config.json", {**source, "word_embedding_dimension": width}
        )
    elif name in ("Dense", "TokenDense"):
        size = 24 if option != "square" else width
        config = {
            "in_features": width,
            "out_features": size,
            "bias": option != "unbiased",
            "activation_function": TANH if option != "GELU" else "torch.nn.modules.activation.GELU",
        }
        if name == "TokenDense":
            config["module_input_name"] = "token_embeddings"
        if option in ("residual", "square"):
            config["use_residual"] = True
        tiny.write_json(path / folder / "config.json", config)
        tensors = {"linear.weight": torch.randn(size, width)}
        if config["bias"]:
            tensors["linear.bias"] = torch.randn(size)
        if option == "residual":
            tensors["residual.weight"] = torch.randn(size, width)
        safetensors.torch.save_file(tensors, path / folder / "model.safetensors")
        return size
    elif name == "LayerNorm":
        tiny.write_json(path / folder / "config.json", {"dimension": width})
        tensors = {"norm.weight": torch.rand(width) + 0.5, "norm.bias": torch.randn(width)}
        safetensors.torch.save_file(tensors, path / folder / "model.safetensors")
    elif name == "TokenNormalize":
        tiny.write_json(path / folder / "config.json", {"module_input_name": "token_embeddings"})
    elif name == "Dropout":
        tiny.write_json(path / folder / "config.json", {"dropout": 0.2})
    return width


def _modules() -> Iterator[Case]:
    chains = [
        ("Pooling", "Normalize"),
        ("Pooling", "Dense"),
        ("Pooling", "Dense:unbiased"),
        ("Pooling", "Dense:GELU"),
        ("Pooling", "Dense:residual"),
        ("Pooling", "Dense:square"),
        ("Pooling", "Dense", "Dense"),
        ("Pooling", "Dense", "Normalize"),
        ("Pooling", "Normalize", "Dense"),
        ("Pooling", "Normalize", "Dense", "Normalize"),
        ("Pooling", "LayerNorm"),
        ("Pooling", "LayerNorm", "Normalize"),
        ("Pooling", "Normalize", "LayerNorm"),
        ("Pooling", "Dense", "LayerNorm", "Normalize"),
        ("Pooling", "Dropout", "Normalize"),
        ("TokenDense", "Pooling", "Normalize"),
        ("TokenDense:GELU", "Pooling", "Dense"),
        ("TokenNormalize", "Pooling"),
        ("TokenDense", "TokenNormalize", "Pooling", "Normalize"),
    ]
    for chain in chains:
        expected = "agree" if chain[-1] == "Normalize" else "direction"
        yield Case(" > ".join(chain), modules("Transformer", *chain), expected)
    for kind in (
        "LSTM",
        "CNN",
        "WeightedLayerPooling",
        "SpladePooling",
        "MultiVectorMask",
        "WordWeights",
    ):
        yield Case(f"module {kind}", modules("Transformer", "Pooling", kind), f"refused: {kind}")
    yield Case("pools twice", modules("Transformer", "Pooling", "Pooling"), "refused: pools twice")
    yield Case(
        "no Dense config",
        removed("2_Dense/config.json", base=modules("Transformer", "Pooling", "Dense")),
        "refused: 2_Dense/config.json",
    )
    yield Case(
        "no Dense weights",
        removed("2_Dense/model.safetensors", base=modules("Transformer", "Pooling", "Dense")),
        "refused: 2_Dense",
    )
    dense = modules("Transformer", "Pooling", "Dense")
    for key, value in (
        ("module_output_name", "other"),
        ("module_input_name", "token_weights"),
        ("in_features", -3),
        ("out_features", 10**9),
        ("in_features", 31),
        ("activation_function", "os.system"),
        ("activation_function", 5),
        ("scale", 2.0),
    ):
        expected = "refused" if key != "scale" else "refused: scale"
        yield Case(
            f"Dense {key} {value}", edited("2_Dense/config.json", dense, **{key: value}), expected
        )
    for kind in ("torch.nn.modules.activation.GLU", "torch.nn.Module", "torch.nn.MSELoss"):
        yield Case(
            f"Dense {kind}",
            edited("2_Dense/config.json", dense, activation_function=kind),
            "refused",
        )
    yield Case("Dense, activation with a weight", _prelu, "direction")
    yield Case(
        "module of its own",
        edited_modules(type="custom_st.Transformer"),
        "refused: custom_st.Transformer",
    )
    yield Case("module out of the folder", edited_modules(path="../x"), "refused: ../x")
    yield Case("a module's name too long", edited_modules(1, path="é" * 255), "refused: é")
    yield Case("kwargs of a module", edited_modules(1, kwargs=["task"]), "refused: kwargs")
    yield Case("unknown key of a module", edited_modules(1, scale=2), "refused: scale")
    yield Case(
        "modules.json no list",
        written("modules.json", {}),
        "refused",
    )
    yield Case(
        "modules.json empty",
        written("modules.json", []),
        "refused",
    )
    yield Case("no modules.json", removed("modules.json"), "refused: no modules.json")


def _prelu(path: Path) -> None:
    modules("Transformer", "Pooling", "Dense")(path)
    edit(path, "2_Dense/config.json", activation_function="torch.nn.modules.activation.PReLU")
    edit_tensors(
        path / "2_Dense" / "model.safetensors",
        lambda tensors: {**tensors, "activation_function.weight": tensors["linear.bias"][:1] - 3},
    )


def edit_tensors(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the tensors of a file."""
    import safetensors.torch

    changed = change(safetensors.torch.load_file(file))
    safetensors.torch.save_file(
        {name: tensor.contiguous() for name, tensor in changed.items()}, file
    )


def edited_modules(index: int = 0, **changes: Any) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        bert()(path)
        entries = json.loads((path / "modules.json").read_text())
        entries[index].update(changes)
        tiny.write_json(path / "modules.json", entries)

    return build


def written(name: str, value: Any) -> Callable[[Path], None]:
    """A BERT with another content of one of its JSON files."""

    def build(path: Path) -> None:
        tiny.bert(path)
        tiny.write_json(path / name, value)

    return build


def _settings() -> Iterator[Case]:
    message = {"method": "forward", "method_output_name": "last_hidden_state", "format": "flat"}
    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    named = {"modality_config": {"text": text}, "module_output_name": "token_embeddings"}
    yield Case("modality_config text", settings(**named))
    refused = {
        "modality_config with message": {
            "modality_config": {"text": text, "message": message},
            "module_output_name": "token_embeddings",
        },
        "method_output_name": {
            "modality_config": {"text": {**text, "method_output_name": ["hidden_states", 1]}},
            "module_output_name": "token_embeddings",
        },
        "method": {
            "modality_config": {"text": {**text, "method": "encode"}},
            "module_output_name": "token_embeddings",
        },
        "module_output_name": {**named, "module_output_name": "other"},
        "transformer_task": {"transformer_task": "fill-mask"},
        "query_expansion": {"query_expansion": {"length": 32}},
        "processing_kwargs": {"processing_kwargs": {"text": {"max_length": 8}}},
        "tokenizer_name_or_path": {"tokenizer_name_or_path": "other/model"},
        "hidden_act": {"config_args": {"hidden_act": "relu"}},
        "hidden_act ": {"config_kwargs": {"hidden_act": "relu"}},
        "variant": {"model_args": {"variant": "fp16"}},
        "add_prefix_space": {"tokenizer_args": {"add_prefix_space": True}},
        "do_lower_case of the processor": {"processor_kwargs": {"do_lower_case": False}},
        "pad_to": {"pad_to": 8},
    }
    for name, changes in refused.items():
        yield Case(
            f"settings {name}",
            settings(**changes),
            "refused: message" if "message" in name else f"refused: {name.split()[0]}",
        )
    harmless = {
        "empty kwargs": {"model_args": {}, "tokenizer_args": {}, "config_args": {}},
        "torch_dtype": {"model_kwargs": {"torch_dtype": "float32"}},
        "unpad_inputs": {"unpad_inputs": False},
        "use_cache": {"config_kwargs": {"use_cache": False}},
    }
    for name, changes in harmless.items():
        yield Case(f"settings {name}", settings(**changes))
    lengths = {
        "max_seq_length 12": {"max_seq_length": 12},
        "max_seq_length none": {"max_seq_length": None},
        "model_max_length in tokenizer_args": {"tokenizer_args": {"model_max_length": 10}},
        "query_length": {"query_length": 9},
        "document_length for a query": {"document_length": 9},
        "do_lower_case": {"do_lower_case": True},
        "truncation_side left": {
            "tokenizer_args": {"truncation_side": "left"},
            "max_seq_length": 12,
        },
    }
    for name, changes in lengths.items():
        yield Case(f"settings {name}", settings(**changes))
    yield Case("settings document_length", settings(document_length=9), role="passage")
    for kind in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"):

        def legacy(path: Path, kind: str = kind) -> None:
            tiny.bert(path, max_length=11)
            (path / "sentence_bert_config.json").rename(path / f"sentence_{kind}_config.json")

        yield Case(f"sentence_{kind}_config.json", legacy)


def _tokenizers() -> Iterator[Case]:
    left = edited("tokenizer_config.json", bert(max_length=12), truncation_side="left")
    yield Case("truncation_side left", left)

    def left_in_json(path: Path) -> None:
        tiny.bert(path, max_length=12)
        edit(
            path,
            "tokenizer.json",
            truncation={
                "direction": "Left",
                "max_length": 64,
                "strategy": "LongestFirst",
                "stride": 0,
            },
        )

    yield Case("truncation left in tokenizer.json", left_in_json)

    def left_at_the_end(path: Path) -> None:
        left_in_json(path)
        content = json.loads((path / "tokenizer.json").read_text())
        content["truncation"] = content.pop("truncation")
        tiny.write_json(path / "tokenizer.json", content)

    yield Case("truncation left at the end of tokenizer.json", left_at_the_end)

    def typed(path: Path, **config: Any) -> None:
        tiny.bert(path)
        content = json.loads((path / "tokenizer.json").read_text())
        for piece in content["post_processor"]["single"]:
            next(iter(piece.values()))["type_id"] = 1
        tiny.write_json(path / "tokenizer.json", content)
        edit(path, "tokenizer_config.json", **config)

    yield Case("token type 1, not a model's input", typed)
    inputs = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    }
    yield Case(
        "token type 1", lambda path: typed(path, **inputs), "refused: token types other than 0"
    )

    def normalized_away(path: Path) -> None:
        architecture("Qwen2", pooling="mean")(path)
        remove = {"type": "Replace", "pattern": {"Regex": "^a$"}, "content": ""}
        edit(path, "tokenizer.json", normalizer=remove)

    yield Case("a normalizer that removes a text", normalized_away)
    yield Case(
        "a normalizer at which the library panics",
        edited(
            "tokenizer.json", normalizer={"type": "Precompiled", "precompiled_charsmap": "AA=="}
        ),
        "refused: PanicException",
    )
    yield Case(
        "padding_side left",
        edited("tokenizer_config.json", architecture("Qwen2"), padding_side="left"),
    )
    yield Case(
        "tokenizer without length",
        edited("tokenizer_config.json", bert(max_length=None), model_max_length=None),
    )
    yield Case(
        "tokenizer length 10",
        edited("tokenizer_config.json", bert(max_length=None), model_max_length=10),
    )
    yield Case(
        "no special tokens",
        lambda path: tiny.model(path, "Qwen2", {}, LAST, num_key_value_heads=2) and None,
    )
    eos = edited(
        "tokenizer_config.json",
        lambda path: tiny.model(path, "Qwen2", {}, LAST, num_key_value_heads=2) and None,
        add_eos_token=True,
    )
    yield Case("add_eos_token, and none added", eos, "warned")
    bos = edited(
        "tokenizer_config.json",
        lambda path: (
            tiny.model(path, "Qwen2", {}, {"pooling": "mean"}, num_key_value_heads=2) and None
        ),
        add_bos_token=True,
    )
    yield Case("add_bos_token, and none added", bos, "warned")
    yield Case(
        "add_eos_token, and added",
        edited("tokenizer_config.json", architecture("Qwen2"), add_eos_token=True),
    )
    yield Case(
        "no pad token", edited("tokenizer_config.json", architecture("Llama"), pad_token="</s>")
    )


def _sentence_config() -> Iterator[Case]:
    for similarity, expected in (
        ("cosine", "direction"),
        ("dot", "agree"),
        ("euclidean", "agree"),
        ("manhattan", "agree"),
        ("maxsim", "agree"),
    ):
        yield Case(
            f"similarity {similarity}, no Normalize",
            edited(
                "config_sentence_transformers.json",
                bert(normalize=False),
                similarity_fn_name=similarity,
            ),
            expected,
        )
    yield Case("similarity dot, Normalize", sentence(similarity_fn_name="dot"))
    yield Case("truncate_dim", sentence(truncate_dim=16), "direction")
    yield Case("truncate_dim too large", sentence(truncate_dim=64))
    yield Case(
        "model_type SparseEncoder", sentence(model_type="SparseEncoder"), "refused: SparseEncoder"
    )
    yield Case("unknown key", sentence(query_prefix="[Q] "), "refused: query_prefix")
    yield Case("ill-typed prompts", sentence(prompts=["a"]), "refused: prompts")
    yield Case("a prompt of 10 MB", sentence(prompts={"query": "x" * 10**7}), "refused: prompts")
    named = {"query": "query: ", "document": "doc: "}
    for role in ("query", "passage"):
        yield Case(
            f"prompts query and document, {role}", prompts(**named), role=role, template=None
        )
        yield Case(f"prompts query only, {role}", prompts(query="find: "), role=role, template=None)
    yield Case(
        "prompts of another role",
        prompts(**named, clustering="cluster: "),
        role="clustering",
        template=None,
    )
    yield Case("unknown role", prompts(**named), "refused: role 'sts'", role="sts", template=None)
    yield Case(
        "prompts passage and document",
        prompts(query="q: ", passage="p: ", document="d: "),
        role="passage",
        template=None,
    )
    yield Case(
        "prompts query and passage",
        prompts(query="q: ", passage="p: "),
        "author",
        role="passage",
        template=None,
    )
    yield Case(
        "a prompt of half a character", bert(prompts={"query": "\ud800: "}), "refused: surrogates"
    )
    yield Case("prompts null", sentence(prompts={"query": "q: ", "document": None}), template=None)
    yield Case("no prompts", bert(), "refused: no template", template=None)


def _folders() -> Iterator[Case]:
    def in_subfolder(path: Path) -> None:
        inner = path / "0_Transformer"
        tiny.bert(inner)
        for name in ("modules.json", "1_Pooling", "2_Normalize"):
            shutil.move(inner / name, path / name)
        entries = json.loads((path / "modules.json").read_text())
        entries[0]["path"] = "0_Transformer"
        tiny.write_json(path / "modules.json", entries)

    yield Case("0_Transformer", in_subfolder)

    def two_models(path: Path) -> None:
        in_subfolder(path)
        other = tiny.bert(path / "other", seed=7)
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(other / name, path / name)
        shutil.rmtree(other)

    yield Case("0_Transformer beside another model", two_models)

    def finetuned(path: Path) -> None:
        tiny.bert(path, pooling="cls", prompts={"query": "find: ", "document": ""}, max_length=11)
        edit(path, "config.json", _name_or_path="intfloat/e5-base-v2")

    yield Case("finetuned from e5, own prompts", finetuned, template=None)

    def finetuned_bare(path: Path) -> None:
        tiny.bert(path, pooling="cls", max_length=11)
        edit(path, "config.json", _name_or_path="intfloat/e5-base-v2")

    yield Case("finetuned from e5, a template by hand", finetuned_bare)
    yield Case(
        "finetuned from e5, no prompts", finetuned_bare, "refused: --template e5", template=None
    )

    def two_weights(path: Path) -> None:
        tiny.bert(path)
        other = tiny.bert(path.parent / (path.name + "-other"), seed=5)
        shutil.copy(other / "model.safetensors", path / "model-00001-of-00001.safetensors")
        tiny.write_json(
            path / "model.safetensors.index.json",
            {"weight_map": {"x": "model-00001-of-00001.safetensors"}},
        )

    yield Case("a single file beside shards", two_weights)
    evil = edited(
        "config.json", two_weights, transformers_weights="model-00001-of-00001.safetensors"
    )
    yield Case("transformers_weights", evil, "refused: transformers_weights")
    for key, value in (
        ("hidden_size", -32),
        ("num_hidden_layers", 10**6),
        ("vocab_size", 10**12),
        ("num_labels", 10**8),
        ("auto_map", [1]),
        ("hidden_act", "no_such"),
        ("num_attention_heads", 5),
        ("model_type", ["bert"]),
        ("text_config", "x"),
        ("max_position_embeddings", "x"),
    ):
        yield Case(f"config {key} {value}", edited("config.json", **{key: value}), "refused")
    yield Case("a config that its class can't run", _windowless, "refused: transformers can't run")
    for key, value in (
        ("return_dict", False),
        ("output_hidden_states", True),
        ("torch_dtype", "float16"),
        ("use_cache", True),
        ("unknown", 3),
        ("hidden_act", "relu"),
        ("layer_norm_eps", 0.5),
    ):
        yield Case(f"config {key} {value}", edited("config.json", **{key: value}))


def _windowless(path: Path) -> None:
    architecture("Ministral")(path)
    config = json.loads((path / "config.json").read_text())
    config.update(sliding_window=None, layer_types=["sliding_attention"] * 2)
    tiny.write_json(path / "config.json", config)


HEADS = (
    ("Bert", "BertForMaskedLM"),
    ("Bert", "BertForSequenceClassification"),
    ("Bert", "BertForPreTraining"),
    ("Roberta", "RobertaForMaskedLM"),
    ("XLMRoberta", "XLMRobertaForMaskedLM"),
    ("XLMRoberta", "XLMRobertaForSequenceClassification"),
    ("MPNet", "MPNetForMaskedLM"),
    ("DistilBert", "DistilBertForMaskedLM"),
    ("DebertaV2", "DebertaV2ForMaskedLM"),
    ("Electra", "ElectraForPreTraining"),
    ("Albert", "AlbertForMaskedLM"),
    ("Camembert", "CamembertForMaskedLM"),
    ("ModernBert", "ModernBertForMaskedLM"),
    ("EuroBert", "EuroBertForMaskedLM"),
    ("Qwen2", "Qwen2ForCausalLM"),
    ("Qwen3", "Qwen3ForCausalLM"),
    ("Llama", "LlamaForCausalLM"),
    ("Gemma3Text", "Gemma3ForCausalLM"),
    ("GPT2", "GPT2LMHeadModel"),
    ("T5", "T5ForConditionalGeneration"),
    ("MT5", "MT5ForConditionalGeneration"),
    ("UMT5", "UMT5ForConditionalGeneration"),
)


def _heads() -> Iterator[Case]:
    for kind, head in HEADS:

        def build(path: Path, kind: str = kind, head: str = head) -> None:
            config = (
                {} if kind == "Bert" else ARCHITECTURES["T5" if kind.endswith("T5") else kind][0]
            )
            tiny.model(path, kind, BYTE_LEVEL, {}, head=head, **config)

        yield Case(f"weights of {head}", build)


def adapter(path: Path, base: Path) -> None:
    """Save a LoRA adapter of a BERT, far from zero."""
    import peft
    import torch
    import transformers

    torch.manual_seed(3)
    model = transformers.AutoModel.from_pretrained(base)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["query", "value"]))
    for name, parameter in adapted.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    adapted.save_pretrained(path)


def adapter_beside(path: Path) -> None:
    """A model and an adapter in one folder."""
    tiny.bert(path)
    adapter(path, path)


def adapter_alone(path: Path) -> None:
    """An adapter whose model lies in another folder."""
    base = tiny.bert(path.parent / f"{path.name}-base")
    path.mkdir(exist_ok=True)
    for name in ("modules.json", "sentence_bert_config.json", *TOKENIZER):
        shutil.copy(base / name, path / name)
    for name in ("1_Pooling", "2_Normalize"):
        shutil.copytree(base / name, path / name)
    adapter(path, base)


def _adapters() -> Iterator[Case]:
    yield Case("an adapter beside the model", adapter_beside)
    yield Case("an adapter alone", adapter_alone)

    def pickled(path: Path) -> None:
        adapter_beside(path)
        (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")

    yield Case("a pickled adapter", pickled, "refused: adapter_model.safetensors")
    elsewhere = edited(
        "adapter_config.json", adapter_alone, base_model_name_or_path="nobody/no-such-model"
    )
    yield Case("an adapter without its base", elsewhere, "refused: nobody/no-such-model")
    too_long = edited("adapter_config.json", adapter_alone, base_model_name_or_path="/" + "a" * 300)
    yield Case("an adapter whose base has a path too long", too_long, "refused: aaa")


def static(path: Path, model2vec: bool = False, normalize: bool = True, folder: str = "") -> None:
    """A table of vectors, as sentence-transformers or model2vec saves it."""
    import safetensors.torch
    import torch

    inner = path / folder
    inner.mkdir(parents=True, exist_ok=True)
    tiny.wordpiece(inner, 64)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (inner / name).unlink(missing_ok=True)
    torch.manual_seed(0)
    size = json.loads((inner / "tokenizer.json").read_text())["model"]["vocab"]
    rows = max(size.values()) + 1
    tensors = {"embedding.weight": torch.randn(rows, 24)}
    if model2vec:
        tensors = {
            "embeddings": torch.randn(50, 24),
            "mapping": torch.randint(0, 50, (rows,)),
            "weights": torch.rand(rows, dtype=torch.float64),
        }
        tiny.write_json(inner / "config.json", {"model_type": "model2vec", "normalize": True})
    safetensors.torch.save_file(tensors, inner / "model.safetensors")
    kinds = [
        (folder or ".", "StaticEmbedding"),
        *([("1_Normalize", "Normalize")] if normalize else []),
    ]
    tiny.write_json(
        path / "modules.json",
        [
            {
                "idx": i,
                "name": str(i),
                "path": place,
                "type": f"sentence_transformers.models.{kind}",
            }
            for i, (place, kind) in enumerate(kinds)
        ],
    )


def _statics() -> Iterator[Case]:
    yield Case("StaticEmbedding", static)
    yield Case(
        "StaticEmbedding, no Normalize", lambda path: static(path, normalize=False), "direction"
    )
    yield Case(
        "StaticEmbedding in a subfolder", lambda path: static(path, folder="0_StaticEmbedding")
    )
    yield Case("model2vec", lambda path: static(path, model2vec=True))
    yield Case(
        "StaticEmbedding, truncate_dim",
        edited("config_sentence_transformers.json", static, truncate_dim=8),
        "direction",
    )
    yield Case(
        "StaticEmbedding, prompts",
        edited("config_sentence_transformers.json", static, prompts={"query": "find the "}),
        template=None,
    )

    def truncating(path: Path) -> None:
        static(path)
        edit(
            path,
            "tokenizer.json",
            truncation={
                "direction": "Right",
                "max_length": 6,
                "strategy": "LongestFirst",
                "stride": 0,
            },
        )

    yield Case("StaticEmbedding, tokenizer.json truncates", truncating)

    def no_table(path: Path) -> None:
        import safetensors.torch
        import torch

        static(path)
        safetensors.torch.save_file({"weight": torch.randn(4, 4)}, path / "model.safetensors")

    yield Case("StaticEmbedding without a table", no_table, "refused: no table")
    for name, change in _STATIC_TENSORS.items():

        def changed(path: Path, change: Any = change, name: str = name) -> None:
            static(path, model2vec="model2vec" in name)
            edit_tensors(path / "model.safetensors", change)

        expected = "direction" if name.endswith("bfloat16") else "refused: no table"
        yield Case(name, changed, expected)
    settings_of_transformers = {"truncation_side": "left", "add_eos_token": True}

    def unread(path: Path) -> None:
        truncating(path)
        tiny.write_json(
            path / "tokenizer_config.json", {**settings_of_transformers, "eos_token": "[UNK]"}
        )

    yield Case("StaticEmbedding, tokenizer_config.json isn't read", unread)


_STATIC_TENSORS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "StaticEmbedding, bfloat16": lambda tensors: {
        name: tensor.bfloat16() for name, tensor in tensors.items()
    },
    "model2vec, weights of two dimensions": lambda tensors: {
        **tensors,
        "weights": tensors["weights"][:, None],
    },
    "model2vec, a mapping of two dimensions": lambda tensors: {
        **tensors,
        "mapping": tensors["mapping"][:, None],
    },
    "StaticEmbedding, a table of one dimension": lambda tensors: {
        "embedding.weight": tensors["embedding.weight"][:, 0],
        "embeddings": tensors["embedding.weight"],
    },
}


def router(path: Path, default: str | None = None, **parameters: Any) -> None:
    """Queries by a table of vectors, documents by a BERT, as sentence-transformers saves a Router."""
    static(path / "table", normalize=False)
    (path / "query_0_StaticEmbedding").mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        shutil.move(path / "table" / name, path / "query_0_StaticEmbedding" / name)
    shutil.rmtree(path / "table")
    document = tiny.bert(path / "document_0_Transformer")
    shutil.move(document / "1_Pooling", path / "document_1_Pooling")
    shutil.rmtree(document / "2_Normalize")
    (document / "modules.json").unlink()
    _write_module(path, "document_2_Dense", "Dense", 32, "sentence_embedding")
    base = "sentence_transformers.models"
    types = {
        "query_0_StaticEmbedding": f"{base}.StaticEmbedding",
        "document_0_Transformer": f"{base}.Transformer",
        "document_1_Pooling": f"{base}.Pooling",
        "document_2_Dense": f"{base}.Dense",
    }
    structure = {"query": list(types)[:1], "document": list(types)[1:]}
    tiny.write_json(
        path / "router_config.json",
        {
            "types": types,
            "structure": structure,
            "parameters": {"default_route": default, "allow_empty_key": True, **parameters},
        },
    )
    (path / "1_Normalize").mkdir()
    tiny.write_json(
        path / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": f"{base}.Router"},
            {"idx": 1, "name": "1", "path": "1_Normalize", "type": f"{base}.Normalize"},
        ],
    )


def _routers() -> Iterator[Case]:
    yield Case("Router, query", router)
    yield Case("Router, passage", router, role="passage")
    yield Case("Router, default route", lambda path: router(path, "document"), role="clustering")
    yield Case("Router without a route", router, "refused: no route", role="clustering")
    mapped = {"route_mappings": {"('query', 'text')": "document"}}
    yield Case(
        "Router with route_mappings", lambda path: router(path, **mapped), "refused: route_mappings"
    )


def cases() -> list[Case]:
    """All cases."""
    groups = (
        *(_architectures(), _poolings(), _modules(), _settings(), _tokenizers()),
        *(_sentence_config(), _folders(), _heads(), _adapters(), _statics(), _routers()),
    )
    return [case for group in groups for case in group]


def ours(case: Case, path: Path) -> tuple[np.ndarray, dict[int, str], tuple[str, ...]]:
    """Vectors [n, dim], the rows that have none, and the warnings."""
    from embedcli import encoder, templates
    from embedcli.config import RunOptions
    from embedcli.models.request import ModelRequest
    from embedcli.models.resolve import resolve

    resolved = resolve(ModelRequest(model=str(path), template=case.template), case.role)
    model = encoder.load(resolved.spec, RunOptions("cpu", "float32"))
    rendered, _ = templates.render(resolved.template, TEXTS, {})
    encoded = model.encode(model.prepare(rendered), lambda rows, tokens: None)
    return encoded.vectors, encoded.failed, resolved.warnings


def theirs(case: Case, path: Path) -> np.ndarray:
    """sentence-transformers' vectors [n, dim]."""
    import sentence_transformers

    model = sentence_transformers.SentenceTransformer(
        str(path), device="cpu", local_files_only=True
    )
    options: dict[str, Any] = {"show_progress_bar": False, "convert_to_numpy": True}
    if case.template is not None:
        options["prompt"] = case.template.removesuffix("{text}")
    if case.role == "query":
        return model.encode_query(TEXTS, **options)
    if case.role == "passage":
        return model.encode_document(TEXTS, **options)
    if case.template is None:
        options["prompt_name"] = case.role
    return model.encode(TEXTS, **options)


def outcome(case: Case, path: Path) -> str:
    """Build a case's folder and tell what embedcli makes of it, and where it differs."""
    from embedcli.errors import EmbedcliError

    case.build(path)
    try:
        vectors, failed, warned = ours(case, path)
    except EmbedcliError as error:
        return f"refused: {error.message}; {error.hint}"
    except Exception as error:
        return f"CRASH: {type(error).__name__}: {error}"
    reference = theirs(case, path)
    if vectors.shape != reference.shape:
        return f"DIFFER: {vectors.shape} against {reference.shape}"
    # For a text without any token sentence-transformers gives zeros, or what it makes of padding.
    rows = [row for row in range(len(TEXTS)) if row not in failed and reference[row].any()]
    norms = np.linalg.norm(reference[rows], axis=1)
    cosines = (vectors[rows] * reference[rows]).sum(axis=1) / norms
    cosines /= np.linalg.norm(vectors[rows], axis=1)
    if any(TEXTS[row].strip() for row in failed):
        return f"DIFFER: rows without a vector: {failed}"
    if cosines.min() < 0.99999:
        kind = "warned" if any("appended" in warning for warning in warned) else "DIFFER"
        return f"{kind}: least cosine {cosines.min():.4f}"
    if np.abs(vectors[rows] - reference[rows]).max() > 1e-4 * max(1.0, norms.max()):
        return "direction"
    return "agree"


def is_expected(case: Case, result: str) -> bool:
    """Tell whether a result is what was expected; `author`: sentence-transformers drops the prompt."""
    if case.expected == "author":
        return result.startswith("DIFFER: least cosine")
    kind, _, words = case.expected.partition(": ")
    return result.startswith(kind) and words in result


def run(case: Case) -> str:
    """The outcome of a case, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return outcome(case, Path(folder) / "model")


def main() -> None:
    """Print a line for each case, and the counts."""
    words = sys.argv[1:]
    counts: Counter[str] = Counter()
    for case in cases():
        if words and not any(word in case.name for word in words):
            continue
        result = run(case)
        mark = " " if is_expected(case, result) else "!"
        kind = "author" if case.expected == "author" and mark == " " else result.split(":")[0]
        counts[kind] += 1
        counts["unexpected"] += mark == "!"
        print(f"{mark} {case.name:<44} {result[:150]}", flush=True)
    print(", ".join(f"{kind} {count}" for kind, count in sorted(counts.items())))


if __name__ == "__main__":
    main()
