"""The result of a run: the agent beside baselines, as a table, results.json, trades.csv and a
picture.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
from flagtrl.evidence.verdict import behaviour, verdict
from flagtrl.made_with import versions
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings
from flagtrl.market.metrics import Metrics, paper, standard
from flagtrl.market.policy import Policy
from flagtrl.record import RunRecord

RESULTS_FILE, TRADES_FILE, CURVE_FILE = "results.json", "trades.csv", "equity_curve.png"
# of each evaluation in training: its name in trackers, and its place in the run's directory
PICTURE = "eval/equity_curve"
POLICY_MODES = ("greedy", "sampled")
BASELINES = (buy_and_hold, buy_and_hold_by_order, flat)
Convention = Callable[[np.ndarray], Metrics]


@dataclass(frozen=True, eq=False)
class Report:
    """A policy and its baselines on one window.

    Attributes:
        window: the bars traded.
        backtests: the agent's passes, by row name.
        curves: (n,) account values by row name, agent and baselines.
        random: (paths, n) account values of random policies.
        rows: row name to convention to Metrics.
        train: the same policies on the training window, in sample; None where it was not traded.
    """

    window: Window
    backtests: Mapping[str, Backtest]
    curves: Mapping[str, np.ndarray]
    random: np.ndarray
    rows: Mapping[str, Mapping[str, Metrics]]
    train: Report | None = None

    def write(self, directory: str | Path, record: RunRecord, **more: Any) -> None:
        """Write results.json, trades.csv and the equity curve.

        Args:
            directory: made where it does not exist.
            record: of the run, as these results are to say it.
            more: entries of results.json, JSON-serialisable.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {"test": _json_rows(self.rows)}
        if self.train is not None:
            content["train"] = _json_rows(self.train.rows)
        if (agent := self.backtests.get("agent_greedy")) is not None:
            content |= {"behaviour": behaviour(agent), "verdict": self.verdict()}
        content |= {**record.facts(), **more, "versions": versions()}
        (directory / RESULTS_FILE).write_text(
            json.dumps(content, indent=2, default=str, allow_nan=False) + "\n"
        )
        trades = pd.concat(
            [run.trades().assign(row=row) for row, run in self.backtests.items()], ignore_index=True
        )
        trades.to_csv(directory / TRADES_FILE, index=False)
        self.figure().savefig(directory / CURVE_FILE, dpi=120)

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

    def verdict(self) -> list[str]:
        """What the table says, in plain sentences; none where the agent's greedy row was not asked
        for.
        """
        agent = self.backtests.get("agent_greedy")
        if agent is None:
            return []
        train = None if self.train is None else self.train.rows
        return verdict(self.rows, self.curves, agent, self.window.market.periods_per_year, train)

    def figure(self) -> Figure:
        """Account values over the window, the agent's above the band of the random policies."""
        band = np.percentile(self.random, (5, 95), axis=0) / self.random[0, 0]
        return curves_figure(
            self.window,
            self.curves,
            f"{self.window.market.symbol}: account value, start = 1",
            band,
        )

    def print(self, console: Console | None = None) -> None:
        """Print the table and the verdict."""
        console = console or Console(width=None if Console().is_terminal else 120)
        console.print(self.table())
        for sentence in self.verdict():
            console.print(sentence, highlight=False, markup=False)


