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
    values = _checked(values)
    r = np.diff(np.log(values))
    cr = 100 * float(r.sum())
    std = _std(r)
    av = 100 * std * float(np.sqrt(volatility_periods))
    sr = cr * (252 / len(values)) / av if varies(r) else float("nan")
    compounded = np.cumprod(np.concatenate([[1.0], 1 + r]))
    mdd = max_drawdown_pct(compounded) if (r > -1).all() else float("nan")
    return Metrics(CR=cr, SR=sr, AV=av, MDD=mdd)


def standard(values: np.ndarray, periods_per_year: int = 252) -> Metrics:
    """The textbook's convention, for (n,) account values.

    With R_t = V_t / V_{t-1} - 1: CR = 100 (V_n / V_1 - 1); AV = 100 std(R, ddof 1)
    sqrt(periods_per_year); SR = mean(R) / std(R) sqrt(periods_per_year), risk-free rate 0; MDD of
    the account value.
    """
    values = _checked(values)
    returns = values[1:] / values[:-1] - 1
    std = _std(returns)
    per_bar = float(returns.mean()) / std if varies(returns) else float("nan")
    sr = per_bar * float(np.sqrt(periods_per_year))
    return Metrics(
        CR=100 * float(values[-1] / values[0] - 1),
        SR=sr,
        AV=100 * std * float(np.sqrt(periods_per_year)),
        MDD=max_drawdown_pct(values),
    )


def max_drawdown_pct(values: np.ndarray) -> float:
    """Largest (peak - trough) / peak of (n,) values, trough after peak, in percent."""
    peaks = np.maximum.accumulate(values)
    return 100 * float(np.max((peaks - values) / peaks))


def _std(returns: np.ndarray) -> float:
    return float(np.std(returns, ddof=1)) if len(returns) > 1 else 0.0


def varies(returns: np.ndarray) -> bool:
    """Whether (n,) returns differ by more than rounding."""
    return _std(returns) > max(
        ROUNDING * float(np.abs(returns).max()), 8 * np.finfo(np.float64).eps
    )


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
