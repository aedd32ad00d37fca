"""NV-Embed's block between token states and pooling (arXiv:2405.17428, section 3.1), in float32.

Each token's state asks a trained dictionary of latent vectors, by cross attention, and goes through
a gated feed-forward layer, both with residuals. Names of modules follow the keys of the published
weights.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from embedcli.errors import ConfigurationError

_PREFIX = "latent_attention_model."


class _Cross(nn.Module):
    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, heads * head_dim, bias=False)
        self.to_kv = nn.Linear(width, 2 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, states: Tensor, context: Tensor) -> Tensor:
        # states [B, T, H], context [B, L, H]
        keys, values = self.to_kv(context).chunk(2, dim=-1)
        queries, keys, values = (self._split(each) for each in (self.to_q(states), keys, values))
        mixed = nn.functional.scaled_dot_product_attention(queries, keys, values)
        out: Tensor = self.to_out(mixed.transpose(1, 2).flatten(2))
        return out

    def _split(self, tensor: Tensor) -> Tensor:
        return tensor.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class _GatedGelu(nn.Module):
    def forward(self, tensor: Tensor) -> Tensor:
        value, gate = tensor.chunk(2, dim=-1)
        return value * nn.functional.gelu(gate)


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, 8 * width), _GatedGelu(), nn.Linear(4 * width, width)
        )

    def forward(self, states: Tensor) -> Tensor:
        fed: Tensor = self.net(states)
        return fed


class _CrossBlock(nn.Module):
    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.norm, self.norm_context = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fn = _Cross(width, heads, head_dim)

    def forward(self, states: Tensor, context: Tensor) -> Tensor:
        mixed: Tensor = self.fn(self.norm(states), self.norm_context(context))
        return mixed + states


class _FeedBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fn = _FeedForward(width)

    def forward(self, states: Tensor) -> Tensor:
        fed: Tensor = self.fn(self.norm(states))
        return fed + states


class LatentAttention(nn.Module):
    """Token states [..., H] to token states [..., H]: each token asks for itself."""

    def __init__(self, width: int, latents: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(latents, width))
        self.cross_attend_blocks = nn.ModuleList(
            [_CrossBlock(width, heads, head_dim), _FeedBlock(width)]
        )

    def forward(self, states: Tensor) -> Tensor:
        """Ask the latents, then feed forward; the result is float32."""
        cross, feed = self.cross_attend_blocks
        rows = states.float().reshape(1, -1, states.shape[-1])
        result: Tensor = feed(cross(rows, self.latents[None]))
        return result.reshape(states.shape)


def load_latent_attention(config: Mapping[str, Any], path: Path) -> LatentAttention:
    """Build the block from `latent_attention_config` and the keys `latent_attention_model.*` of the
    weights.

    Raises ConfigurationError where they are missing or of other shapes.
    """
    tensors: dict[str, Tensor] = {}
    for file in sorted(path.glob("model*.safetensors")):
        with safetensors.safe_open(file, framework="pt") as weights:
            names = [key for key in weights.keys() if key.startswith(_PREFIX)]  # noqa: SIM118 - not a dict
            tensors |= {
                name.removeprefix(_PREFIX): weights.get_tensor(name).float() for name in names
            }
    try:
        block = LatentAttention(
            config["latent_dim"],
            config["num_latents_value"],
            config["num_cross_heads"],
            config["cross_dim_head"],
        )
        block.load_state_dict(tensors)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigurationError(
            f"{path}: its latent attention can't be loaded: {reason}"
        ) from None
    return block
