"""Seeded markets whose best policy is known, or known not to exist: one function each, returning a
MarketData.

Check learning here before believing anything on real data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flagtrl.errors import ConfigError, DataError
from flagtrl.market.data import MarketData, NewsItem, parse_date

_UP_NEWS = (
    "Analysts raise their outlook and expect the shares to climb.",
    "Orders came in well above forecasts, and buyers are lining up.",
    "The company lifts its guidance after a strong start to the quarter.",
    "A large contract was won; traders speak of a rally ahead.",
    "Demand is surging and margins are widening, say suppliers.",
)
_DOWN_NEWS = (
    "Analysts cut their outlook and expect the shares to slide.",
    "Orders fell well short of forecasts, and sellers are lining up.",
    "The company withdraws its guidance after a weak start to the quarter.",
    "A large contract was lost; traders speak of a sell-off ahead.",
    "Demand is fading and margins are shrinking, say suppliers.",
)
_BULL_NEWS, _BEAR_NEWS = "The market is calm and rising.", "The market is stormy and falling."


class Grade(NamedTuple):
    """News of one strength: the sign of the move that it foretells, its size beside the others',
    and how it reads.
    """

    sign: int
    size: float
    text: str


GRADES: Mapping[str, Grade] = {
    "surge": Grade(+1, 2.0, "The company expects record profits; the shares may surge."),
    "rise": Grade(+1, 0.5, "A supplier reports slightly better terms; the shares may edge up."),
    "dip": Grade(-1, 0.5, "A supplier reports slightly worse terms; the shares may edge down."),
    "plunge": Grade(-1, 2.0, "The company warns of heavy losses; the shares may plunge."),
}
_FLOOR, _SLOPE = 0.2, 0.8  # of a move's size, whose floor keeps its sign beyond rounding
_ROOT_MEAN_SQUARE = math.sqrt(_FLOOR**2 + 2 * _FLOOR * _SLOPE * math.sqrt(2 / math.pi) + _SLOPE**2)
MEAN_SIZE = (_FLOOR + _SLOPE * math.sqrt(2 / math.pi)) / _ROOT_MEAN_SQUARE


def random_walk(
    days: int = 500,
    seed: int = 0,
    *,
    start: str = "2020-01-01",
    volatility_per_bar: float = 0.01,
    drift_per_bar: float = 0.0,
    start_price: float = 100.0,
    symbol: str = "SYNTH",
) -> MarketData:
    """Independent log returns, normal with mean `drift_per_bar` and deviation `volatility_per_bar`:
    nothing to learn.

    Bars are the business days from `start` on; no news.

    Raises:
        ConfigError: a setting outside its bounds.
    """
    rng = _generator(days, seed, volatility_per_bar)
    returns = drift_per_bar + volatility_per_bar * rng.standard_normal(days - 1)  # (T-1,)
    return _synthetic(returns, start, start_price, symbol)


def momentum(
    days: int = 500,
    seed: int = 0,
    *,
    start: str = "2020-01-01",
    volatility_per_bar: float = 0.01,
    autocorrelation: float = 0.3,
    start_price: float = 100.0,
    symbol: str = "SYNTH",
) -> MarketData:
    """Log returns that persist: r_t = phi r_{t-1} + s sqrt(1 - phi^2) e_t, with phi =
    `autocorrelation` > 0.

    The factor keeps the deviation of a return at s = `volatility_per_bar` whatever phi. Business
    days; no news.

    Raises:
        ConfigError: a setting outside its bounds.
    """
    rng = _generator(days, seed, volatility_per_bar)
    _require(
        0 < autocorrelation < 1,
        "autocorrelation",
        autocorrelation,
        "above 0 and below 1; use random_walk for 0",
    )
    noise = rng.standard_normal(days - 1)  # (T-1,)
    noise[1:] *= math.sqrt(1 - autocorrelation**2)
    return _synthetic(
        volatility_per_bar * _autoregression(noise, autocorrelation), start, start_price, symbol
    )


def mean_reversion(
    days: int = 500,
    seed: int = 0,
    *,
    start: str = "2020-01-01",
    volatility_per_bar: float = 0.01,
    half_life_bars: float = 10.0,
    start_price: float = 100.0,
    symbol: str = "SYNTH",
) -> MarketData:
    """A log price that returns to where it began (Ornstein-Uhlenbeck, sampled once a bar).

    x_{t+1} = 2^(-1/h) x_t + s e_t with x_t = log(P_t / `start_price`): of a gap, half is left after
    h = `half_life_bars`. Business days; no news.

    Raises:
        ConfigError: a setting outside its bounds.
    """
    rng = _generator(days, seed, volatility_per_bar)
    ok = 0 < half_life_bars < math.inf
    _require(
        ok,
        "half_life_bars",
        half_life_bars,
        "above 0 and finite; 10 is typical, use random_walk for no reversion",
    )
    # (T-1,)
    gaps = _autoregression(
        volatility_per_bar * rng.standard_normal(days - 1), 2 ** (-1 / half_life_bars)
    )
    return _synthetic(np.diff(gaps, prepend=0.0), start, start_price, symbol)


def regimes(
    days: int = 500,
    seed: int = 0,
    *,
    start: str = "2020-01-01",
    volatility_per_bar: float = 0.01,
    bear_volatility_per_bar: float = 0.02,
    drift_per_bar: float = 0.001,
    persistence: float = 0.98,
    announced: bool = False,
    start_price: float = 100.0,
    symbol: str = "SYNTH",
) -> MarketData:
    """Two hidden states, each kept with probability `persistence` from bar to bar, from a fair coin
    on.

    Bull: log returns of mean +`drift_per_bar` and deviation `volatility_per_bar`. Bear: mean
    -`drift_per_bar` and deviation `bear_volatility_per_bar`. Business days. No news, or where they
    are `announced` the news of every bar says which state the coming return is of.

    Raises:
        ConfigError: a setting outside its bounds.
    """
    rng = _generator(days, seed, volatility_per_bar)
    _check_volatility("bear_volatility_per_bar", bear_volatility_per_bar)
    _check_probability("persistence", persistence)
    state = _persistent_signs(rng, days - 1, persistence)  # (T-1,) +1 bull, -1 bear
    deviation = np.where(state > 0, volatility_per_bar, bear_volatility_per_bar)
    returns = drift_per_bar * state + deviation * rng.standard_normal(days - 1)
    # the last bar, whose return is not shown, repeats the state before
    news = [
        (NewsItem(*((_BULL_NEWS, "positive") if up else (_BEAR_NEWS, "negative"))),)
        for up in np.append(state, state[-1]) > 0
    ]
    return _synthetic(returns, start, start_price, symbol, news if announced else None)


def news_leads_price(
    days: int = 500,
    seed: int = 0,
    *,
    accuracy: float = 0.9,
    lead: int = 2,
    persistence: float = 0.8,
    start: str = "2020-01-01",
    volatility_per_bar: float = 0.01,
    start_price: float = 100.0,
    symbol: str = "SYNTH",
) -> MarketData:
    """News that tells the direction of a coming return: a market in which reading pays.

    A hidden direction d_t in {-1, +1} belongs to the return from bar t to t + 1 and is kept with
    probability `persistence`: log(P_{t+1} / P_t) = d_t m_t, m_t > 0 half-normal above a floor, with
    sqrt(E m^2) = `volatility_per_bar`. The one news item of bar t announces d_{t+lead-1}, rightly
    with probability `accuracy`: lead 1 is the return from t to t + 1; lead 2 the one from t + 1 to
    t + 2, which an order decided at t earns when it fills at the next price. With one seed,
    `accuracy` and `lead` change the news only, never a price.

    Raises:
        ConfigError: a setting outside its bounds.
    """
    rng = _generator(days, seed, volatility_per_bar)
    _check_probability("accuracy", accuracy)
    _check_probability("persistence", persistence)
    _require(
        _is_int(lead) and 1 <= lead < days,
        "lead",
        lead,
        f"a whole number of bars from 1 to days - 1 = {days - 1}",
    )
    size = _positive_sizes(rng, days - 1)  # (T-1,)
    right = rng.random(days) < accuracy  # (T,) bool
    phrase = rng.integers(len(_UP_NEWS), size=days)  # (T,)
    # Drawn last and longest, so that `lead` changes no other draw; the news of the last bars is
    # about returns not shown.
    direction = _persistent_signs(rng, days - 1 + lead, persistence)
    announced = np.where(right, 1, -1) * direction[lead - 1 : lead - 1 + days]  # (T,)
    news = [(_announcement(up, which),) for up, which in zip(announced > 0, phrase, strict=True)]
    return _synthetic(
        volatility_per_bar * size * direction[: days - 1], start, start_price, symbol, news
    )


def graded_news(
    days: int = 500,
    seed: int = 0,
    *,
    accuracy: float = 0.9,
    start: str = "2020-01-01",
    volatility_per_bar: float = 0.01,
    start_price: float = 100.0,
    symbol: str = "SYNTH",
) -> MarketData:
    """News of four grades, each as likely as the others, drawn anew for every bar: a market in
    which small moves may not be worth their cost.

    The news of bar t foretells the return from t + 1 to t + 2, which an order decided at t earns
    when it fills at the next price: its sign with probability `accuracy`, its size `volatility`
    times the grade's times m > 0 with E m = MEAN_SIZE. Business days.

    Raises:
        ConfigError: a setting outside its bounds.
    """
    rng = _generator(days, seed, volatility_per_bar)
    _check_probability("accuracy", accuracy)
    grades = list(GRADES.values())
    drawn = rng.integers(len(grades), size=days + 1)  # the first foretells the first return
    right = np.where(rng.random(days - 1) < accuracy, 1, -1)
    foretold = np.array([grades[g].sign * grades[g].size for g in drawn[: days - 1]])
    returns = volatility_per_bar * right * foretold * _positive_sizes(rng, days - 1)
    news = [
        (NewsItem(grades[g].text, "positive" if grades[g].sign > 0 else "negative"),)
        for g in drawn[1:]
    ]
    return _synthetic(returns, start, start_price, symbol, news)


def _announcement(up: bool, which: int) -> NewsItem:
    return NewsItem(_UP_NEWS[which], "positive") if up else NewsItem(_DOWN_NEWS[which], "negative")


def _persistent_signs(rng: np.random.Generator, count: int, persistence: float) -> np.ndarray:
    """(count,) of -1 and +1: a fair first one, then each equal to its predecessor with probability
    `persistence`.
    """
    draws = rng.random(count)
    turns = np.where(draws < persistence, 1, -1)
    turns[0] = 1 if draws[0] < 0.5 else -1
    return np.cumprod(turns)


def _positive_sizes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count,) sizes m = (a + b |z|) / c with E m^2 = 1 and E m = MEAN_SIZE."""
    return (_FLOOR + _SLOPE * np.abs(rng.standard_normal(count))) / _ROOT_MEAN_SQUARE


