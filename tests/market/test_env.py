import json
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from flagtrl.errors import ConfigError
from flagtrl.market.data import MarketData, NewsItem, Window
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import EXECUTIONS, Action
from flagtrl.market.rewards import reward_names
from flagtrl.market.synthetic import news_leads_price
from flagtrl.market.vector import VectorTradingEnv

SELL, HOLD, BUY = (int(a) for a in Action)
LONG = news_leads_price(60, seed=5)


def window(prices, before: int = 0) -> Window:
    dates = np.datetime64("2020-01-01") + np.arange(len(prices))
    market = MarketData("ABC", dates, np.array(prices, dtype=np.float64), ((),) * len(prices))
    return Window(market, before, len(prices))


def play(env, steps: int, seed: int) -> list:
    """Observations, rewards, flags of random actions; a finished episode is followed by the
    next.
    """
    rng = np.random.default_rng(seed)
    trace = []
    for _ in range(steps):
        observation, reward, terminated, truncated, info = env.step(int(rng.integers(3)))
        trace.append(
            (plain(observation), reward, terminated, truncated, info["bar"], info["value"])
        )
        if terminated or truncated:
            observation, info = env.reset()
            trace.append((plain(observation), info["bar"]))
    return trace


def plain(observation: dict) -> dict:
    return {key: value.tolist() for key, value in observation.items()}


# ---------------------------------------------------------------------------------------- gymnasium


@pytest.mark.parametrize("reward", reward_names())
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_gymnasiums_own_checker_passes(reward, execution):
    chosen = MarketSettings(reward=reward, execution=execution, cost_bps=5, episode_start="random")
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*Box observation space m(in|ax)imum value is -?infinity"
        )
        check_env(TradingEnv(LONG.window(), chosen, 10), skip_render_check=True)


def test_observations_lie_in_their_space_through_whole_episodes():
    env = TradingEnv(LONG.window(), MarketSettings(episode_start="random", lookback=7), 12)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    rng = np.random.default_rng(0)
    for _ in range(60):
        observation, _, terminated, truncated, _ = env.step(int(rng.integers(3)))
        assert env.observation_space.contains(observation)
        if terminated or truncated:
            observation, _ = env.reset()
            assert env.observation_space.contains(observation)


def test_an_episode_by_hand():
    """Prices 100, 110, 121, 60.5: Buy fills at 110, so the second step earns 10%; Sell fills at
    60.5, after the fall.
    """
    env = TradingEnv(
        window([100, 110, 121, 60.5]), MarketSettings(reward="log_return", initial_cash=1100.0)
    )
    observation, info = env.reset(seed=0)
    assert info["action_mask"].tolist() == [0, 1, 1]
    assert observation["account"].tolist() == [1100, 0, 1100]
    assert observation["prices"].tolist() == [0] * 9 + [100]
    seen = []
    for action in (BUY, HOLD, SELL):
        observation, reward, terminated, truncated, info = env.step(action)
        cells = (*observation["account"], reward, *info["action_mask"])
        seen.append([float(cell) for cell in cells])
        assert (terminated, info["illegal_action"], info["fee"]) == (False, False, 0)
    assert truncated
    np.testing.assert_allclose(
        seen,
        [
            [0, 10, 1100, 0, 1, 1, 0],
            [0, 10, 1210, np.log(1.1), 1, 1, 0],
            [605, 0, 605, np.log(0.5), 0, 1, 1],
        ],
        rtol=1e-13,
        atol=1e-13,
    )
    assert observation["prices"].tolist() == [0] * 6 + [100, 110, 121, 60.5]
    np.testing.assert_allclose(
        observation["recent_rewards"], [0] * 7 + [0, np.log(1.1), np.log(0.5)], rtol=1e-13
    )
    np.testing.assert_allclose(
        observation["recent_net_values"], [0] * 7 + [1100, 1210, 605], rtol=1e-13
    )
    assert observation["recent_actions"].tolist() == [-1] * 7 + [2, 1, 0]


