"""What a track record can show: the uncertainty of a Sharpe ratio, what luck among many trials
makes, and whether decisions and returns have anything to do with one another.

Everything is two-sided at 5% where nothing else is said. Sharpe ratios are per bar; `* sqrt(periods
a year)` makes them annual. Blocks and resamples are `arch`'s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import stats

from flagtrl.errors import DataError
from flagtrl.market.metrics import varies

LEVEL, RESAMPLES = 0.05, 10_000
FEWEST_SHIFTS = 20  # distinct ones, without which a p-value says nothing
FEWEST_RETURNS = 20
SAME_RETURN = 1e-12  # difference of two returns that counts as none
MOST_UNDEFINED = 0.01  # of the resamples, beyond which an interval would be of the others alone


class TrackRecord(NamedTuple):
    """What the distribution of a Sharpe ratio depends on.

    Attributes:
        returns: how many.
        sharpe: mean over deviation (ddof 1), per bar; NaN where returns do not vary.
        skew: third standardised moment, 0 of a normal distribution.
        kurtosis: fourth, 3 of a normal distribution.
    """

    returns: int
    sharpe: float
    skew: float = 0.0
    kurtosis: float = 3.0

    @classmethod
    def of(cls, returns: np.ndarray, risk_free: float = 0.0) -> TrackRecord:
        """Of (n,) simple returns above a risk-free rate per bar.

        Raises:
            DataError: fewer than 20 returns, or one that is not finite.
        """
        excess = _checked(returns) - risk_free
        if not varies(excess):
            return cls(len(excess), math.nan)
        deviation = float(excess.std(ddof=1))
        shape = float(stats.skew(excess)), float(stats.kurtosis(excess, fisher=False))
        return cls(len(excess), float(excess.mean()) / deviation, *shape)

    @property
    def spread(self) -> float:
        """The standard error of the Sharpe ratio times sqrt(n - 1), at the ratio found (Mertens
        2002): sqrt(1 - g3 SR + (g4 - 1) / 4 SR^2).
        """
        inner = 1 - self.skew * self.sharpe + (self.kurtosis - 1) / 4 * self.sharpe**2
        return math.sqrt(max(inner, 0.0))


def probabilistic_sharpe(record: TrackRecord, benchmark: float = 0.0) -> float:
    """How likely the true Sharpe ratio is above `benchmark`, both per bar (Bailey and Lopez de
    Prado 2012, equation 11); NaN where it is undefined.
    """
    if math.isnan(record.sharpe) or record.spread == 0:
        return math.nan
    z = (record.sharpe - benchmark) * math.sqrt(record.returns - 1) / record.spread
    return float(stats.norm.cdf(z))


def best_of_trials(trials: int, variance: float) -> float:
    """The Sharpe ratio per bar that the best of so many skilless trials is expected to show:
    sqrt(V) ((1 - g) z(1 - 1/N) + g z(1 - 1/(N e))), g Euler's constant (Bailey and Lopez de Prado
    2014, equation 5).

    Args:
        trials: N, that were made on this window, whether kept or not; of one nothing is chosen.
        variance: of the trials' Sharpe ratios, per bar.
    """
    if trials == 1:
        return 0.0
    if trials < 1 or not variance >= 0:
        raise DataError(f"{trials} trials with a variance of {variance}; use at least 1, and 0")
    quantiles = stats.norm.ppf([1 - 1 / trials, 1 - 1 / (trials * math.e)])
    return math.sqrt(variance) * float(np.array([1 - np.euler_gamma, np.euler_gamma]) @ quantiles)


def deflated_sharpe(record: TrackRecord, trials: int, variance: float) -> float:
    """`probabilistic_sharpe` above what the best of the trials shows by luck alone (Bailey and
    Lopez de Prado 2014).
    """
    return probabilistic_sharpe(record, best_of_trials(trials, variance))


def minimum_track_record(
    record: TrackRecord, benchmark: float = 0.0, level: float = LEVEL, sides: int = 2
) -> float:
    """How many returns a Sharpe ratio like this one needs to be significantly above `benchmark`
    (Bailey and Lopez de Prado 2012, equation 13); infinite where it is not above, NaN undefined.
    """
    if math.isnan(record.sharpe):
        return math.nan
    if record.sharpe <= benchmark:
        return math.inf
    z = float(stats.norm.ppf(1 - level / sides))
    return 1 + (record.spread * z / (record.sharpe - benchmark)) ** 2


# ------------------------------------------------------------------------------- the bootstrap


class Interval(NamedTuple):
    """A percentile interval of a statistic.

    Attributes:
        value: of the data as they are.
        low, high: 95% of the resamples lie between; NaN where the statistic is undefined.
        p: two-sided, of the statistic being 0.
        block: mean length of the resampled blocks, bars.
    """

    value: float
    low: float
    high: float
    p: float
    block: float


def block_length(returns: np.ndarray) -> float:
    """The mean block of a stationary bootstrap of (n,) returns: what Patton, Politis and White
    (2009) find best, and at least n^(1/3).
    """
    returns = _checked(returns)
    least = len(returns) ** (1 / 3)
    if not varies(returns):
        return least
    from arch.bootstrap import optimal_block_length  # takes seconds to import

    best = float(optimal_block_length(returns)["stationary"].iloc[0])
    return max(best, least) if math.isfinite(best) else least


@lru_cache(maxsize=8)  # half a second each, and many accounts are of the same days
def resampled(count: int, block: float, resamples: int, seed: int) -> np.ndarray:
    """(resamples, count) int32 rows of the stationary bootstrap (Politis and Romano 1994)."""
    from arch.bootstrap import StationaryBootstrap

    # a float is what it takes, whatever its annotation says
    drawn = StationaryBootstrap(block, np.arange(count), seed=np.random.default_rng(seed))  # type: ignore[arg-type]
    rows = np.empty((resamples, count), dtype=np.int32)
    for row, data in zip(rows, drawn.bootstrap(resamples), strict=True):
        row[:] = data[0][0]
    rows.flags.writeable = False
    return rows


def sharpe_interval(
    returns: np.ndarray,
    benchmark: np.ndarray | None = None,
    *,
    block: float | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Of the Sharpe ratio per bar of (n,) returns, or of what it is above that of a benchmark on
    the same days, which are resampled together.

    Args:
        returns: simple, above the risk-free rate.
        benchmark: the same of another account; None: none.
        block: mean length; None: `block_length` of the returns, or of the difference.
        resamples: how many.
        seed: of the resampling.

    Raises:
        DataError: fewer than 20 returns, one that is not finite, or other days.
    """
    own, other = _checked(returns), None if benchmark is None else _checked(benchmark)
    if other is not None and len(other) != len(own):
        raise DataError(f"{len(own)} returns beside a benchmark's {len(other)}")
    if block is None:
        block = block_length(own if other is None else own - other)

    def found(rows: np.ndarray) -> np.ndarray:
        return _sharpe(own[rows]) - (0.0 if other is None else _sharpe(other[rows]))

    value = float(found(np.arange(len(own))[None])[0])
    values = found(resampled(len(own), block, resamples, seed))
    undefined = np.isnan(values)
    if not varies(own) or undefined.mean() > MOST_UNDEFINED:
        return Interval(math.nan, math.nan, math.nan, math.nan, block)
    values = values[~undefined]
    low, high = np.percentile(values, (100 * LEVEL / 2, 100 * (1 - LEVEL / 2)))
    return Interval(value, float(low), float(high), _two_sided(values), block)


