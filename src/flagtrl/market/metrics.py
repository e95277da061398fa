"""Performance of a series of account values, in two conventions.

`paper` reproduces FLAG-Trader's published buy-and-hold rows; `standard` is the textbook's. Both
give CR, AV and MDD in percent and the Sharpe ratio SR as a number.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from flagtrl.errors import DataError

ROUNDING = 1e-9  # of equal returns computed from float64 prices


@dataclass(frozen=True)
class Metrics:
    """Cumulative return CR (percent), Sharpe ratio SR, annualised volatility AV (percent), maximum
    drawdown MDD (percent).

    SR is NaN where returns do not vary: the ratio is undefined. So is `paper`'s MDD after a day
    that loses 63% or more, for it takes a log return of -1 or less for a loss of everything.
    """

    CR: float
    SR: float
    AV: float
    MDD: float

    def as_dict(self) -> dict[str, float]:
        """Name to value."""
        return asdict(self)


def paper(values: np.ndarray, volatility_periods: int = 252) -> Metrics:
    """The published tables' convention, for (n,) account values.

    With r_t = log(V_t / V_{t-1}): CR = 100 sum r; AV = 100 std(r, ddof 1) sqrt(volatility_periods);
    SR = CR (252 / n) / AV with n the number of values (not of returns); MDD is that of prod(1 + r),
    which compounds log returns as if they were simple ones. Published rows use 252 for AV, but 365
    for TSLA's and BTC's.
    """
    return Metrics(*map(float, paper_of_many(_checked(values)[None], volatility_periods)[0]))


def standard(
    values: np.ndarray, periods_per_year: int = 252, risk_free_rate: float = 0.0
) -> Metrics:
    """The textbook's convention, for (n,) account values.

    With R_t = V_t / V_{t-1} - 1: CR = 100 (V_n / V_1 - 1); AV = 100 std(R, ddof 1)
    sqrt(periods_per_year); SR = (mean(R) - risk_free_rate) / std(R) sqrt(periods_per_year), the
    rate a fraction per bar; MDD of the account value.
    """
    many = standard_of_many(_checked(values)[None], periods_per_year, risk_free_rate)
    return Metrics(*map(float, many[0]))


def paper_of_many(values: np.ndarray, volatility_periods: int = 252) -> np.ndarray:
    """(B, 4) CR, SR, AV and MDD, as `paper`'s, of (B, n) account values above 0."""
    r = np.diff(np.log(values))
    cr = 100 * r.sum(-1)
    av = 100 * _std(r) * np.sqrt(volatility_periods)
    sr = _ratio(cr * (252 / values.shape[-1]), av, varies(r))
    whole = (r > -1).all(-1)
    compounded = np.cumprod(1 + np.where(whole[:, None], r, 0.0), axis=-1)
    start = np.ones((len(values), 1))
    mdd = np.where(whole, _drawdown_pct(np.concatenate([start, compounded], axis=-1)), np.nan)
    return np.stack([cr, sr, av, mdd], axis=-1)


def standard_of_many(
    values: np.ndarray, periods_per_year: int = 252, risk_free_rate: float = 0.0
) -> np.ndarray:
    """(B, 4) CR, SR, AV and MDD, as `standard`'s, of (B, n) account values above 0."""
    returns = values[:, 1:] / values[:, :-1] - 1
    std = _std(returns)
    per_bar = _ratio(returns.mean(-1) - risk_free_rate, std, varies(returns))
    year = np.sqrt(periods_per_year)
    cr = 100 * (values[:, -1] / values[:, 0] - 1)
    return np.stack([cr, per_bar * year, 100 * std * year, _drawdown_pct(values)], axis=-1)


def max_drawdown_pct(values: np.ndarray) -> float:
    """Largest (peak - trough) / peak of (n,) values, trough after peak, in percent."""
    return float(_drawdown_pct(values))


def varies(returns: np.ndarray) -> np.ndarray:
    """(...,) whether returns (..., n) differ by more than rounding."""
    largest = np.abs(returns).max(-1)
    return _std(returns) > np.maximum(ROUNDING * largest, 8 * np.finfo(np.float64).eps)


def _drawdown_pct(values: np.ndarray) -> np.ndarray:
    peaks = np.maximum.accumulate(values, axis=-1)
    return 100 * ((peaks - values) / peaks).max(-1)


def _std(returns: np.ndarray) -> np.ndarray:
    if returns.shape[-1] < 2:
        return np.zeros(returns.shape[:-1])
    return returns.std(-1, ddof=1)


def _ratio(over: np.ndarray, under: np.ndarray, defined: np.ndarray) -> np.ndarray:
    return np.where(defined, over / np.where(defined, under, 1.0), np.nan)


def _checked(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise DataError(
            f"metrics need at least 2 account values in one dimension, got the shape {values.shape}"
        )
    if not (np.isfinite(values) & (values > 0)).all():
        bad = int(np.flatnonzero(~(np.isfinite(values) & (values > 0)))[0])
        raise DataError(
            f"account value {values[bad]} at bar {bad}; metrics need finite values above 0"
        )
    return values
