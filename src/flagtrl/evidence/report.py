"""The result of a run: the agent beside baselines, as a table, results.json, trades.csv and a
picture.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flagtrl.countdown import Countdown, Say
from flagtrl.errors import ConfigError
from flagtrl.evidence.backtest import SAMPLING_TEMPERATURE, Backtest, backtest, backtests
from flagtrl.evidence.baselines import buy_and_hold, buy_and_hold_by_order, flat, random_paths
from flagtrl.evidence.costs import cost_sweep
from flagtrl.evidence.curves import curves_figure
from flagtrl.evidence.days import DAYS_FILE, day_by_day
from flagtrl.evidence.judgement import Judgement, judgement, sentences
from flagtrl.evidence.measures import measures
from flagtrl.evidence.page import write_report
from flagtrl.evidence.rows import Rows, conventions, json_rows, row_of, rows_of_paths
from flagtrl.evidence.rules import matched_paths
from flagtrl.evidence.starts import Spread, as_dict
from flagtrl.evidence.starts import in_words as words_of
from flagtrl.evidence.statistics import FEWEST_RETURNS, FEWEST_SHIFTS
from flagtrl.evidence.trials import Trials, counted, in_words
from flagtrl.evidence.verdict import behaviour, verdict
from flagtrl.made_with import versions
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings
from flagtrl.market.ledger import Action
from flagtrl.market.metrics import Metrics
from flagtrl.market.policy import always
from flagtrl.play.policy import Policy
from flagtrl.record import RunRecord

RESULTS_FILE, TRADES_FILE, CURVE_FILE = "results.json", "trades.csv", "equity_curve.png"
# of each evaluation in training: its name in trackers, and its place in the run's directory
PICTURE = "eval/equity_curve"
POLICY_MODES = ("greedy", "sampled")
# of the rules, what would crowd a picture, and what would dwarf it
UNDRAWN = ("momentum", "mean_reversion", "sma_crossover", "oracle_hindsight")
BASELINES = (buy_and_hold, buy_and_hold_by_order, flat)


@dataclass(frozen=True, eq=False)
class Report:
    """A policy and its baselines on one window.

    Attributes:
        window: the bars traded.
        settings: execution and costs, the same for all.
        backtests: the agent's passes, by row name.
        controls: the rules' passes, by row name.
        curves: (n,) account values by row name, agent and baselines.
        bands: (paths, n) account values of each kind of luck: `random`, `matched`, `perturbed`.
        rows: row name to convention to Metrics.
        notes: what else the verdict must say.
        train: the same policies on the training window, in sample; None where it was not traded.
        trials: how many policies were tried on this window; None where they were not counted.
        spread: row name to what it makes where it begins later.
    """

    window: Window
    settings: MarketSettings
    backtests: Mapping[str, Backtest]
    controls: Mapping[str, Backtest]
    curves: Mapping[str, np.ndarray]
    bands: Mapping[str, np.ndarray]
    rows: Mapping[str, Mapping[str, Metrics]]
    notes: tuple[str, ...] = ()
    train: Report | None = None
    trials: Trials | None = None
    spread: Mapping[str, Spread] = field(default_factory=dict)

    def counted(self, record: RunRecord) -> Report:
        """The same, written down as a trial on its window; too short ones are not.

        Args:
            record: of the run, as `write` takes it.
        """
        if self.judgement is None:
            return self
        returns = _returns(self.backtests["agent_greedy"]) - self.settings.risk_free_rate
        return replace(self, trials=counted(record, self.window, returns))

    def write(self, directory: str | Path, record: RunRecord, **more: Any) -> None:
        """Write results.json, trades.csv, days.parquet, the equity curve, and report.html of them.

        Args:
            directory: made where it does not exist.
            record: of the run, as these results are to say it.
            more: entries of results.json, JSON-serialisable.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {"test": json_rows(self.rows)}
        if self.train is not None:
            content["train"] = json_rows(self.train.rows)
        if (agent := self.backtests.get("agent_greedy")) is not None:
            content |= {"behaviour": behaviour(agent), "verdict": self.verdict()}
            content["costs"] = cost_sweep(agent, self.settings)
            content["policies"] = {row: behaviour(run) for row, run in self.backtests.items()}
        if (found := self.judgement) is not None:
            content["statistics"] = {"agent_greedy": found.as_dict()}
        if self.trials is not None:
            content["trials"] = self.trials.as_dict()
        if self.spread:
            content["starts"] = as_dict(self.spread)
        content["measures"] = self.measures()
        content |= {**record.facts(), **more, "versions": versions()}
        (directory / RESULTS_FILE).write_text(
            json.dumps(content, indent=2, default=str, allow_nan=False) + "\n", encoding="utf-8"
        )
        trades = pd.concat(
            [run.trades().assign(row=row) for row, run in self.backtests.items()], ignore_index=True
        )
        trades.to_csv(directory / TRADES_FILE, index=False)
        self.days().to_parquet(directory / DAYS_FILE, index=False)
        self.figure().savefig(directory / CURVE_FILE, dpi=120)
        write_report([str(directory)])

    def days(self) -> pd.DataFrame:
        """What every row was worth and did, day by day, on both windows."""
        both = {"test": self, **({} if self.train is None else {"train": self.train})}
        return pd.concat(
            [day_by_day(n, r.window, r._passes(), r.curves, r.bands) for n, r in both.items()],
            ignore_index=True,
        )

    def table(self) -> Table:
        """Both conventions side by side, one row a policy."""
        dates = self.window.dates
        table = Table(
            title=(
                f"{escape(self.window.market.symbol)}, {dates[0]} to {dates[-1]}, {len(dates)} "
                "prices"
            )
        )
        table.add_column("")
        for convention in next(iter(self.rows.values())):
            for name in ("CR %", "SR", "AV %", "MDD %"):
                table.add_column(f"{convention}\n{name}", justify="right")
        for row, by in self.rows.items():
            cells = [
                _cell(value) for metrics in by.values() for value in metrics.as_dict().values()
            ]
            table.add_row(row, *cells)
        return table

    @property
    def random(self) -> np.ndarray:
        """(paths, n) account values of policies that draw uniformly."""
        return self.bands["random"]

    @cached_property
    def judgement(self) -> Judgement | None:
        """What the greedy agent's returns can show; None where there are fewer than 20, or no such
        row.
        """
        agent = self.backtests.get("agent_greedy")
        if agent is None:
            return None
        held = backtest(always(Action.BUY), self.window, self.settings)
        return judgement(agent, held, self.settings)

    def measures(self) -> dict[str, dict[str, float | None]]:
        """More measures of every pass, by row name."""
        passes = self._passes()
        return {row: measures(run, self.settings).as_dict() for row, run in passes.items()}

    def _passes(self) -> dict[str, Backtest]:
        """Every row that is one pass: the sampled one may be the mean of many."""
        several = "agent_sampled_p5" in self.rows
        passes = {**self.backtests, **self.controls}
        return {row: run for row, run in passes.items() if row != "agent_sampled" or not several}

    def _telling_rows(self) -> Mapping[str, Mapping[str, Metrics]]:
        """Without matched luck where the agent's times in the market have few other orders: then
        it is the agent itself.
        """
        matched = self.bands.get("matched")
        if matched is not None and len(np.unique(matched[:, -1])) >= FEWEST_SHIFTS:
            return self.rows
        return {row: by for row, by in self.rows.items() if not row.startswith("matched_")}

    def verdict(self) -> list[str]:
        """What the table says, in plain sentences; none where the agent's greedy row was not asked
        for.
        """
        agent = self.backtests.get("agent_greedy")
        if agent is None:
            return []
        train = None if self.train is None else self.train._telling_rows()
        periods = self.window.market.periods_per_year
        said = verdict(self._telling_rows(), self.curves, agent, periods, train)
        if (found := self.judgement) is not None:
            said += sentences(found)
            if self.trials is not None:
                said.append(in_words(self.trials, math.sqrt(periods), found.sharpe.value))
        else:
            few = f"{len(agent.values) - 1} returns are too few for an interval or a test"
            said.append(f"{few}, which need {FEWEST_RETURNS}.")
        said += words_of(self.spread)
        if self.settings.execution == "same_price":
            said.append("Orders fill at the price that they were decided at, which is optimistic.")
        return [*said, *self.notes]

    def figure(self) -> Figure:
        """Account values over the window, the agent's above the band of the random policies."""
        band = np.percentile(self.random, (5, 95), axis=0) / self.random[0, 0]
        return curves_figure(
            self.window,
            {row: values for row, values in self.curves.items() if row not in UNDRAWN},
            f"{self.window.market.symbol}: account value, start = 1",
            band,
        )

    def print(self, console: Console | None = None) -> None:
        """Print the table and the verdict."""
        console = console or Console(width=None if Console().is_terminal else 120)
        console.print(self.table())
        for sentence in self.verdict():
            console.print(sentence, highlight=False, markup=False)