def _sharpe(returns: np.ndarray) -> np.ndarray:
    """(R,) of (R, n) returns; NaN where they do not vary. Where nothing was earned on any day it is
    0: an account that is seldom in the market must not be judged by its lucky resamples alone.
    """
    defined, means = varies(returns), returns.mean(-1)
    deviation = np.where(defined, returns.std(-1, ddof=1), 1.0)
    still = np.where(means == 0, 0.0, np.nan)
    return np.where(defined, means / deviation, still)


def _two_sided(drawn: np.ndarray) -> float:
    """How far in the tails of its resamples 0 lies; never below what their number can show."""
    below, above = np.mean(drawn <= 0), np.mean(drawn >= 0)
    return float(min(1.0, max(2 * min(below, above), 2 / (len(drawn) + 1))))


# ----------------------------------------------------------------- decisions against returns


class Shifts(NamedTuple):
    """A circular-shift permutation test.

    Attributes:
        p: two-sided; NaN below 20 distinct shifts, where nothing can be said.
        p_better: one-sided, of having earned no more than by chance; NaN as p.
        distinct: how many of the shifts differ.
    """

    p: float
    p_better: float
    distinct: int


def circular_shifts(positions: np.ndarray, returns: np.ndarray) -> Shifts:
    """Whether positions have to do with the returns that they were held over: their own sequence,
    shifted along the returns by every number of bars, keeps exposure, spells and turnover, and
    loses what it knew.

    Args:
        positions: (n,) held over each return, as 1 long, 0 flat.
        returns: (n,) log returns of the asset.
    """
    positions, returns = (np.asarray(each, dtype=np.float64) for each in (positions, returns))
    if positions.shape != returns.shape or positions.ndim != 1:
        raise DataError(f"{len(positions)} positions for {len(returns)} returns")
    distinct = _distinct_shifts(positions)
    if distinct < FEWEST_SHIFTS:
        return Shifts(math.nan, math.nan, distinct)
    # what every shift earns: a circular cross-correlation
    made = np.fft.irfft(np.fft.rfft(returns) * np.conj(np.fft.rfft(positions)), n=len(returns))
    distance = np.abs(made - made.mean())
    rounding = 1e-9 * max(float(np.abs(returns).max()), float(distance.max()))
    as_far, as_good = distance >= distance[0] - rounding, made >= made[0] - rounding
    return Shifts(float(np.mean(as_far)), float(np.mean(as_good)), distinct)


