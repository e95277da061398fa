"""Paired statistics of one task: exact McNemar, a bootstrap over documents and training seeds, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, norm

RESAMPLES, CHUNK = 10_000, 250
LEVEL, POWER = 0.05, 0.8


@dataclass(frozen=True)
class Difference:
    """Adapter minus base on the same samples.

    Attributes:
        base, adapter, delta: means per unit of weight; of several adapters, their mean.
        low, high: 95% percentile interval of delta; NaN of one document alone, as is the bootstrap's p.
        p: two-sided; exact McNemar where every score is 0 or 1 and there is one adapter, else from the bootstrap.
        standard_error: of delta, from the bootstrap.
        detectable: the smallest |delta| that a repetition finds at the 5% level with a probability of 80%.
    """

    base: float
    adapter: float
    delta: float
    low: float
    high: float
    p: float
    standard_error: float
    detectable: float


def paired_difference(
    base: np.ndarray,
    adapters: np.ndarray,
    weights: np.ndarray,
    documents: Sequence[str],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Difference:
    """Compare adapters with their base, sample by sample.

    delta = sum_i (a_i - b_i) / sum_i w_i, with a_i the mean over the S adapters. A resample draws documents, with all
    their samples, and independently adapters, with replacement: a question's neighbours and a lucky seed are no
    independent evidence.

    Args:
        base: (n,) scores; where weights are not 1, totals (bits, for bits per byte).
        adapters: (S, n) scores, one row for every adapter (training seed).
        weights: (n,) what the scores are per: 1, or bytes.
        documents: (n,) samples with one name share a document.
        seed: of the resampling.
        resamples: how many.
    """
    assert adapters.ndim == 2 and base.shape == weights.shape == (adapters.shape[1],) == (len(documents),)
    change = adapters - base  # (S, n)
    drawn = bootstrap(change, weights, documents, seed, resamples)
    low, high = np.percentile(drawn, (50 * LEVEL, 100 - 50 * LEVEL))
    zero_one = bool(np.isin(np.concatenate([base, adapters[0]]), (0, 1)).all()) and bool((weights == 1).all())
    binary = zero_one and len(adapters) == 1
    if len(set(documents)) < 2:  # one document says nothing about another
        drawn = np.full(2, np.nan)
        low = high = np.nan
    total = float(weights.sum())
    error = float(drawn.std(ddof=1))
    return Difference(
        base=float(base.sum()) / total,
        adapter=float(adapters.mean(axis=0).sum()) / total,
        delta=float(change.mean(axis=0).sum()) / total,
        low=float(low),
        high=float(high),
        p=mcnemar(base, adapters[0]) if binary else two_sided(drawn),
        standard_error=error,
        detectable=minimum_detectable(error, len(base) if binary else None),
    )


def bootstrap(change: np.ndarray, weights: np.ndarray, documents: Sequence[str], seed: int, resamples: int) -> np.ndarray:
    """(resamples,) deltas of resampled documents and adapters; `change` is (S, n)."""
    _, index = np.unique(np.asarray(documents, dtype=str), return_inverse=True)
    clusters, adapters = int(index.max()) + 1, len(change)
    totals = np.stack([np.bincount(index, row, clusters) for row in change], axis=1)  # (C, S)
    sizes = np.bincount(index, weights, clusters)  # (C,)
    generator = np.random.default_rng(seed)
    drawn = []
    for start in range(0, resamples, CHUNK):
        many = min(CHUNK, resamples - start)
        counts = generator.multinomial(clusters, np.full(clusters, 1 / clusters), many)  # (many, C)
        shares = generator.multinomial(adapters, np.full(adapters, 1 / adapters), many) / adapters  # (many, S)
        drawn.append(((counts @ totals) * shares).sum(axis=1) / (counts @ sizes))
    return np.concatenate(drawn)


def mcnemar(base: np.ndarray, adapter: np.ndarray) -> float:
    """Exact two-sided McNemar test of paired 0/1 scores: of those that changed, is it a fair coin which way?"""
    gained, lost = int(((base == 0) & (adapter == 1)).sum()), int(((base == 1) & (adapter == 0)).sum())
    return 1.0 if gained + lost == 0 else float(binomtest(gained, gained + lost, 0.5).pvalue)


def two_sided(drawn: np.ndarray) -> float:
    """The p of `delta = 0` from a bootstrap: twice the smaller tail beyond 0, never below 1 / (resamples + 1)."""
    if np.isnan(drawn).any():
        return math.nan
    tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(drawn) + 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjusted p: below alpha with a probability of at most alpha if every null hypothesis holds."""
    adjusted, highest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def minimum_detectable(standard_error: float, binary_samples: int | None = None) -> float:
    """(z(97.5%) + z(80%)) standard errors; of n 0/1 scores at least 6 / n, as fewer than 6 changes reach no p below 5%."""
    distance = float(norm.ppf(1 - LEVEL / 2) + norm.ppf(POWER)) * standard_error
    return distance if binary_samples is None else max(distance, min(1.0, 6 / binary_samples))