def test_at_the_same_price_the_first_step_earns_the_first_move():
    env = TradingEnv(
        window([100, 110, 121]), MarketSettings(reward="log_return", execution="same_price")
    )
    env.reset(seed=0)
    assert env.step(BUY)[1] == pytest.approx(np.log(1.1))


def test_the_last_ten_steps_are_shown_and_no_more():
    env = TradingEnv(LONG.window(), MarketSettings(lookback=4))
    env.reset(seed=0)
    rewards, values, actions = [], [], []
    for t in range(25):
        action = t % 3
        _, reward, _, _, info = env.step(action)
        rewards.append(reward)
        values.append(info["value"])
        actions.append(action)
    seen = env.observe()
    assert seen.rewards == tuple(rewards[-10:])
    assert seen.net_values == tuple(values[-10:])
    assert seen.actions == tuple(actions[-10:])
    assert seen.prices.tolist() == LONG.prices[22:26].tolist()
    assert seen.news == LONG.news[22:26]
    assert (seen.symbol, seen.bar, seen.date) == ("SYNTH", 25, LONG.dates[25])


def test_a_look_back_reaches_before_the_window_but_not_before_the_market():
    env = TradingEnv(window([1, 2, 3, 4, 5, 6], before=2), MarketSettings(lookback=4))
    env.reset(seed=0)
    assert env.observe().prices.tolist() == [1, 2, 3]
    env.step(HOLD)
    env.step(HOLD)
    assert env.observe().prices.tolist() == [2, 3, 4, 5]


def test_sentiments_of_the_bar_are_counted_in_the_observation():
    items = (
        NewsItem("a", "negative"),
        NewsItem("b", "positive"),
        NewsItem("c", "negative"),
        NewsItem("d"),
    )
    market = MarketData("ABC", ["2020-01-01", "2020-01-02"], [1.0, 2.0], (items, ()))
    env = TradingEnv(market.window())
    assert env.reset(seed=0)[0]["sentiment"].tolist() == [1, 0, 2]
    assert env.step(HOLD)[0]["sentiment"].tolist() == [0, 0, 0]


# ------------------------------------------------------------------------------------------ actions


def test_the_action_mask_is_in_the_info_of_every_step():
    env = TradingEnv(window([10, 11, 12, 13, 14]))
    _, info = env.reset(seed=0)
    masks = [info["action_mask"].tolist()]
    masks += [env.step(action)[4]["action_mask"].tolist() for action in (HOLD, BUY, SELL)]
    assert masks == [[0, 1, 1], [0, 1, 1], [1, 1, 0], [0, 1, 1]]
    assert info["action_mask"].dtype == np.int8
    assert env.observe().legal.tolist() == [False, True, True]


@pytest.mark.parametrize(("first", "second"), [(HOLD, SELL), (BUY, BUY)])
def test_an_illegal_action_is_reported_and_changes_nothing(first, second):
    env = TradingEnv(window([10, 11, 12, 13]), MarketSettings(cost_bps=50))
    env.reset(seed=0)
    assert not env.step(first)[4]["illegal_action"]
    before = env.observe()
    info = env.step(second)[4]
    after = env.observe()
    assert info["illegal_action"]
    assert (info["fee"], info["traded_shares"]) == (0, 0)
    assert (before.cash, before.shares) == (after.cash, after.shares)


@pytest.mark.parametrize("action", [-1, 3, 17])
def test_an_unknown_action_is_refused_and_the_environment_stays_where_it_was(action):
    env = TradingEnv(window([10, 11, 12]))
    env.reset(seed=0)
    state = env.state_dict()
    with pytest.raises(ConfigError, match=f"action {action} is unknown"):
        env.step(action)
    assert env.state_dict() == state


# ---------------------------------------------------------------------------------- ends and starts


