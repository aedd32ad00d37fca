"""Models of real shapes with random weights, made on the device from their configs: no files, no hub."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers

from embedcli.encoder.compiling import compile_model
from embedcli.encoder.devices import choose_batch_tokens
from embedcli.encoder.model import LoadedModel
from embedcli.encoder.packing import Groups, find_packing, packed_states
from embedcli.encoder.tokenizer import Tokens
from embedcli.models.facts import Pooling
from embedcli.models.hub import ModelFiles
from embedcli.models.spec import ModelSpec

VOCABULARY = 8192


@dataclass(frozen=True)
class Shape:
    """A config of transformers, and how its states are pooled."""

    config: str
    pooling: Pooling
    sizes: dict[str, Any]

    def new_config(self, **changes):
        special = {f"{name}_token_id": 2 for name in ("bos", "eos", "cls", "sep")}
        sizes = {"vocab_size": VOCABULARY, "pad_token_id": 1, **special, **self.sizes, **changes}
        config = getattr(transformers, self.config)(**sizes)
        config.use_cache = False
        return config


def _shape(config, pooling, hidden, layers, heads, inner, **more):
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": inner}  # fmt: skip
    return Shape(config, pooling, sizes | more)


SHAPES = {
    "minilm": _shape("BertConfig", Pooling.MEAN, 384, 6, 12, 1536),
    # its positions begin behind the padding's id
    "xlm-roberta": _shape("XLMRobertaConfig", Pooling.CLS, 768, 12, 12, 3072, max_position_embeddings=514),
    # two layers of three see a window
    "modernbert": _shape("ModernBertConfig", Pooling.CLS, 768, 22, 12, 1152),
    # two heads share keys and values
    "qwen3-0.6b": _shape("Qwen3Config", Pooling.LAST_TOKEN, 1024, 28, 16, 3072, num_key_value_heads=8, head_dim=128),
    "qwen2-7b": _shape("Qwen2Config", Pooling.LAST_TOKEN, 3584, 28, 28, 18944, num_key_value_heads=4),
}  # fmt: skip


def spec_of(shape: Shape, config: Any) -> ModelSpec:
    hidden = config.hidden_size
    return ModelSpec(
        files=ModelFiles(shape.config, (), "", None),
        weights="",
        tokenizer="",
        config="",
        model_type=config.model_type,
        pooling=(shape.pooling,),
        normalize=True,
        full_dim=hidden,
        dim=hidden,
        max_length=512,
    )


def model_of(name, device="cpu", dtype=torch.float32, batch_tokens=None, **changes) -> LoadedModel:
    """Make a model of random weights, three times as large as new ones are, so that layers matter."""
    shape = SHAPES[name]
    config = shape.new_config(initializer_range=0.06, **changes)
    device = torch.device(device)
    torch.manual_seed(0)
    with device:
        transformer = transformers.AutoModel.from_config(config, dtype=dtype).eval()
    positions = getattr(config, "max_position_embeddings", None)
    with torch.inference_mode():
        packing = find_packing(transformer, config.pad_token_id, positions, max_length=512)
    return LoadedModel(
        spec=spec_of(shape, config),
        tokenizer=SimpleNamespace(pad_id=config.pad_token_id, pads_left=False),
        transformer=transformer,
        token_modules=torch.nn.Sequential(),
        text_modules=torch.nn.Sequential(),
        device=device,
        dtype=dtype,
        batch_tokens=batch_tokens or choose_batch_tokens(device, transformer),
        packing=packing,
    )


def compiled(model: LoadedModel) -> LoadedModel:
    from dataclasses import replace

    texts: Groups = [(64, 64)]
    ids = np.full(64 * 64, 5)
    run = lambda way: packed_states(way, ids, texts, model.packing)  # noqa: E731
    return replace(model, compiled=compile_model(model.transformer, run))


def tokens_of(lengths, seed=0) -> Tokens:
    """Texts of so many tokens, drawn at random, none of them padding."""
    lengths = np.asarray(lengths, np.int32)
    ids = np.random.default_rng(seed).integers(5, VOCABULARY, int(lengths.sum())).astype(np.int32)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    return Tokens(ids, starts, lengths, np.zeros(len(lengths), bool), np.zeros_like(lengths))
