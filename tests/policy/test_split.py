"""The split engine equals the plain one: architecture by architecture, forward and backward, and
over a training run.
"""

import copy
from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config, GraniteConfig, Lfm2Config, LlamaConfig

from architectures import CONFIGS, SHAPE, VOCABULARY
from flagtrl.errors import ConfigError
from flagtrl.language.prompt import EncodedPrompt
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import attach_adapter
from flagtrl.policy.batch import PromptBatch
from flagtrl.policy.cache import LayerCache
from flagtrl.policy.engine import choose_engine
from flagtrl.policy.lru import LruCache
from flagtrl.policy.padding import TOKENS_PER_PASS, batches, left_mask, pad_left
from flagtrl.policy.settings import FINETUNING, NORMALISATIONS, PolicySettings
from flagtrl.policy.trunk_settings import TrunkSettings

# PEFT plans for DeepSeek's fused experts, which a plain LoRA leaves alone.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"
)

PATHS = {
    "smollm": ((5, 6), (7,), (8,)),
    "three chains": ((5, 6, 7), (8, 9, 10), (11, 12, 13)),
    "single": ((5,), (6,), (7,)),
}


def policy_of(
    config, finetuning="full_top", policy="action_tokens", paths=PATHS["smollm"], **options
):
    torch.manual_seed(0)
    chosen = PolicySettings(policy=policy, finetuning=finetuning, head_width=8, **options)
    model = ActorCritic(
        attach_adapter(AutoModelForCausalLM.from_config(copy.deepcopy(config)), chosen),
        paths,
        chosen,
    )
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
    (
        output.logprobs.masked_fill(~inputs["legal"], 0.0).pow(2).sum() + output.values.sum()
    ).backward()
    return output, {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


def assert_equal_engines(model, prompts, legal):
    plain, plain_gradients = outputs_and_gradients(model, PromptBatch.of(prompts, legal).inputs())
    model.use_split()
    split, split_gradients = outputs_and_gradients(model, model.inputs(prompts, legal))
    torch.testing.assert_close(split.logprobs, plain.logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(split.values, plain.values, atol=1e-5, rtol=0)
    assert plain_gradients.keys() == split_gradients.keys() != set()
    for name, gradient in plain_gradients.items():
        scale = float(gradient.abs().max())
        assert float((split_gradients[name] - gradient).abs().max()) <= 1e-4 * scale + 1e-7, name


@pytest.mark.parametrize("finetuning", FINETUNING)
@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=6, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 14), min_size=1, max_size=4),
    shared=st.integers(1, 20),
    seed=st.integers(0, 99),
    tokens=st.sampled_from([1, 1000]),
)
def test_both_engines_give_the_same_policy_values_and_gradients(
    name, finetuning, lengths, shared, seed, tokens
):
    """Prompt by prompt, as on a CPU, and in padded batches, as on a GPU."""
    legal = np.random.default_rng(seed).random((len(lengths), 3)) < 0.7
    legal[:, 1] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TOKENS_PER_PASS, "cpu", tokens)
        assert_equal_engines(
            policy_of(CONFIGS[name], finetuning), prompts_of(lengths, shared, seed), legal
        )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("finetuning", FINETUNING)