def evaluate(
    policy: Policy,
    window: Window,
    settings: MarketSettings,
    seed: int = 0,
    volatility_periods: int = 252,
    modes: Sequence[str] = POLICY_MODES,
    others: Mapping[str, Policy] | None = None,
    rules: Mapping[str, Policy] | None = None,
    sampled_paths: int = 1,
    kin: Policy | None = None,
    draws: int = 0,
    matched_draws: int = 0,
    notes: Sequence[str] = (),
    say: Say = lambda line: None,
) -> Report:
    """Backtest `policy`, greedy and sampled, beside others, buy and hold, flat and random policies.

    Args:
        policy: decides.
        window: the test window.
        settings: execution, costs and look-back; the baselines pay the same.
        seed: of the sampled actions and of luck.
        volatility_periods: of the `paper` convention's AV: 252, or 365 as in published rows.
        modes: how the agent acts, a row each: `greedy` takes the likeliest action, `sampled` draws
            it.
        others: more policies by row name, taking their likeliest action; their trades are kept.
        rules: more baselines by row name.
        sampled_paths: of the sampled row, which is their mean, beside their 5% and 95% where there
            are several.
        kin: random policies of the agent's kind, one for each of `draws` accounts that trade the
            window in step; None: no such rows.
        draws: how many.
        matched_draws: accounts that trade as often as the greedy agent, at other times; 0: none.
        notes: what else the verdict must say.
        say: is told how far it is, a line at a time.
    """
    settings = replace(settings, episode_start="fixed")
    runs, sampled = _passes(policy, window, settings, seed, modes, sampled_paths, say)
    for row, other in (others or {}).items():
        runs[row] = backtest(other, window, settings, tell=Countdown(say, f"trading, {row}"))
    controls = {row: backtest(each, window, settings) for row, each in (rules or {}).items()}
    curves = {row: run.values for row, run in runs.items()}
    curves |= {f.__name__: f(window, settings) for f in BASELINES}
    curves |= {row: run.values for row, run in controls.items()}
    periods, rate = window.market.periods_per_year, settings.risk_free_rate
    known = conventions(volatility_periods, periods, rate)
    rows: Rows = {row: row_of(values, known) for row, values in curves.items()}
    if sampled[1:]:
        name, many = "agent_sampled", _values(sampled)
        curves[name] = many.mean(0)
        rows = _after(rows, name, rows_of_paths(name, name, many, known))
    bands = {"random": random_paths(window, settings, seed=seed)}
    if matched_draws and "agent_greedy" in runs:
        bands["matched"] = matched_paths(runs["agent_greedy"], settings, matched_draws, seed)
    if kin is not None:
        bands["perturbed"] = _values(backtests(kin, window, settings, paths=draws))
    for prefix, paths in bands.items():
        rows |= rows_of_paths(f"{prefix}_mean", prefix, paths, known)
    return Report(window, settings, runs, controls, curves, bands, rows, tuple(notes))


