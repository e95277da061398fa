"""The suite: synthetic markets that a policy learns on, each with the best rule on what its prompts
show.

A rule here knows the market's law and what a prompt shows, but never the future; the conditional
mean of the coming log return decides, since holding earns it and being flat earns nothing. Orders
fill at the next price, so that an order given on a bar earns the move from the next bar on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from flagtrl.errors import ConfigError, unknown
from flagtrl.market.data import MarketData, Window
from flagtrl.market.env import MarketSettings
from flagtrl.market.ledger import Action
from flagtrl.market.observation import Observation
from flagtrl.market.policy import always, follow_last_move, follow_news, rule
from flagtrl.market.synthetic import (
    GRADES,
    MEAN_SIZE,
    graded_news,
    mean_reversion,
    momentum,
    news_leads_price,
    regimes,
)
from flagtrl.market.transitions import FLAT, Transitions, seen_at, transitions
from flagtrl.play.policy import Policy

LOOKBACK = 3
HALF_LIFE = 1.0  # of the reversion, bars: what two moves foretell best
VOLATILITY = 0.01  # of the markets' daily log returns; of `costly`'s, before their grade
COST_BPS = 100.0  # of `costly`, where the smaller moves are worth less than a trade


def against_last_move(seen: Observation) -> int:
    """Sell after a rise, Buy after a fall, else Hold; reads no news."""
    return int(2 * Action.HOLD - follow_last_move(seen))


# What prices alone may earn: the control of every market whose signal is in its text.
BLIND: Mapping[str, Policy] = {
    "always_long": always(Action.BUY),
    "follow_last_move": rule(follow_last_move),
    "against_last_move": rule(against_last_move),
}


@dataclass(frozen=True)
class KnownMarket:
    """A market by its name in the suite.

    Attributes:
        make: (days, seed) -> the market.
        best: the best rule on what a prompt shows; None where no rule earns anything.
        settings: how it is traded.
    """

    make: Callable[[int, int], MarketData]
    best: Callable[[], Policy | None]
    settings: MarketSettings = field(
        default_factory=lambda: MarketSettings(reward="log_return", lookback=LOOKBACK)
    )


def reversion_rule(half_life: float = HALF_LIFE, lookback: int = LOOKBACK) -> Policy:
    """Buy where the last moves foretell a rise of the move after the next, else Sell.

    The log price is Gaussian, x_t = phi x_{t-1} + e_t with phi = 2^(-1 / half_life), so the
    conditional mean of a move is linear in the moves seen: its weights solve S w = b, with S and b
    their covariances, Cov(r_t, r_{t+k}) = (2 phi^|k| - phi^|k-1| - phi^|k+1|) Var(x).
    """
    weights = _reversion_weights(half_life, lookback - 1)

    def decide(seen: Observation) -> int:
        moves = np.diff(np.log(seen.prices))[::-1]  # the latest first
        return Action.BUY if moves @ weights[: len(moves)] > 0 else Action.SELL

    return rule(decide)


def _reversion_weights(half_life: float, moves: int) -> np.ndarray:
    """(moves,) of the last moves, the latest first, for the move after the next."""
    phi = 2 ** (-1 / half_life)

    def covariance(k: int) -> float:
        return float(2 * phi ** abs(k) - phi ** abs(k - 1) - phi ** abs(k + 1))

    known = np.array([[covariance(i - j) for j in range(moves)] for i in range(moves)])
    return np.linalg.solve(known, [covariance(2 + i) for i in range(moves)])


def graded_rule(
    gains: Mapping[str, float], chances: Mapping[str, float], cost: float
) -> Mapping[tuple[bool, str], bool]:
    """Of all rules from (long, grade of the news) to long or flat, the one that earns most a bar in
    the long run, by trying each.

    The grades are drawn anew for every bar, so that position and grade are a Markov chain under
    every rule: what it earns is its stationary mean.

    Args:
        gains: grade to the mean log return that it foretells.
        chances: grade to how likely it is.
        cost: log return that a trade costs, either way.
    """
    states = [(long, grade) for long in (False, True) for grade in gains]
    best, earned = {state: state[0] for state in states}, 0.0
    for wanted in itertools.product((False, True), repeat=len(states)):
        decided = dict(zip(states, wanted, strict=True))
        rise = sum(chances[grade] for grade in gains if decided[False, grade])
        fall = sum(chances[grade] for grade in gains if not decided[True, grade])
        if rise + fall == 0:  # whoever is flat stays flat
            continue
        share = {True: rise / (rise + fall), False: fall / (rise + fall)}
        mean = sum(
            share[long]
            * chances[grade]
            * (gains[grade] * decided[long, grade] - cost * (decided[long, grade] != long))
            for long, grade in states
        )
        if mean > earned:
            best, earned = decided, mean
    return best


def costly_rule(accuracy: float = 0.9, cost_bps: float = COST_BPS) -> Policy:
    """The best rule of `graded_news` under costs."""
    mean = (2 * accuracy - 1) * VOLATILITY * MEAN_SIZE
    gains = {name: grade.sign * grade.size * mean for name, grade in GRADES.items()}
    chances = dict.fromkeys(GRADES, 1 / len(GRADES))
    decided = graded_rule(gains, chances, cost_bps / 10_000)
    by_text = {grade.text: name for name, grade in GRADES.items()}

    def decide(seen: Observation) -> int:
        long = seen.shares > 0
        wanted = decided[long, by_text[seen.news[-1][0].text]]
        return Action.HOLD if wanted == long else Action.BUY if wanted else Action.SELL

    return rule(decide)


def _news(accuracy: float) -> KnownMarket:
    return KnownMarket(
        lambda days, seed: news_leads_price(days, seed, accuracy=accuracy, persistence=0.5),
        lambda: rule(follow_news),
    )


SUITE: Mapping[str, KnownMarket] = {
    "news60": _news(0.6),
    "news70": _news(0.7),
    "news90": _news(0.9),
    "momentum": KnownMarket(
        lambda days, seed: momentum(days, seed, autocorrelation=0.7),
        lambda: rule(follow_last_move),
    ),
    "reversion": KnownMarket(
        lambda days, seed: mean_reversion(days, seed, half_life_bars=HALF_LIFE),
        reversion_rule,
    ),
    "regimes": KnownMarket(
        lambda days, seed: regimes(
            days, seed, drift_per_bar=0.004, persistence=0.9, announced=True
        ),
        lambda: rule(follow_news),
    ),
    "costly": KnownMarket(
        graded_news,
        costly_rule,
        MarketSettings(reward="log_return", lookback=LOOKBACK, cost_bps=COST_BPS),
    ),
    # news as anywhere else, and right as often as a coin
    "nosignal": KnownMarket(
        lambda days, seed: news_leads_price(days, seed, accuracy=0.5, persistence=0.5),
        lambda: None,
    ),
}


def known_market(name: str) -> KnownMarket:
    """An entry of the suite; ConfigError: there is none of that name."""
    if name not in SUITE:
        raise unknown("market", name, SUITE)
    return SUITE[name]


def halves(market: MarketData, train_bars: int) -> tuple[Window, Window]:
    """The bars to train on, and the unseen ones after them."""
    if not 2 <= train_bars <= len(market) - 2:
        raise ConfigError(
            f"train_bars is {train_bars}; of {len(market)} bars it must leave 2 for the test"
        )
    return Window(market, 0, train_bars), Window(market, train_bars, len(market))


def earned(policy: Policy, window: Window, settings: MarketSettings) -> float:
    """The log return of a policy's likeliest actions over a window: the sum of `paid`."""
    return float(paid(policy, window, settings).sum())


def paid(policy: Policy, window: Window, settings: MarketSettings) -> np.ndarray:
    """(T,) log returns of a policy's likeliest actions, by the window's tables: many times as fast
    as a backtest, and the same where a policy reads no more of the account than its position.
    """

    def likeliest(bar: int, position: int) -> int:
        seen = seen_at(window, settings, bar, position)
        return int(policy([seen]).logprobs[0].argmax())

    return walked(transitions(window, settings), likeliest)


def walked(table: Transitions, decide: Callable[[int, int], int]) -> np.ndarray:
    """(T,) log returns along the path of `decide`, from bar and position to an action, flat at
    first.
    """
    position, earnings = FLAT, []
    for bar, gains in enumerate(np.log1p(table.returns)):
        action = decide(bar, position)
        earnings.append(float(gains[position, action]))
        position = int(table.after[bar, position, action])
    return np.array(earnings)
