"""How runs trade, and what costs leave of their returns: a table of all presets on all assets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from flagtrl.evidence.costs import COSTS_BPS
from flagtrl.evidence.tables import Made, OverSeeds, assets_of, presets

DEAR_BPS = (5, 10)  # of a trade, at which runs are compared with one Buy order


def frictions(runs: Sequence[Made]) -> list[list[str]]:
    """A header, and a row for each preset on each asset: means over its seeds, the `standard`
    convention; fees in place of the run's own, and no slippage. Runs that do not say what costs
    would leave have no row; no runs, no table.
    """
    found = [
        [
            *("asset", "preset", "runs", "exposure", "turnover a year", "beta"),
            *(f"return at {bps} bps, %" for bps in COSTS_BPS),
            "break-even, bps",
            *(f"one Buy order at {bps} bps, %" for bps in (0, DEAR_BPS[-1])),
        ]
    ]
    told = [run for run in runs if run.results.get("costs")]
    for asset in assets_of(told):
        for preset in presets(told):
            mine = [run for run in told if (run.asset, run.preset) == (asset, preset)]
            if mine:
                found.append([asset, preset, str(len(mine)), *_cells(mine)])
    return found if told else []


def _cells(runs: Sequence[Made]) -> list[str]:
    def mean(of: Callable[[Made], float], digits: int = 1) -> str:
        figure = OverSeeds.of([of(run) for run in runs])
        return "-" if math.isnan(figure.mean) else f"{figure.mean:.{digits}f}"

    return [
        mean(lambda run: run.measure("exposure"), 2),
        mean(lambda run: run.measure("turnover"), 0),
        mean(lambda run: run.measure("beta"), 2),
        *(mean(lambda run, bps=bps: run.at_cost(bps)) for bps in COSTS_BPS),  # type: ignore[misc]
        _break_even([run.measure("break_even_bps") for run in runs]),
        *(mean(lambda run, bps=bps: run.held_at_cost(bps)) for bps in (0, DEAR_BPS[-1])),  # type: ignore[misc]
    ]


def _break_even(costs: Sequence[float]) -> str:
    """Least to most, in parentheses of how many where others have none, as accounts that never
    trade; 0 where they lose without costs too.
    """
    known = [cost for cost in costs if not math.isnan(cost)]
    if not known:
        return "-"
    low, high = min(known), max(known)
    of_fewer = "" if len(known) == len(costs) else f" ({len(known)})"
    return (f"{low:.0f}" if round(low) == round(high) else f"{low:.0f} to {high:.0f}") + of_fewer
