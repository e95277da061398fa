"""Risk in the objective: does the policy change as it should, on markets where that is known?

    python benchmarks/risk.py --seeds 0,1,2,3,4 --json docs/risk.json

`storms`: every day's news says whether the coming move is of a calm or a stormy day. Both pay on
average, so a policy that wants the return alone stays invested; stormy days have six times the
deviation, so one that pays for drawdowns or for the worst days sits them out. `news90`: following
the news trades on half of all days; a limit on turnover makes most of them not worth it. A tiny
random model, exact advantages, unseen days.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from risk_table import summary

import learning
from flagtrl.cpu import cpu_tuning
from flagtrl.market.data import MarketData, NewsItem
from flagtrl.market.env import MarketSettings
from flagtrl.market.suite import LOOKBACK, halves, known_market, walked
from flagtrl.market.transitions import FLAT, POSITIONS, seen_at, transitions

TRAIN_BARS, TEST_BARS, STEPS = 2000, 600, 6000
CALM, STORM = 0.005, 0.03  # deviations of daily log returns
DRIFT = 0.003  # of both
# Name: market, and settings of risk.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "storms, return alone": ("storms", {}),
    "storms, drawdown": ("storms", {"risk": "drawdown", "risk_coef": 1.0}),
    "storms, CVaR of 5%": ("storms", {"risk": "cvar", "risk_coef": 0.3}),
    "storms, drawdown aimed at 8%": (
        "storms",
        {"risk": "drawdown", "risk_limit": 0.08, "risk_rate": 0.05},
    ),
    "news90, return alone": ("news90", {}),
    "news90, turnover aimed at 0.2": (
        "news90",
        {"risk": "turnover", "risk_limit": 0.2, "risk_rate": 0.05},
    ),
}


def storms(days: int, seed: int) -> MarketData:
    """Calm and stormy days, each as likely, announced two bars ahead: when an order that fills at
    the next price earns.
    """
    rng = np.random.default_rng([seed, 5])
    stormy = rng.random(days + 1) < 0.5
    deviation = np.where(stormy[: days - 1], STORM, CALM)
    returns = DRIFT + deviation * rng.standard_normal(days - 1)
    texts = {True: "Storms are expected tomorrow.", False: "A quiet day is expected tomorrow."}
    dates = np.busday_offset("2020-01-01", np.arange(days), roll="forward")
    prices = 100 * np.exp(np.concatenate([[0.0], returns.cumsum()]))
    news = tuple((NewsItem(texts[bool(each)], "neutral"),) for each in stormy[1 : days + 1])
    return MarketData("SYNTH", dates, prices, news, 252)


def run(case: str, seed: int) -> dict[str, Any]:
    """Train once; what its likeliest actions did on the unseen days."""
    name, risk = CASES[case]
    make = storms if name == "storms" else known_market(name).make
    market = make(TRAIN_BARS + TEST_BARS, seed)
    train, test = halves(market, TRAIN_BARS)
    settings = MarketSettings(reward="log_return", lookback=LOOKBACK)
    task = learning.Task(train, test, settings, None, 0.0)
    own = {**learning.preset_settings("flagtrl"), **learning.PRESETS["flagtrl"][1], **learning.TINY}
    own |= {"reward": "log_return", "logging_strategy": "steps", "logging_steps": 50, **risk}
    with learning.learner(task, {**own, "total_timesteps": STEPS, "seed": seed}) as trainer:
        trainer.train()
        decide = likeliest(trainer.model, trainer.encoder, task)
    logged = [entry for entry in trainer.state.log_history if "risk_multiplier" in entry]
    price = logged[-1]["risk_multiplier"] if logged else None
    return {"case": case, "seed": seed, "multiplier": price, **measured(decide, task)}


def likeliest(model: Any, encoder: Any, task: learning.Task) -> np.ndarray:
    """(T, H) the likeliest action on every unseen day, in both positions."""
    days = range(len(task.test) - 1)
    seen = [seen_at(task.test, task.settings, day, h) for day in days for h in POSITIONS]
    prompts, legal = list(map(encoder.encode, seen)), np.stack([each.legal for each in seen])
    logprobs = learning.answered(model, prompts, legal)
    return logprobs.reshape(len(days), len(POSITIONS), -1).argmax(-1)


def measured(decide: np.ndarray, task: learning.Task) -> dict[str, float | None]:
    """What a path from flat on had, per year of 252 days where a sum."""
    table, position, held = transitions(task.test, task.settings), FLAT, []
    for day, actions in enumerate(decide):
        position = int(table.after[day, position, actions[position]])
        held.append(position)
    paid = walked(table, lambda day, position: int(decide[day][position]))
    value = np.concatenate([[0.0], paid.cumsum()])
    news = task.test.market.news[task.test.start : task.test.stop - 1]
    stormy = np.array([each[0].text.startswith("Storms") for each in news])
    trades = np.diff(np.concatenate([[FLAT], held])) != 0
    worst = np.sort(paid)[: max(len(paid) // 20, 1)]
    return {
        "return": float(paid.sum() * 252 / len(paid)),
        "exposure": float(np.mean(held)),
        "storm_exposure": float(np.mean(np.array(held)[stormy])) if stormy.any() else None,
        "drawdown": float((np.maximum.accumulate(value) - value).max()),
        "cvar": float(-np.expm1(worst).mean()),
        "turnover": float(trades.mean()),
    }


def main() -> None:
    """Run, and write each record as soon as it is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", type=learning.numbers, default=[0, 1, 2, 3, 4])
    parser.add_argument("--json", type=Path, default=Path("docs/risk.json"))
    options = parser.parse_args()
    cpu_tuning()
    known = json.loads(options.json.read_text(encoding="utf-8")) if options.json.is_file() else []
    made: list[dict[str, Any]] = []
    for case in options.cases:
        for seed in options.seeds:
            made.append(run(case, seed))
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in made[-1].items()})
            options.json.parent.mkdir(parents=True, exist_ok=True)
            names = [(each["case"], each["seed"]) for each in made]
            kept = [each for each in known if (each["case"], each["seed"]) not in names]
            text = json.dumps([*kept, *made], indent=1)
            options.json.write_text(text + "\n", encoding="utf-8")
    print(summary(made))


if __name__ == "__main__":
    main()
