"""Answers on rows of tables: held against every path there is, where paths are few."""

from collections import Counter
from functools import cache
from itertools import product

import numpy as np
import pytest

from flagtrl.evidence import attainable as module
from flagtrl.evidence.attainable import (
    Question,
    Span,
    attainable,
    conventions,
)
from flagtrl.evidence.paths import Figure, Printed

PRICES = 12
MOVES = np.array([*product((-1, 0, 1), repeat=PRICES - 1)])  # (177147, 11)


def printed(cr, sr, av, mdd, digits=3) -> Printed:
    return Printed(*(Figure.of(f"{value:.{digits}f}") for value in (cr, sr, av, mdd)))


@cache
def every_path(seed: int, kind: str, periods: int):
    """(B, 4) CR, SR times n, AV and MDD of all paths of a market, written anew."""
    prices = market(seed)
    moves = MOVES if kind == "long_short" else MOVES[(MOVES >= 0).all(1)]
    r = np.log(prices[1:] / prices[:-1]) * moves
    cr = r.sum(1) * 100
    deviation = np.sqrt(((r - r.mean(1, keepdims=True)) ** 2).sum(1) / (PRICES - 2))
    av = deviation * 100 * periods**0.5
    wealth = np.cumprod(np.c_[np.ones(len(r)), 1 + r], axis=1)
    mdd = 100 * max_fall(wealth)
    with np.errstate(divide="ignore", invalid="ignore"):
        return moves, np.stack([cr, cr * 252 / av, av, mdd], axis=1)


def max_fall(wealth: np.ndarray) -> np.ndarray:
    peak, worst = wealth[:, 0].copy(), np.zeros(len(wealth))
    for column in wealth.T:
        peak = np.maximum(peak, column)
        worst = np.maximum(worst, 1 - column / peak)
    return worst


def truth(seed: int, row: Printed, kind: str, periods: int) -> bool:
    _, made = every_path(seed, kind, periods)
    for count in (PRICES, PRICES - 1):
        figures = made / np.array([1, count, 1, 1])
        near = [abs(figures[:, i] - each.value) <= each.half for i, each in enumerate(row)]
        if np.logical_and.reduce(near).any():
            return True
    return False


def market(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 100 * np.exp(np.cumsum(np.r_[0.0, rng.normal(0.001, 0.03, PRICES - 1)]))


def rows(seed: int, kind: str, periods: int, digits: int, paths: int):
    """Rows of a path: as it is, and with one figure moved a little, or much."""
    rng = np.random.default_rng(seed)
    moves, made = every_path(seed, kind, periods)
    rich = np.flatnonzero(np.abs(moves).sum(1) > 4)
    for number in range(paths):
        cr, sr, av, mdd = made[rng.choice(rich)] / (1, PRICES - number % 2, 1, 1)
        figures = np.array([cr, sr, av, mdd])
        yield printed(*figures, digits=digits)
        which = rng.integers(4)
        for size in (10.0**-digits, 0.03, 0.3, 2.0):
            moved = figures.copy()
            moved[which] += size * rng.choice([-1, 1])
            if which != 1 and moved[2] > 0:  # SR follows CR and AV
                moved[1] = moved[0] * 252 / moved[2] / PRICES
            if moved[2] > 0 and moved[3] >= 0:
                yield printed(*moved, digits=digits)


@pytest.mark.parametrize(
    ("kind", "periods", "enumerates"),
    [
        *(
            pytest.param(*convention, True, marks=() if convention[1] == 252 else pytest.mark.slow)
            for convention in conventions()
        ),
        *(("long_flat", 252, False), ("long_short", 365, False)),
    ],
)
def test_no_answer_on_a_few_days_is_wrong(kind, periods, enumerates, monkeypatch):
    """With every path that is left looked at, all is decided; without it, bounds and search alone
    may leave something open, and are never wrong.
    """
    if not enumerates:
        monkeypatch.setattr(module, "_enumerated", lambda case, shallow: None)
        monkeypatch.setattr(module, "TRIES", 2)
    known = Counter()
    for seed, digits in ((1, 3), (2, 2), (3, 1)):
        span = Span(market(seed), "2020-01-01", "2020-01-16")
        for row in rows(seed, kind, periods, digits, 4 if enumerates else 2):
            answer = attainable(Question(row, kind, periods), [span])
            known[answer.verdict, truth(seed, row, kind, periods)] += 1
    assert known["yes", False] == known["no", True] == 0
    assert known["yes", True] >= 6 - 4 * (not enumerates) and known["no", False] >= 3
    undecided = known["unknown", True] + known["unknown", False]
    assert undecided == 0 or not enumerates
