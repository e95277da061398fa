"""Several runs, seeds and presets on several assets, as the tables of the paper: published rows,
controls and ours side by side, and what they say together.

One convention a table. What stands for several seeds is their mean; its interval is training
noise, and says nothing of the market's risk. No best seed is named.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from flagtrl.errors import AdapterError, reason
from flagtrl.evidence.days import read_days
from flagtrl.evidence.published import ASSETS, TABLES, published
from flagtrl.evidence.statistics import LEVEL

METRICS = ("CR", "SR", "AV", "MDD")
CONVENTIONS, WINDOWS = ("paper", "standard"), ("test", "train")
CONTROLS = (
    *("buy_and_hold", "buy_and_hold_by_order", "flat"),
    *("momentum", "mean_reversion", "sma_crossover", "follow_news", "oracle_hindsight"),
    *("random_mean", "random_p5", "random_p95"),
)
# of each preset: rows that depend on its agent, its model or its prompts
OF_THE_AGENT = (
    *("agent_greedy", "agent_sampled", "agent_without_news"),
    *("untrained_raw", "untrained_calibrated", "matched_p5", "matched_p95"),
    *("perturbed_p5", "perturbed_p95"),
)
# of the market's settings
SAME_FOR_ALL = (
    *("execution", "cost_bps", "slippage_bps", "initial_cash"),
    *("risk_free_rate", "cash_rate"),
)


@dataclass(frozen=True, eq=False)
class Made:
    """A finished run, as tables need it.

    Attributes:
        asset: by symbol.
        preset: of its settings.
        seed: of it.
        directory: where it is.
        results: its results.json.
    """

    asset: str
    preset: str
    seed: int
    directory: Path
    results: Mapping[str, Any]

    @classmethod
    def read(cls, asset: str, preset: str, seed: int, directory: Path) -> Made:
        """Of a run's directory; AdapterError where it cannot be read, or is another asset's or
        seed's.
        """
        path = directory / "results.json"
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            assert isinstance(results["test"]["agent_greedy"]["standard"], dict)
            traded, drawn = results["data"]["symbol"], results["seed"]
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise AdapterError(f"{path} is damaged ({reason(error)}); remove the run") from error
        if (traded, drawn) != (asset, seed):
            raise AdapterError(
                f"{directory} holds {traded} with seed {drawn}; a folder of the tables is "
                f"ASSET/NAME/seed-N of its own asset and seed: move it to "
                f"{traded}/{preset}/seed-{drawn}"
            )
        return cls(asset, preset, seed, directory, results)

    def figure(self, row: str, convention: str, metric: str, window: str = "test") -> float:
        """A number of its table; NaN where it has none."""
        by = self.results.get(window, {}).get(row)
        value = None if by is None else by[convention][metric]
        return math.nan if value is None else float(value)

    def has(self, row: str, window: str = "test") -> bool:
        """Whether its table of a window has the row."""
        return row in self.results.get(window, {})

    @property
    def conditions(self) -> dict[str, Any]:
        """What runs of one asset must have in common to stand in one table."""
        market = self.results["settings"]["market"]
        return {
            "test window": self.results["windows"]["test"],
            "data (sha256)": self.results["data"]["sha256"][:12],
            **{name: market.get(name, 0.0) for name in SAME_FOR_ALL},
        }

    def at_cost(self, bps: int) -> float:
        """The greedy agent's return of the `standard` convention, percent, had each trade cost so
        many basis points; NaN where that was not asked.
        """
        return next((c["CR"] for c in self.results.get("costs") or () if c["bps"] == bps), math.nan)

    def held_at_cost(self, bps: float) -> float:
        """Buy and hold's by order, without slippage: it trades once, and a fee f leaves 1 / (1 + f)
        of the value. Of an account that was ruined it is approximate.
        """
        market = self.results["settings"]["market"]
        known = 1.0
        for name in ("cost_bps", "slippage_bps"):
            known *= 1 + market.get(name, 0.0) / 10_000
        growth = 1 + self.figure("buy_and_hold_by_order", "standard", "CR") / 100
        return 100 * (growth * known / (1 + bps / 10_000) - 1)

    def measure(self, name: str) -> float:
        """One of the greedy agent's `Measures`; NaN where it is undefined or was not taken."""
        value = (self.results.get("measures") or {}).get("agent_greedy", {}).get(name)
        return math.nan if value is None else float(value)

    def matched_tells(self, window: str = "test") -> bool:
        """Whether accounts with its own times in the market differ from it at all."""
        low, high = (
            self.figure(f"matched_p{share}", "standard", "CR", window) for share in (5, 95)
        )
        return low != high and not math.isnan(low)

    @property
    def root_of_a_year(self) -> float:
        """What makes its Sharpe ratios per bar annual."""
        return math.sqrt(self.results["data"]["summary"]["periods_per_year"])

    @cached_property
    def returns(self) -> np.ndarray:
        """(2, n) simple returns above the risk-free rate on the test window: the greedy agent's,
        and buy and hold's by order.
        """
        days = read_days(self.directory)
        days = days[days["window"] == "test"]
        rows = ("agent_greedy", "buy_and_hold_by_order")
        values = [days[days["row"] == row]["value"].to_numpy() for row in rows]
        rate = self.results["settings"]["market"].get("risk_free_rate", 0.0)
        return np.stack([each[1:] / each[:-1] - 1 - rate for each in values])


