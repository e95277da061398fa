"""Paired statistics of one task: a bootstrap over documents, exact McNemar, training seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta, nct, norm, t

RESAMPLES, CHUNK = 10_000, 250
LEVEL, POWER = 0.05, 0.8
FEWEST = 6  # changes, all one way, that a sign test finds at LEVEL: 2 * 0.5^6 < 0.05 < 2 * 0.5^5


@dataclass(frozen=True)
class Difference:
    """Adapter minus base on the same samples.

    Attributes:
        base, adapter, delta: means per unit of weight; of several adapters, their mean.
        low, high: 95% interval of delta; NaN of one document alone, as is p.
        p: two-sided; of one adapter's 0/1 scores the exact test of `sign_flips`, else of the
            interval's own kind.
        standard_error: of delta.
        detectable: the smallest |delta| that a repetition finds at the 5% level, uncorrected, with
            a probability of 80%; NaN: too few documents for any.
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
    cells: np.ndarray | None = None,
) -> Difference:
    """Compare adapters with their base, sample by sample.

    delta = sum_i (a_i - b_i) / sum_i w_i, with a_i the mean over the S adapters; with cells, the
    mean over cells of that. A resample draws documents with replacement, with all their samples: a
    question's neighbours are no independent evidence. Nor is a lucky seed: see `of_seeds`.

    Args:
        base: (n,) scores; where weights are not 1, totals (bits, for bits per byte).
        adapters: (S, n) scores, one row for every adapter (training seed).
        weights: (n,) what the scores are per: 1, or bytes.
        documents: (n,) samples with one name share a document.
        seed: of the resampling.
        resamples: how many.
        cells: (n,) the number of each sample's cell, as of its label, for balanced accuracy; None:
            one for all.
    """
    assert adapters.ndim == 2 and base.shape == weights.shape == (adapters.shape[1],) == (
        len(documents),
    )
    of = np.zeros(len(base), dtype=int) if cells is None else cells
    change = adapters - base  # (S, n)
    deltas = np.array([mean_per_weight(one, weights, of) for one in change])  # (S,)
    means = {
        "base": mean_per_weight(base, weights, of),
        "adapter": mean_per_weight(adapters.mean(axis=0), weights, of),
    }
    means["delta"] = float(deltas.mean())
    index, clusters = _clusters(documents)
    if clusters < 2:  # one document says nothing about another
        unknown = ("low", "high", "p", "standard_error", "detectable")
        return Difference(**means, **dict.fromkeys(unknown, math.nan))
    drawn = bootstrap(change.mean(axis=0), weights, index, seed, resamples, of)
    if len(adapters) > 1:
        return Difference(
            **means, **of_seeds(deltas, float(drawn.var(ddof=1)), clusters, 2 / (resamples + 1))
        )
    low, high = np.percentile(drawn, (50 * LEVEL, 100 - 50 * LEVEL))
    error = float(drawn.std(ddof=1))
    zero_one = cells is None and bool(
        np.isin(np.concatenate([base, adapters[0]]), (0, 1)).all() and (weights == 1).all()
    )
    return Difference(
        **means,
        low=float(low),
        high=float(high),
        p=sign_flips(np.bincount(index, change[0])) if zero_one else two_sided(drawn),
        standard_error=error,
        detectable=minimum_detectable(error, (len(base), clusters) if zero_one else None),
    )


def mean_per_weight(scores: np.ndarray, weights: np.ndarray, cells: np.ndarray) -> float:
    """Mean over cells of sum_i s_i / sum_i w_i; (n,) arrays."""
    return float((np.bincount(cells, scores) / np.bincount(cells, weights)).mean())


