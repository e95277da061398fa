"""Witnesses: paths of positions that make a printed row, by linear programs and small changes.

A program with a random aim gives shares of positions that keep CR, the sum of squares and the
drawdown, nearly all of them whole. Rounded, they miss by little, and a few days' changes, found by
sorting, put it right: first within the drawdown, then, after another program, outside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import chain, combinations
from typing import NamedTuple

import numpy as np

from flagtrl.evidence.paths import Days, Interval
from flagtrl.evidence.relaxation import CAPPED, Depths, Program, Target

AT_ONCE = 400_000  # pairs of changes, for memory
TRIPLES = 90  # single changes of which all triples are made: 117,480
MOST_DAYS = 220
DEEPENED = 4  # ways to put a drawdown right that are tried of a start
LOOKED_AT = 80  # of those that move CR and the sum of squares least


class Changes(NamedTuple):
    """Sets of at most three days' changes of a path: days (M, 3), -1 for none; positions (M, 3);
    and what they add to CR, the sum of squares and the log of the value, (M,) each.
    """

    days: np.ndarray
    positions: np.ndarray
    gain: np.ndarray
    square: np.ndarray
    growth: np.ndarray


def changes(days: Days, path: np.ndarray, where: np.ndarray, largest: int) -> Changes:
    """Every set of at most `largest` changes of a path (N,) on the days `where`; of triples only
    where single changes are at most TRIPLES, and of more days than MOST_DAYS on so many of them.
    """
    if len(where) > MOST_DAYS:
        where = where[np.linspace(0, len(where) - 1, MOST_DAYS).astype(np.int64)]
    k = len(days.positions)
    rows, new = np.repeat(where, k), np.tile(np.arange(k), len(where))
    free = days.allowed[rows, new] & (new != path[rows])
    rows, new = rows[free], new[free]
    sets = [np.full((1, 3), -1)]
    for size in range(1, largest + 1):
        if size == 3 and len(rows) > TRIPLES:
            break
        some = _sets(len(rows), size)
        apart = (rows[some][:, 1:] != rows[some][:, :-1]).all(-1)  # rows ascend
        sets.append(np.pad(some[apart], ((0, 0), (0, 3 - size)), constant_values=-1))
    chosen = np.concatenate(sets)
    added = [
        np.append(each[rows, new] - each[rows, path[rows]], 0.0)[chosen].sum(-1)
        for each in (days.gain, days.square, days.growth)
    ]
    return Changes(np.append(rows, -1)[chosen], np.append(new, 0)[chosen], *added)


@lru_cache(maxsize=64)
def _sets(count: int, size: int) -> np.ndarray:
    """(M, size) ascending indices below `count`."""
    flat = np.fromiter(chain.from_iterable(combinations(range(count), size)), dtype=np.int64)
    return flat.reshape(-1, size)


def put_together(
    one: np.ndarray, other: np.ndarray, within: Interval
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices of `one` (M,) and `other` (L,) whose sums lie within an interval, some at a time."""
    order = np.argsort(other, kind="stable")
    ordered = other[order]
    start = np.searchsorted(ordered, within.low - one, side="left")
    count = np.searchsorted(ordered, within.high - one, side="right") - start
    total = np.cumsum(count)
    low = 0
    while low < len(one):
        begun = total[low - 1] if low else 0
        high = max(low + 1, int(np.searchsorted(total, begun + AT_ONCE, side="right")))
        number = count[low:high]
        a = np.repeat(np.arange(low, high), number)
        nth = np.arange(len(a)) - np.repeat(np.cumsum(number) - number, number)
        yield a, order[start[a] + nth]
        low = high