def _autoregression(noise: np.ndarray, decay: float) -> np.ndarray:
    """(n,) x_t = decay x_{t-1} + noise_t, from x_{-1} = 0."""
    values, last = np.empty_like(noise), 0.0
    for i, shock in enumerate(noise):
        last = decay * last + shock
        values[i] = last
    return values


def _generator(days: int, seed: int, volatility_per_bar: float) -> np.random.Generator:
    """The seeded generator, once the settings that every synthetic market has are within their
    bounds.
    """
    _require(
        _is_int(days) and days >= 2, "days", days, "a whole number of at least 2; 252 make a year"
    )
    _require(_is_int(seed) and seed >= 0, "seed", seed, "a whole number of at least 0")
    _check_volatility("volatility_per_bar", volatility_per_bar)
    return np.random.default_rng(seed)


def _synthetic(
    returns: np.ndarray,
    start: str,
    start_price: float,
    symbol: str,
    news: Sequence[tuple[NewsItem, ...]] | None = None,
) -> MarketData:
    """The market of (T-1,) log returns on T business days."""
    _require(
        0 < start_price < 1e100, "start_price", start_price, "above 0 and below 1e100; 100 is usual"
    )
    try:
        first = parse_date(start)
    except DataError as error:
        raise ConfigError(f"start: {error}") from error
    log_ratio = np.concatenate([[0.0], np.cumsum(returns)])  # (T,)
    # exp(400) is 5e173: float64 holds it, times any start price
    if not np.abs(log_ratio).max() < 400:
        raise ConfigError(
            f"the log price moves by {np.abs(log_ratio).max():.4g}; the bound is 400: use fewer "
            "days, less volatility or drift"
        )
    dates = np.busday_offset(first, np.arange(len(log_ratio)), roll="forward")
    bars = news if news is not None else [()] * len(dates)
    return MarketData(symbol, dates, start_price * np.exp(log_ratio), tuple(bars))


def _check_volatility(name: str, value: float) -> None:
    _require(
        0 < value <= 1,
        name,
        value,
        "above 0 and at most 1 (the deviation of a log return; 0.01 is a calm stock)",
    )


def _check_probability(name: str, value: float) -> None:
    _require(0 <= value <= 1, name, value, "a probability, from 0 to 1")


def _require(ok: bool, name: str, value: object, bound: str) -> None:
    if not ok:
        raise ConfigError(f"{name} is {value}; it must be {bound}")


def _is_int(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