@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=3, deadline=None)
@given(lengths=st.lists(st.integers(1, 11), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_the_two_halves_are_the_whole_model_with_padding_on_either_side(
    name, finetuning, side, lengths, seed
):
    """Hidden states after the final norm, at every token of prompts of mixed lengths, and
    gradients.
    """
    model = policy_of(CONFIGS[name], finetuning)
    rng, lengths = np.random.default_rng(seed), (12, *lengths)
    mask = torch.stack([(torch.arange(12) < length).long() for length in lengths])
    mask = mask.flip(1) if side == "left" else mask
    ids = torch.from_numpy(rng.integers(20, VOCABULARY, mask.shape)) * mask
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    whole = model.language_model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        output_hidden_states=True,
        use_cache=False,
    ).hidden_states[-1][mask.bool()]
    model.use_split()
    split = model.split.top(model.split.trunk(ids, mask, LayerCache()), mask, keep=12)[mask.bool()]
    scale = float(whole.detach().abs().max())  # which float32 rounds in proportion to
    torch.testing.assert_close(split, whole, atol=1e-5 * scale, rtol=0)
    learning = [
        parameter for parameter in model.language_model.parameters() if parameter.requires_grad
    ]
    weights = torch.from_numpy(rng.standard_normal(whole.shape)).float()
    found, wanted = (
        torch.autograd.grad((out * weights).sum(), learning, allow_unused=True)
        for out in (split, whole)
    )
    assert any(gradient is not None for gradient in wanted)
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if other is not None:
            assert float((one - other).abs().max()) <= 1e-4 * float(other.abs().max()) + 1e-7


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("paths", PATHS)
@pytest.mark.parametrize("policy", ["action_tokens", "head"])
def test_any_spelling_of_the_actions_is_scored_alike(paths, policy, normalisation):
    model = policy_of(
        CONFIGS["llama"], policy=policy, paths=PATHS[paths], length_normalisation=normalisation
    )
    assert_equal_engines(model, prompts_of([3, 9, 5], 6), np.ones((3, 3), dtype=bool))


@pytest.mark.parametrize("top", [1, 3])
def test_any_number_of_trainable_layers(top):
    model = policy_of(CONFIGS["llama"], trainable_layers=top)
    assert_equal_engines(model, prompts_of([3, 9, 5], 6), np.ones((3, 3), dtype=bool))


def mixed_prompts():
    """Of three bars, one of them visited twice; one whose own part is longer than another's whole
    prompt.
    """
    return [
        *prompts_of([3, 7], 5, seed=1),
        *prompts_of([4], 9, seed=2),
        *prompts_of([12], 2, seed=3),
    ]


@pytest.mark.parametrize(
    ("name", "finetuning", "paths"),
    [
        *product(CONFIGS, FINETUNING, ["smollm"]),
        *product(["llama"], FINETUNING, ["three chains", "single"]),
    ],
)
def test_the_reference_is_the_same_on_both_engines(monkeypatch, name, finetuning, paths):
    """Three ways: the plain engine, the split one afresh, and with what it keeps of shared parts
    and prompts.
    """
    monkeypatch.setitem(TOKENS_PER_PASS, "cpu", 1000)  # a padded batch, as on a GPU
    model, prompts = policy_of(CONFIGS[name], finetuning, paths=PATHS[paths]), mixed_prompts()
    legal = np.ones((len(prompts), 3), dtype=bool)
    legal[1, 0] = False
    with torch.no_grad():
        plain = model(**model.inputs(prompts, legal), reference=True).logprobs
        model.use_split()
        inputs = model.inputs(prompts, legal)
        afresh = model(**inputs, reference=True).logprobs
        kept = [model.reference_logprobs(inputs["boundaries"], inputs["legal"]) for _ in range(2)]
    torch.testing.assert_close(afresh, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(kept[0], plain, atol=1e-5, rtol=0)
    assert torch.equal(kept[1], kept[0])


def test_the_reference_runs_a_prompt_once_and_a_shared_part_once():
    model, (first, second, *_) = policy_of(CONFIGS["llama"]), mixed_prompts()
    trunk = model.use_split()
    runs = []
    top, fill = model.split.top, model.split.top_keys_values
    model.split.top = lambda states, *rest: (
        runs.append(tuple(states.shape[:2])) or top(states, *rest)
    )
    model.split.top_keys_values = lambda states: runs.append("shared") or fill(states)
    for prompts in ([first], [second], [first, second]):
        model.reference_logprobs(trunk(prompts), torch.ones(len(prompts), 3, dtype=torch.bool))
    assert runs == ["shared", (1, 4), (1, 8)], (
        "own parts with an answer token, of rounded lengths; later both are known"
    )


def test_the_reference_runs_a_prompt_whole_that_is_shorter_than_its_row():
    # 5 tokens, and a row takes 7 before the answer's
    model, prompts = policy_of(CONFIGS["llama"]), prompts_of([3], 2)
    trunk, legal = model.use_split(), np.ones((1, 3), dtype=bool)
    with torch.no_grad():
        plain = model(**PromptBatch.of(prompts, legal).inputs(), reference=True).logprobs
    kept = model.reference_logprobs(trunk(prompts), torch.from_numpy(legal))
    torch.testing.assert_close(kept, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("lengths", [[3, 7, 9], [9, 7, 3], [5, 6, 1]])
def test_a_prompts_numbers_do_not_depend_on_which_of_its_bar_came_first(lengths):
    """Bit for bit: a resumed run meets prompts in another order than the run before it, whose cache
    was full.
    """
    # sums with room to differ
    wide = LlamaConfig(**SHAPE | {"hidden_size": 256, "intermediate_size": 512})
    model, prompts = policy_of(wide), prompts_of(lengths, 150)
    legal = torch.ones(1, 3, dtype=torch.bool)

    def numbers(order):
        trunk, found = model.use_split(), {}
        for row in order:
            boundary = trunk([prompts[row]])[0]
            found[row] = (*boundary.states, model.reference_logprobs([boundary], legal))
        return found

    wanted = numbers([0, 1, 2])
    for order in permutations(range(3)):
        found = numbers(order)
        assert all(
            torch.equal(a, b)
            for row in range(3)
            for a, b in zip(found[row], wanted[row], strict=True)
        ), order


def test_a_repeated_prompt_is_one_row_of_a_batch_and_its_gradient_counts_as_often():
    model, prompts = policy_of(CONFIGS["llama"]), prompts_of([3, 7], 5)
    legal = np.ones((4, 3), dtype=bool)
    legal[3, 0] = False
    repeated = [prompts[0], prompts[1], prompts[0], prompts[0]]
    assert_equal_engines(model, repeated, legal)
    rows, top = [], model.split.top
    model.split.top = lambda states, *rest: rows.append(len(states)) or top(states, *rest)
    model(**model.inputs(repeated, legal))
    assert rows == [2]


def test_the_last_layer_and_the_head_work_where_they_are_read_only():
    """What makes the engine fast, counted: tokens through the last MLP, and rows of the
    vocabulary.
    """
    model, prompts = policy_of(CONFIGS["llama"]), prompts_of([6], 10)
    model.use_split()
    last = model.language_model.get_base_model().get_decoder().layers[-1]
    tokens, rows, queries = [], [], []
    trained = last.modules_to_save["default"]
    trained.mlp.register_forward_hook(lambda _, inputs, __: tokens.append(inputs[0].shape[1]))
    trained.self_attn.q_proj.register_forward_hook(
        lambda _, __, output: queries.append((output.shape[1], output.any().item()))
    )
    logits = model.split.logits
    model.split.logits = lambda hidden, wanted=None: rows.append(wanted) or logits(hidden, wanted)
    model(**model.inputs(prompts, np.ones((1, 3), dtype=bool)))
    assert tokens == [2], "the prompt's end, and Sell's first token"
    assert queries == [(18, False), (2, True)], "elsewhere, padding included, zeros stand for them"
    assert rows == [(5, 7, 8), None], (
        "first tokens of the actions; after Sell's first one, a probability over all tokens"
    )


@pytest.mark.parametrize("one_dnn", [True, False])
def test_training_mode_of_the_model_and_of_the_trunk_are_apart(one_dnn):
    model = policy_of(CONFIGS["llama"]).train()
    model.use_split(TrunkSettings(one_dnn=one_dnn))
    layer = model.language_model.get_base_model().get_decoder().layers[0]
    assert all(module.training for module in layer.modules())
    model.eval().train()
    assert not any(module.training for module in model.split._trunk.modules()), (
        "its states may not hang on dropout"
    )
    assert model.split._trunk.layers[0].mlp.up_proj.weight is layer.mlp.up_proj.weight, (
        "shared, not copied"
    )


def test_the_trunk_runs_a_shared_part_once_and_a_known_prompt_never():
    model = policy_of(CONFIGS["llama"])
    trunk = model.use_split()
    first, second = prompts_of([4, 6], 10)
    trunk([first])
    assert trunk.tokens == 10 + 8, (
        "the prompt's two parts, the second with one answer token and rounded up"
    )
    trunk([second])
    assert trunk.tokens == 18 + 8, "the shared part was known"
    trunk([first, second, first])
    assert trunk.tokens == 26


def test_prompts_of_one_batch_are_run_together(monkeypatch):
    monkeypatch.setitem(TOKENS_PER_PASS, "cpu", 1000)
    model, prompts = policy_of(CONFIGS["llama"]), prompts_of([9, 10, 10], 10)
    trunk, passes = model.use_split(), []
    run = model.split.trunk
    model.split.trunk = lambda ids, *rest: passes.append(tuple(ids.shape)) or run(ids, *rest)
    together = trunk(prompts)
    assert passes == [(1, 10), (3, 12)], (
        "the shared part, then all own parts with an answer token, of a rounded length"
    )
    assert trunk.tokens == 10 + 3 * 12, "each begins earlier, in its shared part"
    monkeypatch.setitem(TOKENS_PER_PASS, "cpu", 1)
    for prompt, boundary in zip(prompts, together, strict=True):
        alone = model.use_split()([prompt])[0]
        torch.testing.assert_close(boundary.states[0], alone.states[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_trunk_in_16_bits_keeps_probabilities_within_two_thousandths(name, dtype):
    model, prompts, legal = (
        policy_of(CONFIGS[name]),
        prompts_of([3, 7, 9], 15),
        np.ones((3, 3), dtype=bool),
    )
    with torch.no_grad():
        plain = model(**model.inputs(prompts, legal))
        trunk = model.use_split(TrunkSettings(dtype=dtype))
        split = model(**model.inputs(prompts, legal))
    torch.testing.assert_close(split.logprobs.exp(), plain.logprobs.exp(), atol=2e-3, rtol=0)
    assert not torch.equal(split.logprobs, plain.logprobs), "it did run in 16 bits"
    assert trunk(prompts)[0].states[0].dtype == getattr(torch, dtype)
    assert next(model.parameters()).dtype == torch.float32, "the model itself is left as it was"


@pytest.mark.slow
def test_a_trunk_of_smollm2s_shape_in_bfloat16_keeps_probabilities_within_two_hundredths():
    """30 layers; the vocabulary alone is smaller."""
    shape = {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    }
    config = LlamaConfig(
        **SHAPE | shape | {"num_hidden_layers": 30, "vocab_size": 4096, "tie_word_embeddings": True}
    )
    model, prompts, legal = policy_of(config), prompts_of([30, 50], 60), np.ones((2, 3), dtype=bool)
    with torch.no_grad():
        model.use_split()
        exact = model(**model.inputs(prompts, legal)).logprobs.exp()
        model.use_split(TrunkSettings(dtype="bfloat16"))
        found = model(**model.inputs(prompts, legal)).logprobs.exp()
    assert 0 < float((found - exact).abs().max()) <= 2e-2


def test_boundary_states_are_stored_in_the_type_that_is_asked_for():
    model, prompts, legal = (
        policy_of(CONFIGS["llama"]),
        prompts_of([3], 5),
        np.ones((1, 3), dtype=bool),
    )
    wanted = model.use_split()(prompts)[0]
    exact = model(**model.inputs(prompts, legal)).logprobs
    settings = TrunkSettings(boundary_dtype="bfloat16", boundary_device="cpu")
    assert choose_engine(model, "auto", settings, (prompts, legal)) == "split"
    half = model.trunk(prompts)[0]
    assert half.nbytes == wanted.nbytes // 2 and half.states[0].device.type == "cpu"
    found = model(**model.inputs(prompts, legal)).logprobs
    torch.testing.assert_close(found.exp(), exact.exp(), atol=2e-2, rtol=0)
    assert not torch.equal(found, exact)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_bytes": -1}, "bounded by -1 bytes; it must be at least 0"),
        ({"dtype": "int4"}, "dtype is 'int4'; it must be one of auto, float32"),
        ({"boundary_device": "disk"}, "boundary_device is 'disk'; it must be one of auto, cpu"),
    ],
)
def test_settings_out_of_bounds_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TrunkSettings(**options)


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


# ------------------------------------------------------------------------------ prompts known ahead


def prompts_of_bars(bars=11, seed=5):
    """Two prompts a bar, all beginning alike, with shared and own parts of mixed lengths."""
    rng, prompts = np.random.default_rng(seed), []
    begin = rng.integers(20, VOCABULARY, 6)
    for _ in range(bars):
        shared = np.concatenate([begin, rng.integers(20, VOCABULARY, rng.integers(1, 12))])
        for _ in range(2):
            own = rng.integers(20, VOCABULARY, rng.integers(1, 9))
            prompts.append(
                EncodedPrompt(np.concatenate([shared, own]).astype(np.int64), len(shared))
            )
    return prompts


@pytest.mark.parametrize("name", ["llama", "mistral, sliding window", "gemma2"])
@pytest.mark.parametrize("paths", ["smollm", "three chains"])
def test_prompts_read_ahead_equal_those_read_one_by_one_and_the_plain_engine(name, paths):
    model, prompts = policy_of(CONFIGS[name], paths=PATHS[paths]), prompts_of_bars()
    legal = np.ones((len(prompts), 3), dtype=bool)
    with torch.no_grad():
        plain = model(**PromptBatch.of(prompts, legal).inputs()).logprobs.exp()
        model.use_split()
        alone = model(**model.inputs(prompts, legal)).logprobs.exp()
        trunk, told = model.use_split(), []
        assert trunk.prefill(prompts, tell=lambda *at: told.append(at)) == len(prompts)
        tokens = trunk.tokens
        ahead = model(**model.inputs(prompts, legal)).logprobs.exp()
    assert trunk.tokens == tokens and trunk.lookups["prompt hit"] == len(prompts), (
        "nothing was read again"
    )
    torch.testing.assert_close(ahead, alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(ahead, plain, atol=1e-6, rtol=0)
    assert told == [(8, 11), (11, 11)]
    assert trunk.prefill(prompts) == 0 and trunk.tokens == tokens


def test_prompts_that_are_all_one_text_but_for_their_ends_are_read_ahead_too():
    model, prompts = policy_of(CONFIGS["llama"]), prompts_of([3, 7, 5], 9)
    wanted = model.use_split()(prompts)
    trunk = model.use_split()
    assert trunk.prefill(prompts) == 3
    for one, other in zip(trunk(prompts), wanted, strict=True):
        torch.testing.assert_close(one.states[0], other.states[0], atol=1e-5, rtol=0)


def test_nothing_is_read_ahead_where_not_all_can_be_kept():
    model, prompts = policy_of(CONFIGS["llama"]), prompts_of_bars()
    needed = model.use_split()
    needed.prefill(prompts)
    for share, done in ((0.89, len(prompts)), (0.91, 0)):
        trunk = model.use_split(TrunkSettings(cache_bytes=int(needed.cache.pinned_bytes / share)))
        assert trunk.prefill(prompts) == done and (trunk.tokens > 0) == (done > 0)
    trunk = model.use_split(TrunkSettings(cache_bytes=int(needed.cache.pinned_bytes / 0.6)))
    assert trunk.prefill(prompts) == len(prompts)
    assert trunk.prefill(prompts_of_bars(seed=6)) == 0, (
        "beside them there is no room for as many again"
    )


def test_what_was_read_ahead_stays_whatever_comes_after():
    cache = LruCache(100)
    cache.put(b"a", "by itself", 30)
    cache.pin(b"a", "A", 40)
    for key in (b"b", b"c", b"d"):
        cache.put(key, key, 30)
    cache.put(b"a", "again", 10)
    cache.put(b"e", "too large beside it", 61)
    assert (cache.get(b"a"), cache.get(b"b"), cache.get(b"c"), cache.get(b"d")) == (
        "A",
        None,
        b"c",
        b"d",
    )
    assert (cache.nbytes, cache.pinned_bytes, len(cache)) == (100, 40, 3)
    cache.clear()
    assert (cache.nbytes, cache.pinned_bytes, len(cache), cache.pinned(b"a")) == (0, 0, 0, False)


def test_pad_left():
    states = [torch.ones(1, 2), 2 * torch.ones(3, 2)]
    assert pad_left(states, 4, torch.device("cpu"))[:, :, 0].tolist() == [
        [0, 0, 0, 1],
        [0, 2, 2, 2],
    ]
    assert left_mask([1, 3], 3).tolist() == [[0, 0, 1], [1, 1, 1]]


def test_batches_are_of_like_length_and_bounded():
    assert batches([100, 10, 98, 11, 99], tokens=200) == [[1, 3], [2, 4], [0]]
    assert batches([500, 500], tokens=100) == [[0], [1]], "a row longer than the bound runs alone"
    assert batches([], tokens=100) == []


GPT2 = GPT2Config(
    vocab_size=VOCABULARY, n_embd=32, n_layer=4, n_head=4, n_positions=256, pad_token_id=0
)
LFM2 = Lfm2Config(**SHAPE, layer_types=["conv", "full_attention", "conv", "full_attention"])
CANNOT_BE_CUT = {
    "GraniteForCausalLM": (GraniteConfig(**SHAPE, embedding_multiplier=12.0), "differ by"),
    "GPT2LMHeadModel": (GPT2, "AttributeError"),
    "Lfm2ForCausalLM": (LFM2, "Error"),
}


@pytest.mark.parametrize("finetuning", FINETUNING)
@pytest.mark.parametrize("name", CANNOT_BE_CUT)
def test_auto_falls_back_for_an_architecture_that_cannot_be_cut(name, finetuning, caplog):
    """Scaled embeddings, other names, a hybrid with states between layers: all train on the plain
    engine.
    """
    config, reason = CANNOT_BE_CUT[name]
    model, probe = policy_of(config, finetuning), (prompts_of([4], 6), np.ones((1, 3), dtype=bool))
    assert choose_engine(model, "auto", TrunkSettings(), probe) == "plain"
    assert model.trunk is None
    assert name in caplog.text and reason in caplog.text
    with pytest.raises(ConfigError, match=rf"{name}.*use engine=auto or engine=plain"):
        choose_engine(model, "split", TrunkSettings(), probe)
    _, gradients = outputs_and_gradients(model, model.inputs(*probe))
    assert any("layers.3" in parameter or "h.3" in parameter for parameter in gradients)
    assert not any("layers.1." in parameter or "h.1." in parameter for parameter in gradients)


def test_what_is_wrong_with_the_plain_engine_is_not_laid_to_the_split_one(monkeypatch):
    model, probe = policy_of(CONFIGS["llama"]), (prompts_of([4], 6), np.ones((1, 3), dtype=bool))

    def fail(*_):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(model, "plain_runs", fail)
    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        choose_engine(model, "auto", TrunkSettings(), probe)


@pytest.mark.parametrize("finetuning", FINETUNING)
def test_gradient_checkpointing_keeps_caches_from_layers_so_the_split_engine_is_refused(
    finetuning, caplog
):
    model, probe = (
        policy_of(CONFIGS["llama"], finetuning),
        (prompts_of([4], 6), np.ones((1, 3), dtype=bool)),
    )
    base = model.language_model.get_base_model()
    base.activation_checkpointing_enable()
    assert choose_engine(model, "auto", TrunkSettings(), probe) == "plain"
    assert "turn it off (gradient_checkpointing_disable)" in caplog.text
    base.activation_checkpointing_disable()
    assert choose_engine(model, "auto", TrunkSettings(), probe) == "split"
    base.activation_checkpointing_enable()  # later than the comparison
    with pytest.raises(RuntimeError, match="without the cache"):
        model.train()(**model.inputs(*probe))


def test_what_is_kept_goes_when_what_it_was_computed_from_changes():
    model, prompts, legal = (
        policy_of(CONFIGS["llama"], policy="head"),
        prompts_of([3, 7], 15),
        torch.ones(2, 3).bool(),
    )
    trunk = model.use_split()
    before = model.reference_logprobs(trunk(prompts), legal)
    model.load_head_state(
        {name: tensor + torch.randn_like(tensor) for name, tensor in model.head_state().items()}
    )
    after = model.reference_logprobs(trunk(prompts), legal)
    assert float((after - before).abs().max()) > 1e-3
    torch.testing.assert_close(after, model.reference_logprobs(model.use_split()(prompts), legal))


def test_autocast_is_as_near_as_16_bits_are_and_keeps_its_own_states():
    model, prompts, legal = (
        policy_of(CONFIGS["llama"]),
        prompts_of([3, 7, 9], 15),
        np.ones((3, 3), dtype=bool),
    )
    model.use_split()
    exact = model(**model.inputs(prompts, legal))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(**model.inputs(prompts, legal))
        model.use_plain()
        plain = model(**PromptBatch.of(prompts, legal).inputs())
        model.use_split()
        model.inputs(prompts, legal)
    torch.testing.assert_close(half.logprobs.exp(), plain.logprobs.exp(), atol=4e-3, rtol=0)
    assert not torch.allclose(half.logprobs, exact.logprobs, atol=1e-4), (
        "the first states were not taken for autocast's"
    )
    assert torch.equal(model(**model.inputs(prompts, legal)).logprobs, exact.logprobs), (
        "nor autocast's for exact ones"
    )


def test_auto_takes_the_split_engine_where_it_agrees():
    model, probe = policy_of(CONFIGS["llama"]), (prompts_of([4], 6), np.ones((1, 3), dtype=bool))
    assert choose_engine(model, "auto", TrunkSettings(), probe) == "split"
    assert choose_engine(model, "plain", TrunkSettings(), probe) == "plain"
    assert model.trunk is None