def changed(path: np.ndarray, *sets: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """(B, N) paths with sets of changes: days (B, 3) and positions (B, 3)."""
    many = len(sets[0][0])
    paths = np.repeat(np.append(path, 0)[None], many, axis=0)  # the last for -1
    for days, positions in sets:
        for column in range(days.shape[1]):
            paths[np.arange(many), days[:, column]] = positions[:, column]
    return paths[:, :-1]


def nearby(days: Days, target: Target, path: np.ndarray, where: np.ndarray) -> np.ndarray:
    """(B, N) paths within five changes on the days `where` whose figures are a target's."""
    few, more = (changes(days, path, where, most) for most in (2, 3))
    gain, square, _ = (float(each[0]) for each in days.figures(path[None]))
    wanted = Interval(target.gain.low - gain, target.gain.high - gain)
    found = []
    for a, b in put_together(few.gain, more.gain, wanted):
        total = square + few.square[a] + more.square[b]
        good = (total >= target.square.low) & (total <= target.square.high)
        a, b = a[good], b[good]
        found.append(
            changed(path, (few.days[a], few.positions[a]), (more.days[b], more.positions[b]))
        )
    paths = np.concatenate(found)
    return paths[fits(days, target, paths)]


def fits(days: Days, target: Target, paths: np.ndarray) -> np.ndarray:
    """(B,) whether the figures of paths (B, N) are a target's."""
    figures = days.figures(paths)
    ends = (target.gain, target.square, target.depth)
    good = [(each >= end.low) & (each <= end.high) for each, end in zip(figures, ends, strict=True)]
    return np.logical_and.reduce(good)


def deepened(days: Days, target: Target, path: np.ndarray, i: int, j: int) -> np.ndarray:
    """(B, N) paths whose drawdown from i to j is the target's, by up to five changes within it:
    those that change CR least.
    """
    where = np.arange(i, j)
    few, more = (changes(days, path, where, most) for most in (2, 3))
    growth = float(days.growth[where, path[where]].sum())
    wanted = Interval(-target.depth.high - growth, -target.depth.low - growth)
    a, b = (
        np.concatenate(each)
        for each in zip(*put_together(few.growth, more.growth, wanted), strict=True)
    )
    moved = [
        np.abs(one[a] + other[b]) / every.std()
        for one, other, every in (
            (few.gain, more.gain, days.gain),
            (few.square, more.square, days.square),
        )
    ]
    least = np.argsort(moved[0] + moved[1], kind="stable")[:LOOKED_AT]
    a, b = a[least], b[least]
    paths = changed(path, (few.days[a], few.positions[a]), (more.days[b], more.positions[b]))
    # i and j are the peak and the trough between them
    grown = np.cumsum(days.growth[where, paths[:, where]], axis=-1)
    natural = (grown.max(-1) <= 1e-9) & (grown.min(-1) >= grown[:, -1] - 1e-9)
    return paths[natural][:DEEPENED]


def search(
    program: Program, depths: Depths, tries: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Paths (B, N) whose figures are a program's target, from so many starts. Where an interval of
    prices cannot hold its drawdown, `depths` comes to bound it, and all that are like it: once it
    bounds all of them below the target, there is no path, and the search ends.
    """
    days, target, shape = program.days, program.target, program.shape
    untried = np.ones(depths.bounds.shape, dtype=bool)
    for _ in range(tries):
        left = np.argwhere(untried & (depths.bounds >= target.depth.low))
        if not len(left):
            return
        i, j = map(int, left[rng.integers(len(left))])
        within = np.zeros(shape)
        within[i:j] = days.growth[i:j]
        lost = (within, -target.depth.low)
        start = program.solved(rng.normal(size=shape), CAPPED, extra=lost)
        if start is None:
            untried[i, j] = False
            depths.tighten(i, j, CAPPED)
            continue
        outside = np.append(np.arange(i), np.arange(j, len(days)))
        for path in deepened(days, target, start.shares.argmax(-1), i, j):
            fixed = np.ones(shape, dtype=bool)
            fixed[i:j] = np.arange(shape[1]) == path[i:j, None]
            rest = program.solved(rng.normal(size=shape), CAPPED, only=fixed)
            if rest is not None:
                yield nearby(days, target, rest.shares.argmax(-1), outside)
