"""`flagtrl walk-forward`: a run for each test window of a series, and what they make together."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flagtrl.countdown import Say
from flagtrl.errors import ConfigError, unknown
from flagtrl.evidence.page import PAGE_FILE
from flagtrl.evidence.walkforward import Step, Walk
from flagtrl.evidence.walking import Walked
from flagtrl.evidence.walkpage import CURVES_FILE, WALK_FILE, write_walk
from flagtrl.market.data import MarketData, Window
from flagtrl.market.env import MarketSettings
from flagtrl.places import check_output_dir
from flagtrl.runs.arguments import check_run, read_run, refuse_own
from flagtrl.runs.data import DataSettings, market_of
from flagtrl.runs.judging import NOTES
from flagtrl.runs.recipes import DEFAULT_RECIPE, RECIPES
from flagtrl.runs.settings import chosen
from flagtrl.runs.sweep import Ended, Task, Workers, check_failures, sweep

# what each run decides by itself, and walk-forward for it
OWN = (
    *("train_start", "train_end", "test_start", "test_end", "valid_start", "valid_end"),
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "init_adapter"),
)
# how a run chooses a policy by its validation window, where its options do not say it
SELECTION = {
    **{"eval_strategy": "steps", "eval_steps": "20", "save_steps": "20"},
    **{"metric_for_best_model": "standard_SR", "load_best_model_at_end": "true"},
}


@dataclass(frozen=True)
class WalkForward:
    """What `flagtrl walk-forward` is told.

    Attributes:
        walk: how windows roll; its embargo is `embargo`'s.
        embargo: bars; None: the look-back of the runs, so that no test prompt shows a price that
            was trained on.
        continued: each step begins with the policy of the one before it; else with the base model.
        words: options of every run.
        recipe: an entry of RECIPES; None: MSFT's, but for its symbol where `words` name a file.
    """

    walk: Walk
    embargo: int | None = None
    continued: bool = False
    words: Sequence[str] = ()
    recipe: str | None = None

    def __post_init__(self) -> None:
        if self.recipe is not None and self.recipe not in RECIPES:
            raise unknown("recipe", self.recipe, RECIPES)
        instead = "--train, --test, --validate, --continued and --output_dir"
        refuse_own(self.words, OWN, "flagtrl walk-forward", instead)

    @property
    def all_words(self) -> list[str]:
        """Options of every run, the recipe's name among them."""
        return [*self.words, *([] if self.recipe is None else ["--recipe", self.recipe])]


@dataclass(frozen=True)
class Planned:
    """The runs, before the first is made.

    Attributes:
        told: by the user.
        out: the folder of the runs and of what they make together, absolute.
        market: all bars.
        data: of every run's options.
        settings: of trading, the same for all.
        seed: of every run.
    """

    told: WalkForward
    out: Path
    market: MarketData
    data: DataSettings
    settings: MarketSettings
    seed: int

    @classmethod
    def of(cls, told: WalkForward, out: Path) -> Planned:
        """Read the data and the options; ConfigError, DataError of what a run would refuse too."""
        data, reading, ppo, settings, _ = read_run(told.all_words, told.recipe or DEFAULT_RECIPE)
        named = [data.init_adapter, data.valid_start, data.valid_end]
        if any(each is not None for each in named):
            raise ConfigError(
                "the --config file has init_adapter, valid_start or valid_end, which walk-forward "
                "sets for each run; leave them out, or use --continued and --validate"
            )
        if ppo.eval_strategy != "no" and told.walk.validate is None:
            raise ConfigError(
                f"eval_strategy is {ppo.eval_strategy}, but there is no validation window; give "
                "its length, as --validate 3m"
            )
        market = market_of(data.source, data.symbol, reading)
        return cls(told, out.resolve(), market, data, settings, int(ppo.seed))

    @cached_property
    def walk(self) -> Walk:
        """How windows roll, embargo included."""
        bars = self.settings.lookback if self.told.embargo is None else self.told.embargo
        return replace(self.told.walk, embargo=bars)

    @cached_property
    def steps(self) -> list[Step]:
        """The windows; ConfigError where they do not fit the data."""
        return self.walk.steps(self.market.dates)

    @cached_property
    def names(self) -> list[str]:
        """Of the steps: the first day of each one's test."""
        return [str(self.market.dates[step.test.start]) for step in self.steps]

    @cached_property
    def tasks(self) -> list[Task]:
        """The runs, in the order of their tests."""
        found = []
        for number, (name, step) in enumerate(zip(self.names, self.steps, strict=True)):
            words = [*self.told.all_words, *self._windows(step)]
            if self.told.continued and number:
                words += ["--init_adapter", str(self.out / self.names[number - 1])]
            found.append(Task(name, tuple(words)))
        return found

    def _windows(self, step: Step) -> list[str]:
        named = {"train": step.train, "test": step.test}
        words = []
        if step.validate is not None:
            named["valid"] = step.validate
            ours = {
                n: value for n, value in SELECTION.items() if chosen(self.told.words, n) is None
            }
            words += [word for name, value in ours.items() for word in (f"--{name}", value)]
        for name, bars in named.items():
            window = self.window(bars)
            words += [f"--{name}_start", str(window.dates[0]), f"--{name}_end"]
            words.append(str(window.dates[-1]))
        return words

    def window(self, bars: range) -> Window:
        """The bars as a window of the market."""
        return Window(self.market, bars.start, bars.stop)

    def facts(self) -> dict[str, Any]:
        """How windows roll, as walkforward.json has it."""
        walk, told = self.walk, self.told
        return {
            **{"train": str(walk.train), "test": str(walk.test)},
            **{"validate": None if walk.validate is None else str(walk.validate)},
            **{"embargo": walk.embargo, "anchored": walk.anchored},
            **{"first_test": walk.first_test, "continued": told.continued},
            "options": shlex.join(told.all_words),
        }

    def check(self) -> None:
        """Refuse what a run would refuse, before the first; ConfigError, DataError."""
        recipe, words = self.told.recipe or DEFAULT_RECIPE, self.tasks[0].words
        check_run([*words, "--output_dir", str(self.out)], recipe)
        ppo = read_run(words, recipe)[2]
        if self.walk.validate is not None and float(ppo.eval_steps or 0) > ppo.optimizer_steps:
            raise ConfigError(
                f"eval_steps is {ppo.eval_steps:g}, but a run has {ppo.optimizer_steps} updates: "
                "its validation window would choose nothing; give smaller --eval_steps and "
                "--save_steps, or more --total_timesteps"
            )


