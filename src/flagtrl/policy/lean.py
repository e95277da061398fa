"""A frozen decoder of Llama's kind on a CPU, with less around its matrix products: one function,
fewer passes over memory.

Of a short prompt's pass through SmolLM2-135M's trunk, transformers' own forward spends a quarter to
a third outside of products and attention; with this one a whole step is some 4% quicker
(`benchmarks/lean_forward.py`). The sums are the same: `tests/policy/test_lean.py` holds it to
theirs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaModel, MistralModel, Qwen2Model
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from flagtrl.policy.cache import LayerCache

# Their layers are the same lines; they differ in biases, and in masks where a window slides.
KINDS: dict[type, type] = {
    LlamaModel: LlamaDecoderLayer,
    MistralModel: MistralDecoderLayer,
    Qwen2Model: Qwen2DecoderLayer,
}


def is_of_llamas_kind(decoder: Any) -> bool:
    """Whether a LeanDecoder may stand for it: one of these classes, with their own layers and no
    sliding window.
    """
    if type(decoder) not in KINDS or any(
        type(layer) is not KINDS[type(decoder)] for layer in decoder.layers
    ):
        return False
    slides = type(decoder) is MistralModel and decoder.config.sliding_window is not None
    return not slides and set(
        getattr(decoder.config, "layer_types", None) or ["full_attention"]
    ) == {"full_attention"}


class LeanDecoder(nn.Module):
    """Stands for a view of a frozen decoder of Llama's kind; away from the CPU, or under autocast,
    it runs that as it is.
    """

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: LayerCache,
        use_cache: bool,
    ) -> BaseModelOutputWithPast:
        """(B, S) ids that follow the C positions in `past_key_values`, mask (B, C + S); extends
        `past_key_values`.
        """
        decoder: Any = self.decoder
        if input_ids.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return decoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
            )
        hidden = decoder.embed_tokens(input_ids)
        cos, sin = decoder.rotary_emb(hidden, position_ids)
        # The angles of a head's second half repeat the first one's.
        angles = cos[:, None], sin[:, None, :, : sin.shape[-1] // 2]
        mask = _added_to_scores(attention_mask, input_ids.shape[1], hidden.dtype)
        for layer in decoder.layers:
            hidden = _layer(layer, hidden, angles, mask, past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=decoder.norm(hidden))


def _layer(
    layer: Any,
    hidden: Tensor,
    angles: tuple[Tensor, Tensor],
    mask: Tensor | None,
    cache: LayerCache,
) -> Tensor:
    attention, mlp = layer.self_attn, layer.mlp
    x = _normed(hidden, layer.input_layernorm)
    heads = (*hidden.shape[:2], -1, attention.head_dim)
    queries, keys, values = (
        projection(x).view(heads).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    keys, values = cache.update(_turned(keys, *angles), values, attention.layer_idx)
    mixed = functional.scaled_dot_product_attention(
        _turned(queries, *angles),
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None,
        scale=attention.scaling,
        enable_gqa=True,
    )
    hidden = hidden + attention.o_proj(mixed.transpose(1, 2).flatten(2))
    x = _normed(hidden, layer.post_attention_layernorm)
    return hidden + mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x))


def _normed(x: Tensor, norm: Any) -> Tensor:
    """Root mean square normalisation in float32."""
    exact = x.float()
    squares = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).square_()
    scale = squares.div_(x.shape[-1]).add_(norm.variance_epsilon).rsqrt_()
    return (exact * scale).to(x.dtype).mul_(norm.weight)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (B, heads, S, W) by cosines (B, 1, S, W) and sines (B, 1, S, W / 2)."""
    half = x.shape[-1] // 2
    turned = x * cos
    turned[..., :half].addcmul_(x[..., half:], sin, value=-1)
    turned[..., half:].addcmul_(x[..., :half], sin)
    return turned


def _added_to_scores(mask: Tensor, queries: int, dtype: torch.dtype) -> Tensor | None:
    """(B, 1, S, C + S): 0 where a query may look, else -inf; None where that is all before it, and
    C is 0.

    A query that stands on padding looks at itself, so that no row is without a key.
    """
    length = mask.shape[1]
    if queries == length and bool(mask.all()):
        return None
    positions = torch.arange(length)
    own = positions[-queries:, None]
    seen = (positions <= own) & mask[:, None, None].bool() | (positions == own)
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)
