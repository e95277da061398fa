"""What several runs say together, in plain sentences computed from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flagtrl.evidence.chance import SAME_PERCENT, above, above_held
from flagtrl.evidence.frictions import DEAR_BPS
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

DEPENDENT = "Runs on one window are not independent: they trade the same days."
SAME_RETURN = 1e-12  # a difference that is rounding


class Together(NamedTuple):
    """A preset on an asset.

    Attributes:
        asset, preset: which.
        runs: of it, one a seed.
        beside: the Sharpe ratio a bar of the mean of its seeds' returns, above buy and hold's by
            order; with an interval by stationary bootstrap. A portfolio of all seeds varies less
            than any, so its ratio is higher than theirs.
    """

    asset: str
    preset: str
    runs: Sequence[Made]
    beside: Interval

    @property
    def portfolio(self) -> np.ndarray:
        """(n,) the mean of its seeds' returns."""
        return np.mean([run.returns[0] for run in self.runs], axis=0)

    @property
    def is_held(self) -> bool:
        """Whether every seed is buy and hold by order."""
        return all(_same(*run.returns) for run in self.runs)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one - other).max() <= SAME_RETURN)


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
        held = sum(above(run, "random_p95", "buy_and_hold_by_order") for run in mine)
        ratio = sum(above(run, "random_p95", metric="SR") for run in mine)
        said.append(
            f"{preset}: {sum(above(run, 'random_p95') for run in mine)} of {len(mine)} runs "
            f"return more than 95% of random policies on the test window (one Buy order, held, "
            f"does in {held}), and {ratio} have a higher Sharpe ratio than 95% of them"
            f"{_beyond_perturbed(mine)}; {_beyond_matched(mine)}; {_dependent(mine)}."
        )
        if dear := _with_costs(mine):
            said.append(dear)
    return [*said, DEPENDENT, _beside_held(known)]


def in_short(known: Sequence[Together]) -> list[str]:
    """What `overall` says besides the counts, which are a table of their own."""
    said = overall(known)
    return [*said[:1], *said[-2:]] if said else []


def _with_costs(runs: Sequence[Made]) -> str:
    """On how many assets a preset's mean return is above one Buy order's, with costs and without;
    nothing where no run says what costs would leave.
    """
    counted, assets = above_held(runs)
    if not assets:
        return ""
    return (
        f"{runs[0].preset}: without costs the mean return is above one Buy order's on {counted[0]} "
        f"of {assets} asset{'s' * (assets > 1)}, at {DEAR_BPS} basis points a trade on "
        f"{counted[1]}."
    )


def _compared(known: Sequence[Together]) -> dict[str, Interval]:
    """Comparisons with buy and hold; those that are no comparison are left out: buy and hold
    itself, and the same accounts under another name.
    """
    found: dict[str, Interval] = {}
    seen: list[tuple[str, np.ndarray]] = []
    for each in known:
        own = each.portfolio
        again = any(asset == each.asset and _same(own, other) for asset, other in seen)
        if not (each.is_held or again):
            found[f"{each.preset} on {each.asset}"] = each.beside
        seen.append((each.asset, own))
    return found


def _beside_held(known: Sequence[Together]) -> str:
    named = _compared(known)
    corrected = holm({name: beside.p for name, beside in named.items()})
    judged = sum(not math.isnan(p) for p in corrected.values())
    before = sum(beside.p < 0.05 for beside in named.values())
    told = [
        f"{name} is {'higher' if named[name].value > 0 else 'lower'} (p = {p:.3f})"
        for name, p in corrected.items()
        if p < 0.05
    ]
    said = f"Of {judged} comparisons of Sharpe ratios with buy and hold by order, {before} "
    said += f"differ{'s' * (before == 1)} at 5% before Holm's correction for their number"
    if told:
        return f"{said}, and after it these do: {', '.join(told)}."
    return f"{said}, and none after it."


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
            f"{row.SR:.2f}; it is of the run with the median of several, and states no interval."
        )
    return said


