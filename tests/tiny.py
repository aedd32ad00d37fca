"""Tiny random models of real architecture classes, in the folder layouts of sentence-transformers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WORDS = (
    "the sea rises and falls twice a day because moon pulls water bread needs salt flour time a star burns for ten "
    "million years query passage instruct title text none tree bridge weather language insect medicine map"
)

# Tokens of the longest text that the byte-level models take.
LENGTH = 160

POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


# Blank, short, of many scripts, with marks and without width: what a tokenizer may stumble over.
ODD_TEXTS = [
    "",
    " ",
    "\n\t",
    "a",
    "The sea rises and falls twice a day.",
    "Wärme, größer, naïve café",
    "海は一日に二度満ち引きする",
    "العربية עברית",
    "e\u0301 \u200b \ufeff",
]


def wordpiece(path: Path, max_length: int) -> None:
    """Train and save a BERT tokenizer; characters are its last resort, so nothing is unknown but
    other scripts.
    """
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    alphabet = [chr(code) for code in range(33, 127)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator([WORDS] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), special, strict=True))
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        **{f"{name}_token": token for name, token in names.items()},
    )
    wrapped.save_pretrained(path)


def bert(
    path: Path,
    pooling: str | Sequence[str] = "mean",
    seed: int = 0,
    positions: int = 64,
    **layout: Any,
) -> Path:
    """A BERT of 2 layers and 32 dimensions. `layout` goes to `sentence_layout`."""
    import torch
    import transformers

    path.mkdir(parents=True, exist_ok=True)
    wordpiece(path, positions)
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=positions,
        initializer_range=0.2,
    )
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(path)
    sentence_layout(path, 32, pooling, **layout)
    return path


def sentence_layout(
    path: Path,
    hidden: int,
    pooling: str | Sequence[str] = "mean",
    generation: int = 5,
    dense: Sequence[tuple[int, str]] = (),
    normalize: bool = True,
    prompts: Mapping[str, str] | None = None,
    max_length: int | None = 48,
) -> None:
    """Write modules.json and the module configs as sentence-transformers does, up to version 5 or
    from 6 on.
    """
    modes = [pooling] if isinstance(pooling, str) else list(pooling)
    names = {
        5: "sentence_transformers.models",
        6: "sentence_transformers.sentence_transformer.modules",
    }
    base = names[generation]
    kinds = [
        (
            "",
            f"{base}.Transformer"
            if generation == 5
            else "sentence_transformers.base.modules.transformer.Transformer",
        )
    ]
    kinds.append(("1_Pooling", f"{base}.Pooling" if generation == 5 else f"{base}.pooling.Pooling"))
    if generation == 5:
        config: dict[str, Any] = {flag: mode in modes for mode, flag in POOLING_FLAGS.items()}
        config["word_embedding_dimension"] = hidden
    else:
        config = {
            "embedding_dimension": hidden,
            "pooling_mode": modes[0] if len(modes) == 1 else modes,
            "include_prompt": True,
        }
    write_json(path / "1_Pooling" / "config.json", config)
    width = hidden * len(modes)
    for index, (size, activation) in enumerate(dense, start=2):
        folder = f"{index}_Dense"
        kinds.append(
            (
                folder,
                f"{base}.Dense"
                if generation == 5
                else "sentence_transformers.base.modules.dense.Dense",
            )
        )
        _dense(path / folder, width, size, activation)
        width = size
    if normalize:
        kinds.append(
            (
                f"{len(kinds)}_Normalize",
                f"{base}.Normalize"
                if generation == 5
                else "sentence_transformers.base.modules.normalize.Normalize",
            )
        )
        (path / kinds[-1][0]).mkdir(exist_ok=True)
    modules = [
        {"idx": i, "name": str(i), "path": folder, "type": kind}
        for i, (folder, kind) in enumerate(kinds)
    ]
    write_json(path / "modules.json", modules)
    if max_length is not None:
        write_json(
            path / "sentence_bert_config.json",
            {"max_seq_length": max_length, "do_lower_case": False},
        )
    if prompts is not None:
        write_json(
            path / "config_sentence_transformers.json",
            {"prompts": dict(prompts), "default_prompt_name": None},
        )


def _dense(path: Path, width: int, size: int, activation: str) -> None:
    import safetensors.torch
    import torch

    config = {
        "in_features": width,
        "out_features": size,
        "bias": True,
        "activation_function": activation,
    }
    write_json(path / "config.json", config)
    weights = {"linear.weight": torch.randn(size, width), "linear.bias": torch.randn(size)}
    safetensors.torch.save_file(weights, path / "model.safetensors")


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def byte_pairs(
    path: Path,
    before: Sequence[str] = (),
    after: Sequence[str] = (),
    side: str = "right",
    **tokens: str,
) -> None:
    """Train and save a byte-level tokenizer that puts `before` and `after` around texts.

    All tokenizers of a text have the same ids, whatever they put around it; `tokens` are names such
    as eos_token.
    """
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = ["<s>", "<pad>", "</s>", "<unk>", "<|endoftext|>", "<|im_end|>", "<eos>", "<bos>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([WORDS] * 3, trainer)
    if before or after:
        single = " ".join([*before, "$A", *after])
        used = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys([*before, *after])]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=used)
    named = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        **tokens,
    }
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=LENGTH, padding_side=side, **named
    ).save_pretrained(path)


COMMON = {
    "vocab_size": 420,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": LENGTH + 2,
    "initializer_range": 0.2,
}
TOKENS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}


def model(
    path: Path,
    kind: str,
    tokenizer: Mapping[str, Any] | None = None,
    layout: Mapping[str, Any] | None = None,
    head: str | None = None,
    **config: Any,
) -> Path:
    """A random model of a native class by its config's name, such as `Mistral`, with a byte-level
    tokenizer; with the `head` of another task, if one is named.
    """
    import torch
    import transformers

    path.mkdir(parents=True, exist_ok=True)
    byte_pairs(path, **(tokenizer or {}))
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}Config")(**{**COMMON, **TOKENS, **config})
    names = {"T5": "T5EncoderModel", "Gemma3Text": "Gemma3TextModel"}
    cls = getattr(transformers, head or names.get(kind, f"{kind}Model"))
    built = cls(
        made,
        **(
            {"add_pooling_layer": False}
            if "add_pooling_layer" in cls.__init__.__code__.co_varnames
            else {}
        ),
    )
    with torch.no_grad():
        for parameter in built.parameters():  # norms too, so that a forgotten one shows
            parameter.add_(torch.randn_like(parameter) * 0.05)
    built.save_pretrained(path)
    sentence_layout(path, 32, **{"max_length": LENGTH, **(layout or {})})
    return path