class OverSeeds(NamedTuple):
    """A figure of several runs.

    Attributes:
        mean: of those in which it is defined; NaN where it is in none.
        low, high: 95% interval of the mean by Student's t; NaN of one.
        runs: in how many it is defined.
    """

    mean: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> OverSeeds:
        """Of one value a run."""
        known = np.array([value for value in values if not math.isnan(value)])
        if not len(known):
            return cls(math.nan, math.nan, math.nan, 0)
        mean = float(known.mean())
        if len(known) == 1:
            return cls(mean, math.nan, math.nan, 1)
        reach = float(stats.t.ppf(1 - LEVEL / 2, len(known) - 1) * stats.sem(known))
        return cls(mean, mean - reach, mean + reach, len(known))


@dataclass(frozen=True)
class Line:
    """A row of an asset's table.

    Attributes:
        row: its name; of a run's own rows with the preset before it.
        kind: `published`, `control` or `ours`.
        figures: by metric.
        runs: how many it is of.
    """

    row: str
    kind: str
    figures: Mapping[str, OverSeeds]
    runs: int = 1

    def cell(self, metric: str) -> str:
        """The mean, in parentheses of how many runs where it is undefined in others; `-` where it
        is undefined in all.
        """
        figure = self.figures[metric]
        if figure.runs in (0, self.runs):
            return cell(figure.mean)
        return f"{cell(figure.mean)} ({figure.runs})"


def lines(runs: Sequence[Made], asset: str, convention: str, window: str = "test") -> list[Line]:
    """The table of an asset, on a window. Published rows stand in that of the test window, by the
    `paper` convention, alone.
    """
    mine = [run for run in runs if run.asset == asset]
    found = []
    if (convention, window) == ("paper", "test") and asset in ASSETS:
        for printed in published(asset):
            figures = {m: OverSeeds(getattr(printed, m), math.nan, math.nan, 1) for m in METRICS}
            found.append(Line(printed.model, "published", figures))
    for row in CONTROLS:
        if having := [run for run in mine if run.has(row, window)]:
            figures = _figures(having, row, convention, window)
            found.append(Line(row, "control", figures, len(having)))
    for preset in presets(mine):
        of_it = [run for run in mine if run.preset == preset]
        for row in OF_THE_AGENT:
            having = [run for run in of_it if run.has(row, window)]
            if row.startswith("matched_"):
                having = [run for run in having if run.matched_tells(window)]
            if having:
                kind = "ours" if row in ("agent_greedy", "agent_sampled") else "control"
                figures = _figures(having, row, convention, window)
                found.append(Line(f"{preset}: {row}", kind, figures, len(having)))
    return found


def _figures(runs: Sequence[Made], row: str, convention: str, window: str) -> dict[str, OverSeeds]:
    return {
        m: OverSeeds.of([run.figure(row, convention, m, window) for run in runs]) for m in METRICS
    }


