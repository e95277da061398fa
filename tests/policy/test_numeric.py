"""A Stable-Baselines3 model is a policy like any other."""

import numpy as np
import pytest

from flagtrl.evidence.backtest import backtest
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import Action
from flagtrl.market.policy import check_policy
from flagtrl.market.synthetic import news_leads_price
from flagtrl.policy.numeric import numeric_policy

stable_baselines3 = pytest.importorskip("stable_baselines3", reason="the extra sb3")
SETTINGS = MarketSettings(reward="log_return", lookback=4)
WINDOW = news_leads_price(60, seed=3).window()


@pytest.fixture(scope="module")
def model():
    env = TradingEnv(WINDOW, SETTINGS, max_episode_steps=20)
    made = stable_baselines3.PPO(
        "MultiInputPolicy", env, n_steps=32, batch_size=32, n_epochs=1, device="cpu", seed=0
    )
    return made.learn(64)


def test_its_chances_are_the_models_and_what_can_do_nothing_counts_as_hold(model):
    policy, env = numeric_policy(model, SETTINGS.lookback), TradingEnv(WINDOW, SETTINGS)
    numbers, _ = env.reset(seed=0)
    for action in (Action.BUY, Action.HOLD, Action.SELL, Action.SELL):
        seen = env.observe()
        check_policy(policy, [seen])
        own = model.policy.get_distribution(model.policy.obs_to_tensor(numbers)[0])
        chances = own.distribution.probs[0].detach().double().numpy()
        output = policy([seen])
        found = np.exp(output.logprobs[0])
        moving = [a for a in (Action.SELL, Action.BUY) if seen.legal[a]]
        np.testing.assert_allclose(found[moving], chances[moving], rtol=1e-6)
        np.testing.assert_allclose(found[Action.HOLD], 1 - chances[moving].sum(), rtol=1e-6)
        numbers, *_ = env.step(int(action))


def test_it_is_backtested_as_every_policy_is(model):
    run = backtest(numeric_policy(model, SETTINGS.lookback), WINDOW, SETTINGS, 1.0, seed=4)
    assert len(run.actions) == len(WINDOW) - 1 and np.isfinite(run.values).all()
    assert len(set(run.actions.tolist())) > 1
