"""A Stable-Baselines3 model is a policy like any other."""

import numpy as np
import pytest

from flagtrl.evidence.backtest import backtest
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import Action
from flagtrl.market.synthetic import news_leads_price
from flagtrl.play.policy import check_policy
from flagtrl.policy.numeric import Numbers, features, learner, numeric_policy, of_features

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
    env = TradingEnv(WINDOW, SETTINGS)
    check_chances(numeric_policy(model, SETTINGS.lookback), model, env, env)


def check_chances(policy, model, env, observing):
    """On some days, whether a policy says what the model does of `observing`'s observations."""
    observed, _ = observing.reset(seed=0)
    for action in (Action.BUY, Action.HOLD, Action.SELL, Action.SELL):
        seen = env.observe()
        check_policy(policy, [seen])
        own = model.policy.get_distribution(model.policy.obs_to_tensor(observed)[0])
        chances = own.distribution.probs[0].detach().double().numpy()
        found = np.exp(policy([seen]).logprobs[0])
        moving = [a for a in (Action.SELL, Action.BUY) if seen.legal[a]]
        np.testing.assert_allclose(found[moving], chances[moving], rtol=1e-6)
        np.testing.assert_allclose(found[Action.HOLD], 1 - chances[moving].sum(), rtol=1e-6)
        observed, *_ = observing.step(int(action))


def test_it_is_backtested_as_every_policy_is(model):
    run = backtest(numeric_policy(model, SETTINGS.lookback), WINDOW, SETTINGS, 1.0, seed=4)
    assert len(run.actions) == len(WINDOW) - 1 and np.isfinite(run.values).all()
    assert len(set(run.actions.tolist())) > 1


def test_features_have_no_unit_and_see_what_a_short_prompt_tells():
    env = TradingEnv(WINDOW, SETTINGS)
    env.reset(seed=0)
    env.step(int(Action.BUY))
    env.step(int(Action.HOLD))
    env.step(int(Action.HOLD))
    seen = env.observe()
    row = features(seen)
    np.testing.assert_allclose(row[:3], np.diff(np.log(seen.prices)) / 0.01, rtol=1e-5)
    assert row[3:6].sum() in (0, 1) and row[6] == 1.0 and len(row) == 7
    dearer = WINDOW.market.prices * 1000
    scaled = type(WINDOW.market)("X", WINDOW.market.dates, dearer, WINDOW.market.news)
    other = TradingEnv(scaled.window(), SETTINGS)
    other.reset(seed=0)
    for action in (Action.BUY, Action.HOLD, Action.HOLD):
        other.step(int(action))
    np.testing.assert_allclose(features(other.observe()), row, rtol=1e-4)


def test_what_is_trained_on_features_is_what_is_traded():
    made = learner("mlp", WINDOW, SETTINGS, seed=0).learn(512)
    env = TradingEnv(WINDOW, SETTINGS)
    check_chances(of_features(made, SETTINGS.lookback), made, env, Numbers(env))