def check_prompts(runs: Sequence[Made]) -> None:
    """AdapterError where two runs that are to differ in seed or days alone read other prompts, as
    where the code of a style has changed between them.
    """
    told = {run.directory: run.results.get("prompt_fingerprint") for run in runs}
    known = {where: prints for where, prints in told.items() if prints is not None}
    for where, prints in known.items():
        first = next(iter(known))
        if prints != known[first]:
            raise AdapterError(
                f"{where} was trained on prompts that read otherwise than those of {first}; "
                "remove the one with the wrong prompts, and it is made again"
            )


def check_conditions(runs: Sequence[Made]) -> None:
    """AdapterError where two runs of an asset were not traded alike."""
    first: dict[str, Made] = {}
    for asset, preset in dict.fromkeys((run.asset, run.preset) for run in runs):
        check_prompts([run for run in runs if (run.asset, run.preset) == (asset, preset)])
    for run in runs:
        other = first.setdefault(run.asset, run)
        for name, value in run.conditions.items():
            if value != other.conditions[name]:
                raise AdapterError(
                    f"{run.directory} has {name} {value}, {other.directory} has "
                    f"{other.conditions[name]}; runs of an asset must be traded alike to stand in "
                    "one table: give them folders of their own"
                )


def presets(runs: Sequence[Made]) -> list[str]:
    """In the order of the runs."""
    return list(dict.fromkeys(run.preset for run in runs))


def assets_of(runs: Sequence[Made]) -> list[str]:
    """In the paper's order; others after them."""
    there = dict.fromkeys(run.asset for run in runs)
    return [a for a in ASSETS if a in there] + [a for a in there if a not in ASSETS]


def tables_of(runs: Sequence[Made]) -> Iterator[tuple[str, list[str]]]:
    """The title of each table, and those of its assets that there are runs of."""
    there = assets_of(runs)
    for number, assets in TABLES.items():
        if chosen := [asset for asset in assets if asset in there]:
            yield f"Table {number}", chosen
    if others := [asset for asset in there if asset not in ASSETS]:
        yield "Other assets", others


def side_by_side(
    runs: Sequence[Made], assets: Sequence[str], convention: str, window: str = "test"
) -> list[list[str]]:
    """A table of several assets as cells: a header, and a row for every line of any of them, with
    `-` where an asset has no such line or the figure is undefined.
    """
    by_asset = {a: {each.row: each for each in lines(runs, a, convention, window)} for a in assets}
    names = list(dict.fromkeys(row for known in by_asset.values() for row in known))
    names.sort(key=lambda row: _rank(row, by_asset))
    header = ["", *(f"{asset} {metric}" for asset in assets for metric in METRICS)]
    cells = [header]
    for row in names:
        shown = [row]
        for known in by_asset.values():
            line = known.get(row)
            shown += [line.cell(m) if line else "-" for m in METRICS]
        cells.append(shown)
    return cells


def _rank(row: str, by_asset: Mapping[str, Mapping[str, Line]]) -> tuple[int, int]:
    """Published rows, controls, then ours with their own controls; else in the order met."""
    kind = next(known[row].kind for known in by_asset.values() if row in known)
    own = ":" in row and kind != "published"
    place = CONTROLS.index(row) if row in CONTROLS else 0
    return (2 if own else {"published": 0}.get(kind, 1)), place


def cell(value: float) -> str:
    """A figure of a table; a dash where it is undefined."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def long_rows(runs: Sequence[Made]) -> list[dict[str, Any]]:
    """Every figure of every line on both windows in both conventions, for a CSV file; None where
    undefined.
    """
    found = []
    for asset, window, convention in product(assets_of(runs), WINDOWS, CONVENTIONS):
        for line in lines(runs, asset, convention, window):
            for metric, figure in line.figures.items():
                numbers = {
                    name: None if math.isnan(value) else value
                    for name, value in zip(("mean", "low", "high"), figure[:3], strict=True)
                }
                found.append(
                    {
                        **{"asset": asset, "convention": convention, "row": line.row},
                        **{
                            "kind": line.kind,
                            "metric": metric,
                            "runs": figure.runs,
                            "of": line.runs,
                        },
                        **{**numbers, "window": window},
                    }
                )
    return found