def _of_a_preset(each: Together) -> list[str]:
    runs = each.runs
    made = OverSeeds.of([run.figure("agent_greedy", "paper", "CR") for run in runs])
    spread = ""
    if made.runs > 1:
        spread = (
            f", with a 95% interval from {made.low:.1f} to {made.high:.1f}% (training noise, not "
            "market risk)"
            if made.high - made.low > SAME_PERCENT
            else ", the same with every seed"
        )
    seeds = f"{len(runs)} seed{'s' * (len(runs) > 1)}"
    trained = [run for run in runs if "train" in run.results]
    learnt = f"{_in_sample(trained)} " if trained else ""
    read = f"{_dependent(runs)}."
    said = [
        f"{each.preset}, {seeds}: a mean return of {made.mean:.1f}%{spread}; "
        f"{sum(above(run, 'random_p95') for run in runs)} above 95% of random policies, "
        f"{_beyond_matched(runs)}{_beyond_perturbed(runs)}. {learnt}{read.capitalize()}"
    ]
    return [*said, *_against_held(each)]


def _against_held(each: Together) -> list[str]:
    """The Sharpe ratio beside buy and hold's, of all seeds together and of one."""
    if each.is_held:
        return ["It is buy and hold by order, on every day."]
    beside, year = each.beside, each.runs[0].root_of_a_year
    if math.isnan(beside.low):
        return []
    value = year * beside.value
    many = len(each.runs) > 1
    whose = "An equal-weighted portfolio of its seeds has a" if many else "Its"
    verb = "" if many else " is"
    said = (
        f"{whose} Sharpe ratio{verb} {'higher' if value > 0 else 'lower'} than buy and hold's by "
        f"order by {abs(value):.2f} a year, with a 95% interval of the difference from "
        f"{year * beside.low:+.2f} to {year * beside.high:+.2f} (p = {beside.p:.2f})"
    )
    if many:
        single = [
            TrackRecord.of(own).sharpe - TrackRecord.of(held).sharpe
            for own, held in (run.returns for run in each.runs)
        ]
        if not any(map(math.isnan, single)):
            said += f"; a single seed's difference is {year * np.mean(single):+.2f} in the mean"
    return [f"{said}."]


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
            f"Of {trials} trials without skill that vary as these do, the best is expected to "
            f"show a Sharpe ratio of {year * luck:.2f}; the run with the median ratio, "
            f"{year * median.sharpe:.2f}, has a deflated Sharpe ratio of "
            f"{deflated_sharpe(median, trials, variance):.2f} (significant from 0.95 on). Trials "
            "that the list of this machine lacks would lower it."
        )
    return said


def _beyond_matched(runs: Sequence[Made]) -> str:
    """Against accounts with the agents' own times in the market, where those can differ."""
    told = [run for run in runs if run.matched_tells()]
    if not told:
        return "none has times in the market that could be shuffled: always in, out or in turn"
    more = sum(above(run, "matched_p95") for run in told)
    of = "" if len(told) == len(runs) else f" of {len(told)} whose times can be shuffled"
    rivals = "accounts with the same exposure and as many trades at other times"
    return f"{more}{of} return more than 95% of {rivals}"


def _beyond_perturbed(runs: Sequence[Made]) -> str:
    """Against models of their kind whose weights are moved at random, where they were drawn."""
    told = [run for run in runs if run.has("perturbed_p95")]
    if not told:
        return ""
    more = sum(above(run, "perturbed_p95") for run in told)
    of = "" if len(told) == len(runs) else f" of {len(told)}"
    return f"; {more}{of} return more than 95% of models of their kind with randomly moved weights"


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
    return f"In sample {beaten} of {len(runs)} return more than 95% of random policies{model}."


def _dependent(runs: Sequence[Made]) -> str:
    reads = sum(bool(run.results["behaviour"]["depends_on_day"]) for run in runs)
    if not reads:
        return "no run's decisions depend on the day"
    return f"the decisions of {reads} depend on the day"


def verdicts(known: Sequence[Together]) -> dict[str, list[str]]:
    """Sentences by asset, and `overall`."""
    found = {"overall": overall(known)}
    for asset in dict.fromkeys(each.asset for each in known):
        found[asset] = of_an_asset(known, asset)
    return found
