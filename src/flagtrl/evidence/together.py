"""What several runs say together, in plain sentences computed from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flagtrl.evidence.chance import SAME_PERCENT, above, above_held
from flagtrl.evidence.frictions import DEAR_BPS
from flagtrl.evidence.published import ASSETS, OURS, published
from flagtrl.evidence.statistics import (
    FEWEST_RETURNS,
    SAME_RETURN,
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
NO_OTHER_ORDER = "always in or out, one entry alone, or in and out every other bar"
SAME_SHAPE = 1e-9  # a difference of scaled returns that is rounding


class Together(NamedTuple):
    """A preset on an asset.

    Attributes:
        asset, preset: which.
        runs: of it, one a seed.
        beside: the Sharpe ratio a bar of the mean of its seeds' returns, above buy and hold's by
            order; with an interval by stationary bootstrap. All seeds in equal parts vary less than
            the mean seed does, so their ratio tends to lie above that of a typical one.
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
        return all(np.abs(own - held).max() <= SAME_RETURN for own, held in _returns(self.runs))


def _returns(runs: Sequence[Made]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(run.returns[0], run.returns[1]) for run in runs]


def _scaled(returns: np.ndarray) -> np.ndarray:
    """In units of their root mean square: what a Sharpe ratio sees of them."""
    size = math.sqrt(float(np.mean(returns**2)))
    return returns / size if size > SAME_RETURN else returns


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
            f"return more than 95% of random policies on the test window (in {held} one Buy order "
            f"does), and {ratio} have a higher Sharpe ratio than 95% of them"
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
    free, *dear = counted
    costs = " and ".join(f"on {count} at {bps}" for count, bps in zip(dear, DEAR_BPS, strict=True))
    return (
        f"{runs[0].preset}: without costs the mean return is above one Buy order's on {free} of "
        f"{assets} asset{'s' * (assets > 1)}, {costs} basis points a trade."
    )


def _compared(known: Sequence[Together]) -> dict[str, Interval]:
    """Comparisons with buy and hold; those that are no comparison are left out: buy and hold
    itself, and the same account under another name, or a part of it beside seeds that never trade.
    """
    found: dict[str, Interval] = {}
    seen: list[tuple[str, np.ndarray]] = []
    for each in known:
        own = _scaled(each.portfolio)
        again = any(
            asset == each.asset and np.abs(own - other).max() <= SAME_SHAPE for asset, other in seen
        )
        if not (each.is_held or again):
            found[f"{each.preset} on {each.asset}"] = each.beside
        seen.append((each.asset, own))
    return found


def _beside_held(known: Sequence[Together]) -> str:
    named = _compared(known)
    corrected = holm({name: beside.p for name, beside in named.items()})
    judged = sum(not math.isnan(p) for p in corrected.values())
    if not judged:
        return "No Sharpe ratio can be compared with that of buy and hold by order."

    def differing(p_values: Mapping[str, float]) -> str:
        told = [
            f"{name} is {'higher' if named[name].value > 0 else 'lower'} (p = {p:.3f})"
            for name, p in p_values.items()
            if p < 0.05
        ]
        return ", ".join(told) or "none"

    before = differing({name: beside.p for name, beside in named.items()})
    if judged == 1:
        return f"Beside the Sharpe ratio of buy and hold by order, at 5%: {before}."
    return (
        f"Of {judged} comparisons of Sharpe ratios with buy and hold by order, these differ at 5% "
        f"before Holm's correction for their number: {before}; after it: {differing(corrected)}."
    )


def of_an_asset(known: Sequence[Together], asset: str) -> list[str]:
    """Of the presets on one asset."""
    mine = [each for each in known if each.asset == asset]
    said = [sentence for each in mine for sentence in _of_a_preset(each)]
    runs = [run for each in mine for run in each.runs]
    if len(runs) > 1:
        said += _of_many(runs, trials_of(runs))
    if runs and asset in ASSETS:
        row = next(each for each in published(asset) if each.group == OURS)
        said.append(
            f"FLAG-Trader's published row has a return of {row.CR:.1f}% and a Sharpe ratio of "
            f"{row.SR:.2f}; it is of the run with the median of several, and states no interval."
        )
    return said


def trials_of(runs: Sequence[Made]) -> int:
    """How many policies were tried on a window, as far as its runs know."""
    return max(len(runs), *((run.results.get("trials") or {}).get("policies", 0) for run in runs))


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
        f"{sum(above(run, 'random_p95') for run in runs)} of {len(runs)} return more than 95% of "
        f"random policies{_beyond_perturbed(runs)}; {_beyond_matched(runs)}. "
        f"{learnt}{read.capitalize()}"
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
    whose = "its seeds in equal parts, rebalanced daily," if many else "it"
    said = (
        f"The Sharpe ratio of {whose} is {abs(value):.2f} a year "
        f"{'above' if value > 0 else 'below'} that of buy and hold by order (95% interval of the "
        f"difference {year * beside.low:+.2f} to {year * beside.high:+.2f}, p = {beside.p:.2f})"
    )
    if many:
        single = OverSeeds.of(
            [
                year * (TrackRecord.of(own).sharpe - TrackRecord.of(held).sharpe)
                for own, held in _returns(each.runs)
            ]
        )
        of = "" if single.runs == len(each.runs) else f" of the {single.runs} that trade"
        said += f"; the seeds' own differences{of} average {single.mean:+.2f}"
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
            f"{deflated_sharpe(median, trials, variance):.2f} (significant, two-sided, from 0.975 "
            "on). Trials that the list lacks would lower it."
        )
    return said


def _beyond_matched(runs: Sequence[Made]) -> str:
    """Against accounts with the agents' own times in the market, where those can differ."""
    told = [run for run in runs if run.matched_tells()]
    if not told:
        return f"none has times in the market that could be shuffled ({NO_OTHER_ORDER})"
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
    beaten = sum(all(above(run, row, window="train") for row in rows) for run in runs)
    model = " and more than the untrained model" if len(rows) > 1 else ""
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
