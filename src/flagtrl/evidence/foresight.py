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

from flagtrl.evidence.leaks import Build, Leak
from flagtrl.evidence.telling import (
    FEWEST_DAYS,
    agrees,
    bounds,
    copied,
    foretells,
    spans,
    stands_right,
)
from flagtrl.market.data import Window, count_sentiments
from flagtrl.market.ledger import Action

SHOWN = 0.9  # of the days on which the price moves
# Of what a step's own return and position leave of a reward, the share that a move explains, and
# how surely: on prices that have nothing to do with it, and on its own, which may foretell it.
ELSEWHERE, AT_HOME, T_VALUE = 0.2, 0.5, 6.0
LEFT = 0.01  # of a reward's variance, below which there is nothing to explain
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?!\w)")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
HORIZONS = (1, 2, 3, 5, 10)  # bars
ONE_BAR = {k: f"the move {k} bars ahead" for k in HORIZONS}
ONE_BAR |= {1: "the next move", 2: "the move after the next"}
OF_ITS_SPAN = "the move until it changes"
BOUNDS, COMING = "a bound of the next bar's price", "the price of a coming bar"
WORD = re.compile(r"[A-Za-z]{2,}")
NOT_FEATURES = ("date", "symbol", "bar", "legal")


def foretelling(build: Build, window: Window, seed: int = 0) -> list[Leak]:
    """Figures and words that say a later price, or a move to come.

    What is seen and read is collected without any position, bar by bar. Suspected are:

    - a price of the next bar in a prompt, to the digits in which it is shown, on 90% of the days on
      which the price moves;
    - a price of one of the next 10 bars, to its digits, that was none of the last 20's, on half of
      the days, as a note of the week that is not over yet;
    - a figure whose rank correlation with the move of one bar, 1, 2, 3, 5 or 10 bars ahead is above
      .9, or whose own moves have it, as those of a later price do;
    - a figure's size, or a word's presence, that is such a move's direction on 97% of days;
    - a figure whose rank correlation with the return over as many bars to come is above .97: they
      overlap, and so take more;
    - a figure that stays the same for some days, two at least on average, whose rank correlation
      with the move over just these days is above .97, as a weekly candle's before its Friday;
    - a figure that the next price stays above or below on 99% of days and today's on 87% at most,
      as the next session's low or high.

    Of the labels of a bar's news those bars count that have news.

    Args:
        build: a window's environment and prompt.
        window: what is traded; fewer than 32 bars are not judged.
        seed: of the environment.
    """
    if not judged(window):
        return []
    numbers, texts, bars = _shown(build, window, seed)
    prices, dates = window.market.prices, window.market.dates[bars]
    moves, found = _to_come(prices, bars), _prices_in(texts, prices, bars, dates)
    if texts and not found and (days := copied(list(map(_read, texts)), prices, bars)) is not None:
        found = [_suspected("prompt", "", COMING, days, dates)]
    last = np.diff(np.log(prices), prepend=np.nan)[bars]
    # what the last move foretells by itself, in a market that regular, anybody may know
    moves = {name: move for name, move in moves.items() if agrees(last, move) is None}
    now, figures = prices[bars], {**numbers, **_numbers_of(texts)}
    for (stage, name), series in figures.items():
        for which, move in moves.items():
            days = foretells(series, now, move, which in ONE_BAR.values())
            if days is not None:
                found.append(_suspected(stage, name, which, days, dates))
                break
        else:
            days = spans(series, np.log(prices), bars)
            if days is not None:
                found.append(_suspected(stage, name, OF_ITS_SPAN, days, dates))
    for stage in ("feature", "prompt"):
        known = [leak.what for leak in found if leak.stage == stage]
        told = {n: series for (of, n), series in figures.items() if of == stage and n not in known}
        if (held := bounds(told, now, prices[bars + 1])) is not None:
            found.append(_suspected(stage, held[0], BOUNDS, held[1], dates))
    one_bar = {name: moves[name] for name in ONE_BAR.values() if name in moves}
    return found + _words(texts, one_bar, dates)


def judged(window: Window) -> bool:
    """Whether a window is long enough, and its price moves enough, to say whether anything
    foretells it.
    """
    moves = np.count_nonzero(np.diff(window.prices))
    return bool(len(window) - 2 >= FEWEST_DAYS and moves >= FEWEST_DAYS)


def _to_come(prices: np.ndarray, bars: np.ndarray) -> dict[str, np.ndarray]:
    """By name, the moves after each bar; NaN beyond the data."""
    logs = np.append(np.log(prices), np.full(max(HORIZONS), np.nan))
    found = {ONE_BAR[k]: logs[bars + k] - logs[bars + k - 1] for k in HORIZONS}
    return found | {f"the next {k} bars": logs[bars + k] - logs[bars] for k in HORIZONS[1:]}


