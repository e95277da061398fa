"""What no path of positions can exceed: bounds by Lagrangian duality.

Each bound holds whatever multipliers it is computed with, as it is a maximum that each day takes by
itself; linear programs only find good multipliers, so their tolerances cannot make a bound wrong.
The paths relax to shares w of a day's positions, w >= 0 and sum w = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array, csr_array, hstack, vstack

from flagtrl.evidence.paths import Days, Interval

# What a program asks of drawdowns.
ANY, CAPPED, LEAST = "any", "capped", "least"
MOST_ROUNDS = 150  # of one more linear program each
TIGHT = 1e-7  # percent, between a bound and the program's own value
# Of all terms of a bound, in size: what float64 may lose of their sum, some 500 additions long.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Target:
    """What a path must have.

    Attributes:
        gain: CR, percent.
        square: sum of squared daily log returns, percent squared: from AV at that CR.
        depth: -100 log(1 - MDD / 100).
    """

    gain: Interval
    square: Interval
    depth: Interval


class Bound(NamedTuple):
    """A value that no path exceeds, rounding included, and what each position of a day falls short
    of it, (N, K) at least 0: a path's own value is at most `value` minus the sum of its gaps.
    """

    value: float
    gaps: np.ndarray


def _size(*terms: np.ndarray) -> float:
    """By how much rounding may move a sum that takes one of each day's terms (N, K)."""
    return ROUNDING * (1 + float(sum(np.abs(each).max(-1).sum() for each in terms)))


def most_gain(days: Days, sign: int = 1) -> Bound:
    """The highest CR of any path; with sign -1 minus the lowest."""
    worth = sign * days.gain
    best = days.best(worth)
    return Bound(float(best.sum()) + _size(worth), best[:, None] - worth)


def most_square(days: Days, gain: Interval, sign: int = 1) -> Bound:
    """The largest sum of squares at a CR within `gain`; with sign -1 minus the smallest.

    It is min over lambda of sum_t max_k(sign q - lambda s) + max(lambda low, lambda high), a convex
    function that is linear between the multipliers at which a day changes its position, all within
    the largest return: bisection by its slope finds the least.
    """
    worth, rows = sign * days.square, np.arange(len(days))
    low, high = (-2 * np.abs(days.gain).max() - 1, 2 * np.abs(days.gain).max() + 1)

    def at(multiplier: float) -> tuple[float, float, np.ndarray]:
        each = np.where(days.allowed, worth - multiplier * days.gain, -np.inf)
        chosen = each.argmax(-1)
        end = gain.high if multiplier >= 0 else gain.low
        slope = end - days.gain[rows, chosen].sum()
        return float(each.max(-1).sum() + multiplier * end), float(slope), each

    for _ in range(70):
        middle = (low + high) / 2
        low, high = (low, middle) if at(middle)[1] > 0 else (middle, high)
    ends = [(at(end), end) for end in (low, high, 0.0)]
    (value, _, each), multiplier = min(ends, key=lambda found: found[0][0])
    # the multiplier of CR is in each day's term and in the end's, which is no larger than their sum
    value += 2 * _size(worth, multiplier * days.gain)
    return Bound(value, each.max(-1)[:, None] - each)


def least_depth(program: Program) -> Bound | None:
    """Minus the smallest largest drawdown, in logs, of any path within a program's CR and sum of
    squares; None where the program finds no multipliers.

    With y >= 0 of sum max(0, y_t - y_{t+1}) = 1, which is a mean of drawdowns over intervals, it is
    at least -(sum_t max_k(y growth - l s - m q) + max(l CR) + max(m Q)).
    """
    found = program.solved(np.zeros(program.shape), LEAST)
    if found is None:
        return None
    days, target = program.days, program.target
    falls = np.maximum(found.of_walk - np.append(found.of_walk[1:], 0.0), 0.0).sum()
    y, of_gain, of_square = (
        each / max(falls, 1e-300) for each in (found.of_walk, found.of_gain, found.of_square)
    )
    if not falls > 1e-9:  # nothing bounds it but 0
        return Bound(0.0, np.zeros(program.shape))
    each = y[:, None] * days.growth - of_gain * days.gain - of_square * days.square
    best = days.best(each)
    value = best.sum() + max(of_gain * end for end in target.gain)
    value += max(of_square * end for end in target.square)
    value += 2 * _size(y[:, None] * days.growth, of_gain * days.gain, of_square * days.square)
    return Bound(float(value), best[:, None] - each)


