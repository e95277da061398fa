"""Many environments are many times one environment, and none of them sees the future."""

import numpy as np
import pytest

from flagtrl.language.prompts import prompt_style, style_names
from flagtrl.market.data import MarketData, NewsItem, Window
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import EXECUTIONS
from flagtrl.market.observation import Observation
from flagtrl.market.rewards import reward_names
from flagtrl.market.synthetic import news_leads_price
from flagtrl.market.vector import VectorTradingEnv

# ------------------------------------------------------------------------------------- one and many


def chosen(execution: str = "next_price", reward: str = "sharpe_difference") -> MarketSettings:
    # Volatile enough, beside a high ruin fraction, that some episodes end in ruin and others at
    # their limit.
    return MarketSettings(
        reward, execution, cost_bps=30, episode_start="random", ruin_fraction=0.95, lookback=4
    )


def environments(settings: MarketSettings) -> list[TradingEnv]:
    market = news_leads_price(80, seed=1, volatility_per_bar=0.04)
    return [TradingEnv(market.window(), settings, limit) for limit in (6, 9, 20)]


def assert_equal(one: Observation, other: Observation) -> None:
    for name, value in vars(one).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)
        else:
            assert value == getattr(other, name), name


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_vector_of_environments_goes_step_by_step_with_single_ones(execution):
    many = VectorTradingEnv(environments(chosen(execution)))
    single = environments(chosen(execution))
    seeds = [4, 5, 6]
    rng = np.random.default_rng(0)
    batch, infos = many.reset(seed=seeds)
    firsts = [env.reset(seed=seed) for env, seed in zip(single, seeds, strict=True)]
    ends = {"terminated": 0, "truncated": 0}
    for i, (observation, info) in enumerate(firsts):
        assert all(batch[key][i].tolist() == value.tolist() for key, value in observation.items())
        assert infos["bar"][i] == info["bar"]
    for _ in range(150):
        actions = rng.integers(0, 3, 3)
        batch, rewards, terminated, truncated, infos = many.step(actions)
        for i, env in enumerate(single):
            observation, reward, dead, late, info = env.step(int(actions[i]))
            assert (rewards[i], terminated[i], truncated[i]) == (reward, dead, late)
            assert all(
                batch[key][i].tolist() == value.tolist() for key, value in observation.items()
            )
            assert set(info) <= set(infos)
            assert all(np.array_equal(infos[key][i], value) for key, value in info.items())
            assert_equal(many.observe()[i], env.observe())
            assert many.legal()[i].tolist() == env.legal.tolist()
        over = terminated | truncated
        ends["terminated"] += terminated.sum()
        ends["truncated"] += (truncated & ~terminated).sum()
        if over.any():
            batch, infos = many.reset(options={"reset_mask": over})
            for i in np.flatnonzero(over):
                observation, info = single[i].reset()
                assert infos["bar"][i] == info["bar"]
                assert all(
                    batch[key][i].tolist() == value.tolist() for key, value in observation.items()
                )
            for i in np.flatnonzero(~over):  # those that go on are where they were
                assert_equal(many.observe()[i], single[i].observe())
    assert min(ends.values()) > 3, ends


def test_one_seed_gives_every_environment_of_a_vector_its_own_random_starts():
    def starts(seed):
        many = VectorTradingEnv([environments(chosen())[0] for _ in range(3)])
        many.reset(seed=seed)
        bars = []
        for _ in range(10):
            many.reset(options={"reset_mask": np.ones(3, dtype=bool)})
            bars.append([seen.bar for seen in many.observe()])
        return np.array(bars).T.tolist()

    first = starts(0)
    assert first == starts(0)
    assert first[0] != first[1] != first[2]
    assert first != starts(1)


# ---------------------------------------------------------------------------------------- no future


BARS, FIRST = 16, 3


def original() -> MarketData:
    rng = np.random.default_rng(7)
    news = tuple(
        tuple(
            NewsItem(f"headline {t}.{i}", str(rng.choice(["positive", "negative", "neutral"])))
            for i in range(t % 3)
        )
        for t in range(BARS)
    )
    dates = np.datetime64("2020-01-01") + np.arange(BARS)
    return MarketData("ABC", dates, 100 * np.exp(np.cumsum(rng.normal(0, 0.03, BARS))), news)


def perturbed(market: MarketData, last_kept: int) -> MarketData:
    """All that comes after bar `last_kept` is another world."""
    rng = np.random.default_rng(last_kept)
    future = BARS - last_kept - 1
    prices = np.concatenate([market.prices[: last_kept + 1], rng.uniform(1, 1000, future)])
    news = (
        *market.news[: last_kept + 1],
        *(((NewsItem("ANOTHER FUTURE", "negative"),) * 4),) * future,
    )
    return MarketData(market.symbol, market.dates, prices, news)


def what_an_agent_sees(market: MarketData, until: int, settings: MarketSettings) -> list:
    """Everything that reaches an agent from the window's first bar to bar `until`."""
    env = TradingEnv(Window(market, FIRST, BARS), settings)
    rng = np.random.default_rng(1)
    numbers, info = env.reset(seed=0)
    seen, reward = [], None
    while True:
        observation = env.observe()
        headlines = [item.text for item in observation.news[-1]]
        record = {
            name: np.asarray(value).tolist()
            for name, value in vars(observation).items()
            if name != "news"
        }
        record |= {
            "news": observation.news,
            "reward": reward,
            "mask": info["action_mask"].tolist(),
            "value": info["value"],
        }
        record |= {"numbers": {key: value.tolist() for key, value in numbers.items()}}
        record |= {style: prompt_style(style)(observation, headlines) for style in style_names()}
        seen.append(record)
        if observation.bar == until:
            return seen
        numbers, reward, terminated, truncated, info = env.step(int(rng.integers(3)))
        seen.append((terminated, truncated))


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("reward", reward_names())
def test_changing_the_future_changes_nothing_that_an_agent_has_seen(execution, reward):
    settings = MarketSettings(reward, execution, cost_bps=5, lookback=5, ruin_fraction=0.0)
    market = original()
    for t in range(FIRST, BARS - 1):
        ours, theirs = (
            what_an_agent_sees(market, t, settings),
            what_an_agent_sees(perturbed(market, t), t, settings),
        )
        assert len(ours) == 2 * (t - FIRST) + 1
        for one, other in zip(ours, theirs, strict=True):
            assert one == other
        # The test can fail: one bar later, the change is seen.
        assert what_an_agent_sees(market, t + 1, settings) != what_an_agent_sees(
            perturbed(market, t), t + 1, settings
        )


def test_every_prompt_style_shows_the_news_and_the_price_of_its_own_bar():
    """Without this, the law above would hold for a prompt that shows nothing."""
    market = original()
    for before, after in ((4, 5), (7, 8)):  # bars with one headline, with two
        env = TradingEnv(Window(market, before, BARS))
        env.reset(seed=0)
        env.step(1)
        seen = env.observe()
        assert seen.bar == after
        for style in style_names():
            prompt = prompt_style(style)(seen, [item.text for item in seen.news[-1]])
            text = prompt.shared + prompt.own
            assert all(item.text in text for item in market.news[after])
            assert all(
                item.text not in text for items in market.news[after + 1 :] for item in items
            )
