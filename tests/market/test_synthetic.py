import inspect
from collections import Counter

import numpy as np
import pytest

from flagtrl.errors import ConfigError
from flagtrl.market import synthetic
from flagtrl.market.data import MarketData
from flagtrl.market.ledger import EXECUTIONS, Account, Action, Costs, step_account

SYNTHETIC = [
    function
    for name, function in inspect.getmembers(synthetic, inspect.isfunction)
    if not name.startswith("_") and function.__module__ == synthetic.__name__
]
NO_COSTS = Costs()


def labels(market: MarketData) -> Counter:
    return Counter(item.sentiment for items in market.news for item in items)


def test_every_synthetic_market_is_found():
    names = {function.__name__ for function in SYNTHETIC}
    assert names >= {"random_walk", "momentum", "mean_reversion", "regimes", "news_leads_price"}


@pytest.mark.parametrize("make", SYNTHETIC)
def test_a_seed_is_a_market(make):
    market = make(days=300, seed=7)
    assert make(days=300, seed=7).fingerprint() == market.fingerprint()
    other = make(days=300, seed=8)
    assert not (other.prices[1:] == market.prices[1:]).any()
    assert (market.symbol, market.periods_per_year, len(market)) == ("SYNTH", 252, 300)
    assert (
        (market.prices > 0).all()
        and (np.diff(market.dates).astype(int) > 0).all()
        and np.is_busday(market.dates).all()
    )


@pytest.mark.parametrize("make", SYNTHETIC)
def test_the_common_settings_are_read(make):
    market = make(
        days=2000, seed=1, start="2021-05-01", start_price=5.0, symbol="X", volatility_per_bar=0.03
    )
    # a Saturday rolls on
    assert (market.symbol, market.prices[0], str(market.dates[0])) == ("X", 5.0, "2021-05-03")
    calm = make(days=2000, seed=1, volatility_per_bar=0.001)
    assert np.diff(np.log(market.prices)).std() > 1.3 * np.diff(np.log(calm.prices)).std()


@pytest.mark.parametrize("make", SYNTHETIC)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"days": 1}, r"days is 1; it must be a whole number of at least 2; 252 make a year"),
        ({"days": 10.5}, r"days is 10\.5"),
        ({"days": True}, r"days is True"),
        ({"seed": -1}, r"seed is -1; it must be a whole number of at least 0"),
        ({"volatility_per_bar": 0}, r"volatility_per_bar is 0; it must be above 0 and at most 1"),
        ({"volatility_per_bar": float("nan")}, r"volatility_per_bar is nan"),
        ({"start_price": 0}, r"start_price is 0; it must be above 0"),
        ({"start": "soon"}, r"start: 'soon' is not a date; write it as YYYY-MM-DD"),
    ],
)
def test_a_setting_out_of_bounds_is_refused(make, settings, message):
    with pytest.raises(ConfigError, match=message):
        make(**settings)


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (
            synthetic.momentum,
            {"autocorrelation": 0},
            r"autocorrelation is 0; it must be above 0 and below 1; use random_walk",
        ),
        (synthetic.momentum, {"autocorrelation": 1}, r"autocorrelation is 1"),
        (
            synthetic.mean_reversion,
            {"half_life_bars": 0},
            r"half_life_bars is 0; it must be above 0 and finite",
        ),
        (synthetic.mean_reversion, {"half_life_bars": float("inf")}, r"half_life_bars is inf"),
        (
            synthetic.regimes,
            {"persistence": 1.1},
            r"persistence is 1\.1; it must be a probability, from 0 to 1",
        ),
        (synthetic.regimes, {"bear_volatility_per_bar": 2}, r"bear_volatility_per_bar is 2"),
        (
            synthetic.news_leads_price,
            {"accuracy": -0.1},
            r"accuracy is -0\.1; it must be a probability",
        ),
        (synthetic.news_leads_price, {"persistence": 2}, r"persistence is 2"),
        (
            synthetic.news_leads_price,
            {"lead": 0},
            r"lead is 0; it must be a whole number of bars from 1 to days - 1 = 499",
        ),
        (synthetic.news_leads_price, {"lead": 10, "days": 10}, r"lead is 10; .* = 9"),
        (
            synthetic.random_walk,
            {"drift_per_bar": 1.0},
            r"the log price moves by 49\d\.?\d*; the bound is 400: use fewer days",
        ),
        (synthetic.random_walk, {"drift_per_bar": float("nan")}, r"the log price moves by nan"),
    ],
)
def test_a_setting_of_one_market_out_of_bounds_is_refused(make, settings, message):
    with pytest.raises(ConfigError, match=message):
        make(**settings)


def returns_of(market: MarketData) -> np.ndarray:
    return np.diff(np.log(market.prices))


def correlation(x: np.ndarray, lag: int = 1) -> float:
    return float(np.corrcoef(x[:-lag], x[lag:])[0, 1])


