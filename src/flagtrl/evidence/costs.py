"""The same decisions at other costs: what a broker's fees would leave of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from flagtrl.evidence.backtest import Backtest, backtest
from flagtrl.evidence.rules import decided
from flagtrl.market.env import MarketSettings
from flagtrl.market.metrics import standard_of_many

COSTS_BPS = (0, 5, 10, 25)


def cost_sweep(run: Backtest, settings: MarketSettings) -> list[dict[str, Any]]:
    """A pass's positions, traded again with fees of 0, 5, 10 and 25 basis points of each trade's
    value and no slippage.

    Returns:
        A row each: `bps`, and CR (percent) and SR of the `standard` convention; SR None where it is
        undefined.
    """
    wanted = (run.shares[1:] > 0).astype(np.int64)[:, None]
    found = []
    for bps in COSTS_BPS:
        dearer = replace(settings, cost_bps=float(bps), slippage_bps=0.0)
        values = backtest(decided(wanted, run.window.start), run.window, dearer).values
        year, rate = run.window.market.periods_per_year, settings.risk_free_rate
        metrics = standard_of_many(values[None], year, rate)[0]
        ratio = float(metrics[1])
        sharpe = None if math.isnan(ratio) else ratio
        found.append({"bps": bps, "CR": float(metrics[0]), "SR": sharpe})
    return found
