"""What drops or shakes something while training is found by what it is and does, in architectures
that name it in ways of their own.
"""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GPT2Config,
    GPTNeoXConfig,
    OPTConfig,
    PersimmonConfig,
    PhiConfig,
    PhimoeConfig,
    SeedOssConfig,
    Starcoder2Config,
)

from architectures import CONFIGS, SHAPE
from flagtrl.errors import AdapterError
from flagtrl.policy.dropouts import check_repeats, switch_off_dropout, without_dropout

P = 0.3
OTHERS = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
DROPPING = {
    "llama": copy.deepcopy(CONFIGS["llama"]),
    "starcoder2": Starcoder2Config(**SHAPE, residual_dropout=P, embedding_dropout=P),
    "seed-oss": SeedOssConfig(**SHAPE, head_dim=8, residual_dropout=P, attention_dropout=P),
    "gpt2": GPT2Config(**OTHERS, n_embd=32, n_head=4, n_layer=2, n_positions=128, embd_pdrop=P),
    "bloom": BloomConfig(**OTHERS, hidden_size=32, n_head=4, n_layer=2, hidden_dropout=P),
    "falcon": FalconConfig(**OTHERS, **SMALL, hidden_dropout=P, attention_dropout=P),
    "gpt-neox": GPTNeoXConfig(**OTHERS, **SMALL, intermediate_size=48, hidden_dropout=P),
    "opt": OPTConfig(**OTHERS, **SMALL, ffn_dim=48, word_embed_proj_dim=32, dropout=P, layerdrop=P),
    "persimmon": PersimmonConfig(**OTHERS, **SMALL, intermediate_size=48, hidden_dropout=P),
    "phi": PhiConfig(**SHAPE, embd_pdrop=P, resid_pdrop=P),
    "phimoe": PhimoeConfig(
        **SHAPE, num_local_experts=4, router_jitter_noise=P, input_jitter_noise=P
    ),
}


def made(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


@pytest.mark.parametrize("name", DROPPING)
def test_a_model_answers_alike_in_training_and_out_of_it(name):
    config = copy.deepcopy(DROPPING[name])
    if name == "llama":
        config.attention_dropout = P
    # by its module's own numbers, where its configuration was read before
    model = made(copy.deepcopy(config))
    with pytest.raises(AdapterError, match="answers otherwise while it is trained"):
        check_repeats(model)
    switch_off_dropout(model)
    check_repeats(model)
    # by its configuration, before it is made
    check_repeats(made(without_dropout(config)))


def test_what_only_its_effect_shows_is_refused():
    model = made(CONFIGS["llama"])
    norm = model.model.norm
    shaking = type("Shaking", (nn.Module,), {})()
    shaking.forward = lambda x: norm(nn.functional.dropout(x, 0.2, model.training))
    model.model.norm = shaking
    switch_off_dropout(model)
    model.eval()
    with pytest.raises(AdapterError, match="answers otherwise while it is trained"):
        check_repeats(model)
    assert not model.training


def test_weights_that_are_nan_are_refused():
    model = made(CONFIGS["llama"])
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(AdapterError, match="or its weights hold NaN"):
        check_repeats(model)