def _prices_in(
    texts: Sequence[str] | None, prices: np.ndarray, bars: np.ndarray, dates: np.ndarray
) -> list[Leak]:
    """The next bar's price, wherever in a prompt it stands, more often than that of another day."""
    if texts is None:
        return []
    now, future = prices[bars], prices[bars + 1]
    shown = [_read(text) for text in texts]

    def there(wanted: np.ndarray) -> np.ndarray:
        return np.array(
            [
                any(abs(value - price) <= near < abs(price - today) for value, near in each)
                for each, price, today in zip(shown, wanted, now, strict=True)
            ]
        )

    days, moved = there(future), future != now
    by_chance = there(np.roll(future, len(future) // 2)).mean()
    if by_chance > 0.5 or days.sum() < max(SHOWN * moved.sum(), FEWEST_DAYS):
        return []
    return [_suspected("prompt", "", "the next bar's price", days, dates)]


def _read(text: str) -> list[tuple[float, float]]:
    """Every number of a text, with half a unit of its last digit."""
    found = NUMBER.findall(THOUSANDS.sub("", text))
    return [(float(each), 0.5 * 10.0 ** -len(each.partition(".")[2]) + 1e-9) for each in found]


def paid_for_the_future(build: Build, window: Window, seed: int = 0) -> list[Leak]:
    """Rewards that follow the window's moves to come, on the window and on a market of the same
    days whose prices have nothing to do with it.

    Suspected is a reward of which, besides what the step's own return and position explain, a move
    of one bar explains a fifth, or one of several bars half, on the other market, where an honest
    reward cannot know it at all; or a move of one bar half on its own.

    Args:
        build: a window's environment.
        window: what is traded.
        seed: of the other market and the orders.
    """
    if not judged(window):
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
            _, paid, *_ = env.step(int(rng.choice(np.flatnonzero(env.legal))))
            after = env.observe()
            rewards.append(paid)
            bars.append(after.bar)
            returns.append(after.value / worth - 1)
            sides.append(1.0 if after.shares > 0 else -1.0)
        for which, move in _to_come(market.prices, np.array(bars)).items():
            of_one_bar = which in ONE_BAR.values()
            if traded is window and not of_one_bar:
                continue  # they overlap, and those that were paid may foretell them
            rows = ~np.isnan(move)
            reward, own, side = (np.array(each)[rows] for each in (rewards, returns, sides))
            if rows.sum() >= FEWEST_DAYS and _follows(
                *(reward, own, side, move[rows]), share if of_one_bar else AT_HOME
            ):
                days = np.ones(int(rows.sum()), dtype=bool)
                return [_suspected("reward", "", which, days, market.dates[np.array(bars)[rows]])]
    return []


def _follows(
    reward: np.ndarray, own: np.ndarray, side: np.ndarray, move: np.ndarray, share: float
) -> bool:
    """Whether a move, or its direction, alone or times the step's own return or position, explains
    a share of what those leave of the reward.
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
    """Figures by stage and name, texts, and bars, of every day but the last."""
    pipeline = build(window)
    env = pipeline.env
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
        positive, _, negative = count_sentiments(seen.news[-1])
        rows[-1]["news"] = positive - negative if seen.news[-1] else np.nan
        if pipeline.prompt is not None:
            texts.append(str(pipeline.prompt(seen)))
        env.step(Action.HOLD)
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
    """The numbers of the prompts by their place from either end, as far as all have as many."""
    if texts is None:
        return {}
    rows = [[value for value, _ in _read(text)] for text in texts]
    count = min(map(len, rows))
    found = {}
    for place in range(1, count + 1):
        found["prompt", f"(number {place})"] = np.array([row[place - 1] for row in rows])
        found["prompt", f"(number {place} from its end)"] = np.array([row[-place] for row in rows])
    return found


def _words(
    texts: Sequence[str] | None, moves: Mapping[str, np.ndarray], dates: np.ndarray
) -> list[Leak]:
    if texts is None:
        return []
    sets = [set(WORD.findall(text.lower())) for text in texts]
    found = []
    for word in sorted(set().union(*sets)):
        there = np.array([word in words for words in sets])
        for which, move in moves.items():
            if (days := stands_right(there, move)) is not None:
                found.append(_suspected("prompt", f"(the word {word!r})", which, days, dates))
                break
    return found


def _suspected(stage: str, what: str, says: str, days: np.ndarray, dates: np.ndarray) -> Leak:
    first = str(dates[np.flatnonzero(days)[0]])
    return Leak(stage, what, says, int(days.sum()), len(dates), first, proved=False)
