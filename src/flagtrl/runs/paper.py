"""`flagtrl paper`: the paper's tables with runs of one's own in them."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flagtrl.countdown import Say
from flagtrl.errors import ConfigError, FlagtrlError, unknown
from flagtrl.evidence.frictions import frictions
from flagtrl.evidence.replication import write_replication
from flagtrl.evidence.rows import piped
from flagtrl.evidence.tables import (
    CONVENTIONS,
    Made,
    assets_of,
    check_conditions,
    long_rows,
    side_by_side,
    tables_of,
)
from flagtrl.evidence.together import together, verdicts
from flagtrl.files import write_json, write_text
from flagtrl.places import check_output_dir
from flagtrl.runs.arguments import check_run, refuse_own
from flagtrl.runs.recipes import RECIPES
from flagtrl.runs.settings import PRESETS
from flagtrl.runs.sweep import Task, Workers, check_failures, finished, planned, sweep

TABLES_FILE, ROWS_FILE, RECORD_FILE = "tables.md", "tables.csv", "paper.json"
# what each run decides by itself, and the sweep for it
OWN = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "seed", "recipe", "preset")


@dataclass(frozen=True)
class Plan:
    """Which runs.

    Attributes:
        assets: by symbol, of recipes.
        presets: by name.
        seeds: from 0 on.
        words: more options of every run.
        data: asset to a file, instead of InvestorBench's figures.
    """

    assets: Sequence[str]
    presets: Sequence[str]
    seeds: int
    words: Sequence[str] = ()
    data: Mapping[str, str] | None = None

    def tasks(self) -> list[Task]:
        """All with one seed before the next, so that tables fill evenly."""
        found = []
        for seed in range(self.seeds):
            for asset in self.assets:
                file = (self.data or {}).get(asset)
                named = ["--recipe", asset.lower(), *([] if file is None else ["--data", file])]
                for preset in self.presets:
                    own = [*named, "--preset", preset, "--seed", str(seed), *self.words]
                    found.append(Task(f"{asset}/{preset}/seed-{seed}", tuple(own)))
        return found

    def _check_names(self) -> None:
        for option, names in {"assets": self.assets, "preset": self.presets}.items():
            if not names or len(set(names)) < len(names):
                raise ConfigError(f"{option} is {','.join(names)!r}; name at least one, each once")
        if unused := sorted(set(self.data or {}) - set(self.assets)):
            raise ConfigError(f"data names {unused[0]}, which --assets does not; add it there")

    def check(self, out: Path) -> None:
        """Refuse what a run would refuse, before the first; ConfigError, DataError."""
        if self.seeds < 1:
            raise ConfigError(f"seeds is {self.seeds}; it must be at least 1")
        for asset in (*self.assets, *(self.data or {})):
            if asset.lower() not in RECIPES:
                raise unknown("asset", asset, [name.upper() for name in RECIPES])
        for preset in self.presets:
            if preset not in PRESETS:
                raise unknown("preset", preset, PRESETS)
        self._check_names()
        instead = "--assets, --preset, --seeds and --output_dir"
        refuse_own(self.words, OWN, "flagtrl paper", instead)
        for task in replace(self, seeds=1).tasks():
            recipe = task.name.partition("/")[0].lower()
            check_run([*task.words, "--output_dir", str(out)], recipe)


def assets_and_files(data: Sequence[str]) -> dict[str, str]:
    """Of ASSET=FILE words; ConfigError of another."""
    pairs = [word.partition("=") for word in data]
    for asset, equals, file in pairs:
        if not (asset and equals and file):
            raise ConfigError(f"data is {asset + equals + file!r}; write ASSET=FILE, as TSLA=x.csv")
    return {asset.upper(): file for asset, _, file in pairs}


def replicate(plan: Plan, out: Path, workers: Workers, say: Say = print) -> None:
    """Make the runs that are not finished, and write and print the tables, after each run too.

    Raises:
        ConfigError: a plan or a folder that cannot be; runs that failed, once all others are done.
        Interrupted: the same plan goes on later.
    """
    check_output_dir(str(out))
    plan.check(out)
    tasks = plan.tasks()
    made(out)  # what lies there must fit

    def after() -> None:
        try:
            _write(made(out), out)
        except FlagtrlError as error:  # the other runs go on
            say(f"the tables could not be written: {error}")

    failed = sweep(tasks, out, workers, say, after)
    if runs := made(out):
        show(runs, _write(runs, out))
        say(f"tables.md, tables.csv, paper.json and report.html: {out}")
    check_failures(failed, out, len(tasks))


def made(out: Path) -> list[Made]:
    """What is finished in a folder, of this plan, of earlier ones and of `flagtrl trade`, by seed:
    ASSET/NAME/seed-N.

    Raises:
        AdapterError: one that is another asset's or seed's, or was traded otherwise than its like.
    """
    found = []
    for directory in sorted(out.glob("*/*/seed-*")):
        asset, name, seed = directory.relative_to(out).parts
        number = seed.removeprefix("seed-")
        if number.isdecimal() and finished(directory):
            found.append(Made.read(asset, name, int(number), directory))
    check_conditions(found)
    rank = {name: number for number, name in enumerate(PRESETS)}
    return sorted(found, key=lambda run: (rank.get(run.preset, len(rank)), run.preset, run.seed))


def _write(runs: Sequence[Made], out: Path) -> dict[str, list[str]]:
    return write_tables(runs, options_of(out), out) if runs else {}


def write_tables(
    runs: Sequence[Made], options: Mapping[str, str], out: Path, undrawn: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Write tables.md, tables.csv, paper.json and report.html; what the runs say.

    Args:
        runs: finished ones.
        options: of `options_of`.
        out: a folder.
        undrawn: assets whose prices the page must not show.
    """
    known = together(runs)
    said = verdicts(known)
    write_text(out / TABLES_FILE, markdown(runs, said))
    rows = long_rows(runs)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / ROWS_FILE, text.getvalue())
    write_json(out / RECORD_FILE, record(runs, options, said))
    write_replication(runs, known, said, options, out, undrawn)
    return said