def test_ruin_terminates_an_episode_and_does_not_truncate_it():
    env = TradingEnv(window([100, 100, 4, 100, 100]), MarketSettings(ruin_fraction=0.05))
    env.reset(seed=0)
    assert env.step(BUY)[2:4] == (False, False)
    _, _, terminated, truncated, info = env.step(HOLD)
    assert (terminated, truncated) == (True, False)
    assert info["value"] == pytest.approx(4000)
    with pytest.raises(ConfigError, match=r"over; call reset\(\)"):
        env.step(HOLD)


def test_a_crash_short_of_ruin_ends_nothing():
    env = TradingEnv(window([100, 100, 6, 100]), MarketSettings(ruin_fraction=0.05))
    env.reset(seed=0)
    env.step(BUY)
    assert env.step(HOLD)[2:4] == (False, False)


def test_a_crash_of_the_price_does_not_ruin_who_holds_cash():
    env = TradingEnv(window([100, 100, 1, 1]))
    env.reset(seed=0)
    assert [env.step(HOLD)[2:4] for _ in range(3)] == [
        (False, False),
        (False, False),
        (False, True),
    ]


def test_a_ruin_fraction_of_zero_never_terminates():
    env = TradingEnv(window([100, 100, 1e-9, 1e-9]), MarketSettings(ruin_fraction=0.0))
    env.reset(seed=0)
    assert [env.step(action)[2:4] for action in (BUY, HOLD, HOLD)] == [
        (False, False),
        (False, False),
        (False, True),
    ]


@pytest.mark.parametrize(
    ("limit", "steps"), [(None, 59), (1, 1), (7, 7), (59, 59), (60, 59), (1000, 59)]
)
def test_an_episode_is_truncated_at_its_limit_or_at_the_end_of_the_window(limit, steps):
    env = TradingEnv(LONG.window(), max_episode_steps=limit)
    env.reset(seed=0)
    flags = [env.step(HOLD)[2:4] for _ in range(steps)]
    assert flags == [(False, False)] * (steps - 1) + [(False, True)]
    with pytest.raises(ConfigError, match=r"call reset\(\) before the next step"):
        env.step(HOLD)


def test_a_window_inside_a_market_ends_the_episode_at_its_own_last_bar():
    env = TradingEnv(Window(LONG, 10, 14))
    env.reset(seed=0)
    assert [env.step(HOLD)[3:5][0] for _ in range(3)] == [False, False, True]
    assert env.observe().bar == 13


def test_a_late_start_is_truncated_by_the_window_before_the_limit():
    env = TradingEnv(Window(LONG, 10, 40), max_episode_steps=7)
    env.reset(options={"start": 27})
    assert [env.step(HOLD)[3] for _ in range(2)] == [False, True]
    assert env.observe().bar == 39


def test_a_limit_below_one_step_is_refused():
    with pytest.raises(ConfigError, match="max_episode_steps is 0; it must be at least 1"):
        TradingEnv(LONG.window(), max_episode_steps=0)


def test_a_fixed_start_is_the_windows_first_bar_whatever_the_seed():
    env = TradingEnv(Window(LONG, 5, 40), MarketSettings(episode_start="fixed"), 10)
    assert {env.reset(seed=seed)[1]["bar"] for seed in range(20)} == {5}


def test_random_starts_reach_every_bar_that_leaves_room_for_an_episode_and_no_other():
    env = TradingEnv(Window(LONG, 5, 25), MarketSettings(episode_start="random"), 10)
    env.reset(seed=0)
    starts = [env.reset()[1]["bar"] for _ in range(300)]
    assert set(starts) == set(range(5, 15))  # the last episode ends at bar 24


def test_random_starts_repeat_with_the_seed_and_differ_without():
    def starts(seed):
        env = TradingEnv(LONG.window(), MarketSettings(episode_start="random"), 10)
        return [env.reset(seed=seed)[1]["bar"]] + [env.reset()[1]["bar"] for _ in range(20)]

    assert starts(3) == starts(3)
    assert starts(3) != starts(4)


