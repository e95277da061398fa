"""Heads read a standardised hidden state: one large constant dimension neither saturates them nor
hides the rest.
"""

import numpy as np
import pytest
import torch
from test_split import policy_of, prompts_of

from architectures import CONFIGS
from flagtrl.policy.batch import PromptBatch
from flagtrl.policy.heads import VARIANCE_FLOOR, Standardise, mlp


def smollm2_like(rows=128, width=576):
    """Hidden states as SmolLM2's: between bars dimensions vary by 1/30 of their size, and one is
    always 45.
    """
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(width, generator=generator) + 0.05 * torch.randn(
        rows, width, generator=generator
    )
    hidden[:, 7] = 45.0
    return hidden


def saturated(hidden):
    """The share of a new head's hidden units that stand beyond 2 on every row."""
    torch.manual_seed(1)
    with torch.no_grad():
        return float(
            (mlp(hidden.shape[1], 128, 3, 0.0, 0.01)[0](hidden).abs() > 2).all(0).float().mean()
        )


def test_a_constant_dimension_of_45_saturates_a_new_head_unless_it_is_standardised():
    hidden, standard = smollm2_like(), Standardise(576)
    assert torch.equal(standard(hidden), hidden), "the identity before it is measured"
    assert saturated(hidden) > 0.4
    standard.measure(hidden)
    found = standard(hidden)
    assert saturated(found) < 0.05
    assert (found[:, 7] == 0).all(), "what never varies says nothing"
    rest = [i for i in range(576) if i != 7]
    torch.testing.assert_close(found[:, rest].mean(0), torch.zeros(575), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        found[:, rest].std(0, correction=0), torch.ones(575), atol=1e-3, rtol=0
    )


def test_mean_and_deviation_are_those_of_numpy_and_noise_is_not_blown_up():
    hidden = smollm2_like()
    hidden[:, 9] = 2.0 + 1e-6 * torch.randn(128)  # float32's rounding
    standard = Standardise(576)
    standard.measure(hidden)
    values = hidden.double().numpy()
    np.testing.assert_allclose(standard.mean, values.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        standard.deviation, np.sqrt(values.var(0) + VARIANCE_FLOOR), rtol=1e-3
    )
    assert float(standard(hidden)[:, 9].abs().max()) < 0.01


def test_what_was_measured_is_saved_and_loaded():
    one, other = Standardise(576), Standardise(576)
    one.measure(smollm2_like())
    other.load(**one.state_dict())
    assert torch.equal(one(smollm2_like()), other(smollm2_like()))
    other.bfloat16().load(**one.state_dict())  # as DeepSpeed makes buffers
    assert torch.equal(one(smollm2_like()), other(smollm2_like()))


@pytest.mark.parametrize("policy", ["action_tokens", "head"])
def test_both_engines_give_standardised_heads_the_same_state(policy):
    model, prompts = policy_of(CONFIGS["llama"], policy=policy), prompts_of([3, 7, 9], 15)
    legal = np.ones((3, 3), dtype=bool)
    with torch.no_grad():
        before = model(**PromptBatch.of(prompts, legal).inputs())
        model.standard.measure(model(**PromptBatch.of(prompts, legal).inputs(), survey=True).hidden)
        plain = model(**PromptBatch.of(prompts, legal).inputs())
        model.use_split()
        split = model(**model.inputs(prompts, legal))
    assert float((plain.values - before.values).abs().max()) > 1e-3
    torch.testing.assert_close(split.values, plain.values, atol=1e-4, rtol=0)
    torch.testing.assert_close(split.logprobs, plain.logprobs, atol=1e-4, rtol=0)
    assert torch.equal(plain.logprobs, before.logprobs) == (policy == "action_tokens")