def level(
    base: np.ndarray,
    weights: np.ndarray,
    documents: Sequence[str],
    seed: int = 0,
    cells: np.ndarray | None = None,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """95% interval of one arm's own score, by the same bootstrap over documents; NaN of one
    document. Arguments as above.
    """
    index, clusters = _clusters(documents)
    if clusters < 2:
        return math.nan, math.nan
    of = np.zeros(len(base), dtype=int) if cells is None else cells
    low, high = np.percentile(
        bootstrap(base, weights, index, seed, resamples, of), (50 * LEVEL, 100 - 50 * LEVEL)
    )
    return float(low), float(high)


def bootstrap(
    change: np.ndarray,
    weights: np.ndarray,
    index: np.ndarray,
    seed: int,
    resamples: int,
    cells: np.ndarray | None = None,
) -> np.ndarray:
    """(resamples,) deltas of resampled documents.

    Args:
        change: (n,) scores.
        weights: (n,) what they are per.
        index: (n,) the number of each sample's document.
        seed: of the drawing.
        resamples: how many.
        cells: (n,) numbers, from 0 on; a resample's value is the mean over the cells that it has.
            None: one for all.
    """
    of = np.zeros(len(change), dtype=int) if cells is None else cells
    clusters, many_cells = int(index.max()) + 1, int(of.max()) + 1
    place, shape = index * many_cells + of, (clusters, many_cells)
    totals = np.bincount(place, change, clusters * many_cells).reshape(shape)
    sizes = np.bincount(place, weights, clusters * many_cells).reshape(shape)
    generator = np.random.default_rng(seed)
    drawn = []
    for start in range(0, resamples, CHUNK):
        many = min(CHUNK, resamples - start)
        counts = generator.multinomial(clusters, np.full(clusters, 1 / clusters), many)  # (many, C)
        total, size = counts @ totals, counts @ sizes  # (many, cells)
        means = np.divide(total, size, out=np.zeros_like(total), where=size > 0)
        drawn.append(means.sum(axis=1) / (size > 0).sum(axis=1))
    return np.concatenate(drawn)


def _clusters(documents: Sequence[str]) -> tuple[np.ndarray, int]:
    """(n,) the number of each sample's document, and how many there are."""
    _, index = np.unique(np.asarray(documents, dtype=str), return_inverse=True)
    return index, int(index.max()) + 1


def of_seeds(
    deltas: np.ndarray, document_variance: float, documents: int, lowest_p: float
) -> dict[str, float]:
    """Interval, p, standard error and detectable difference of the mean of S >= 2 training seeds'
    deltas.

    Two sources of error: seeds, v_s = s^2 / S with S - 1 degrees of freedom, and documents, v_d
    with C - 1. The interval is delta +- sqrt(t_s^2 v_s + t_d^2 v_d), with each source's own t
    quantile (Howe 1974): a Welch-Satterthwaite t covers 88% where two seeds are all there is, this
    at least 95%. p is the level at which the interval touches 0. What a seed and a document do
    together counts in both sources, on the safe side.

    Args:
        deltas: (S,) of each seed.
        document_variance: of their mean, from a bootstrap, which is (C - 1) / C of the unbiased
            one.
        documents: C, how many.
        lowest_p: p is not below it: what a bootstrap can resolve.
    """
    seeds, delta = len(deltas), float(deltas.mean())
    variances = np.array(
        [deltas.var(ddof=1) / seeds, document_variance * documents / (documents - 1)]
    )
    freedoms = np.array([seeds - 1, documents - 1])

    def half(level: float) -> float:
        return float(np.sqrt((t.isf(level / 2, freedoms) ** 2 * variances).sum()))

    error, width = float(np.sqrt(variances.sum())), half(LEVEL)
    if abs(delta) >= half(lowest_p):
        p = lowest_p if delta else 1.0
    else:
        p = float(brentq(lambda level: half(level) - abs(delta), lowest_p, 1.0))
    detectable = error * _noncentrality(width / error, variances, freedoms) if error else 0.0
    return {
        "low": delta - width,
        "high": delta + width,
        "p": p,
        "standard_error": error,
        "detectable": detectable,
    }


def _noncentrality(bound: float, variances: np.ndarray, freedoms: np.ndarray) -> float:
    """How many standard errors a true change must be for |t| > bound with a probability of 80%."""
    freedom = variances.sum() ** 2 / (variances**2 / freedoms).sum()
    return float(
        brentq(lambda distance: nct.sf(bound, freedom, distance) - POWER, 0.0, 10 * (bound + 1))
    )


def sign_flips(changes: np.ndarray) -> float:
    """Exact two-sided p of documents' (C,) net changes in right answers, each as likely the other
    way round.

    Where every question is a document of its own this is exact McNemar: of those that changed, is
    it a fair coin which way?
    """
    sizes = np.abs(np.rint(changes)).astype(int)
    total = int(sizes.sum())
    chances = np.zeros(2 * total + 1)  # of every sum from -total to total
    chances[total] = 1.0
    for size in sizes[sizes > 0]:
        # what is rolled around is still 0
        chances = 0.5 * (np.roll(chances, size) + np.roll(chances, -size))
    sums = np.abs(np.arange(-total, total + 1))
    return min(1.0, float(chances[sums >= abs(round(float(changes.sum())))].sum()))


def two_sided(drawn: np.ndarray) -> float:
    """The p of `delta = 0` from a bootstrap: twice the smaller tail beyond 0, never below 2 /
    (resamples + 1).
    """
    tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(drawn) + 1))


def minimum_detectable(standard_error: float, zero_one: tuple[int, int] | None = None) -> float:
    """(z(97.5%) + z(80%)) standard errors; of 0/1 scores, no less than the exact test's own bound.

    A sign test needs FEWEST changed documents, all one way. Their number is binomial, so that a
    true rate of FEWEST / C finds them in 56% of repetitions; the bound is the rate that does in
    80%, each document with one changed answer.

    Args:
        standard_error: of delta.
        zero_one: of 0/1 scores, samples and documents; with fewer than FEWEST documents nothing is
            detectable: NaN.
    """
    distance = float(norm.ppf(1 - LEVEL / 2) + norm.ppf(POWER)) * standard_error
    if zero_one is None:
        return distance
    samples, documents = zero_one
    if documents < FEWEST:
        return math.nan
    return max(
        distance, float(beta.ppf(POWER, FEWEST, documents - FEWEST + 1)) * documents / samples
    )
