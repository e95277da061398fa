"""Baselines that decide: trends, means, news, hindsight; and luck that trades as the agent does.

A rule reads the market up to the bar that it decides on, and never beyond, but for the oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from flagtrl.evidence.backtest import Backtest
from flagtrl.market.accounts import Accounts
from flagtrl.market.data import MarketData, Window
from flagtrl.market.env import MarketSettings
from flagtrl.market.ledger import Action
from flagtrl.market.observation import Observation
from flagtrl.market.policy import follow_news, rule
from flagtrl.market.transitions import POSITIONS, transitions
from flagtrl.play.loop import likeliest, play
from flagtrl.play.policy import Policy, PolicyOutput, legal_of

TREND_BARS, FAST_BARS, SLOW_BARS = 20, 10, 50
MATCHED_DRAWS = 10_000
AT_ONCE = 2_000_000  # bars of accounts that are played together, for memory


def momentum(market: MarketData, bars: int = TREND_BARS) -> Policy:
    """Long while the price is above what it was `bars` bars ago; Hold before there are so many."""
    return rule(lambda seen: _wanted(market, seen, bars, lambda past: past[-1] - past[0]))


def mean_reversion(market: MarketData, bars: int = TREND_BARS) -> Policy:
    """Long while the price is below the mean of the last `bars` bars before it."""
    return rule(lambda seen: _wanted(market, seen, bars, lambda past: past[:-1].mean() - past[-1]))


def crossover(market: MarketData, fast: int = FAST_BARS, slow: int = SLOW_BARS) -> Policy:
    """Long while the mean of the last `fast` prices is above that of the last `slow`."""

    def above(past: np.ndarray) -> float:
        return past[-fast:].mean() - past[1:].mean()

    return rule(lambda seen: _wanted(market, seen, slow, above))


def _wanted(
    market: MarketData, seen: Observation, bars: int, signal: Callable[[np.ndarray], float]
) -> int:
    """Buy or Sell by the sign of a signal of the last `bars + 1` prices; Hold where it is 0."""
    if seen.bar < bars:
        return int(Action.HOLD)
    past = market.prices[seen.bar - bars : seen.bar + 1]
    return int(Action.HOLD + np.sign(signal(past)))


def oracle(window: Window, settings: MarketSettings) -> Policy:
    """What hindsight earns: of all ways to trade the window, one with the highest final value, by
    dynamic programming over positions. No policy can know it; it is a scale, not a rival.
    """
    table = transitions(window, replace(settings, reward="log_return"))
    with np.errstate(divide="ignore"):
        gains, after = np.log1p(table.returns), table.after
    best = np.zeros(gains.shape[:2], dtype=np.int64)
    worth = np.zeros(len(POSITIONS))
    for bar in reversed(range(len(gains))):
        values = gains[bar] + worth[after[bar]]
        # of equal ones Hold, which does nothing
        values[:, Action.HOLD] = np.nextafter(values[:, Action.HOLD], np.inf)
        best[bar], worth = values.argmax(-1), values.max(-1)

    def decide(seen: Observation) -> int:
        return int(best[min(seen.bar - window.start, len(best) - 1), int(seen.shares > 0)])

    return rule(decide)


def usual_rules(window: Window, settings: MarketSettings) -> Mapping[str, Policy]:
    """The rules that stand in every table, by row name."""
    market = window.market
    found = {
        "momentum": momentum(market),
        "mean_reversion": mean_reversion(market),
        "sma_crossover": crossover(market),
    }
    if any(market.news[window.start : window.stop]):
        found["follow_news"] = rule(follow_news)
    return {**found, "oracle_hindsight": oracle(window, settings)}


# --------------------------------------------------------------------- luck, of the agent's kind


def matched_paths(
    agent: Backtest, settings: MarketSettings, draws: int = MATCHED_DRAWS, seed: int = 0
) -> np.ndarray:
    """(draws, n) account values of accounts that trade as the agent does at other times: its own
    spells in and out of the market, each kind in a random order. Exposure, number of trades and
    costs are the agent's; what it knew is lost.

    Args:
        agent: one pass; its positions are those after each decision.
        settings: of execution and costs; as the agent's.
        draws: how many.
        seed: of the order.
    """
    held = (agent.shares[1:] > 0).astype(np.int64)  # (T,) after each decision
    rng, window = np.random.default_rng(seed), agent.window
    chunk = max(1, AT_ONCE // len(held))
    found = []
    for start in range(0, draws, chunk):
        wanted = np.stack(
            [_shuffled(held, rng) for _ in range(min(chunk, draws - start))], axis=1
        )  # (T, B)
        world = Accounts(window, settings, wanted.shape[1])
        play(decided(wanted, window.start), world, likeliest)
        rest = [world.values[-1]] * (len(window) - len(world.values))  # all of them were ruined
        found.append(np.stack(world.values + rest, axis=1))
    return np.concatenate(found)


def _shuffled(held: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same spells in another order: it begins in the same position, and ins and outs
    alternate as before.
    """
    ends = np.flatnonzero(np.diff(held)) + 1
    lengths = np.diff(np.concatenate([[0], ends, [len(held)]]))
    states = held[np.concatenate([[0], ends])]
    for state in (0, 1):
        lengths[states == state] = rng.permutation(lengths[states == state])
    return np.repeat(states, lengths)


def decided(wanted: np.ndarray, first: int) -> Policy:
    """The policy that leads B accounts, which trade in step, to positions (T, B)."""

    def policy(seen: Sequence[Observation]) -> PolicyOutput:
        legal, now = legal_of(seen), wanted[seen[0].bar - first]
        held = legal[:, Action.SELL]
        chosen = np.where(now > held, Action.BUY, np.where(now < held, Action.SELL, Action.HOLD))
        logprobs = np.full(legal.shape, -np.inf)
        rows = np.arange(len(legal))
        chosen = np.where(legal[rows, chosen], chosen, Action.HOLD)
        logprobs[rows, chosen] = 0.0
        return PolicyOutput.of(logprobs)

    return policy


def spells(held: np.ndarray) -> Iterator[tuple[int, int]]:
    """Of positions (T,), where each time in the market begins, and where it ends (exclusive)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], held, [0]])))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
