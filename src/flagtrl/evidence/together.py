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
        held = sum(_above(run, "random_p95", "buy_and_hold_by_order") for run in mine)
        said.append(
            f"{preset}: {sum(_above(run, 'random_p95') for run in mine)} of {len(mine)} runs "
            "return more than 95% of random policies on the test window, as one Buy order would "
            f"in {held}{_beyond_perturbed(mine)}; {_beyond_matched(mine)}; {_dependent(mine)}."
        )
    said.append("Runs on one window are not independent: they trade the same days.")
    said.append(_beside_held(known))
    return said


def _beside_held(known: Sequence[Together]) -> str:
    named = {f"{each.preset} on {each.asset}": each.beside for each in known}
    corrected = holm({name: beside.p for name, beside in named.items()})
    judged = sum(not math.isnan(p) for p in corrected.values())
    told = [
        f"{name} is {'higher' if named[name].value > 0 else 'lower'} (p = {p:.3f})"
        for name, p in corrected.items()
        if p < 0.05
    ]
    said = f"Beside buy and hold by order, of {judged} comparisons of Sharpe ratios "
    if told:
        return f"{said}these differ at 5% after Holm's correction: {', '.join(told)}."
    return f"{said}none differs at 5% after Holm's correction."


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
    learnt = f"{_in_sample(trained)} " if trained else ""
    read = f"{_dependent(runs)}."
    said = [
        f"{each.preset}, {seeds}: a mean return of {made.mean:.1f}%{spread}; "
        f"{sum(_above(run, 'random_p95') for run in runs)} above 95% of random policies, "
        f"{_beyond_matched(runs)}{_beyond_perturbed(runs)}. {learnt}{read.capitalize()}"
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
            f"Of at least {trials} trials without skill that vary as these do, the best is "
            f"expected to show a Sharpe ratio of {year * luck:.2f}; the run with the median ratio, "
            f"{year * median.sharpe:.2f}, is above that with a probability of "
            f"{deflated_sharpe(median, trials, variance):.2f} (deflated Sharpe ratio)."
        )
    return said


def _above(run: Made, row: str, own: str = "agent_greedy") -> bool:
    return run.figure(own, "standard", "CR") > run.figure(row, "standard", "CR")


def _beyond_matched(runs: Sequence[Made]) -> str:
    """Against accounts with the agents' own times in the market, where those can differ."""
    told = [run for run in runs if run.matched_tells()]
    if not told:
        return "none has times in the market that could be shuffled"
    above = sum(_above(run, "matched_p95") for run in told)
    of = "" if len(told) == len(runs) else f" of {len(told)} that have other times to be in it"
    rivals = "accounts with their own times in the market, shuffled"
    return f"{above}{of} return more than 95% of {rivals}"


def _beyond_perturbed(runs: Sequence[Made]) -> str:
    """Against models of their kind whose weights are moved at random, where they were drawn."""
    told = [run for run in runs if run.has("perturbed_p95")]
    if not told:
        return ""
    above = sum(_above(run, "perturbed_p95") for run in told)
    of = "" if len(told) == len(runs) else f" of {len(told)}"
    return f"; {above}{of} return more than 95% of models of their kind with randomly moved weights"


def _in_sample(runs: Sequence[Made]) -> str:
    """Against random policies and, where all runs have one, the untrained model."""
    rows = ["random_p95"]
    untrained = ("untrained_raw", "untrained_calibrated")
    rows += [row for row in untrained if all(row in run.results["train"] for run in runs)]
    beaten = sum(
        all(
            run.figure("agent_greedy", "standard", "CR", "train")
            > run.figure(row, "standard", "CR", "train")
            for row in rows
        )
        for run in runs
    )
    model = " and the untrained model" if len(rows) > 1 else ""
    return f"In sample {beaten} of {len(runs)} beat 95% of random policies{model}."


def _dependent(runs: Sequence[Made]) -> str:
    reads = sum(bool(run.results["behaviour"]["depends_on_day"]) for run in runs)
    return f"the decisions of {reads} depend on the day"


def verdicts(known: Sequence[Together]) -> dict[str, list[str]]:
    """Sentences by asset, and `overall`."""
    found = {"overall": overall(known)}
    for asset in dict.fromkeys(each.asset for each in known):
        found[asset] = of_an_asset(known, asset)
    return found