class Program:
    """The linear program of all shares with a CR and a sum of squares within a target, in columns
    of shares (N * K), drawdowns (N), and their level.

    The drawdown x_t (in logs) of a path obeys x_t >= x_{t-1} - growth_t and x_t >= 0, so that a
    largest one is a bound on every x_t, and x is linear in the shares.
    """

    def __init__(self, days: Days, target: Target):
        self.days, self.target = days, target
        n, k = days.gain.shape
        self.shape = n, k
        eye, none = coo_array(np.eye(n)), coo_array((n, 1))
        places = np.arange(n * k), np.arange(0, n * k + 1, k)
        growth, ones = (csr_array((x, *places)) for x in (days.growth.ravel(), np.ones(n * k)))
        # x_{t-1} - x_t - growth_t <= 0, and x_t - level <= 0
        walk = hstack([-growth, coo_array(np.eye(n, k=-1)) - eye, none])
        below = hstack([coo_array((n, n * k)), eye, -coo_array(np.ones((n, 1)))])
        signed = [self._row(sign * x) for x in (days.gain, days.square) for sign in (1, -1)]
        self.rows = {
            ANY: csr_array(vstack(signed)),
            CAPPED: csr_array(vstack([*signed, walk])),
            LEAST: csr_array(vstack([*signed, below, walk])),
        }
        gain, square = target.gain, target.square
        self.sides = np.array([gain.high, -gain.low, square.high, -square.low])
        self.whole = csr_array(hstack([ones, coo_array((n, n + 1))]))

    def solved(
        self,
        cost: np.ndarray,
        drawdowns: str = ANY,
        extra: tuple[np.ndarray, float] | None = None,
        only: np.ndarray | None = None,
    ) -> Solution | None:
        """Shares of the least cost (N, K); None where no shares are as they must be.

        Args:
            cost: of the shares.
            drawdowns: ANY; CAPPED, by the target's largest; LEAST: the largest adds to the cost.
            extra: worths (N, K) of the shares, and what they must not exceed.
            only: (N, K) positions that may be taken; default: all.
        """
        (n, k), rows = self.shape, self.rows[drawdowns]
        sides = np.append(self.sides, np.zeros(rows.shape[0] - len(self.sides)))
        if extra is not None:
            rows = csr_array(vstack([self._row(extra[0]), rows]))
            sides = np.append(extra[1], sides)
        allowed = self.days.allowed if only is None else self.days.allowed & only
        most = {ANY: 0.0, CAPPED: self.target.depth.high, LEAST: np.inf}[drawdowns]
        tops = np.append(allowed.ravel().astype(float), np.full(n + 1, most))
        done = linprog(
            np.concatenate([cost.ravel(), np.zeros(n), [float(drawdowns == LEAST)]]),
            A_ub=rows, b_ub=sides, A_eq=self.whole, b_eq=np.ones(n),
            bounds=np.stack([np.zeros(len(tops)), tops], axis=1), method="highs-ds",
        )  # fmt: skip
        if done.status != 0:
            return None
        dual = -np.minimum(done.ineqlin.marginals, 0.0)[extra is not None :]
        of_walk = np.zeros(n) if drawdowns == ANY else dual[-n:]
        shares = done.x[: n * k].reshape(n, k)
        return Solution(float(done.fun), shares, dual[0] - dual[1], dual[2] - dual[3], of_walk)

    def _row(self, worth: np.ndarray) -> csr_array:
        return csr_array(np.append(worth.ravel(), np.zeros(len(self.days) + 1))[None])


class Solution(NamedTuple):
    """Of a linear program: its value, the shares (N, K), and the multipliers of CR, of the sum of
    squares, and of each day's drawdown (N,).
    """

    value: float
    shares: np.ndarray
    of_gain: float
    of_square: float
    of_walk: np.ndarray


class Depths:
    """Bounds on the drawdown from price i to price j, for all i < j at once.

    With multipliers (l, m, y >= 0) the drawdown -sum growth of the days from i to j is at most the
    sum of max_k(-growth - l s - m q + y growth) over its days, and of max_k(-l s - m q + y growth)
    over the others, plus max(l CR) + max(m Q) over the target, plus the target's largest drawdown
    times sum max(0, y_t - y_{t+1}). Each set of multipliers bounds every interval; of all the
    least bound counts.
    """

    def __init__(self, program: Program):
        self.program = program
        n = program.shape[0]
        start, end = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
        self.bounds = np.where(start < end, np.inf, -np.inf)
        self.add(0.0, 0.0, np.zeros(n))

    def add(self, of_gain: float, of_square: float, of_walk: np.ndarray) -> None:
        """Let these multipliers bound too."""
        days, target = self.program.days, self.program.target
        outside = -of_gain * days.gain - of_square * days.square + of_walk[:, None] * days.growth
        inside = outside - days.growth
        out, into = days.best(outside), days.best(inside)
        falls = np.maximum(of_walk - np.append(of_walk[1:], 0.0), 0.0).sum()
        fixed = (
            max(of_gain * end for end in target.gain)
            + max(of_square * end for end in target.square)
            + falls * target.depth.high
            + out.sum()
        )
        fixed += ROUNDING * falls * target.depth.high + 2 * _size(
            of_gain * days.gain, of_square * days.square, (1 + of_walk[:, None]) * days.growth
        )
        sums = np.concatenate([[0.0], np.cumsum(into - out)])
        self.bounds = np.minimum(self.bounds, fixed + sums[None] - sums[:, None])

    def tighten(self, i: int, j: int, drawdowns: str = ANY) -> float:
        """Bound the drawdown from i to j, and others with it, by the multipliers of a program; what
        the program itself attains, or NaN where it has no shares.
        """
        cost = np.zeros(self.program.shape)
        cost[i:j] = self.program.days.growth[i:j]  # minus the drawdown
        found = self.program.solved(cost, drawdowns)
        if found is None:
            return np.nan
        self.add(found.of_gain, found.of_square, found.of_walk)
        return -found.value

    def most(self, enough: float = np.inf, rounds: int = MOST_ROUNDS) -> float:
        """The largest drawdown of any path, in logs: refined until a program attains it, or shows
        one of `enough`.
        """
        for _ in range(rounds):
            i, j = map(int, np.unravel_index(self.bounds.argmax(), self.bounds.shape))
            top = float(self.bounds[i, j])
            if not self.tighten(i, j) < min(top - TIGHT, enough):
                break
        return float(self.bounds.max())
