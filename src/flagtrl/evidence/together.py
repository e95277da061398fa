"""What several runs say together, in plain sentences computed from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flagtrl.evidence.published import ASSETS, OURS, published
from flagtrl.evidence.statistics import (
    FEWEST_RETURNS,
    Interval,
    TrackRecord,
    best_of_trials,
    deflated_sharpe,
    holm,
    sharpe_interval,
    superior_ability,
)
from flagtrl.evidence.tables import Made, OverSeeds, assets_of, presets


class Together(NamedTuple):
    """A preset on an asset.

    Attributes:
        asset, preset: which.
        runs: of it, one a seed.
        beside: the Sharpe ratio a bar of the mean of its seeds' returns, above buy and hold's by
            order; with an interval by stationary bootstrap.
    """

    asset: str
    preset: str
    runs: Sequence[Made]
    beside: Interval


def together(runs: Sequence[Made]) -> list[Together]:
    """Each preset on each asset, where there are returns enough."""
    found = []
    for asset in assets_of(runs):
        for preset in presets(runs):
            mine = [run for run in runs if (run.asset, run.preset) == (asset, preset)]
            if mine and mine[0].returns.shape[1] >= FEWEST_RETURNS:
                own, held = np.mean([run.returns for run in mine], axis=0)
                found.append(Together(asset, preset, mine, sharpe_interval(own, held)))
    return found


def overall(known: Sequence[Together]) -> list[str]:
    """Of all assets and presets at once."""
    runs = [run for each in known for run in each.runs]
    if not runs:
        return []
    assets = list(dict.fromkeys(each.asset for each in known))
    said = [f"{len(runs)} runs on {len(assets)} assets: {', '.join(assets)}."]
    for preset in presets(runs):
        mine = [run for run in runs if run.preset == preset]
        above = sum(_above(run, "random_p95") for run in mine)
        said.append(
            f"{preset}: {above} of {len(mine)} runs return more than 95% of random policies "
            f"on the test window, where chance alone makes {0.05 * len(mine):.3g}; "
            f"{_dependent(mine)}."
        )
    named = {f"{each.preset} on {each.asset}": each.beside for each in known}
    corrected = holm({name: beside.p for name, beside in named.items()})
    told = [
        f"{name} is {'higher' if named[name].value > 0 else 'lower'} (p = {p:.3f})"
        for name, p in corrected.items()
        if p < 0.05
    ]
    judged = sum(not math.isnan(p) for p in corrected.values())
    said.append("Runs on one window are not independent: they trade the same days.")
    said.append(
        f"Beside buy and hold by order, of {judged} comparisons of Sharpe ratios "
        + (f"these differ at 5% after Holm's correction: {', '.join(told)}." if told else
           "none differs at 5% after Holm's correction.")
    )  # fmt: skip
    return said


def of_an_asset(known: Sequence[Together], asset: str) -> list[str]:
    """Of the presets on one asset."""
    mine = [each for each in known if each.asset == asset]
    said = [sentence for each in mine for sentence in _of_a_preset(each)]
    runs = [run for each in mine for run in each.runs]
    if len(runs) > 1:
        counts = [(run.results.get("trials") or {}).get("policies", 0) for run in runs]
        said += _of_many(runs, max(*counts, len(runs)))
    if runs and asset in ASSETS:
        row = next(each for each in published(asset) if each.group == OURS)
        said.append(
            f"FLAG-Trader's published row has a return of {row.CR:.1f}% and a Sharpe ratio of "
            f"{row.SR:.2f}, of one run, the median of several; it states no interval."
        )
    return said


def _of_a_preset(each: Together) -> list[str]:
    runs = each.runs
    made = OverSeeds.of([run.figure("agent_greedy", "paper", "CR") for run in runs])
    spread = (
        f", {made.low:.1f} to {made.high:.1f}% in 95% (training noise, not market risk)"
        if made.runs > 1
        else ""
    )
    seeds = f"{len(runs)} seed{'s' * (len(runs) > 1)}"
    trained = [run for run in runs if "train" in run.results]
    learnt = (
        f"In sample {sum(_learnt(run) for run in trained)} of {len(trained)} beat 95% of random "
        f"policies and the untrained model; {_dependent(runs)}."
        if trained
        else f"{_dependent(runs).capitalize()}."
    )
    said = [
        f"{each.preset}, {seeds}: a mean return of {made.mean:.1f}%{spread}; "
        f"{sum(_above(run, 'random_p95') for run in runs)} above 95% of random policies, "
        f"{sum(_above(run, 'matched_p95') for run in runs)} above 95% of accounts with their own "
        f"times in the market, shuffled. {learnt}"
    ]
    beside = each.beside
    if not math.isnan(beside.low):
        year = runs[0].root_of_a_year
        said.append(
            f"The mean of its seeds' returns has a Sharpe ratio {year * beside.value:+.2f} a year "
            f"beside buy and hold's by order, {year * beside.low:+.2f} to {year * beside.high:+.2f}"
            f" in 95% (p = {beside.p:.2f})."
        )
    return said


def _of_many(runs: Sequence[Made], trials: int) -> list[str]:
    own = np.stack([run.returns[0] for run in runs], axis=1)
    p = superior_ability(runs[0].returns[1], own)
    records = [TrackRecord.of(returns) for returns in own.T]
    ratios = sorted((r.sharpe, number) for number, r in enumerate(records) if r.sharpe == r.sharpe)
    said = [
        "All of its runs are buy and hold by order."
        if math.isnan(p)
        else f"That the best of these {len(runs)} runs is no better than buy and hold by order "
        f"cannot be excluded (p = {p:.2f}, superior predictive ability)."
        if p >= 0.05
        else f"The best of these {len(runs)} runs is better than buy and hold by order (p = "
        f"{p:.3f}, superior predictive ability)."
    ]
    if len(ratios) > 1:
        year = runs[0].root_of_a_year
        variance = float(np.var([ratio for ratio, _ in ratios], ddof=1))
        median = records[ratios[(len(ratios) - 1) // 2][1]]
        luck = best_of_trials(trials, variance)
        said.append(
            f"Of {trials} trials without skill that vary as these do, the best is expected to show "
            f"a Sharpe ratio of {year * luck:.2f}; the run with the median ratio, "
            f"{year * median.sharpe:.2f}, is above that with a probability of "
            f"{deflated_sharpe(median, trials, variance):.2f} (deflated Sharpe ratio)."
        )
    return said


def _above(run: Made, row: str) -> bool:
    own, other = (run.figure(name, "standard", "CR") for name in ("agent_greedy", row))
    return own > other


def _learnt(run: Made) -> bool:
    own, *others = (
        run.figure(name, "standard", "CR", "train")
        for name in ("agent_greedy", "random_p95", "untrained_raw", "untrained_calibrated")
    )
    return all(own > other for other in others if not math.isnan(other))


def _dependent(runs: Sequence[Made]) -> str:
    reads = sum(bool(run.results["behaviour"]["depends_on_day"]) for run in runs)
    return f"the decisions of {reads} depend on the day"


def verdicts(known: Sequence[Together]) -> dict[str, list[str]]:
    """Sentences by asset, and `overall`."""
    found = {"overall": overall(known)}
    for asset in dict.fromkeys(each.asset for each in known):
        found[asset] = of_an_asset(known, asset)
    return found
