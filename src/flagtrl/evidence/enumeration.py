"""All paths that bounds leave, one by one: exact where they are few."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flagtrl.evidence.paths import Days
from flagtrl.evidence.relaxation import Bound

MOST_PATHS = 200_000  # alive at a time
SLACK = 1e-9  # for rounding, in units of the bound


def remaining(
    days: Days, needed: Sequence[tuple[Bound, float]], most: int = MOST_PATHS
) -> np.ndarray | None:
    """(B, N) indices of positions of every path that may have what is needed; None where more than
    `most` would have to be looked at.

    Args:
        days: the positions to choose from.
        needed: bounds, and what a path's own value must reach: its gaps must not add up to more
            than lies between.
        most: paths, day after day.
    """
    n, k = days.gain.shape
    slack = np.array([bound.value - least for bound, least in needed]) + SLACK
    if (slack < 0).any():
        return np.zeros((0, n), dtype=np.int8)
    gaps = np.stack([np.where(days.allowed, bound.gaps, np.inf) for bound, _ in needed])
    shares = gaps / np.maximum(slack, SLACK)[:, None, None]  # (J, N, K)
    second = np.sort(shares.max(0), axis=-1)[:, 1]  # a day's least cost of doing otherwise
    if 2.0 ** np.count_nonzero(np.cumsum(np.sort(second)) < 1) > most:
        return None  # so many days may do so in any combination
    order = np.argsort(-second, kind="stable")  # days that cost much first: of few paths
    spent = np.zeros((1, len(slack)))
    paths = np.zeros((1, n), dtype=np.int8)
    for day in order:
        kept = []
        for position in range(k):
            after = spent + gaps[:, day, position]
            alive = (after <= slack).all(-1)
            grown = paths[alive]
            grown[:, day] = position
            kept.append((after[alive], grown))
        spent = np.concatenate([each for each, _ in kept])
        paths = np.concatenate([each for _, each in kept])
        if len(paths) > most:
            return None
    return paths
