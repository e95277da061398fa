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

MOST_ROUNDS = 150  # of one more linear program each
TIGHT = 1e-7  # percent, between a bound and the program's own value


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
    """A value that no path exceeds, and what each position of a day falls short of it, (N, K) at
    least 0: a path's own value is at most `value` minus the sum of its gaps.
    """

    value: float
    gaps: np.ndarray


def most_gain(days: Days) -> Bound:
    """The highest CR of any path."""
    best = days.best(days.gain)
    return Bound(float(best.sum()), best[:, None] - days.gain)


def least_gain(days: Days) -> Bound:
    """Minus the lowest CR of any path."""
    best = days.best(-days.gain)
    return Bound(float(best.sum()), best[:, None] + days.gain)


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
    value, _, each = min((at(end) for end in (low, high, 0.0)), key=lambda found: found[0])
    return Bound(value, each.max(-1)[:, None] - each)


class Program:
    """The linear program of all shares with a CR and a sum of squares within a target, in columns
    of shares (N * K), then drawdowns (N).

    The drawdown x_t (in logs) of a path obeys x_t >= x_{t-1} - growth_t and x_t >= 0, so that a
    largest one is a bound on every x_t, and x is linear in the shares.
    """

    def __init__(self, days: Days, target: Target):
        self.days, self.target = days, target
        n, k = days.gain.shape
        self.shape = n, k
        eye = coo_array(np.eye(n))
        back = coo_array(np.eye(n, k=-1))
        spread = csr_array((days.growth.ravel(), np.arange(n * k), np.arange(0, n * k + 1, k)))
        # x_{t-1} - x_t - growth_t <= 0
        self.walk = csr_array(hstack([-spread, back - eye]))
        ones = csr_array((np.ones(n * k), np.arange(n * k), np.arange(0, n * k + 1, k)))
        self.whole = csr_array(hstack([ones, coo_array((n, n))]))
        self.high = np.where(days.allowed, 1.0, 0.0).ravel()

    def row(self, worth: np.ndarray) -> csr_array:
        """(1, columns) of (N, K) worths of the shares."""
        flat = np.concatenate([worth.ravel(), np.zeros(len(self.days))])
        return csr_array(flat[None])

    def solved(
        self, cost: np.ndarray, capped: bool, extra: csr_array | None = None, limit: float = 0.0
    ) -> Solution | None:
        """Shares of the least cost (N, K); None where no shares are as they must be.

        Args:
            cost: of the shares.
            capped: whether drawdowns must stay within the target's.
            extra: one more row, which must be at most `limit`.
            limit: of it.
        """
        n, k = self.shape
        t = self.target
        signed = [self.row(days) for days in (self.days.gain, self.days.square)]
        rows = [signed[0], -signed[0], signed[1], -signed[1]]
        sides = [t.gain.high, -t.gain.low, t.square.high, -t.square.low]
        if extra is not None:
            rows, sides = [*rows, extra], [*sides, limit]
        if capped:
            rows, sides = [*rows, self.walk], [*sides, *np.zeros(n)]
        tops = np.concatenate([self.high, np.full(n, t.depth.high if capped else 0.0)])
        bounds = np.stack([np.zeros(n * k + n), tops], axis=1)
        done = linprog(
            np.concatenate([cost.ravel(), np.zeros(n)]),
            A_ub=vstack(rows, format="csr"), b_ub=np.array(sides),
            A_eq=self.whole, b_eq=np.ones(n), bounds=bounds, method="highs-ds",
        )  # fmt: skip
        if done.status != 0:
            return None
        dual = -np.minimum(done.ineqlin.marginals, 0.0)
        return Solution(
            float(done.fun), done.x[: n * k].reshape(n, k), dual[0] - dual[1], dual[2] - dual[3],
            dual[-n:] if capped else np.zeros(n),
        )  # fmt: skip


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
    times sum max(0, y_t - y_{t+1}). Each set of multipliers bounds every interval; the least counts.
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
        outside = (
            -of_gain * days.gain - of_square * days.square + of_walk[:, None] * days.growth
        )
        inside = outside - days.growth
        out, into = days.best(outside), days.best(inside)
        falls = np.maximum(of_walk - np.append(of_walk[1:], 0.0), 0.0).sum()
        fixed = (
            max(of_gain * end for end in target.gain)
            + max(of_square * end for end in target.square)
            + falls * target.depth.high
            + out.sum()
        )
        sums = np.concatenate([[0.0], np.cumsum(into - out)])
        self.bounds = np.minimum(self.bounds, fixed + sums[None] - sums[:, None])

    def worst(self) -> tuple[int, int]:
        """The interval that may still hold the largest drawdown."""
        i, j = np.unravel_index(self.bounds.argmax(), self.bounds.shape)
        return int(i), int(j)

    def most(self, capped: bool, enough: float = np.inf, rounds: int = MOST_ROUNDS) -> float:
        """The largest drawdown of any path, in logs: refined until a linear program attains it, or
        shows one of `enough`.
        """
        n, k = self.program.shape
        for _ in range(rounds):
            i, j = self.worst()
            top = float(self.bounds[i, j])
            cost = np.zeros((n, k))
            cost[i:j] = self.program.days.growth[i:j]  # minus the drawdown
            found = self.program.solved(cost, capped)
            if found is None:
                break
            self.add(found.of_gain, found.of_square, found.of_walk)
            if -found.value >= min(top - TIGHT, enough):
                break
        return float(self.bounds.max())
