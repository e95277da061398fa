import copy
from functools import lru_cache

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
)

from flagtrl.errors import ConfigError
from flagtrl.language.prompt import EncodedPrompt
from flagtrl.language.tokens import PromptEncoder, PromptSettings
from flagtrl.learning.losses import entropy
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.synthetic import news_leads_price
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import attach_adapter
from flagtrl.policy.bases import context_length
from flagtrl.policy.batch import PromptBatch
from flagtrl.policy.settings import FINETUNING, POLICIES, PolicySettings

MASKS = np.array(
    [
        [True, True, True],
        [False, True, True],
        [True, True, False],
        [False, True, False],
        [True, True, True],
    ]
)
# the language models compute in float64, the sums over tokens and actions in float32
LOG_TOLERANCE = 5e-6
KINDS = [(finetuning, policy) for finetuning in FINETUNING for policy in POLICIES]


@pytest.fixture(params=["random, Sell of 2 tokens", "stories260K, all of 3 tokens"])
def directory(request, shared, small_model):
    return small_model if request.param.startswith("random") else shared / "models/stories260K"


@lru_cache
def load_base(directory) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@lru_cache
def load_encoder(directory) -> PromptEncoder:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return PromptEncoder(
        tokenizer, PromptSettings("compact", 12), context_length(load_base(directory))
    )


def build(directory, dtype=torch.float32, **settings) -> ActorCritic:
    base, encoder = copy.deepcopy(load_base(directory)), load_encoder(directory)
    settings = PolicySettings(**settings)
    torch.manual_seed(1)
    model = ActorCritic(attach_adapter(base, settings), encoder.action_paths, settings).eval()
    model.language_model.to(dtype)  # PEFT makes its own tensors float32; so are the heads, always
    return model


