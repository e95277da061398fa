"""Other words for the same prompt: each is found and replaced."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from flagtrl.demo import demo_market, demo_tokenizer
from flagtrl.language.settings import PromptSettings
from flagtrl.language.tokens import PromptEncoder
from flagtrl.market.env import MarketSettings
from flagtrl.market.synthetic import news_leads_price
from flagtrl.policy.prior import LabelPrior

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import sensitivity


@pytest.fixture(scope="module")
def tokenizer():
    return demo_tokenizer(demo_market(0)[0])


WINDOW = news_leads_price(30, seed=0).window()


@pytest.mark.parametrize("name", sensitivity.VARIANTS)
def test_words_are_replaced_and_no_others(tokenizer, name):
    words = sensitivity.VARIANTS[name]
    plain = PromptEncoder(tokenizer, PromptSettings("markov", 16), 512)
    other = sensitivity.Reworded(plain, words)
    settings = MarketSettings(reward="log_return", lookback=3)
    prompts, legal = sensitivity.read(other, WINDOW, settings)
    same, _ = sensitivity.read(plain, WINDOW, settings)
    other.check_used()
    assert len(prompts) == len(legal) == 2 * len(WINDOW)
    for one, two in zip(prompts, same, strict=True):
        text, plainly = (tokenizer.decode(each.ids) for each in (one, two))
        assert (text == plainly) == (not words)
        for old, new in words.items():
            assert new not in plainly
            text = text.replace(new, old)
        assert text == plainly


def test_words_that_no_prompt_has_are_an_error(tokenizer):
    plain = PromptEncoder(tokenizer, PromptSettings("markov", 16), 512)
    other = sensitivity.Reworded(plain, {"no such words": "others"})
    sensitivity.read(other, WINDOW, MarketSettings(reward="log_return", lookback=3))
    with pytest.raises(ValueError, match="no such words"):
        other.check_used()


def test_a_decision_is_the_likeliest_legal_action_without_the_prior():
    legal = np.array([[False, True, True], [True, True, False]])
    prior = LabelPrior(3)
    prior.measure(torch.tensor([[0.0, 0.0, 5.0], [3.0, 0.0, 0.0]]), torch.from_numpy(legal))
    scores = torch.tensor([[9.0, 1.0, 5.5], [4.0, 0.5, 9.0]])
    assert sensitivity.decided(scores, legal, prior).tolist() == [1, 0]
