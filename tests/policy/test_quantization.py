"""Frozen layers in 8 and 4 bits: the top stays whole, both engines agree, a saved policy acts as it
did.
"""

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from transformers import AutoModelForCausalLM, set_seed

from flagtrl.errors import ConfigError
from flagtrl.language.tokens import PromptEncoder, PromptSettings
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.trainer import PPOTrainer
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.synthetic import news_leads_price
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import attach_adapter
from flagtrl.policy.bases import load_base
from flagtrl.policy.engine import choose_engine
from flagtrl.policy.loading import load_policy
from flagtrl.policy.saving import save_policy
from flagtrl.policy.settings import FINETUNING, PolicySettings
from flagtrl.policy.trunk_settings import TrunkSettings
from flagtrl.trading import Trading
from training import random_llama, weights

KINDS = {"8bit": Linear8bitLt, "4bit": Linear4bit}
# bitsandbytes says that it casts its inputs, and names a kernel package of its own that is not
# installed.
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)


@pytest.fixture(scope="module")
def small_model(shared, tmp_path_factory):
    """Wider than the other tests' model: bitsandbytes' 4-bit products on a CPU want multiples of
    32.
    """
    tokenizer = shared / "models/smollm2_instruct_tokenizer"
    return random_llama(tmp_path_factory.mktemp("model"), tokenizer, (64, 128, 4, 2, 1))


@pytest.fixture
def quantised(small_model):
    def make(quantization, finetuning="full_top", policy="action_tokens"):
        torch.manual_seed(0)
        settings = PolicySettings(
            quantization=quantization, finetuning=finetuning, policy=policy, head_width=8
        )
        base, tokenizer = load_base(str(small_model), settings=settings)
        encoder = PromptEncoder(tokenizer, PromptSettings("compact", 0), 2048)
        return ActorCritic(
            attach_adapter(base, settings), encoder.action_paths, settings
        ).eval(), encoder

    return make


def probe(encoder):
    env = TradingEnv(news_leads_price(days=40, seed=2).window(), MarketSettings(lookback=3))
    env.reset(seed=0, options={"start": 0})
    return [encoder.encode(env.observe())], env.legal[None]


@pytest.mark.parametrize("finetuning", FINETUNING)
@pytest.mark.parametrize("quantization", KINDS)
def test_the_trunk_is_quantised_and_the_top_is_not(quantised, quantization, finetuning):
    model, _ = quantised(quantization, finetuning)
    layers = model.language_model.get_base_model().get_decoder().layers
    kinds = [any(isinstance(m, KINDS[quantization]) for m in layer.modules()) for layer in layers]
    assert kinds == [True, True, False, False]
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("finetuning", FINETUNING)
@pytest.mark.parametrize("quantization", KINDS)
def test_both_engines_agree_and_the_top_learns(quantised, quantization, finetuning):
    model, encoder = quantised(quantization, finetuning)
    prompts, legal = probe(encoder)
    plain = model(**model.inputs(prompts, legal))
    assert choose_engine(model, "auto", TrunkSettings(), (prompts, legal)) == "split"
    split = model(**model.inputs(prompts, legal))
    torch.testing.assert_close(split.logprobs.exp(), plain.logprobs.exp(), atol=2e-2, rtol=0)
    (split.logprobs[:, 1].sum() + split.values.sum()).backward()
    trained = [
        p
        for name, p in model.named_parameters()
        if p.requires_grad and name.startswith("language_model")
    ]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


def test_quantised_probabilities_are_near_the_whole_models(quantised, small_model):
    whole, encoder = quantised("none")
    prompts, legal = probe(encoder)
    wanted = whole(**whole.inputs(prompts, legal)).logprobs.exp()
    for quantization in KINDS:
        found = (model := quantised(quantization)[0])(**model.inputs(prompts, legal)).logprobs.exp()
        assert not torch.equal(found, wanted)
        torch.testing.assert_close(found, wanted, atol=5e-2, rtol=0)