def options_of(out: Path) -> dict[str, str]:
    """What each preset's runs were given besides asset, data, preset and seed; by asset where they
    differ.
    """
    given: dict[str, dict[str, str]] = {}
    for task in planned(out):
        asset, preset, _ = task.name.split("/")
        words = list(task.words)
        for name in ("--recipe", "--data", "--preset", "--seed"):
            if name in words:
                place = words.index(name)
                del words[place : place + 2]
        given.setdefault(preset, {})[asset] = shlex.join(words)
    found = {}
    for preset, by_asset in given.items():
        same = len(set(by_asset.values())) == 1
        told = (
            [next(iter(by_asset.values()))] if same else [f"{a} {w}" for a, w in by_asset.items()]
        )
        found[preset] = "; ".join(told).strip()
    return found


def record(
    runs: Sequence[Made], options: Mapping[str, str], said: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """What was made and what it says, JSON-serialisable; each run's own is its results.json."""
    return {
        "options": dict(options),
        "verdict": {name: list(sentences) for name, sentences in said.items()},
        "runs": [_recorded(run) for run in runs],
    }


def _recorded(run: Made) -> dict[str, Any]:
    names = ["commit", "versions", "windows", "collapsed_at", "behaviour", "trials", "starts"]
    names += ["policy", "costs", "test", "train"]
    told = {name: run.results[name] for name in names if name in run.results}
    statistics = (run.results.get("statistics") or {}).get("agent_greedy")
    found = {"asset": run.asset, "preset": run.preset, "seed": run.seed, "statistics": statistics}
    found["measures"] = (run.results.get("measures") or {}).get("agent_greedy")
    found["data"] = {name: run.results["data"][name] for name in ("symbol", "sha256")}
    found["market"] = run.results["settings"]["market"]
    return _rounded({**found, **told})


def _rounded(value: Any) -> Any:
    """Six digits after the point, which is less than a table shows."""
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 6) if isinstance(value, float) else value


