"""What prompts begin with alike is run once: the same policy, values and gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_split import assert_equal_engines, outputs_and_gradients, policy_of

from architectures import CONFIGS, VOCABULARY
from flagtrl.language.prompt import EncodedPrompt
from flagtrl.policy import backbone
from flagtrl.policy.batch import PromptBatch
from flagtrl.policy.beginnings import beginnings


def prompts_of_days(days, owns, alike, seed):
    """Every day's prompts: `alike` tokens that all begin with, the day's, then each one's own."""
    rng = np.random.default_rng(seed)

    def text(length):
        return rng.integers(20, VOCABULARY, length)

    begin, made = text(alike), []
    for number, day in enumerate(days):
        # no two days go on alike, whatever is drawn
        shared = np.concatenate([begin, [2 + number], text(day)]).astype(np.int64)
        made += [
            EncodedPrompt(np.concatenate([shared, text(own)]).astype(np.int64), len(shared))
            for own in owns
        ]
    return made


def legal_of(prompts):
    return np.tile([[False, True, True], [True, True, False]], (len(prompts), 1))[: len(prompts)]


@pytest.fixture
def found(monkeypatch):
    """What was run once, of every pass."""
    passes = []

    def spy(*args):
        passes.append(beginnings(*args))
        return passes[-1]

    monkeypatch.setattr(backbone, "beginnings", spy)
    return passes


@pytest.mark.parametrize("name", CONFIGS)
def test_days_that_begin_alike_give_what_whole_prompts_give(name, found):
    prompts = prompts_of_days([9, 4, 1, 6], [5, 7], alike=11, seed=1)
    assert_equal_engines(policy_of(CONFIGS[name], trainable_layers=2), prompts, legal_of(prompts))
    assert [past is not None for past in found] == [True]


@settings(max_examples=25, deadline=None)
@given(
    days=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    owns=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    alike=st.integers(1, 12),
    layers=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_whatever_the_lengths_are(days, owns, alike, layers, seed):
    prompts = prompts_of_days(days, owns, alike, seed)
    model = policy_of(CONFIGS["llama"], trainable_layers=layers)
    assert_equal_engines(model, prompts, legal_of(prompts))


@pytest.mark.parametrize("layers", [1, 2])
def test_the_gradient_is_that_of_the_plain_path_of_the_same_engine(layers, found, monkeypatch):
    """Closer than two engines are: to 1e-6 in the policy and 1e-5 in the gradient."""
    model = policy_of(CONFIGS["qwen3"], trainable_layers=layers)
    model.use_split()
    prompts = prompts_of_days([8] * 10, [6, 6], alike=20, seed=3)
    inputs = model.inputs(prompts, legal_of(prompts))
    once, gradients = outputs_and_gradients(model, inputs)
    assert found[-1] is not None
    monkeypatch.setattr(backbone, "beginnings", lambda *args: None)
    each, expected = outputs_and_gradients(model, inputs)
    torch.testing.assert_close(once.logprobs.exp(), each.logprobs.exp(), atol=1e-6, rtol=0)
    for name, gradient in expected.items():
        difference = (gradients[name] - gradient).norm() / gradient.norm()
        assert float(difference) <= 1e-5, name


def test_the_reference_begins_with_its_own_keys_and_values(found):
    """Not with those of the adapter, which is on when its runs are asked for."""
    model = policy_of(CONFIGS["llama"], trainable_layers=2)
    prompts = prompts_of_days([9, 4], [5, 7], alike=11, seed=1)
    with torch.no_grad():
        plain = model(**PromptBatch.of(prompts, legal_of(prompts)).inputs(), reference=True)
        model.use_split()
        once = model(**model.inputs(prompts, legal_of(prompts)), reference=True)
    assert found[-1] is not None
    torch.testing.assert_close(once.logprobs, plain.logprobs, atol=1e-5, rtol=0)


def test_prompts_that_have_little_in_common_are_run_as_they_are(found):
    model = policy_of(CONFIGS["llama"])
    model.use_split()
    prompts = prompts_of_days([30, 28], [9], alike=2, seed=1)
    model(**model.inputs(prompts, legal_of(prompts)))
    model(**model.inputs(prompts[:1], legal_of(prompts[:1])))
    assert found == [None, None]