class InOrder:
    """Workers that make one run after the other, and none after one that failed: each goes on from
    the one before it.

    Args:
        workers: make them.
        out: the sweep's folder.
    """

    def __init__(self, workers: Workers, out: Path):
        self.workers, self.out = workers, out
        self._pool = ThreadPoolExecutor(1)
        self._failed: Ended | None = None

    def __enter__(self) -> InOrder:
        self.workers.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self.workers.__exit__(*error)

    def submit(self, task: Task) -> Future[Ended]:
        """As of Workers."""
        return self._pool.submit(self._make, task)

    def to_stop(self) -> list[Any]:
        """As of Workers."""
        return self.workers.to_stop()

    def _make(self, task: Task) -> Ended:
        if (failed := self._failed) is not None:
            with task.log(self.out).open("a", encoding="utf-8") as file:
                print(f"not begun: {failed.task.name}, which it goes on from, failed", file=file)
            return Ended(task, failed.code, 0.0)
        ended = self.workers.submit(task).result()
        self._failed = ended if ended.code else None
        return ended


def walk_forward(told: WalkForward, out: Path, workers: Workers, say: Say = print) -> None:
    """Make the runs that are not finished, then write and print what they make together.

    Args:
        told: by the user.
        out: a folder.
        workers: make the runs; one at a time where each goes on from the one before it.
        say: is told how far it is.

    Raises:
        ConfigError: windows or a folder that cannot be; runs that failed, once all that can be
            made without them are.
        Interrupted: the same command goes on later.
    """
    check_output_dir(str(out))
    planned = Planned.of(told, out)
    planned.check()
    for line in plan_in_words(planned):
        say(line)
    if told.continued:
        workers = InOrder(workers, planned.out)
    failed = sweep(planned.tasks, planned.out, workers, say)
    order = {task.name: number for number, task in enumerate(planned.tasks)}
    failed.sort(key=lambda ended: order[ended.task.name])
    check_failures(failed, planned.out, len(planned.tasks))
    walked = Walked.read(
        [task.directory(planned.out) for task in planned.tasks],
        [planned.window(step.test) for step in planned.steps],
        planned.settings,
        planned.facts(),
        planned.data.volatility_periods,
        NOTES,
    )
    show(write_walk(walked, planned.out), say)
    say(f"{PAGE_FILE}, {WALK_FILE}, {CURVES_FILE}, and a folder for each step: {out}")


def plan_in_words(planned: Planned) -> list[str]:
    """The windows, a line for each step."""
    embargo = planned.walk.embargo
    count = len(planned.steps)
    steps = "1 step" if count == 1 else f"{count} steps"
    said = [f"{steps}, an embargo of {embargo} bars before what comes next"]
    for number, step in enumerate(planned.steps, start=1):
        named: Mapping[str, range | None] = {
            **{"train": step.train, "validate": step.validate, "test": step.test}
        }
        told = [
            f"{name} {days[0]} to {days[-1]} ({len(days)})"
            for name, bars in named.items()
            if bars is not None
            for days in [planned.window(bars).dates]
        ]
        said.append(f"{number}: {', '.join(told)}")
    return said


def show(record: Mapping[str, Any], say: Say) -> None:
    """Print the steps, the chained accounts, and what they say."""
    console = Console(width=None if Console().is_terminal else 140)
    table = Table(title="step by step, standard convention: CR in percent")
    for name in ("test", "in sample\nCR", "SR", "out of sample\nCR", "SR", "by order\nCR", "SR"):
        table.add_column(name, justify="left" if name == "test" else "right")
    for step in record["steps"]:
        sides = [step[name] for name in ("in_sample", "out_of_sample", "buy_and_hold_by_order")]
        cells = [_cell(side[metric]) for side in sides for metric in ("CR", "SR")]
        table.add_row(f"{step['test'][0]} to {step['test'][1]}", *cells)
    console.print(table)
    console.print(chained_table(record["rows"]))
    for sentence in record["verdict"]:
        say(sentence)


def chained_table(rows: Mapping[str, Any]) -> Table:
    """The chained accounts in both conventions."""
    table = Table(title="all test windows, chained")
    table.add_column("")
    for convention in ("standard", "paper"):
        for name in ("CR %", "SR", "AV %", "MDD %"):
            table.add_column(f"{convention}\n{name}", justify="right")
    for row, by in rows.items():
        cells = [_cell(by[c][m]) for c in ("standard", "paper") for m in ("CR", "SR", "AV", "MDD")]
        table.add_row(row, *cells)
    return table


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