@pytest.mark.parametrize("quantization", KINDS)
def test_a_saved_policy_acts_as_it_did(quantised, tmp_path, quantization):
    model, encoder = quantised(quantization)
    prompts, legal = probe(encoder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
        model.use_split()
        wanted = model(**model.inputs(prompts, legal))
        save_policy(model, encoder, tmp_path)
        loaded = load_policy(tmp_path)
        found = loaded.model(**loaded.model.inputs(prompts, legal))
    assert torch.equal(found.logprobs, wanted.logprobs) and torch.equal(found.values, wanted.values)


def run_of_20_updates(quantised, quantization, finetuning, policy, out):
    """5 rollouts of 8 samples, 2 minibatches each, twice."""
    model, encoder = quantised(quantization, finetuning, policy)
    options = {
        "num_envs": 2,
        "num_steps": 4,
        "max_episode_steps": 4,
        "minibatch_size": 4,
        "update_epochs": 2,
    }
    options |= {
        "total_timesteps": 40,
        "gradient_accumulation_steps": 1,
        "learning_rate": 2e-3,
        "train_dtype": "float32",
    }
    args = PPOConfig(
        output_dir=str(out),
        use_cpu=True,
        disable_tqdm=True,
        save_steps=8,
        save_strategy="steps",
        **options,
    )
    window = news_leads_price(days=40, seed=2).window()
    market = MarketSettings(reward="log_return", lookback=3, episode_start="random")
    set_seed(1)
    trainer = PPOTrainer(
        *(model, args),
        task=Trading(lambda: TradingEnv(window, market, args.max_episode_steps), encoder),
    )
    before = {**weights(trainer), **maps(model)}
    trainer.train()
    assert trainer.state.global_step == 20
    trainer.save_model()
    return model, encoder, before


@torch.no_grad()
def maps(model):
    """What each linear map of the frozen layers does: bitsandbytes lays its 4 bits out anew for the
    processor it finds.
    """
    layers = model.language_model.get_base_model().get_decoder().layers[:2]
    named = [
        (f"{number}.{name}", m)
        for number, layer in enumerate(layers)
        for name, m in layer.eval().named_modules()
    ]
    return {
        name: m(torch.eye(m.in_features))
        for name, m in named
        if isinstance(m, tuple(KINDS.values()))
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantization", "finetuning", "policy"),
    [
        ("4bit", "full_top", "action_tokens"),
        ("8bit", "lora", "action_tokens"),
        ("4bit", "qlora", "head"),
        ("4bit", "lora", "action_tokens"),
        ("8bit", "full_top", "action_tokens"),
        ("8bit", "full_top", "head"),
    ],
)
def test_20_updates_move_the_top_alone_and_come_back_from_disk(
    quantised, tmp_path, quantization, finetuning, policy
):
    model, encoder, before = run_of_20_updates(
        quantised, quantization, finetuning, policy, tmp_path
    )
    layers = model.language_model.get_base_model().get_decoder().layers
    frozen = [
        m.weight
        for layer in layers[:2]
        for m in layer.modules()
        if isinstance(m, KINDS[quantization])
    ]
    assert len(frozen) == 2 * 7, "every linear map of the two frozen layers"
    assert {weight.dtype for weight in frozen} == {
        torch.uint8 if quantization == "4bit" else torch.int8
    }
    assert not any(
        isinstance(m, tuple(KINDS.values())) for layer in layers[2:] for m in layer.modules()
    )
    frozen_maps = maps(model)
    after = {
        name: p.detach() for name, p in model.named_parameters() if p.requires_grad
    } | frozen_maps
    assert after.keys() == before.keys()
    for name, now in after.items():
        assert now.dtype == torch.float32
        if name in frozen_maps:
            assert torch.equal(now, before[name]), name
        else:
            assert (now - before[name]).abs().max() > 1e-5, name
    loaded = load_policy(tmp_path).model
    prompts, legal = probe(encoder)
    model.eval()
    with torch.no_grad():
        found, wanted = (policy(**policy.inputs(prompts, legal)) for policy in (loaded, model))
    # LLM.int8 rounds a prompt's activations by what else is in the pass: a cached one was computed
    # among others.
    tolerance = 0 if quantization == "4bit" else 2e-2
    torch.testing.assert_close(found.logprobs.exp(), wanted.logprobs.exp(), atol=tolerance, rtol=0)


def test_qlora_is_lora_on_4_bits_and_goes_by_these_names():
    assert PolicySettings(finetuning="qlora") == PolicySettings(
        finetuning="lora", quantization="4bit"
    )
    assert PolicySettings(finetuning="qlora", quantization="8bit") == PolicySettings(
        finetuning="lora", quantization="8bit"
    )
    with pytest.raises(ConfigError, match=r"finetuning is 'q'; it must be .* qlora"):
        PolicySettings(finetuning="q")


def test_an_unknown_quantization_is_refused():
    with pytest.raises(ConfigError, match=r"quantization is '2bit'; it must be .* 4bit"):
        PolicySettings(quantization="2bit")


def test_the_reference_loader_is_the_one_of_transformers(small_model):
    """Unquantised, nothing is different from a plain from_pretrained."""
    ours, theirs = load_base(str(small_model))[0], AutoModelForCausalLM.from_pretrained(small_model)
    assert np.all(
        [torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)]
    )
