"""How many runs are above each kind of luck, and above one Buy order, on the test windows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from flagtrl.evidence.frictions import DEAR_BPS
from flagtrl.evidence.tables import Made, presets

SAME_PERCENT = 1e-6  # a difference that is rounding


def above(
    run: Made, row: str, own: str = "agent_greedy", metric: str = "CR", window: str = "test"
) -> bool:
    """Whether a row of a run's table is above another, `standard` convention."""
    mine, other = (run.figure(name, "standard", metric, window) for name in (own, row))
    return mine > other


def above_held(runs: Sequence[Made]) -> tuple[list[int], int]:
    """On how many assets the mean is above one Buy order's, without costs and at each of DEAR_BPS;
    of how many.
    """
    told = [run for run in runs if not math.isnan(run.at_cost(0))]
    assets = list(dict.fromkeys(run.asset for run in told))

    def beside(asset: str, bps: int) -> bool:
        mine = [run for run in told if run.asset == asset]
        more = np.mean([run.at_cost(bps) - run.held_at_cost(bps) for run in mine])
        return bool(more > SAME_PERCENT)

    return [sum(beside(each, bps) for each in assets) for bps in (0, *DEAR_BPS)], len(assets)


def counts(runs: Sequence[Made]) -> list[list[str]]:
    """A header, and for each preset how many of its runs are above each kind of luck on the test
    windows.
    """
    found = [
        [
            *("policy", "runs", "return above 95% of random policies"),
            *("one Buy order above 95% of them", "Sharpe ratio above 95% of theirs"),
            "return above 95% with the same exposure at other times",
            *("return above 95% moved at random", "decisions depend on the day"),
            *("return more than without news", "assets with a mean return above one Buy order's"),
            *(f"the same at {bps} bps a trade" for bps in DEAR_BPS),
        ]
    ]
    for preset in presets(runs):
        mine = [run for run in runs if run.preset == preset]
        matched = [run for run in mine if run.matched_tells()]
        moved = [run for run in mine if run.has("perturbed_p95")]
        newsless = [run for run in mine if run.has("agent_without_news")]
        counted, assets = above_held(mine)
        cells = [
            len(mine),
            sum(above(run, "random_p95") for run in mine),
            sum(above(run, "random_p95", "buy_and_hold_by_order") for run in mine),
            sum(above(run, "random_p95", metric="SR") for run in mine),
            _of(sum(above(run, "matched_p95") for run in matched), matched, mine),
            _of(sum(above(run, "perturbed_p95") for run in moved), moved, mine),
            sum(bool(run.results["behaviour"]["depends_on_day"]) for run in mine),
            _of(sum(above(run, "agent_without_news") for run in newsless), newsless, mine),
            *(f"{count} of {assets}" if assets else "-" for count in counted),
        ]
        found.append([preset, *map(str, cells)])
    return found


def _of(count: int, told: Sequence[Made], runs: Sequence[Made]) -> str:
    if not told:
        return "-"
    return str(count) if len(told) == len(runs) else f"{count} of {len(told)}"
