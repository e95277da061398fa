"""Figures and words that say what comes next, and rewards that follow it: what holds a copy of the
future cannot be moved by changing the market, but it gives itself away by being right.

A suspicion, not a proof: it takes far more than a market's own regularity, such as momentum or news
that leads the price on nine days of ten.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from flagtrl.evidence.leaks import Build, Leak
from flagtrl.market.data import Window

FEWEST_DAYS = 30
CORRELATION, AGREEMENT, SHOWN = 0.9, 0.97, 0.9
# Of what a step's own return leaves of a reward, the share that the next move explains, and how
# surely: on prices that have nothing to do with it, and on its own, which may foretell one another.
ELSEWHERE, AT_HOME, T_VALUE = 0.2, 0.5, 6.0
LEFT = 0.01  # of a reward's variance, below which there is nothing to explain
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?!\w)")
WORD = re.compile(r"[A-Za-z]{2,}")
NOT_FEATURES = ("date", "symbol", "bar", "legal")


def foretelling(build: Build, window: Window, seed: int = 0) -> list[Leak]:
    """Figures and words that say the next bar's price, or one of the two next moves.

    What is seen and read is collected without any position, bar by bar. Suspected are: a figure
    equal to the next bar's price, to the digits in which it is shown, on 90% of the days on which
    the price moves; one whose rank correlation with a move is above .9; and a figure's sign, or a
    word's presence, that is a move's direction on 97% of days.

    Args:
        build: a window's environment and prompt.
        window: what is traded.
        seed: of the environment.
    """
    if len(window) - 2 < FEWEST_DAYS:
        return []
    numbers, texts, bars = _shown(build, window, seed)
    prices, dates = window.market.prices, window.market.dates[bars]
    now, future, steps = prices[bars], prices[bars + 1], np.diff(np.log(prices))
    moves = {
        "the next move": steps[bars],
        "the move after the next": steps[np.minimum(bars + 1, len(steps) - 1)],
    }
    found = []
    for (stage, name), series in {**numbers, **_numbers_of(texts)}.items():
        near = _half_digit(series)
        moved = np.abs(future - now) > 2 * near
        days = moved & (np.abs(series - future) <= near)
        if days.sum() >= SHOWN * max(int(moved.sum()), FEWEST_DAYS):
            found.append(_suspected(stage, name, "the next bar's price", days, dates))
            continue
        for which, move in moves.items():
            if (days := _agrees(series, move)) is not None:
                found.append(_suspected(stage, name, which, days, dates))
                break
    return found + _words(texts, moves, dates)


def paid_for_the_future(build: Build, window: Window, seed: int = 0) -> list[Leak]:
    """Rewards that follow the window's next move, on the window and on a market of the same days
    whose prices have nothing to do with it.

    Suspected is a reward of which the next move explains a fifth of what the step's own return
    leaves on the other market, where an honest reward cannot know it at all, or half of it on its
    own.

    Args:
        build: a window's environment.
        window: what is traded.
        seed: of the other market and the orders.
    """
    if len(window) - 2 < FEWEST_DAYS:
        return []
    rng, market = np.random.default_rng(seed), window.market
    moves = np.diff(np.log(market.prices))
    walk = np.exp(np.cumsum(np.append(0.0, rng.permutation(moves))))
    other = replace(window, market=replace(market, prices=100 * walk, news=((),) * len(market)))
    for traded, share in ((other, ELSEWHERE), (window, AT_HOME)):
        env = build(traded).env
        env.reset(seed=seed)
        rewards, bars, returns, sides = [], [], [], []
        while not env.ended:
            worth = env.observe().value
            _, reward, *_ = env.step(int(rng.choice(np.flatnonzero(env.legal))))
            after = env.observe()
            rewards.append(reward)
            bars.append(after.bar)
            returns.append(after.value / worth - 1)
            sides.append(1.0 if after.shares > 0 else -1.0)
        rows = np.array(bars) < len(moves)
        told = (np.array(each)[rows] for each in (rewards, returns, sides))
        if _follows(*told, moves[np.array(bars)[rows]], share):
            dates = market.dates[np.array(bars)[rows]]
            return [_suspected("reward", "", "the next move", np.ones(len(dates), bool), dates)]
    return []


def _follows(
    reward: np.ndarray, own: np.ndarray, side: np.ndarray, move: np.ndarray, share: float
) -> bool:
    """Whether the next move, or its direction, alone or times the step's own return or position,
    explains a share of what those leave of the reward.
    """
    base = np.stack([np.ones_like(own), own, np.abs(own), side], axis=1)
    for known in (by * of for by in (1, own, np.abs(own), side) for of in (move, np.sign(move))):
        left, more = (y - base @ np.linalg.lstsq(base, y, rcond=None)[0] for y in (reward, known))
        if left.var() <= LEFT * reward.var() or more.var() <= LEFT * known.var():
            continue
        r = float(np.corrcoef(left, more)[0, 1])
        t = abs(r) * np.sqrt((len(reward) - 5) / max(1 - r * r, 1e-12))
        if r * r >= share and t >= T_VALUE:
            return True
    return False


def _shown(
    build: Build, window: Window, seed: int
) -> tuple[dict[tuple[str, str], np.ndarray], list[str] | None, np.ndarray]:
    """Figures by stage and name, texts, and bars, of every day but the last two."""
    pipeline = build(window)
    env, hold = pipeline.env, 1
    env.reset(seed=seed)
    rows: list[dict[str, float]] = []
    texts: list[str] = []
    bars = []
    while not env.ended:
        seen = env.observe()
        if seen.bar + 1 >= len(window.market):
            break
        bars.append(seen.bar)
        rows.append(dict(_figures({**vars(seen), **env.numbers()})))
        if pipeline.prompt is not None:
            texts.append(str(pipeline.prompt(seen)))
        env.step(hold)
    names = [name for name in rows[0] if all(name in row for row in rows)]
    series = {("feature", name): np.array([row[name] for row in rows]) for name in names}
    return series, texts or None, np.array(bars)


def _figures(seen: Mapping[str, Any]) -> Sequence[tuple[str, float]]:
    """Every number of an observation, by a name: of a sequence from its end, as it may grow."""
    found = []
    for name, value in seen.items():
        if name in NOT_FEATURES or isinstance(value, str):
            continue
        array = np.asarray(value) if not isinstance(value, tuple) else np.asarray(value, object)
        if array.dtype.kind not in "fiub":
            continue
        flat = array.astype(np.float64).ravel()
        found += [(f"{name}[{k}]" if array.ndim else name, flat[k]) for k in range(-len(flat), 0)]
    return found


def _numbers_of(texts: Sequence[str] | None) -> dict[tuple[str, str], np.ndarray]:
    """The numbers of the prompts by their place from the end, as far as all have as many."""
    if texts is None:
        return {}
    rows = [[float(each) for each in NUMBER.findall(text)] for text in texts]
    count = min(map(len, rows))
    return {
        ("prompt", f"(number {place} from its end)"): np.array([row[-place] for row in rows])
        for place in range(1, count + 1)
    }


def _words(
    texts: Sequence[str] | None, moves: Mapping[str, np.ndarray], dates: np.ndarray
) -> list[Leak]:
    if texts is None:
        return []
    sets = [set(WORD.findall(text.lower())) for text in texts]
    found = []
    for word in sorted(set().union(*sets)):
        there = np.array([word in words for words in sets])
        if not 0.1 <= there.mean() <= 0.9:
            continue
        for which, move in moves.items():
            if (days := _agrees(there * 2.0 - 1, move)) is not None:
                found.append(_suspected("prompt", f"(the word {word!r})", which, days, dates))
                break
    return found


def _agrees(series: np.ndarray, move: np.ndarray) -> np.ndarray | None:
    """(n,) on which days a figure says a move, where it does so on too many; else None."""
    if not np.isfinite(series).all() or np.ptp(series) == 0:
        return None
    # above or below nothing, or where the figure is halved: a count, or one of two values
    for cut in (0.0, float(np.median(series)), (series.min() + series.max()) / 2):
        above, told = series > cut, (series != cut) & (move != 0)
        # what is nearly always on one side is right as often as the market rises
        if told.sum() < FEWEST_DAYS or not 0.1 <= above[told].mean() <= 0.9:
            continue
        right = told & (above == (move > 0))
        for days in (right, told & ~right):
            if days.sum() >= AGREEMENT * told.sum():
                return days
    r = stats.spearmanr(series, move).statistic
    return np.ones(len(series), dtype=bool) if abs(r) >= CORRELATION else None


def _half_digit(series: np.ndarray) -> float:
    """Half a unit of the last digit in which a series is shown."""
    for digits in range(7):
        if np.allclose(series, np.round(series, digits), rtol=0, atol=1e-9):
            return 0.5 * 10.0**-digits + 1e-9
    return 1e-6


def _suspected(stage: str, what: str, says: str, days: np.ndarray, dates: np.ndarray) -> Leak:
    first = str(dates[np.flatnonzero(days)[0]])
    return Leak(stage, what, says, int(days.sum()), len(dates), first, proved=False)
