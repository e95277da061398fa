"""`flagtrl audit RUN`: what a saved policy knows, reads and assumes."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from flagtrl.countdown import Countdown, Say
from flagtrl.evidence.assumptions import Assumption, assumptions
from flagtrl.evidence.backtest import Backtest, backtest
from flagtrl.evidence.calibration import Calibration, calibration
from flagtrl.evidence.costs import cost_sweep
from flagtrl.evidence.counterfactuals import (
    Change,
    Counterfactual,
    changes,
    counterfactuals,
    in_words,
)
from flagtrl.evidence.cutoff import Sides, sides
from flagtrl.evidence.foresight import foretelling, judged, paid_for_the_future
from flagtrl.evidence.leaks import Build, Leak, Pipeline, moved_by_the_future
from flagtrl.evidence.page import AUDIT_FILE
from flagtrl.evidence.unfilled import paid_before_filled
from flagtrl.files import write_json
from flagtrl.language.tokens import PromptEncoder
from flagtrl.made_with import versions
from flagtrl.market.data import Window, parse_date
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import EXECUTIONS, Action
from flagtrl.market.observation import Observation
from flagtrl.market.policy import always
from flagtrl.market.transitions import POSITIONS, seen_at
from flagtrl.play.policy import Policy
from flagtrl.policy.acting import language_policy
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.trading import prompts_known_ahead, read_ahead
from flagtrl.runs.replay import Loaded

FORETOLD = (
    "No figure or word that it is shown, and no reward, says a price or move of the next ten "
    "bars better than honest news can; a copy of the future that says it no better is not found."
)


@dataclass(frozen=True, eq=False)
class Audit:
    """Of a policy on a window.

    Attributes:
        run: its greedy pass.
        leaks: what it is shown or paid that it cannot know yet.
        tested: decisions on which the future was changed.
        counterfactuals: by what it was shown instead.
        calibration: of its probabilities; None where no price moved.
        grid: execution to a row a cost, of the same positions.
        sides: before and after the base model's knowledge ends; None where that was not given.
        assumptions: what the result rests on.
        seconds: that it took.
    """

    run: Backtest
    leaks: Sequence[Leak]
    tested: int
    counterfactuals: Mapping[str, Counterfactual]
    calibration: Calibration | None
    grid: Mapping[str, Sequence[Mapping[str, Any]]]
    sides: Sides | None
    assumptions: Sequence[Assumption]
    seconds: float

    def sentences(self) -> list[str]:
        """What was found, in words."""
        said = [leak.sentence() for leak in self.leaks]
        if not said:
            said.append(
                f"No leak was found: on {self.tested} days neither what it is shown, reads, may do "
                "and decides, nor what it is paid, moved when the days after were changed."
            )
        if not judged(self.run.window):
            said.append(
                "Whether anything foretells its prices cannot be judged: they move too seldom, or "
                "there are too few."
            )
        elif all(leak.proved or leak.unsteady for leak in self.leaks):
            said.append(FORETOLD)
        said += in_words(self.counterfactuals)
        if self.calibration is not None:
            said.append(self.calibration.sentence())
        said += (
            ["No end of the base model's knowledge was given (--knowledge_cutoff): whether it has "
             "read of this period is not known."]
            if self.sides is None
            else self.sides.sentences()
        )  # fmt: skip
        return said

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        market, dates = self.run.window.market, self.run.window.dates
        return {
            "symbol": market.symbol,
            "data_sha256": market.fingerprint(),
            "window": [str(dates[0]), str(dates[-1]), len(dates)],
            "verdict": self.sentences(),
            "leaks": [{**asdict(leak), "sentence": leak.sentence()} for leak in self.leaks],
            "tested_days": self.tested,
            "counterfactuals": {n: each.as_dict() for n, each in self.counterfactuals.items()},
            "calibration": None if self.calibration is None else self.calibration.as_dict(),
            "costs": {name: list(rows) for name, rows in self.grid.items()},
            "knowledge_cutoff": None if self.sides is None else self.sides.as_dict(),
            "assumptions": [each.as_dict() for each in self.assumptions],
            "seconds": round(self.seconds, 1),
            "versions": versions(),
        }

    def write(self, directory: Path) -> None:
        """Write audit.json."""
        write_json(directory / AUDIT_FILE, self.as_dict())

    def print(self, console: Console | None = None) -> None:
        """Print tables and sentences."""
        console = console or Console(width=None if Console().is_terminal else 120)
        if self.counterfactuals:
            console.print(_counterfactual_table(self.counterfactuals))
        console.print(_cost_table(self.grid))
        console.print(_assumption_table(self.assumptions))
        for sentence in self.sentences():
            console.print(sentence, highlight=False, markup=False)


def audit(
    loaded: Loaded, knowledge_cutoff: str | None = None, say: Say = lambda line: None
) -> Audit:
    """Audit a saved policy on what it is to trade.

    Args:
        loaded: policy, settings and window.
        knowledge_cutoff: last day of which the base model may have read, YYYY-MM-DD.
        say: is told how far it is.

    Raises:
        DataError: a cut-off that is no date.
    """
    began, seed = time.monotonic(), int(loaded.record.seed or 0)
    cutoff = None if knowledge_cutoff is None else parse_date(knowledge_cutoff)
    model, encoder = loaded.policy.model, loaded.policy.encoder
    settings, window = replace(loaded.settings, episode_start="fixed"), loaded.window
    policy = language_policy(model, encoder)
    read_ahead(model, encoder, window, settings, say, "test")
    build = pipeline_of(settings, encoder, policy)
    tell = Countdown(say, "changing the days after each")
    leaks = moved_by_the_future(build, window, seed, tell)
    for test in (foretelling, paid_for_the_future, paid_before_filled):
        leaks += test(build, window, seed)
    known = changes(window, seed)
    _read_changed(model, encoder, window, settings, known, say)
    found = counterfactuals(policy, window, settings, known)
    run = backtest(policy, window, settings)
    grid = {how: cost_sweep(run, replace(settings, execution=how)) for how in EXECUTIONS}
    held = always(Action.BUY)
    split = None if cutoff is None else sides(policy, held, window, settings, cutoff)
    return Audit(
        *(run, leaks, len(window) - 1, found, calibration(run, settings), grid, split),
        assumptions(settings, loaded.record, window, split, leaks),
        time.monotonic() - began,
    )


def pipeline_of(settings: MarketSettings, encoder: PromptEncoder, policy: Policy) -> Build:
    """The pipeline of a run, on any window."""

    def prompt(seen: Observation) -> str:
        said = encoder.prompt(seen)
        return f"{said.shared}\n{said.own}"

    return lambda window: Pipeline(TradingEnv(window, settings), prompt, policy)


def _read_changed(
    model: ActorCritic,
    encoder: PromptEncoder,
    window: Window,
    settings: MarketSettings,
    known: Mapping[str, Change],
    say: Say,
) -> None:
    """Run the frozen layers over what the policy will be shown, many prompts at a time."""
    if not prompts_known_ahead(encoder, window, settings):
        return
    device = next(model.parameters()).device
    for name, change in known.items():
        prompts = [
            encoder.encode(change(seen_at(window, settings, bar, position)))
            for bar in range(len(window))
            for position in POSITIONS
        ]
        model.read_ahead(prompts, device, Countdown(say, f"reading the bars, {name}"))


def _counterfactual_table(found: Mapping[str, Counterfactual]) -> Table:
    table = Table(title="Shown something else: the policy beside itself, on its own path")
    for number, name in enumerate(
        ("", "decisions\nchanged", "total\nvariation", "PC", "CI", "IDS", "return %", "Sharpe")
    ):
        table.add_column(name, justify="right" if number else "left")
    for name, each in found.items():
        figures = (
            *(each.total_variation, each.consistency, each.confidence_invariance),
            *(each.input_dependency, each.CR, each.SR),
        )
        table.add_row(name, f"{each.changed:.0%}", *map(_cell, figures))
    return table


def _cost_table(grid: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    table = Table(title="The same positions at other costs and fills: return %, Sharpe")
    table.add_column("")
    rows = next(iter(grid.values()))
    for each in rows:
        table.add_column(f"{each['bps']} bps", justify="right")
    for how, costs in grid.items():
        cells = [f"{_cell(each['CR'])}, {_cell(each['SR'])}" for each in costs]
        table.add_row(how, *cells)
    return table


def _assumption_table(card: Sequence[Assumption]) -> Table:
    table = Table(title="What the result rests on")
    for name in ("assumption", "here", "tested"):
        table.add_column(name, overflow="fold")
    for each in card:
        table.add_row(each.name, each.here, each.tested)
    return table


def _cell(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) or np.isinf(value) else f"{value:.3f}"