def test_each_market_has_the_property_that_names_it():
    n = 20_000  # the standard error of a correlation is 0.007
    walk = returns_of(synthetic.random_walk(n, drift_per_bar=0.001))
    assert (
        abs(correlation(walk)) < 0.03
        and abs(walk.std() - 0.01) < 2e-4
        and abs(walk.mean() - 0.001) < 3e-4
    )
    trend = returns_of(synthetic.momentum(n, autocorrelation=0.4))
    assert abs(correlation(trend) - 0.4) < 0.03 and abs(trend.std() - 0.01) < 3e-4
    gaps = np.log(synthetic.mean_reversion(n, half_life_bars=5).prices / 100)
    assert abs(correlation(gaps, 5) - 0.5) < 0.06 and abs(gaps.mean()) < 0.01
    states = returns_of(
        synthetic.regimes(
            n, drift_per_bar=0.0, volatility_per_bar=0.005, bear_volatility_per_bar=0.03
        )
    )
    assert correlation(np.abs(states)) > 0.2 and abs(correlation(states)) < 0.05


def announced(market: MarketData) -> np.ndarray:
    """(T,) +1 where the one news item of a bar is positive, -1 where it is negative."""
    assert all(len(items) == 1 for items in market.news)
    return np.array([{"positive": 1, "negative": -1}[items[0].sentiment] for items in market.news])


@pytest.mark.parametrize("lead", [1, 2, 3])
def test_the_news_announces_the_return_lead_bars_ahead(lead):
    market = synthetic.news_leads_price(4000, seed=3, lead=lead, accuracy=1.0, persistence=0.5)
    direction, news = np.sign(returns_of(market)), announced(market)  # (T-1,), (T,)
    for ahead in (1, 2, 3):
        agree = (news[: len(direction) - ahead + 1] == direction[ahead - 1 :]).mean()
        assert agree == 1.0 if ahead == lead else abs(agree - 0.5) < 0.05


def test_accuracy_persistence_and_volatility_are_as_set():
    market = synthetic.news_leads_price(
        20_000, seed=1, accuracy=0.7, persistence=0.8, volatility_per_bar=0.02
    )
    returns = returns_of(market)
    assert abs((announced(market)[:-2] == np.sign(returns)[1:]).mean() - 0.7) < 0.02
    assert abs((np.sign(returns)[1:] == np.sign(returns)[:-1]).mean() - 0.8) < 0.02
    assert abs(np.sqrt((returns**2).mean()) - 0.02) < 5e-4 and np.abs(returns).min() > 1e-3


def test_accuracy_and_lead_change_no_price():
    base = synthetic.news_leads_price(300, seed=4)
    for other in (
        synthetic.news_leads_price(300, seed=4, accuracy=0.5),
        synthetic.news_leads_price(300, seed=4, lead=5),
    ):
        assert (other.prices == base.prices).all() and (announced(other) != announced(base)).any()


def test_the_direction_is_told_in_several_phrases_without_digits():
    market = synthetic.news_leads_price(500, seed=0)
    texts = {
        sign: {items[0].text for items in market.news if items[0].sentiment == sign}
        for sign in ("positive", "negative")
    }
    assert (
        min(len(group) for group in texts.values()) >= 3
        and not texts["positive"] & texts["negative"]
    )
    assert not any(
        character.isdigit() for group in texts.values() for text in group for character in text
    )


def test_the_first_direction_is_a_fair_coin():
    ups = [returns_of(synthetic.news_leads_price(3, seed=seed))[0] > 0 for seed in range(400)]
    assert 0.4 < np.mean(ups) < 0.6


def follow_the_news(market: MarketData, execution: str) -> float:
    """Log return of: Buy on positive news, Sell on negative, through the ledger."""
    account = Account(np.array(1000.0), np.array(0.0))
    for t, sign in enumerate(announced(market)[:-1]):
        action = Action.BUY if sign > 0 else Action.SELL
        account, _ = step_account(
            account, action, market.prices[t], market.prices[t + 1], execution, NO_COSTS
        )
    return float(np.log(account.value(market.prices[-1]) / 1000.0))


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("seed", range(6))
def test_following_the_news_pays_under_both_executions(execution, seed):
    market = synthetic.news_leads_price(500, seed=seed)
    buy_and_hold = float(np.log(market.prices[-1] / market.prices[0]))
    assert follow_the_news(market, execution) > max(buy_and_hold, 0.0) + 0.5


def test_news_of_no_accuracy_does_not_pay():
    gains = [
        follow_the_news(market, "next_price")
        - 0.5 * float(np.log(market.prices[-1] / market.prices[0]))
        for market in (
            synthetic.news_leads_price(500, seed=seed, accuracy=0.5) for seed in range(30)
        )
    ]
    assert abs(np.mean(gains)) < 0.1  # a coin is in the market half of the time