def markdown(runs: Sequence[Made], said: Mapping[str, Sequence[str]]) -> str:
    """The tables in the paper's convention, then in the standard one, what they say, and those of
    the training windows.
    """
    parts = [_legend(runs), "\n".join(f"- {sentence}" for sentence in said["overall"])]
    for title, assets in tables_of(runs):
        parts += _tables(runs, title, assets, "test")
        parts += [
            f"### {asset}\n\n" + "\n".join(f"- {each}" for each in said[asset])
            for asset in assets
            if asset in said
        ]
    if costs := frictions(runs):
        table = piped(costs[0], costs[1:], 2)
        parts.append(f"## What costs leave, `standard` convention\n\n{table}")
    if trained := [run for run in runs if "train" in run.results]:
        for title, assets in tables_of(trained):
            parts += _tables(trained, f"In sample: {title}", assets, "train")
    return "\n\n".join(parts) + "\n"


def _legend(runs: Sequence[Made]) -> str:
    """What rows, figures and windows are."""
    first = {asset: next(r.results for r in runs if r.asset == asset) for asset in assets_of(runs)}
    windows = {asset: results["windows"]["test"] for asset, results in first.items()}
    trading = {_traded(results["settings"]["market"]): None for results in first.values()}
    told = {
        "Windows": "; ".join(f"{a} {begin} to {end}" for a, (begin, end, _) in windows.items()),
        "Trading": "; or ".join(trading),
        "CR, AV, MDD": (
            "return, annualised volatility and largest drawdown, percent; SR the annualised Sharpe "
            "ratio. `paper`: sums of log returns, as FLAG-Trader's tables are computed, with 252 "
            "bars in a Sharpe ratio's year and the recipe's in the volatility's (365 for TSLA and "
            "BTC, as published); `standard`: simple returns of the account"
        ),
        "Rows": (
            "published ones; controls; then `PRESET: ROW`, means over its runs, `(2)` behind one "
            "that is defined in two of them alone, `-` where it is in none"
        ),
        "random": (
            "policies that draw from the legal actions: their mean, 5th and 95th percentile; "
            "`matched`: of accounts with the run's exposure and as many trades at other times; "
            "`perturbed`: of its model with the trained weights moved at random"
        ),
        "linear, mlp": "Stable-Baselines3's PPO on numbers, where there are such rows",
        "What costs leave": (
            "the same decisions traded again, with fees of so much a trade and no slippage in "
            "place of the run's own; break-even is the cost at which they would have earned nothing"
        ),
        "Intervals": "in tables.csv: 95% of the mean over runs, which is training noise alone",
    }
    return "\n".join(f"- **{name}**: {words}." for name, words in told.items())


def _traded(market: Mapping[str, Any]) -> str:
    return (
        f"`{market.get('execution', '-')}` fills, {market.get('cost_bps', 0):g} bps of fees and "
        f"{market.get('slippage_bps', 0):g} bps of slippage a trade"
    )


def _tables(runs: Sequence[Made], title: str, assets: Sequence[str], window: str) -> Iterator[str]:
    for convention in CONVENTIONS:
        head, *rows = side_by_side(runs, assets, convention, window)
        yield f"## {title}, `{convention}` convention\n\n{piped(head, rows)}"


def show(runs: Sequence[Made], said: Mapping[str, Sequence[str]]) -> None:
    """Print the tables in the paper's convention, and what they say."""
    console = Console(width=None if Console().is_terminal else 140)
    for title, assets in tables_of(runs):
        header, *rows = side_by_side(runs, assets, "paper")
        table = Table(title=f"{title}, paper convention: CR, AV and MDD in percent")
        for number, name in enumerate(header):
            table.add_column(name.replace(" ", "\n"), justify="right" if number else "left")
        for cells in rows:
            table.add_row(*cells)
        console.print(table)
    for name, sentences in said.items():
        for sentence in sentences:
            lead = "" if name == "overall" else f"{name}: "
            console.print(f"{lead}{sentence}", highlight=False, markup=False)
