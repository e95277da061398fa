"""Frozen layers in 8 and 4 bits: the top stays whole, both engines agree, a saved policy acts as it did."""

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from flagtrl.errors import ConfigError
from flagtrl.language.tokens import PromptEncoder, PromptSettings
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.synthetic import news_leads_price
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import FINETUNING, PolicySettings, attach_adapter
from flagtrl.policy.engine import choose_engine
from flagtrl.policy.saving import load_base, load_policy, save_policy
from flagtrl.policy.trunk import TrunkSettings

KINDS = {"8bit": Linear8bitLt, "4bit": Linear4bit}
# bitsandbytes says that it casts its inputs, and names a kernel package of its own that is not installed.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def small_model(shared, tmp_path_factory):
    """Wider than the other tests' model: bitsandbytes' 4-bit products on a CPU want multiples of 32."""
    out = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(out)
    AutoTokenizer.from_pretrained(shared / "models/smollm2_instruct_tokenizer").save_pretrained(out)
    return out


@pytest.fixture
def quantised(small_model):
    def make(quantization, finetuning="full_top"):
        torch.manual_seed(0)
        settings = PolicySettings(quantization=quantization, finetuning=finetuning, head_width=8)
        base, tokenizer = load_base(str(small_model), settings=settings)
        encoder = PromptEncoder(tokenizer, PromptSettings("compact", 0), 2048)
        return ActorCritic(attach_adapter(base, settings), encoder.action_paths, settings).eval(), encoder

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
    trained = [p for name, p in model.named_parameters() if p.requires_grad and name.startswith("language_model")]
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
        save_policy(model, encoder, tmp_path, {})
        loaded = load_policy(tmp_path)
        found = loaded.model(**loaded.model.inputs(prompts, legal))
    assert torch.equal(found.logprobs, wanted.logprobs) and torch.equal(found.values, wanted.values)


def test_an_unknown_quantization_is_refused():
    with pytest.raises(ConfigError, match="quantization is '2bit'; use one of none, 8bit, 4bit"):
        PolicySettings(quantization="2bit")


def test_the_reference_loader_is_the_one_of_transformers(small_model):
    """Unquantised, nothing is different from a plain from_pretrained."""
    ours, theirs = load_base(str(small_model))[0], AutoModelForCausalLM.from_pretrained(small_model)
    assert np.all([torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)])