def test_one_seed_reproduces_everything():
    def run():
        env = TradingEnv(LONG.window(), MarketSettings(episode_start="random", cost_bps=3), 9)
        first, info = env.reset(seed=11)
        return [(plain(first), info["bar"]), *play(env, 50, seed=1)]

    assert run() == run()


@pytest.mark.parametrize("start", [-1, 19, 20, 1000])
def test_a_start_outside_the_window_is_refused_with_the_bars_it_has(start):
    env = TradingEnv(Window(LONG, 5, 25))
    with pytest.raises(
        ConfigError, match=rf"start at bar {start}; the window has the bars 0 to 18"
    ):
        env.reset(options={"start": start})


@pytest.mark.parametrize("start", [0, 1, 18])
def test_a_start_counts_from_the_windows_first_bar(start):
    env = TradingEnv(Window(LONG, 5, 25), MarketSettings(episode_start="random"))
    assert env.reset(options={"start": start})[1]["bar"] == 5 + start


def test_a_reset_forgets_the_episode_before():
    env = TradingEnv(LONG.window())
    first = plain(env.reset(seed=0)[0])
    env.step(BUY)
    env.step(HOLD)
    assert plain(env.reset()[0]) == first
    assert env.observe().actions == ()


# ----------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("name", "value", "bound"),
    [
        ("execution", "tomorrow", "next_price, same_price"),
        ("episode_start", "middle", "fixed, random"),
        ("cost_bps", -1, "at least 0 and below 10000"),
        ("cost_bps", 10_000, "at least 0 and below 10000"),
        ("slippage_bps", -0.5, "at least 0 and below 10000"),
        ("slippage_bps", 10_000, "at least 0 and below 10000"),
        ("lookback", 0, "at least 1 bar"),
        ("lookback", -3, "at least 1 bar"),
        ("initial_cash", 0, "finite and above 0"),
        ("initial_cash", -5, "finite and above 0"),
        ("initial_cash", float("nan"), "finite and above 0"),
        ("initial_cash", float("inf"), "finite and above 0"),
        ("ruin_fraction", -0.1, "at least 0 and below 1"),
        ("ruin_fraction", 1, "at least 0 and below 1"),
        ("ruin_fraction", float("nan"), "at least 0 and below 1"),
        ("risk_free_rate", float("nan"), "fraction per bar"),
        ("risk_free_rate", float("-inf"), "within -0.1 and 0.1"),
        ("risk_free_rate", 5, "within -0.1 and 0.1"),
        ("cash_rate", 0.2, "5% a year is about 0.0002 a trading day"),
        ("cash_rate", float("nan"), "within"),
    ],
)
def test_a_setting_outside_its_bounds_is_refused_with_name_value_and_bound(name, value, bound):
    with pytest.raises(ConfigError, match=rf"{name} is '?{value}'?; .*{bound}"):
        MarketSettings(**{name: value})


def test_an_unknown_reward_is_refused_when_the_environment_is_made():
    with pytest.raises(ConfigError, match="reward 'profit' is unknown"):
        TradingEnv(LONG.window(), MarketSettings(reward="profit"))


# ------------------------------------------------------------------------------------------- saving


@pytest.mark.parametrize("steps", [0, 1, 8, 9, 23])
@pytest.mark.parametrize("reward", reward_names())
def test_a_state_saved_as_json_continues_identically(steps, reward):
    def make():
        chosen = MarketSettings(reward=reward, episode_start="random", cost_bps=10)
        return TradingEnv(LONG.window(), chosen, 9)

    env = make()
    env.reset(seed=2)
    play(env, steps, seed=3)
    state = json.loads(json.dumps(env.state_dict()))
    other = make()
    other.load_state_dict(state)
    assert plain_observation(other) == plain_observation(env)
    assert play(other, 40, seed=4) == play(env, 40, seed=4)
    third = make()
    third.load_state_dict(state)  # neither the state nor its generator was moved by the run before
    assert third.state_dict() == state


