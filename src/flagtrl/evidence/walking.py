"""What a walk through a series says: its steps side by side, the chained accounts, and sentences
computed from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from flagtrl.errors import AdapterError, reason
from flagtrl.evidence.days import passes_of, read_days
from flagtrl.evidence.judgement import Judgement, of_a_year, of_values, sentences
from flagtrl.evidence.page import read_results
from flagtrl.evidence.rows import Rows, json_rows
from flagtrl.evidence.rules import MATCHED_DRAWS
from flagtrl.evidence.statistics import Interval, sharpe_interval
from flagtrl.evidence.stitching import AGENT, BY_ORDER, WHOLE, Stitched, stitch
from flagtrl.evidence.tables import Made, check_prompts
from flagtrl.evidence.verdict import least_ratio
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings

UNTRAINED = "untrained_calibrated"


@dataclass(frozen=True, eq=False)
class Walked:
    """Finished steps.

    Attributes:
        runs: one a step, in the order of their test windows.
        stitched: their accounts, chained.
        plan: lengths, embargo and the like, as walkforward.json has them.
        volatility_periods: of the `paper` convention's AV.
        notes: what else must be said.
    """

    runs: Sequence[Made]
    stitched: Stitched
    plan: Mapping[str, Any]
    volatility_periods: int = 252
    notes: Sequence[str] = ()

    @classmethod
    def read(
        cls,
        directories: Sequence[Path],
        windows: Sequence[Window],
        settings: MarketSettings,
        plan: Mapping[str, Any],
        volatility_periods: int = 252,
        notes: Sequence[str] = (),
        draws: int = MATCHED_DRAWS,
    ) -> Walked:
        """Of the runs' directories.

        Args:
            directories: of finished runs.
            windows: their test windows.
            settings: of trading.
            plan: as of the attributes.
            volatility_periods: as of the attributes.
            notes: as of the attributes.
            draws: of matched accounts.

        Raises:
            AdapterError: one that is missing or damaged, of other data or days, or made with other
                settings than the first one.
        """
        market = windows[0].market
        known, runs, passes = market.fingerprint(), [], []
        for directory, window in zip(directories, windows, strict=True):
            results = read_results(directory)
            try:
                traded = results["windows"]["test"], results["data"]["sha256"]
                preset, seed = str(results["preset"]), results["seed"]
                runs.append(Made(market.symbol, preset, seed, directory, results))
                _check_alike(runs, settings)
            except (KeyError, TypeError, AttributeError) as error:
                raise AdapterError(
                    f"{directory}: the results are damaged ({reason(error)}); remove the folder, "
                    "and it is made again"
                ) from error
            if traded != (list(window.span), known):
                raise AdapterError(
                    f"{directory} was traded on other data than those that --data names now; bring "
                    "those back, or remove the folder, and it is made again"
                )
            test = read_days(directory)
            passes.append(passes_of(test[test["window"] == "test"], window))
        chained = stitch(windows, passes, settings, draws)
        return cls(runs, chained, plan, volatility_periods, notes)

    @cached_property
    def rows(self) -> Rows:
        """The table of the chained values."""
        return self.stitched.rows(self.volatility_periods)

    @cached_property
    def judgement(self) -> Judgement | None:
        """What the agent's chained returns can show; None below 20."""
        curves, periods = self.stitched.curves, self.stitched.window.market.periods_per_year
        rate, shifts = self.stitched.settings.risk_free_rate, self.stitched.shifts
        own, held = curves[AGENT], curves[BY_ORDER]
        return of_values(own, held, periods, shifts, risk_free_rate=rate)

    @cached_property
    def beside_whole(self) -> Interval | None:
        """The agent's Sharpe ratio a year above that of buy and hold over all bars; None where
        there are too few.
        """
        if self.judgement is None:
            return None
        own, other = (self.stitched.curves[row] for row in (AGENT, WHOLE))
        rate = self.stitched.settings.risk_free_rate
        returns = [each[1:] / each[:-1] - 1 - rate for each in (own, other)]
        periods = self.stitched.window.market.periods_per_year
        return of_a_year(sharpe_interval(*returns), math.sqrt(periods))

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """A row of the table for each step, JSON-serialisable; None where undefined."""
        return [self._step(run) for run in self.runs]

    def _step(self, run: Made) -> dict[str, Any]:
        results = run.results
        options, did = results.get("options") or {}, results["behaviour"]
        valid = [options.get(f"valid_{end}") for end in ("start", "end")]
        found: dict[str, Any] = {
            "run": run.directory.name,
            "train": results["windows"]["train"],
            "validate": valid if valid[0] else None,
            "test": results["windows"]["test"],
        }
        rows = {"out_of_sample": AGENT, BY_ORDER: BY_ORDER, WHOLE: WHOLE, UNTRAINED: UNTRAINED}
        for name, row in rows.items():
            found[name] = {m: _defined(run.figure(row, "standard", m)) for m in ("CR", "SR")}
        found["in_sample"] = {
            m: _defined(run.figure(AGENT, "standard", m, "train")) for m in ("CR", "SR")
        }
        told = ("exposure", "trades", "entropy", "depends_on_day")
        found |= {name: did[name] for name in told}
        return {**found, "trials": (results.get("trials") or {}).get("policies")}

    def verdict(self) -> list[str]:
        """What all of it says, in plain sentences."""
        said = [*self._returns(), *self._steps(), self._matched()]
        if self.judgement is not None:
            said += sentences(self.judgement)
        if self.beside_whole is not None and not math.isnan(self.beside_whole.low):
            beside = self.beside_whole
            within = beside.low <= 0 <= beside.high
            said.append(
                f"Its Sharpe ratio against buy and hold over the whole is {beside.value:+.2f}, "
                f"from {beside.low:+.2f} to {beside.high:+.2f}: "
                + ("no difference can be told." if within else "a difference that can be told.")
            )
        least = least_ratio(
            len(self.stitched.window) - 1, self.stitched.window.market.periods_per_year
        )
        return [*said, *least, *self._seams(), *self._tried(), *self.notes]

    def _returns(self) -> list[str]:
        made = {row: by["standard"].CR for row, by in self.rows.items()}
        first, last = (str(self.stitched.window.dates[end]) for end in (0, -1))
        begun = "goes on from the one before" if self.plan["continued"] else "begins anew"
        steps = "1 step" if len(self.runs) == 1 else f"{len(self.runs)} steps"
        untrained = f", and untrained {made[UNTRAINED]:.1f}%" if UNTRAINED in made else ""
        return [
            f"{steps}, each of which {begun}, tested from {first} to {last}: out of "
            f"sample the agent made {made[AGENT]:.1f}%, buy and hold {made[WHOLE]:.1f}%, buy and "
            f"hold by an order in each window {made[BY_ORDER]:.1f}%{untrained}."
        ]

    def _steps(self) -> list[str]:
        steps = self.steps
        above = sum(
            each["out_of_sample"]["CR"] > max(each[BY_ORDER]["CR"], each[WHOLE]["CR"])
            for each in steps
        )
        reads = sum(bool(each["depends_on_day"]) for each in steps)
        said = [
            f"It returned more than buy and hold of both kinds in {above} of {len(steps)} windows; "
            f"its decisions depend on the day in {reads}."
        ]
        if same := self.stitched.identical(BY_ORDER):
            said.append(f"It is identical to buy and hold by order, on every day, in {same}.")
        inside, outside = (
            [each[where]["SR"] for each in steps] for where in ("in_sample", "out_of_sample")
        )
        both = [(a, b) for a, b in zip(inside, outside, strict=True) if None not in (a, b)]
        if both:
            a, b = np.mean(both, axis=0)
            of = "" if len(both) == len(steps) else f", over the {len(both)} steps that have both"
            said.append(
                f"Its Sharpe ratio is {a:.2f} a year in sample and {b:.2f} out of sample, on "
                f"average{of}."
            )
        return said

    def _matched(self) -> str:
        low, high = (self.rows[f"matched_p{share}"]["standard"].CR for share in (5, 95))
        if math.isclose(low, high, rel_tol=1e-9, abs_tol=1e-9):
            return "Its times in the market have no other order: there is nothing to match."
        return (
            "Accounts that are in the market as long and trade as often in each window, at other "
            f"times, made {low:.1f} to {high:.1f}% in 90% of draws."
        )

    def _seams(self) -> list[str]:
        count = len(self.stitched.seams)
        over, begun = (100 * each for each in self.stitched.nobodys())
        said = []
        if count:
            seams = "seam" if count == 1 else f"{count} seams"
            said.append(
                f"Every window begins in cash: over the {seams} between them the asset made "
                f"{over:+.1f}%, which buy and hold over the whole alone has."
            )
        if self.stitched.settings.execution == "next_price":
            said.append(
                "Nor can an order have filled before a window's second price: over the first "
                f"moves the asset made {begun:+.1f}%."
            )
        else:
            said.append("Orders fill at the price that they were decided at, which is optimistic.")
        return said

    def _tried(self) -> list[str]:
        counts = [each["trials"] for each in self.steps if each["trials"]]
        if not counts or max(counts) < 2:
            return []
        return [f"Up to {max(counts)} policies were tried on one of its windows on this machine."]

    def record(self) -> dict[str, Any]:
        """JSON-serialisable: all but the days."""
        found, results = self.judgement, self.runs[0].results
        beside = self.beside_whole
        return {
            "plan": dict(self.plan),
            "data": {name: results["data"][name] for name in ("symbol", "source", "sha256")},
            "preset": results["preset"],
            "seed": results["seed"],
            "settings": results["settings"],
            "verdict": self.verdict(),
            "steps": self.steps,
            "rows": json_rows(self.rows),
            "statistics": None if found is None else found.as_dict(),
            "beside_whole": None
            if beside is None
            else {name: _defined(value) for name, value in beside._asdict().items()},
            "seams": [str(window.dates[0]) for window in self.stitched.windows[1:]],
            "model": results.get("model"),
            "commits": sorted({str(run.results.get("commit")) for run in self.runs}),
            "versions": results.get("versions"),
        }


def _check_alike(runs: Sequence[Made], settings: MarketSettings) -> None:
    """AdapterError where the last of the runs was not made with the settings of the first, or of
    trading now: a --config file may have changed since.
    """
    check_prompts(runs)
    last = runs[-1].results["settings"]
    wanted = {**runs[0].results["settings"], "market": asdict(settings)}
    for concern, ours in wanted.items():
        for name, value in ours.items():
            if (theirs := last[concern].get(name)) != value:
                raise AdapterError(
                    f"{runs[-1].directory} was made with {name} {theirs!r}, not with {value!r} as "
                    "the other steps or the options now; give the same options, or remove the "
                    "folder, and it is made again"
                )


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None
