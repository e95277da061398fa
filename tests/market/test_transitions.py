from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from flagtrl.errors import ConfigError
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import Action
from flagtrl.market.synthetic import news_leads_price, random_walk
from flagtrl.market.transitions import (
    FLAT,
    LONG,
    seen_at,
    shows_its_own,
    standing,
    transitions,
    transitions_of,
)
from flagtrl.market.vector import VectorTradingEnv
from flagtrl.trading import Trading


@pytest.mark.parametrize("execution", ["next_price", "same_price"])
@pytest.mark.parametrize(("bps", "cash_rate"), [(0.0, 0.0), (30.0, 0.0), (30.0, 0.002)])
def test_the_tables_are_what_the_environment_does(execution, bps, cash_rate):
    """A random walk through the environment, whose every step is looked up; the account grows, the
    tables are shares of it.
    """
    settings = MarketSettings(
        reward="log_return",
        execution=execution,
        cost_bps=bps,
        slippage_bps=bps / 2,
        cash_rate=cash_rate,
    )
    env = TradingEnv(random_walk(days=60, seed=1, volatility_per_bar=0.03).window(), settings)
    env.reset(seed=0)
    table, generator, seen = transitions(env.window, settings), np.random.default_rng(0), set()
    for t in range(59):
        position = int(env.account.shares > 0)
        assert table.legal[position].tolist() == env.legal.tolist()
        action = int(generator.choice(np.flatnonzero(env.legal)))
        _, reward, *_ = env.step(action)
        assert reward == pytest.approx(table.rewards[t, position, action], abs=1e-12)
        assert int(env.account.shares > 0) == table.after[t, position, action]
        seen.add((position, action))
    assert len(seen) == 4, "every legal action was taken in both positions"
    assert table.last_counts == (execution == "same_price")


def test_an_order_at_the_last_bar_can_only_cost_when_it_fills_at_the_next_price():
    window = random_walk(days=30, seed=1).window()
    free, dear = (
        transitions(window, MarketSettings(reward="log_return", cost_bps=bps))
        for bps in (0.0, 50.0)
    )
    last = free.rewards[-1]
    assert last[FLAT, 2] == pytest.approx(last[FLAT, 1]) and last[LONG, 0] == pytest.approx(
        last[LONG, 1]
    )
    assert dear.rewards[-1][FLAT, 2] < dear.rewards[-1][FLAT, 1]


def test_an_observation_of_a_position_is_the_environments_own():
    market = news_leads_price(days=30, seed=0)
    window, settings = Window(market, 5, 25), MarketSettings(reward="log_return", lookback=4)
    env = TradingEnv(window, settings)
    env.reset(seed=0, options={"start": 7})
    ours, theirs = seen_at(window, settings, 7, FLAT), env.observe()
    for name in (
        "symbol",
        "date",
        "bar",
        "news",
        "cash",
        "shares",
        "value",
        "rewards",
        "net_values",
        "actions",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert (
        ours.prices.tolist() == theirs.prices.tolist()
        and ours.legal.tolist() == theirs.legal.tolist()
    )
    env.account = standing(LONG, market.prices[12], settings.initial_cash)
    ours, theirs = seen_at(window, settings, 7, LONG), env.observe()
    assert (ours.cash, ours.shares, ours.value) == (theirs.cash, theirs.shares, theirs.value)
    assert ours.legal.tolist() == theirs.legal.tolist() == [True, True, False]


def test_an_environment_that_changes_what_a_step_pays_says_what_its_tables_are():
    class Doubled(TradingEnv):
        def step(self, action):
            seen, reward, *rest = super().step(action)
            return seen, 2 * reward, *rest

    class Told(Doubled):
        def transitions(self):
            plain = transitions(self.window, self.settings)
            return replace(plain, rewards=2 * plain.rewards)

    window, settings = random_walk(days=9, seed=1).window(), MarketSettings(reward="log_return")
    plain = transitions_of(TradingEnv(window, settings))
    np.testing.assert_array_equal(plain.rewards, transitions(window, settings).rewards)
    np.testing.assert_array_equal(transitions_of(Told(window, settings)).rewards, 2 * plain.rewards)
    with pytest.raises(ConfigError, match=r"but Doubled changes it; give it a method transitions"):
        transitions_of(Doubled(window, settings))


def test_a_reward_that_does_not_add_up_is_refused():
    window = random_walk(days=30, seed=1).window()
    with pytest.raises(
        ConfigError, match=r"is known neither to be of one step alone nor .*: log_return, sharpe_"
    ):
        transitions(window, MarketSettings(reward="sharpe_difference"))


class Smoothed(TradingEnv):
    """Shows prices that are rounded."""

    def observe(self):
        seen = super().observe()
        return replace(seen, prices=seen.prices.round())


class Halted(TradingEnv):
    """Forbids to buy on odd bars."""

    @property
    def legal(self):
        return super().legal & np.array([True, True, self._bar % 2 == 0])


@pytest.mark.parametrize("kind", [Smoothed, Halted])
@pytest.mark.parametrize("advantage", ["exact", "leave_one_out"])
def test_what_is_shown_otherwise_is_not_in_the_tables(kind, advantage):
    settings = MarketSettings(reward="log_return", lookback=3)
    env = kind(news_leads_price(20, 3).window(), settings)
    trading = Trading(lambda: env, encoder=None)
    with pytest.raises(ConfigError, match=f"{kind.__name__} changes what is seen or legal; set"):
        trading.check(SimpleNamespace(advantage=advantage), known=True)
    trading.check(SimpleNamespace(advantage="gae"), known=False)
    assert trading.ahead() == ()
    assert shows_its_own(env) and not shows_its_own(TradingEnv(env.window, settings))


def test_a_mask_may_look_at_what_is_seen():
    class Cautious(TradingEnv):
        @property
        def legal(self):
            risen = self.observe().prices[-1] > 100
            return super().legal & np.array([True, True, risen])

    env = Cautious(news_leads_price(20, 3).window(), MarketSettings(reward="log_return"))
    env.reset()
    for _ in range(5):
        seen = env.observe()
        assert seen.legal[Action.BUY] == (seen.prices[-1] > 100)
        env.step(Action.HOLD)


def test_sampled_episodes_show_what_an_environment_shows():
    settings = MarketSettings(reward="log_return", lookback=3)
    window = news_leads_price(20, 3).window()
    envs = VectorTradingEnv([Smoothed(window, settings), TradingEnv(window, settings)])
    envs.reset(seed=[1, 1])
    envs.advance(np.array([Action.HOLD, Action.HOLD]))
    own, plain = envs.observe()
    assert (own.prices == plain.prices.round()).all() and (own.prices != plain.prices).any()


def test_what_a_subclass_forbids_is_seen_as_forbidden():
    env = Halted(news_leads_price(20, 3).window(), MarketSettings(reward="log_return"))
    env.reset()
    allowed = []
    while not env.ended:
        allowed.append(bool(env.observe().legal[Action.BUY]))
        env.step(Action.HOLD)
    assert allowed[:4] in ([True, False, True, False], [False, True, False, True])