def plain_observation(env: TradingEnv) -> dict:
    return {
        name: np.asarray(value).tolist()
        for name, value in vars(env.observe()).items()
        if name != "news"
    }


def test_a_finished_episode_is_still_finished_after_loading():
    env = TradingEnv(LONG.window(), max_episode_steps=1)
    env.reset(seed=0)
    env.step(HOLD)
    other = TradingEnv(LONG.window(), max_episode_steps=1)
    other.load_state_dict(json.loads(json.dumps(env.state_dict())))
    with pytest.raises(ConfigError, match="the episode is over"):
        other.step(HOLD)


def vector(count: int = 3) -> VectorTradingEnv:
    chosen = MarketSettings(episode_start="random", cost_bps=10)
    return VectorTradingEnv([TradingEnv(LONG.window(), chosen, 5 + i) for i in range(count)])


def play_vector(envs: VectorTradingEnv, steps: int, seed: int) -> list:
    """Like `play`; what a masked reset returns is left out (see the expected failures below)."""
    rng = np.random.default_rng(seed)
    trace = []
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = envs.step(rng.integers(0, 3, envs.num_envs))
        trace.append(
            (
                plain(observation),
                reward.tolist(),
                terminated.tolist(),
                truncated.tolist(),
                envs.legal().tolist(),
            )
        )
        if (terminated | truncated).any():
            envs.reset(options={"reset_mask": terminated | truncated})
            trace.append([seen.bar for seen in envs.observe()])
    return trace


@pytest.mark.parametrize("steps", [0, 4, 17])
def test_a_vector_of_environments_saved_as_json_continues_identically(steps):
    envs = vector()
    envs.reset(seed=2)
    play_vector(envs, steps, seed=3)
    state = json.loads(json.dumps(envs.state_dict()))
    other = vector()
    other.reset(seed=99)
    other.load_state_dict(state)
    assert play_vector(other, 30, seed=4) == play_vector(envs, 30, seed=4)


def test_a_state_of_another_number_of_environments_is_refused():
    with pytest.raises(
        ConfigError, match="the saved run has 2 environments, this one 3; set num_envs"
    ):
        vector(3).load_state_dict(vector(2).state_dict())


def test_a_vector_whose_episodes_are_over_can_load_a_state_in_which_they_are_not():
    running = vector()
    running.reset(seed=0)
    state = running.state_dict()
    over = vector()
    over.reset(seed=1)
    for _ in range(5):
        over.step(np.full(3, HOLD))  # the first environment's limit is 5
    over.load_state_dict(state)
    over.step(np.full(3, HOLD))


def test_a_masked_reset_after_loading_returns_the_loaded_observations_of_the_others():
    envs = vector()
    envs.reset(seed=0)
    for _ in range(5):
        envs.step(np.full(3, BUY))
    other = vector()
    other.reset(seed=1)
    other.load_state_dict(envs.state_dict())
    observation, _ = other.reset(options={"reset_mask": np.array([True, False, False])})
    for i in (1, 2):
        seen = other.trading_envs[i].observe()
        assert observation["prices"][i].tolist()[-len(seen.prices) :] == seen.prices.tolist()


def test_a_masked_reset_is_possible_in_a_fresh_vector_after_loading():
    envs = vector()
    envs.reset(seed=0)
    fresh = vector()
    fresh.load_state_dict(envs.state_dict())
    fresh.reset(options={"reset_mask": np.array([True, False, False])})


def test_the_environments_are_gymnasiums_own_kinds():
    assert isinstance(TradingEnv(LONG.window()), gymnasium.Env)
    assert isinstance(vector(), gymnasium.vector.VectorEnv)
    assert vector().single_action_space == gymnasium.spaces.Discrete(3)