def curves_figure(
    window: Window, curves: Mapping[str, np.ndarray], title: str, band: np.ndarray | None = None
) -> Figure:
    """Account values (n,) over a window, each from 1, ours (`agent...`) in bold; `band` (2, n): the
    random policies'.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    dates = window.dates.astype("datetime64[ms]").astype(object)
    if band is not None:
        axes.fill_between(dates, *band, color="0.88", label="random, 5% to 95%")
    for row, values in curves.items():
        ours = row.startswith("agent")
        axes.plot(
            dates, values / values[0], lw=2 if ours else 1, ls="-" if ours else "--", label=row
        )
    axes.set_title(title, parse_math=False)
    axes.legend(loc="upper left", fontsize="small")
    axes.grid(alpha=0.3)
    figure.autofmt_xdate()
    return figure


def markdown_table(rows: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> str:
    """A table as results.json has it (row to convention to metric), in Markdown."""
    first = next(iter(rows.values()))
    cells = [(convention, name) for convention, metrics in first.items() for name in metrics]
    lines = [
        f"| | {' | '.join(f'{convention} {name}' for convention, name in cells)} |",
        "|---|" + "---:|" * len(cells),
    ]
    for row, by in rows.items():
        shown = [by[convention][name] for convention, name in cells]
        lines.append(
            f"| {row} | {' | '.join('-' if value is None else f'{value:.3f}' for value in shown)} |"
        )
    return "\n".join(lines)


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
    say: Say = lambda line: None,
) -> Report:
    """Backtest `policy`, greedy and sampled, beside others, buy and hold, flat and random policies.

    Args:
        policy: decides.
        window: the test window.
        settings: execution, costs and look-back; the baselines pay the same.
        seed: of the sampled actions and of the random policies.
        volatility_periods: of the `paper` convention's AV: 252, but 365 in the published rows of
            TSLA and BTC.
        modes: how the agent acts, a row each: `greedy` takes the likeliest action, `sampled` draws
            it.
        others: more policies by row name, taking their likeliest action; their trades are kept.
        rules: more baselines by row name.
        sampled_paths: of the sampled row, which is their mean, beside their 5% and 95% where there
            are several.
        kin: random policies of the agent's kind, one for each of `draws` accounts that trade the
            window in step; None: no such rows.
        draws: how many.
        say: is told how far it is, a line at a time.
    """
    if sampled_paths < 1:
        raise ConfigError(f"sampled_paths is {sampled_paths}; it must be at least 1")
    settings = replace(settings, episode_start="fixed")
    runs, sampled = _passes(policy, window, settings, seed, modes, sampled_paths, say)
    for row, other in (others or {}).items():
        tell = Countdown(say, f"trading, {row}")
        runs[row] = backtest(other, window, settings, seed=seed, tell=tell)
    curves = {row: run.values for row, run in runs.items()}
    curves |= {f.__name__: f(window, settings) for f in BASELINES}
    curves |= {row: backtest(each, window, settings).values for row, each in (rules or {}).items()}
    random = random_paths(window, settings, seed=seed)
    conventions: dict[str, Convention] = {
        "paper": lambda values: paper(values, volatility_periods),
        "standard": lambda values: standard(values, window.market.periods_per_year),
    }
    paths = {"agent_sampled": np.stack([run.values for run in sampled])} if sampled[1:] else {}
    rows = _rows(curves, paths, conventions) | _path_rows(
        "random_mean", "random", random, conventions
    )
    if kin is not None:
        drawn = np.stack([run.values for run in backtests(kin, window, settings, paths=draws)])
        rows |= _path_rows("perturbed_mean", "perturbed", drawn, conventions)
    curves |= {row: many.mean(0) for row, many in paths.items()}
    return Report(window, runs, curves, random, rows)


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


def _rows(
    curves: Mapping[str, np.ndarray],
    paths: Mapping[str, np.ndarray],
    conventions: Mapping[str, Convention],
) -> dict[str, Mapping[str, Metrics]]:
    """The metrics of each curve, or of its several paths, where there are any."""
    rows: dict[str, Mapping[str, Metrics]] = {}
    for row, values in curves.items():
        if row in paths:
            rows |= _path_rows(row, row, paths[row], conventions)
        else:
            rows[row] = {name: of(values) for name, of in conventions.items()}
    return rows


def _path_rows(
    mean: str, prefix: str, paths: np.ndarray, conventions: Mapping[str, Convention]
) -> dict[str, Mapping[str, Metrics]]:
    """The mean, 5% and 95% of the metrics of (paths, n) account values, each metric by itself."""
    drawn = {
        name: np.array([tuple(of(path).as_dict().values()) for path in paths])
        for name, of in conventions.items()
    }
    rows: dict[str, Mapping[str, Metrics]] = {
        mean: {name: _over_paths(all_, np.mean) for name, all_ in drawn.items()}
    }
    for share in (5, 95):
        percentile = partial(np.percentile, q=share)
        rows[f"{prefix}_p{share}"] = {
            name: _over_paths(all_, percentile) for name, all_ in drawn.items()
        }
    return rows


def _over_paths(drawn: np.ndarray, summary: Callable[[np.ndarray], float]) -> Metrics:
    """`summary` of each column of (paths, metrics); a path whose Sharpe ratio is undefined is left
    out of that column.
    """
    defined = (column[~np.isnan(column)] for column in drawn.T)
    return Metrics(*(float(summary(column)) if len(column) else math.nan for column in defined))


def _json_rows(rows: Mapping[str, Mapping[str, Metrics]]) -> dict[str, Any]:
    return {
        row: {
            name: {k: _json_number(v) for k, v in metrics.as_dict().items()}
            for name, metrics in by.items()
        }
        for row, by in rows.items()
    }


def _json_number(value: float) -> float | None:
    """JSON has no NaN: an undefined Sharpe ratio is null."""
    return None if math.isnan(value) else value


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
