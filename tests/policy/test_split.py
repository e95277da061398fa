"""The split engine equals the plain one: architecture by architecture, forward and backward, and over a training run."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from flagtrl.errors import ConfigError
from flagtrl.language.tokens import EncodedPrompt
from flagtrl.policy.actor_critic import ActorCritic, PromptBatch
from flagtrl.policy.adapters import FINETUNING, PolicySettings, attach_adapter
from flagtrl.policy.engine import choose_engine
from flagtrl.policy.trunk import LruCache, TrunkSettings, batches, left_mask, pad_left

VOCABULARY = 96
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8),
    "gemma2": Gemma2Config(**SHAPE, head_dim=8, sliding_window=8),
    "mistral, sliding window": MistralConfig(**SHAPE, sliding_window=8),
    "smollm3": SmolLM3Config(**SHAPE, no_rope_layer_interval=2),
}
PATHS = {"smollm": ((5, 6), (7,), (8,)), "three chains": ((5, 6, 7), (8, 9, 10), (11, 12, 13)), "single": ((5,), (6,), (7,))}


def policy_of(config, finetuning="full_top", policy="action_tokens", paths=PATHS["smollm"]):
    torch.manual_seed(0)
    chosen = PolicySettings(policy=policy, finetuning=finetuning, head_width=8)
    model = ActorCritic(attach_adapter(AutoModelForCausalLM.from_config(copy.deepcopy(config)), chosen), paths, chosen)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # away from the start, where adapters and heads are zero
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def prompts_of(lengths, shared, seed=0):
    """Prompts of one bar: `shared` tokens in common, then their own."""
    rng = np.random.default_rng(seed)
    common = rng.integers(20, VOCABULARY, shared)
    own = [rng.integers(20, VOCABULARY, length) for length in lengths]
    return [EncodedPrompt(np.concatenate([common, ids]).astype(np.int64), shared) for ids in own]


def outputs_and_gradients(model, inputs):
    model.zero_grad()
    output = model(**inputs)
    (output.logprobs.masked_fill(~inputs["legal"], 0.0).pow(2).sum() + output.values.sum()).backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_equal_engines(model, prompts, legal):
    plain, plain_gradients = outputs_and_gradients(model, PromptBatch.of(prompts, legal).inputs())
    model.use_split()
    split, split_gradients = outputs_and_gradients(model, model.inputs(prompts, legal))
    torch.testing.assert_close(split.logprobs, plain.logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(split.values, plain.values, atol=1e-5, rtol=0)
    for name, gradient in plain_gradients.items():
        scale = float(gradient.abs().max())
        assert float((split_gradients[name] - gradient).abs().max()) <= 1e-4 * scale + 1e-7, name


@pytest.mark.parametrize("finetuning", FINETUNING)
@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=6, deadline=None)
@given(lengths=st.lists(st.integers(1, 14), min_size=1, max_size=4), shared=st.integers(1, 20), seed=st.integers(0, 99))
def test_both_engines_give_the_same_policy_values_and_gradients(name, finetuning, lengths, shared, seed):
    legal = np.random.default_rng(seed).random((len(lengths), 3)) < 0.7
    legal[:, 1] = True
    assert_equal_engines(policy_of(CONFIGS[name], finetuning), prompts_of(lengths, shared, seed), legal)


@pytest.mark.parametrize("paths", PATHS)
@pytest.mark.parametrize("policy", ["action_tokens", "head"])
def test_any_spelling_of_the_actions_is_scored_alike(paths, policy):
    model = policy_of(CONFIGS["llama"], policy=policy, paths=PATHS[paths])
    assert_equal_engines(model, prompts_of([3, 9, 5], 6), np.ones((3, 3), dtype=bool))


@pytest.mark.parametrize("finetuning", FINETUNING)
def test_the_reference_is_the_same_on_both_engines(finetuning):
    model, prompts, legal = policy_of(CONFIGS["llama"], finetuning), prompts_of([3, 7], 5), np.ones((2, 3), dtype=bool)
    plain = model(**model.inputs(prompts, legal), reference=True)
    model.use_split()
    split = model(**model.inputs(prompts, legal), reference=True)
    torch.testing.assert_close(split.logprobs, plain.logprobs, atol=1e-5, rtol=0)


def test_the_trunk_runs_a_shared_part_once_and_a_known_prompt_never():
    model = policy_of(CONFIGS["llama"])
    trunk = model.use_split()
    first, second = prompts_of([4, 6], 10)
    trunk([first])
    assert trunk.tokens == 10 + 4 + 1, "the prompt and the one answer token that must be read"
    trunk([second])
    assert trunk.tokens == 15 + 6 + 1, "the shared part was known"
    trunk([first, second, first])
    assert trunk.tokens == 22


def test_a_cache_that_is_too_small_costs_time_not_correctness():
    model = policy_of(CONFIGS["llama"])
    prompts, legal = prompts_of([4, 6, 4], 10), np.ones((3, 3), dtype=bool)
    model.use_split()
    wanted = model(**model.inputs(prompts, legal)).logprobs
    trunk = model.use_split(TrunkSettings(cache_bytes=0))
    assert torch.equal(model(**model.inputs(prompts, legal)).logprobs, wanted)
    assert trunk.cache.nbytes == 0


def test_the_cache_drops_the_least_recently_used_and_keeps_its_bound():
    cache = LruCache(100)
    cache.put(b"a", "A", 40)
    cache.put(b"b", "B", 40)
    assert cache.get(b"a") == "A"
    cache.put(b"c", "C", 40)
    assert (cache.get(b"b"), cache.get(b"a"), cache.get(b"c")) == (None, "A", "C")
    assert (cache.nbytes, len(cache)) == (80, 2)
    cache.put(b"c", "C2", 60)
    assert (cache.get(b"c"), cache.nbytes) == ("C2", 100)
    cache.put(b"d", "D", 101)
    assert cache.get(b"d") is None and cache.nbytes == 100


def test_pad_left():
    assert pad_left([torch.ones(1, 2), 2 * torch.ones(3, 2)])[:, :, 0].tolist() == [[0, 0, 1], [2, 2, 2]]
    assert left_mask([1, 3], 3).tolist() == [[0, 0, 1], [1, 1, 1]]


def test_batches_are_of_like_length_and_bounded():
    assert batches([100, 10, 98, 11, 99], tokens=200) == [[1, 3], [2, 4], [0]]
    assert batches([500, 500], tokens=100) == [[0], [1]], "a row longer than the bound runs alone"
    assert batches([], tokens=100) == []


def test_auto_falls_back_for_an_architecture_that_cannot_be_cut(caplog):
    granite = GraniteConfig(**SHAPE, embedding_multiplier=12.0)
    model, probe = policy_of(granite), (prompts_of([4], 6), np.ones((1, 3), dtype=bool))
    assert choose_engine(model, "auto", TrunkSettings(), probe) == "plain"
    assert model.trunk is None
    assert "GraniteForCausalLM" in caplog.text and "differ by" in caplog.text
    with pytest.raises(ConfigError, match=r"GraniteForCausalLM.*use engine=auto or engine=plain"):
        choose_engine(model, "split", TrunkSettings(), probe)


def test_auto_takes_the_split_engine_where_it_agrees():
    model, probe = policy_of(CONFIGS["llama"]), (prompts_of([4], 6), np.ones((1, 3), dtype=bool))
    assert choose_engine(model, "auto", TrunkSettings(), probe) == "split"
    assert choose_engine(model, "plain", TrunkSettings(), probe) == "plain"
    assert model.trunk is None
