"""The future cannot be seen: not in the token ids, not in the mask, not in the probabilities, not
in the action.
"""

import numpy as np
import pytest
import torch

from flagtrl.demo import POLICY, demo_language_model, demo_market, demo_tokenizer
from flagtrl.evidence.backtest import backtest
from flagtrl.language.prompts import style_names
from flagtrl.language.tokens import PromptEncoder, PromptSettings
from flagtrl.market.data import MarketData, NewsItem, Window
from flagtrl.market.env import MarketSettings
from flagtrl.policy.acting import language_policy
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import attach_adapter

BARS = 16


# Every style with the default execution, one with the other.
@pytest.mark.parametrize("last_known", [3, 9])
@pytest.mark.parametrize(
    ("style", "execution"),
    [
        *((style, "next_price") for style in style_names()),
        *((style, "same_price") for style in style_names()[:1]),
    ],
)
def test_what_comes_after_a_bar_changes_nothing_up_to_it(style, execution, last_known):
    market, _, _ = demo_market(0)
    tokenizer = demo_tokenizer(market)
    torch.manual_seed(0)
    language_model = demo_language_model(tokenizer)
    encoder = PromptEncoder(
        tokenizer, PromptSettings(prompt_style=style, news_token_budget=40), 1024
    )
    policy = ActorCritic(attach_adapter(language_model, POLICY), encoder.action_paths, POLICY)
    settings = MarketSettings(execution=execution, lookback=5)

    def decisions(of: MarketData):
        ids = []

        def spied(seen):
            ids.append(tuple(encoder.encode(seen[0]).ids))
            return language_policy(policy, encoder)(seen)

        return backtest(spied, Window(of, 0, BARS), settings, temperature=0.6, seed=1), ids

    rng = np.random.default_rng(last_known)
    prices = market.prices.copy()
    prices[last_known + 1 :] *= rng.uniform(0.2, 5.0, len(prices) - last_known - 1)
    other_news = ((NewsItem("Everything has changed overnight.", "negative"),) * 2,) * (
        len(market) - last_known - 1
    )
    changed = MarketData(
        market.symbol, market.dates, prices, market.news[: last_known + 1] + other_news
    )

    (one, ids_one), (two, ids_two) = decisions(market), decisions(changed)
    known = last_known + 1
    assert ids_one[:known] == ids_two[:known]
    assert np.array_equal(one.probabilities[:known], two.probabilities[:known])
    assert np.array_equal(one.actions[:known], two.actions[:known])
    assert ids_one[known:] != ids_two[known:], "the perturbation must be visible afterwards"
