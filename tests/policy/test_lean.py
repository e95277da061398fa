"""The lean forward of a decoder of Llama's kind is transformers' own, in whatever state of the
cache.
"""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, LlamaConfig, MistralConfig, Qwen2Config

from architectures import CONFIGS, SHAPE
from flagtrl.policy.cache import LayerCache
from flagtrl.policy.lean import LeanDecoder, is_of_llamas_kind

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
KNOWN = {
    "llama": LlamaConfig(**SHAPE),
    "llama, biases and another activation": LlamaConfig(
        **SHAPE, attention_bias=True, mlp_bias=True, hidden_act="gelu"
    ),
    "llama, wide heads": LlamaConfig(**SHAPE, head_dim=16),
    "llama 3's angles": LlamaConfig(
        **SHAPE, rope_parameters={**LLAMA3, "original_max_position_embeddings": 32}
    ),
    "qwen2": Qwen2Config(**SHAPE),
    "mistral, no window": MistralConfig(**SHAPE, sliding_window=None),
}


def decoder_of(config, dtype=torch.float32):
    torch.manual_seed(0)
    decoder = AutoModel.from_config(copy.deepcopy(config)).to(dtype).requires_grad_(False).eval()
    for name, parameter in decoder.named_parameters():
        if "norm" in name or name.endswith("bias"):  # away from ones and zeros
            parameter += 0.3 * torch.randn_like(parameter)
    return decoder


def states(decoder, ids, mask, cuts):
    """The states of all positions, run piece by piece, and what is in the cache at the end."""
    cache, found = LayerCache(), []
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for begin, end in zip((0, *cuts), (*cuts, ids.shape[1]), strict=True):
        piece = slice(begin, end)
        out = decoder(
            input_ids=ids[:, piece],
            attention_mask=mask[:, :end],
            position_ids=positions[:, piece],
            past_key_values=cache,
            use_cache=True,
        )
        found.append(out.last_hidden_state)
    return torch.cat(found, dim=1), cache.keys_values()


@pytest.mark.parametrize("name", KNOWN)
@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    side=st.sampled_from(["left", "right"]),
    cuts=st.sampled_from([(), (5,), (11,), (4, 5, 9)]),
    seed=st.integers(0, 99),
)
def test_states_and_cache_are_transformers_own(name, lengths, side, cuts, seed):
    decoder = decoder_of(KNOWN[name])
    mask = torch.stack([(torch.arange(12) < length).long() for length in (12, *lengths)])
    mask = mask.flip(1) if side == "left" else mask
    ids = (
        torch.randint(
            0, SHAPE["vocab_size"], mask.shape, generator=torch.Generator().manual_seed(seed)
        )
        * mask
    )
    (wanted, kept), (found, kept_here) = (
        states(d, ids, mask, cuts) for d in (decoder, LeanDecoder(decoder))
    )
    torch.testing.assert_close(found[mask.bool()], wanted[mask.bool()], atol=1e-5, rtol=1e-5)
    assert found.isfinite().all(), "padding too: a NaN there would reach what must not look at it"
    for ours, theirs in zip(kept_here, kept, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            real = (part.transpose(1, 2)[mask.bool()] for part in (one, other))
            torch.testing.assert_close(*real, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_as_near_to_float32_as_transformers_own(dtype):
    ids, mask = torch.arange(24)[None], torch.ones(1, 24, dtype=torch.int64)
    exact, _ = states(decoder_of(KNOWN["llama"]), ids, mask, (13,))
    rounded = decoder_of(KNOWN["llama"], dtype)
    theirs, ours = (states(d, ids, mask, (13,))[0] for d in (rounded, LeanDecoder(rounded)))
    assert ours.dtype == dtype
    errors = [float((found.float() - exact).pow(2).mean().sqrt()) for found in (ours, theirs)]
    assert 0 < errors[0] <= 1.2 * errors[1]


def test_only_what_is_known_to_be_alike_is_replaced():
    assert all(is_of_llamas_kind(decoder_of(config)) for config in KNOWN.values())
    others = {name: config for name, config in CONFIGS.items() if name not in ("llama", "qwen2")}
    others["qwen2, sliding window"] = Qwen2Config(
        **SHAPE, use_sliding_window=True, sliding_window=8, max_window_layers=1
    )
    assert not any(is_of_llamas_kind(decoder_of(config)) for config in others.values())
    patched = decoder_of(KNOWN["llama"])
    patched.layers[1] = torch.nn.Identity()
    assert not is_of_llamas_kind(patched)


def test_under_autocast_transformers_own_forward_runs():
    decoder, ids, mask = (
        decoder_of(KNOWN["llama"]),
        torch.arange(9)[None],
        torch.ones(1, 9, dtype=torch.int64),
    )
    with torch.autocast("cpu", torch.bfloat16):
        theirs, ours = (states(d, ids, mask, (4,))[0] for d in (decoder, LeanDecoder(decoder)))
    assert torch.equal(theirs, ours)