def _distinct_shifts(positions: np.ndarray) -> int:
    """How many of a sequence's circular shifts differ: its shortest period."""
    count = len(positions)
    periods = (by for by in range(1, count + 1) if count % by == 0)
    return next(by for by in periods if np.array_equal(np.roll(positions, by), positions))


def superior_ability(
    benchmark: np.ndarray, models: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> float:
    """Hansen's (2005) test of superior predictive ability, one-sided and consistent: p of the best
    of several agents being no better than the benchmark; NaN where all of them are the benchmark.

    Args:
        benchmark: (n,) returns.
        models: (n, k) the agents' returns on the same days.
        resamples: of the stationary bootstrap.
        seed: of the resampling.
    """
    from arch.bootstrap import SPA

    block = block_length(_checked(benchmark))
    # an agent that is the benchmark has no difference whose spread the test could divide by
    models = models[:, np.abs(models - benchmark[:, None]).max(0) > SAME_RETURN]
    if not models.shape[1]:
        return math.nan
    test = SPA(-benchmark, -models, block_size=math.ceil(block), reps=resamples, seed=seed)
    test.compute()
    return float(test.pvalues["consistent"])


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's (1979) correction of several p-values; NaN stays, and is not counted."""
    defined = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    corrected, largest = dict(p_values), 0.0
    for rank, (p, name) in enumerate(defined):
        largest = max(largest, min(1.0, (len(defined) - rank) * p))
        corrected[name] = largest
    return corrected


def _checked(returns: np.ndarray) -> np.ndarray:
    returns = np.asarray(returns, dtype=np.float64)
    if returns.ndim != 1 or len(returns) < FEWEST_RETURNS:
        raise DataError(
            f"statistics of {returns.shape} returns; they need one series of at least "
            f"{FEWEST_RETURNS}: trade a longer window"
        )
    if not np.isfinite(returns).all():
        bad = int(np.flatnonzero(~np.isfinite(returns))[0])
        raise DataError(f"return {returns[bad]} at bar {bad}; statistics need finite ones")
    return returns