def _returns(run: Backtest) -> np.ndarray:
    return run.values[1:] / run.values[:-1] - 1


def _values(runs: Sequence[Backtest]) -> np.ndarray:
    return np.stack([run.values for run in runs])


def _after(rows: Rows, name: str, new: Rows) -> Rows:
    """Rows in which several stand in the place of one."""
    found: Rows = {}
    for row, by in rows.items():
        found |= new if row == name else {row: by}
    return found


def _passes(
    policy: Policy,
    window: Window,
    settings: MarketSettings,
    seed: int,
    modes: Sequence[str],
    sampled_paths: int,
    say: Say,
) -> tuple[dict[str, Backtest], list[Backtest]]:
    """The agent's passes by row name, and all of the sampled ones."""
    if sampled_paths < 1:
        raise ConfigError(f"sampled_paths is {sampled_paths}; it must be at least 1")
    runs: dict[str, Backtest] = {}
    sampled: list[Backtest] = []
    for mode in modes:
        tell = Countdown(say, f"trading, {mode}")
        if mode == "greedy":
            runs["agent_greedy"] = backtest(policy, window, settings, seed=seed, tell=tell)
        else:
            sampled = backtests(
                policy, window, settings, SAMPLING_TEMPERATURE, seed, sampled_paths, tell
            )
            runs["agent_sampled"] = sampled[0]
    return runs, sampled


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