def perturb(model: ActorCritic, scale: float = 0.05, seed: int = 2) -> ActorCritic:
    """Move every trainable weight, so that no test sees the initial policy by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(
                    parameter.shape, generator=generator, dtype=parameter.dtype
                )
    return model


@lru_cache
def real_prompts(directory) -> tuple[EncodedPrompt, ...]:
    """One prompt per row of MASKS, of different lengths, from the first bars of an episode."""
    encoder = load_encoder(directory)
    env = TradingEnv(
        news_leads_price(days=30, seed=3).window(), MarketSettings(reward="log_return", lookback=3)
    )
    env.reset(seed=0)
    prompts = [encoder.encode(env.observe())]
    for step in range(len(MASKS) - 1):
        env.step((2, 1, 0, 1)[step % 4])
        prompts.append(encoder.encode(env.observe()))
    assert len({len(p.ids) for p in prompts}) > 1, "the batch must need padding"
    return tuple(prompts)


def plain_model(model: ActorCritic):
    """The trained language model as an ordinary Hugging Face model, the adapter merged into its
    weights.
    """
    return copy.deepcopy(model.language_model).merge_and_unload().eval()


@torch.no_grad()
def token_by_token(plain, ids, path) -> float:
    """log p(path | ids), one full forward per token: no cache, no padding, the whole vocabulary."""
    ids, total = [int(i) for i in ids], 0.0
    for token in path:
        logits = plain(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        total += float(logits.double().log_softmax(-1)[token])
        ids.append(token)
    return total


def expected_logprobs(plain, prompts, paths, masks, per_token=False) -> np.ndarray:
    rows = []
    for prompt, legal in zip(prompts, masks, strict=True):
        scores = np.array(
            [
                token_by_token(plain, prompt.ids, path) / (len(path) if per_token else 1)
                for path in paths
            ]
        )
        rows.append(np.where(legal, scores - np.logaddexp.reduce(scores[legal]), -np.inf))
    return np.array(rows)


@torch.no_grad()
def output_of(model, prompts, masks, **kwargs):
    return model(**PromptBatch.of(prompts, masks).inputs(), **kwargs)


# ----------------------------------------------------------------- likelihoods against Hugging Face


@pytest.mark.parametrize(
    ("finetuning", "normalisation"),
    [
        *zip(FINETUNING, ("none", "token"), strict=True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in zip(FINETUNING, ("token", "none"), strict=True)
        ),
    ],
)
def test_action_likelihoods_equal_a_token_by_token_forward_of_the_plain_model(
    directory, finetuning, normalisation
):
    model = perturb(
        build(directory, torch.float64, finetuning=finetuning, length_normalisation=normalisation)
    )
    prompts = real_prompts(directory)
    expected = expected_logprobs(
        plain_model(model), prompts, model.action_paths, MASKS, normalisation == "token"
    )
    np.testing.assert_allclose(
        output_of(model, prompts, MASKS).logprobs, expected, atol=LOG_TOLERANCE, rtol=0
    )
    assert np.ptp(expected[MASKS.all(1)], axis=1).min() > 0.003, (
        "the comparison needs actions that differ in probability"
    )


def test_the_two_normalisations_differ_where_actions_differ_in_length(small_model):
    summed, mean = (build(small_model, length_normalisation=n) for n in ("none", "token"))
    prompts = real_prompts(small_model)
    assert not torch.allclose(
        output_of(summed, prompts, MASKS).logprobs[0], output_of(mean, prompts, MASKS).logprobs[0]
    )
    assert [len(path) for path in summed.action_paths] == [2, 1, 1]


def test_equal_prompts_are_one_row_of_the_plain_engine_too_each_with_its_own_legal_actions(
    small_model, monkeypatch
):
    model = perturb(build(small_model))
    first, second, *_ = real_prompts(small_model)
    prompts, legal = [first, second, first, first], MASKS[[0, 1, 2, 0]]
    alone = [output_of(model, [prompt], legal[row : row + 1]) for row, prompt in enumerate(prompts)]
    rows, plain_runs = [], model.plain_runs
    monkeypatch.setattr(
        model, "plain_runs", lambda ids, mask: rows.append(len(ids)) or plain_runs(ids, mask)
    )
    together = output_of(model, prompts, legal)
    assert rows == [2]
    torch.testing.assert_close(
        together.logprobs, torch.cat([one.logprobs for one in alone]), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        together.values, torch.cat([one.values for one in alone]), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_a_padded_batch_equals_each_prompt_alone(directory, policy):
    model = perturb(build(directory, policy=policy))
    prompts = real_prompts(directory)
    together = output_of(model, prompts, MASKS)
    for row, prompt in enumerate(prompts):
        alone = output_of(model, [prompt], MASKS[row : row + 1])
        torch.testing.assert_close(together.logprobs[row], alone.logprobs[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.values[row], alone.values[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_value_is_the_head_of_the_last_hidden_state(directory, policy):
    model, prompts = perturb(build(directory, policy=policy)), real_prompts(directory)
    values, plain = output_of(model, prompts, MASKS).values, plain_model(model).double()
    first, last = (layer for layer in model.value_head if isinstance(layer, torch.nn.Linear))
    for value, prompt in zip(values, prompts, strict=True):
        with torch.no_grad():
            hidden = plain.get_decoder()(torch.from_numpy(prompt.ids)[None]).last_hidden_state[
                0, -1
            ]
            inner = torch.tanh(first.weight.double() @ hidden + first.bias.double())
            expected = last.weight.double() @ inner + last.bias.double()
        assert value.item() == pytest.approx(expected.item(), abs=1e-5)
    assert values.abs().max() > 1e-3


# ----------------------------------------------------------------------------------------- legality


@pytest.mark.parametrize(("finetuning", "policy"), KINDS)
def test_illegal_actions_have_probability_0_and_legal_ones_sum_to_1(
    small_model, finetuning, policy
):
    model = perturb(build(small_model, finetuning=finetuning, policy=policy))
    probabilities = output_of(model, real_prompts(small_model), MASKS).logprobs.exp().numpy()
    assert (probabilities[~MASKS] == 0.0).all()
    assert (probabilities[MASKS] > 0).all()
    np.testing.assert_allclose(probabilities.sum(1), 1.0, atol=1e-6)
    assert probabilities[3, 1] == 1.0, "Hold alone is certain"


@pytest.mark.parametrize(("finetuning", "policy"), KINDS)
def test_gradients_are_finite_although_illegal_log_probabilities_are_not(
    small_model, finetuning, policy
):
    model = perturb(build(small_model, finetuning=finetuning, policy=policy)).train()
    output = model(**PromptBatch.of(real_prompts(small_model), MASKS).inputs())
    assert torch.isneginf(output.logprobs[~torch.from_numpy(MASKS)]).all()
    chosen = output.logprobs[:, 1]  # Hold, legal everywhere
    (chosen.sum() + entropy(output.logprobs).sum() + output.values.sum()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("finetuning", FINETUNING)
def test_the_head_policy_starts_near_uniform(small_model, finetuning):
    model = build(small_model, finetuning=finetuning, policy="head")
    probabilities = output_of(model, real_prompts(small_model), MASKS).logprobs.exp().numpy()
    np.testing.assert_allclose(probabilities, MASKS / MASKS.sum(1, keepdims=True), atol=0.02)


@pytest.mark.parametrize("policy", POLICIES)
def test_values_start_at_0(small_model, policy):
    assert (
        output_of(build(small_model, policy=policy), real_prompts(small_model), MASKS).values == 0
    ).all()


# ---------------------------------------------------------------------------------------- reference


@pytest.mark.parametrize(("finetuning", "policy"), KINDS)
def test_the_reference_is_the_policy_at_the_start_and_stays_it(small_model, finetuning, policy):
    model, prompts = (
        build(small_model, finetuning=finetuning, policy=policy),
        real_prompts(small_model),
    )
    start = output_of(model, prompts, MASKS).logprobs
    assert torch.equal(output_of(model, prompts, MASKS, reference=True).logprobs, start)
    perturb(model)
    assert torch.equal(output_of(model, prompts, MASKS, reference=True).logprobs, start)
    now = output_of(model, prompts, MASKS).logprobs
    assert (now - start)[0].abs().max() > 1e-4, "the perturbation must have moved the policy"


@pytest.mark.slow
@pytest.mark.parametrize("finetuning", FINETUNING)
def test_the_reference_is_the_untouched_base_model(directory, finetuning):
    model, prompts = (
        perturb(build(directory, torch.float64, finetuning=finetuning)),
        real_prompts(directory),
    )
    base = copy.deepcopy(load_base(directory)).double()
    expected = expected_logprobs(base, prompts, model.action_paths, MASKS)
    got = output_of(model, prompts, MASKS, reference=True).logprobs
    np.testing.assert_allclose(got, expected, atol=LOG_TOLERANCE, rtol=0)


@pytest.mark.parametrize(("finetuning", "policy"), KINDS)
def test_adapter_off_gives_every_requires_grad_flag_back(small_model, finetuning, policy):
    model = build(small_model, finetuning=finetuning, policy=policy)
    next(
        p for n, p in model.named_parameters() if p.requires_grad and "language_model" in n
    ).requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    assert len(set(before.values())) == 2
    with model.adapter_off():
        pass
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    output_of(model, real_prompts(small_model), MASKS, reference=True)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    with pytest.raises(ZeroDivisionError), model.adapter_off():
        raise ZeroDivisionError
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before


# ---------------------------------------------------------------------------------- what is trained


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("finetuning", "policy"), KINDS)
def test_only_the_top_layers_and_the_heads_are_trainable(small_model, finetuning, policy, layers):
    model = build(small_model, finetuning=finetuning, policy=policy, trainable_layers=layers)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    heads = {name for name in trainable if not name.startswith("language_model.")}
    assert {name.split(".")[0] for name in heads} == {"value_head"} | (
        {"policy_head"} if policy == "head" else set()
    )
    top = {int(name.split(".layers.")[1].split(".")[0]) for name in trainable - heads}
    assert top == set(range(4 - layers, 4))
    assert not any("embed" in name or "lm_head" in name for name in trainable)
    assert all(("lora_" in name) == (finetuning == "lora") for name in trainable - heads)
    # a Llama layer has 7 linear maps; full_top also trains its 2 norms
    assert len(trainable - heads) == layers * (14 if finetuning == "lora" else 9)


@pytest.mark.parametrize("finetuning", FINETUNING)
def test_the_trunk_gets_no_gradient_and_the_top_does(small_model, finetuning):
    model = perturb(build(small_model, finetuning=finetuning)).train()
    output = model(**PromptBatch.of(real_prompts(small_model), MASKS).inputs())
    (output.logprobs[:, 1].sum() + output.values.sum()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("policy", POLICIES)
def test_parameter_groups_hold_each_trainable_weight_once_at_its_rate(small_model, policy):
    model = build(small_model, policy=policy)
    groups = model.parameter_groups(1e-3, 2e-3, weight_decay=0.1)
    rates = {
        id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]
    }
    assert sum(len(group["params"]) for group in groups) == len(rates)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = 1e-3 if name.startswith("language_model.") else 2e-3
            assert rates.pop(id(parameter)) == (rate, 0.1 if parameter.ndim > 1 else 0.0), name
    assert not rates


@pytest.mark.parametrize("finetuning", FINETUNING)
@pytest.mark.parametrize("layers", [4, 5])
def test_one_layer_at_least_must_stay_frozen(small_model, finetuning, layers):
    base = load_base(small_model)
    with pytest.raises(ConfigError, match=f"trainable_layers is {layers}, the model has 4 layers"):
        attach_adapter(base, PolicySettings(finetuning=finetuning, trainable_layers=layers))


@pytest.mark.parametrize("finetuning", FINETUNING)
def test_a_decoder_without_a_list_of_a_known_name_is_refused(finetuning):
    mpt = MptForCausalLM(
        MptConfig(vocab_size=64, max_seq_len=32, d_model=16, n_layers=3, n_heads=2)
    )
    with pytest.raises(ConfigError, match=r"MptForCausalLM.*`layers` or `h`.*Llama"):
        attach_adapter(mpt, PolicySettings(finetuning=finetuning))


def test_more_than_ten_layers_train_the_right_ones():
    """Layer 1 must not be taken for layer 11: PEFT matches names by their end."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=12,
        num_attention_heads=2,
    )
    for finetuning in FINETUNING:
        adapted = attach_adapter(
            LlamaForCausalLM(config), PolicySettings(finetuning=finetuning, trainable_layers=1)
        )
        names = {
            n.split(".layers.")[1].split(".")[0]
            for n, p in adapted.named_parameters()
            if p.requires_grad
        }
        assert names == {"11"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("policy", "beam", "policy is 'beam'; it must be one of action_tokens, head"),
        ("finetuning", "dora", "finetuning is 'dora'; it must be one of full_top, lora"),
        (
            "length_normalisation",
            "word",
            "length_normalisation is 'word'; it must be one of none",
        ),
        ("trainable_layers", 0, "trainable_layers is 0; it must be a whole number of at least 1"),
        ("lora_rank", 0, "lora_rank is 0; it must be a whole number from 1 to 65536"),
        ("lora_alpha", -1, "lora_alpha is -1; it must be a whole number of at least 1"),
        ("head_width", 0, "head_width is 0; it must be a whole number from 1 to 65536"),
    ],
)
def test_policy_settings_refuse_what_is_out_of_bounds(name, value, message):
    with pytest.raises(ConfigError, match=message):
        PolicySettings(**{name: value})


def test_a_saved_head_of_another_policy_is_refused(small_model):
    with pytest.raises(ConfigError, match="policy_head"):
        build(small_model, policy="action_tokens").load_head_state(
            build(small_model, policy="head").head_state()
        )


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_made_16_bit_as_a_whole_still_acts(small_model, policy):
    """As DeepSpeed makes it, heads included."""
    model = perturb(build(small_model, policy=policy))
    prompts = real_prompts(small_model)
    inputs = PromptBatch.of(prompts, MASKS).inputs()
    with torch.no_grad():
        wanted, found = model(**inputs), copy.deepcopy(model).to(torch.bfloat16)(**inputs)
    assert found.logprobs.dtype == found.values.dtype == torch.float32
    torch.testing.assert_close(found.logprobs.exp(), wanted.logprobs.exp(), atol=0.05, rtol=0)
    torch.testing.assert_close(found.values, wanted.values, atol=0.05, rtol=0.05)
